"""What a comparison of proposers came to: lines, and a table by kind of pool as text and CSV."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from merge_jax.reports.text import aligned

Line = Mapping[str, Any]
EVERY = "all"
COLUMNS = (
  "part", "kind", "contestant", "evaluations", "gain", "stderr", "n", "worst", "proposing", "evaluating",
)  # fmt: skip


def rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
  """Test gain over greedy by part of the seeds, kind (and all), contestant and budget.

  Returns:
    `gain`: mean over pools, search seeds averaged first; `stderr` of that mean over the `n` pools; `worst` of
    them; mean seconds of `proposing` and `evaluating`. The budget of `evaluations` is the first, second, …:
    it is larger for pools of many checkpoints.
  """
  found = []
  for part in dict.fromkeys(line["part"] for line in lines):
    some = [line for line in lines if line["part"] == part]
    for kind in (*dict.fromkeys(line["kind"] for line in some), EVERY):
      own = some if kind == EVERY else [line for line in some if line["kind"] == kind]
      for name in dict.fromkeys(line["contestant"] for line in own):
        for place, group in _by_budget([line for line in own if line["contestant"] == name]):
          found.append({"part": part, "kind": kind, "contestant": name, "evaluations": place} | _mean(group))
  return found


def _by_budget(lines: Sequence[Line]) -> Iterator[tuple[int, list[Line]]]:
  """Lines of the first, second, … budget of each pool, with the smallest such budget."""
  places: dict[tuple[Any, ...], list[int]] = {}
  for line in lines:
    places.setdefault(_pool(line), []).append(line["budget"])
  ordered = {pool: sorted(set(budgets)) for pool, budgets in places.items()}
  for i in range(max(map(len, ordered.values()))):
    group = [line for line in lines if ordered[_pool(line)][i : i + 1] == [line["budget"]]]
    yield min(line["budget"] for line in group), group


def _pool(line: Line) -> tuple[Any, ...]:
  return line["size"], line["kind"], line["seed"]


def _mean(lines: Sequence[Line]) -> dict[str, Any]:
  pools: dict[tuple[Any, ...], list[float]] = {}
  for line in lines:
    pools.setdefault(_pool(line), []).append(math.nan if line["gain"] is None else line["gain"])
  gains = np.array([np.mean(some) for some in pools.values()])
  error = float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan
  seconds = {
    key: float(np.mean([line.get(key) or 0.0 for line in lines])) for key in ("proposing", "evaluating")
  }
  return {
    "gain": float(gains.mean()),
    "stderr": error,
    "n": len(gains),
    "worst": float(gains.min()),
  } | seconds


def text(lines: Sequence[Line]) -> str:
  """The table for people: a block for each part of the seeds and budget, contestants × kinds.

  >>> line = {"part": "tune", "size": "s", "kind": "null", "contestant": "random", "seed": 0, "budget": 25,
  ...         "gain": 0.0125, "proposing": 0.5, "evaluating": 10.0}
  >>> print(text([line, {**line, "seed": 1, "gain": 0.0075}]))
  tune, test gain over greedy (mean ± standard error over pools)
  25 evaluations    all (2)  null (2)
  random      .0100 ± .0025  .0100 ± .0025
  """
  table = rows(lines)
  blocks = []
  for part in dict.fromkeys(row["part"] for row in table):
    some = [row for row in table if row["part"] == part]
    kinds = [EVERY, *dict.fromkeys(row["kind"] for row in some if row["kind"] != EVERY)]
    block = [f"{part}, test gain over greedy (mean ± standard error over pools)"]
    for budget in sorted({row["evaluations"] for row in some if row["kind"] == EVERY}):
      block += _block(some, kinds, budget)
    blocks.append("\n".join(block))
  return "\n\n".join(blocks)


def _block(some: Sequence[Line], kinds: Sequence[str], budget: int) -> list[str]:
  names = list(dict.fromkeys(row["contestant"] for row in some))

  def cell(name: str, kind: str) -> Line | None:
    # Kinds of large pools alone begin with a larger budget: theirs of the same place is the next one.
    own = [row for row in some if (row["contestant"], row["kind"]) == (name, kind)]
    places = sorted(row["evaluations"] for row in some if (row["contestant"], row["kind"]) == (name, EVERY))
    place = places.index(budget) if budget in places else len(own)
    return own[place] if place < len(own) else None

  lines = [[f"{budget} evaluations"], *([name] for name in names)]
  for kind in kinds:
    found = [cell(name, kind) for name in names]
    lines[0].append(f"{kind} ({max((row['n'] for row in found if row), default=0)})")
    for line, row in zip(lines[1:], found, strict=True):
      line.append("" if row is None else f"{_number(row['gain'])} ± {_number(row['stderr'])}")
  lines = [line for line in lines if any(line[1:])]  # who has no such budget
  return aligned(lines).splitlines()


def _number(value: float) -> str:
  return "–" if math.isnan(value) else f"{value:.4f}".replace("0.", ".", 1)


def as_csv(table: Sequence[Line], columns: Sequence[str]) -> str:
  """A table with a line of names."""
  out = io.StringIO()
  writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
  writer.writeheader()
  for row in table:
    writer.writerow({key: "" if _missing(row.get(key)) else row[key] for key in columns})
  return out.getvalue()


def _missing(value: Any) -> bool:
  return value is None or (isinstance(value, float) and math.isnan(value))
