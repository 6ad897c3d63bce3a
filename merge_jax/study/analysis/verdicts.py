"""From intervals to "holds", "does not hold" or "cannot tell here", by fixed rules.

A check asks on which side of a bound a statistic is; an interval that is wholly on one side answers it.

- `every`: a claim of each of its checks. Holds if all intervals are on the claimed side; does not hold if any
  is wholly on the other; else one cannot tell. Further checks can only contradict.
- `some`: a claim that there is one. Holds if any interval is on the claimed side; does not hold if all are on
  the other. Intervals must have been widened for the number of checks.
- `absent`: a claim that there is no effect. Holds if all intervals contain 0 and lie within ± a bound; does
  not hold if any is wholly on one side of 0.
- `together`: a claim of several parts, like `every`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.study.analysis.intervals import Interval

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell here"


class Check(NamedTuple):
  """Whether a statistic is above (or below) a bound."""

  label: str
  interval: Interval
  bound: float = 0.0
  above: bool = True

  @property
  def side(self) -> int:
    """+1 where the interval is on the claimed side, -1 on the other, 0 on both or without an interval."""
    over, under = self.interval.low > self.bound, self.interval.high < self.bound
    return (int(over) - int(under)) * (1 if self.above else -1)

  @property
  def distance(self) -> float:
    """How far the worse end of the interval is on the claimed side."""
    ends = self.interval.low - self.bound, self.bound - self.interval.high
    return -np.inf if np.isnan(ends[0]) else ends[0 if self.above else 1]

  @property
  def claimed(self) -> str:
    return f"{'above' if self.above else 'below'} {self.bound:g}"

  @property
  def other(self) -> str:
    return f"{'below' if self.above else 'above'} {self.bound:g}"

  def __str__(self) -> str:
    value, low, high, _ = self.interval
    if np.isnan(low):
      return f"{self.label} {value:.3f} without an interval"
    return f"{self.label} {value:.3f} [{low:.3f}, {high:.3f}]"


class Judgement(NamedTuple):
  """A verdict and a sentence with its reason."""

  verdict: str
  why: str


class Value(NamedTuple):
  """A statistic of a claim; `size` says of which size (or sizes, or setting) it is."""

  size: str
  interval: Interval


class Claim(NamedTuple):
  """What a paper says, how it was tested and what came out."""

  id: str
  text: str
  scope: str
  statistic: str
  values: tuple[Value, ...] = ()
  verdict: str = UNKNOWN
  why: str = ""

  def unknown(self, why: str) -> "Claim":
    """Without what a check needs."""
    return self._replace(verdict=UNKNOWN, why=why)

  def judged(self, values: Sequence[Value], judgement: Judgement, note: str = "") -> "Claim":
    """With its values and verdict; a note is added to the reason."""
    why = f"{judgement.why.rstrip('.')}; {note}." if note else judgement.why
    return self._replace(values=tuple(values), verdict=judgement.verdict, why=why)

  def plain(self) -> dict[str, Any]:
    """For a JSON file."""
    return self._asdict() | {"values": [{"size": one.size} | one.interval.plain() for one in self.values]}


def every(checks: Sequence[Check], contradictions: Sequence[Check] = ()) -> Judgement:
  """Whether all checks are on the claimed side, and no further one on the other."""
  against = [check for check in (*checks, *contradictions) if check.side < 0]
  if against:
    return Judgement(FAILS, _sentence(against, lambda check: f"{check.other}, not {check.claimed}"))
  unclear = [check for check in checks if check.side == 0]
  if unclear:
    return Judgement(UNKNOWN, _sentence(unclear, lambda check: f"not clearly {check.claimed}"))
  return Judgement(HOLDS if checks else UNKNOWN, _sentence(checks, lambda check: check.claimed))


def some(checks: Sequence[Check]) -> Judgement:
  """Whether any check is on the claimed side."""
  found = [check for check in checks if check.side > 0]
  if found:
    return Judgement(HOLDS, _sentence(found, lambda check: check.claimed))
  if checks and all(check.side < 0 for check in checks):
    return Judgement(FAILS, _sentence(checks, lambda check: f"{check.other}, not {check.claimed}"))
  nearest = sorted(checks, key=lambda check: check.distance, reverse=True)[:1]
  return Judgement(UNKNOWN, _sentence(nearest, lambda check: f"none clearly {check.claimed}, the nearest"))


def absent(checks: Sequence[Check], within: float) -> Judgement:
  """Whether there is no effect: all intervals contain 0 and none reaches ± `within`."""
  against = [check for check in checks if check.interval.low > 0 or check.interval.high < 0]
  if against:
    return Judgement(FAILS, _sentence(against, lambda check: "not 0"))
  unclear = [t for t in checks if not (t.interval.low > -within and t.interval.high < within)]
  if unclear:
    return Judgement(UNKNOWN, _sentence(unclear, lambda check: f"perhaps 0, perhaps beyond ±{within:g}"))
  return Judgement(HOLDS if checks else UNKNOWN, _sentence(checks, lambda check: f"0 within ±{within:g}"))


def together(parts: Sequence[Judgement]) -> Judgement:
  """Whether all parts hold; of those that decide the reasons are kept."""
  verdicts = [part.verdict for part in parts]
  verdict = FAILS if FAILS in verdicts else UNKNOWN if UNKNOWN in verdicts or not parts else HOLDS
  reasons = [part.why.rstrip(".") for part in parts if part.verdict == verdict]
  return Judgement(verdict, f"{'; '.join(reasons) or 'There is nothing to check'}.")


def _sentence(checks: Sequence[Check], said: Callable[[Check], str], most: int = 4) -> str:
  """What is said of checks, with their numbers; those of which the same is said stand together."""
  groups: dict[str, list[str]] = {}
  for check in checks:
    groups.setdefault(said(check), []).append(str(check))
  parts = []
  for what, names in groups.items():
    more = f" and {len(names) - most} more" if len(names) > most else ""
    parts.append(f"{what}: {', '.join(names[:most])}{more}")
  text = "; ".join(parts) or "there is nothing to check"
  return f"{text[0].upper()}{text[1:]}."
