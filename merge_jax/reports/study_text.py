"""A study in words: a paragraph, and tables for the console."""

import textwrap
from collections.abc import Sequence

import numpy as np

from merge_jax.reports.study_data import (
  VERDICTS,
  Result,
  Row,
  amount,
  as_in_file,
  column,
  curve,
  grid,
  number,
  rows,
  said,
  tuned,
  verdict,
)  # fmt: skip
from merge_jax.reports.text import aligned, label


def digits(value: float, format: str = ".3f") -> str:
  """A number for people.

  >>> digits(0.5), digits(float("nan"))
  ('0.500', '–')
  """
  return f"{value:{format}}" if np.isfinite(value) else "–"


def interval(row: Row) -> str:
  """A value with its 95 % interval and what it is of.

  >>> interval({"value": 0.12, "low": 0.05, "high": 0.19, "n": 24})
  '0.12 [0.05, 0.19], n 24'
  """
  value, low, high, n = (number(row.get(name)) for name in ("value", "low", "high", "n"))
  text = digits(value, ".3g")
  if np.isfinite(low) and np.isfinite(high):
    text += f" [{low:.3g}, {high:.3g}]"
  return text + (f", n {n:.0f}" if np.isfinite(n) else "")


def paragraph(result: Result) -> str:
  """What was run and what came out, each number computed from the result."""
  found = grid(result)
  held_in, held_out = (dict(result.get(part) or {}) for part in ("held_in", "held_out"))
  tasks = sum(len(members or ()) for members in held_in.values())
  known = [amount(value) for value in found.parameters if np.isfinite(value)]
  sizes = _many(len(found.sizes), "size", "sizes") + (f" ({', '.join(known)} parameters)" if known else "")
  kinds = _many(len(found.kinds), "kind of base", "kinds of base") + _listed(found.kinds)
  text = [
    f"Experts of {_many(len(held_in), 'held-in category', 'held-in categories')} "
    f"({_many(tasks, 'task', 'tasks')}) were merged by {_many(len(found.methods), 'method', 'methods')}"
    f"{_listed(map(label, found.methods))}, {_either(found.counts)} at a time, from {kinds} in {sizes}, and "
    "scored on test examples of these tasks and of "
    f"{_many(len(held_out), 'held-out category', 'held-out categories')}.",
    f"{verdict_counts(result)}.",
  ]
  most = found.counts[-1:]
  for held, words in (
    ("in", "of their experts' held-in scores"),
    ("out", "times their base's held-out scores"),
  ):
    values = column([row for row in tuned(result, held=held) if row.get("count") in most], "value")
    values = values[np.isfinite(values)]
    if len(values):
      text.append(
        f"Merges of {most[0]} reach {_range(values)} {words} (median {np.median(values):.2f}, over "
        f"{_many(len(values), 'mean', 'means')} by size, base and method)."
      )
  out = [
    f"{said(row, 'size')} from the {said(row, 'kind')} base" for row in rows(result, "gate", enough=False)
  ]
  if out:
    text.append(
      f"Left out of verdicts, since their experts gain too little over their base: {'; '.join(out)}."
    )
  return " ".join(text)


def verdict_counts(result: Result) -> str:
  """How many claims got which verdict."""
  words = [verdict(row)[0] for row in rows(result, "claims")]
  if not words:
    return "No claim was tested"
  counts = ", ".join(f"{words.count(word)} {_plural(word, words.count(word))}" for word in VERDICTS)
  return f"Of {_many(len(words), 'claim', 'claims')}, {counts}"


def _plural(word: str, count: int) -> str:
  return {
    "holds": "holds" if count == 1 else "hold",
    "does not hold": "does not hold" if count == 1 else "do not hold",
    "cannot tell here": "cannot be told here",
  }[word]


def _many(count: int, one: str, more: str) -> str:
  return f"{count} {one if count == 1 else more}"


def _listed(names: Sequence[str] | map) -> str:
  text = ", ".join(map(str, names))
  return f" ({text})" if text else ""


def _either(counts: Sequence[int]) -> str:
  words = [str(count) for count in counts] or ["none"]
  return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _range(values: np.ndarray) -> str:
  low, high = f"{values.min():.2f}", f"{values.max():.2f}"
  return low if low == high else f"{low} to {high}"


def console(result: Result) -> str:
  """The claims with their verdicts, and scores by method with the most experts, as aligned tables."""
  result, lines = as_in_file(result), [["", "verdict", "value", "claim"]]
  for row in rows(result, "claims"):
    values = [digits(number(one.get("value")), ".3g") for one in row.get("values") or ()]
    shown = " / ".join(values[:4]) + (" / …" if len(values) > 4 else "")
    word, _, sign = verdict(row)
    text = textwrap.shorten(said(row, "text", ""), 60, placeholder=" …")
    lines.append([said(row, "id", ""), f"{sign} {word}", shown or "–", text])
  tables = [aligned(lines, 4)] if len(lines) > 1 else []
  tables.append(f"{verdict_counts(result)}.")
  for held, words in (("in", "Held-in score ÷ expert's"), ("out", "Held-out score ÷ base's")):
    table = by_method(result, held)
    if len(table) > 1:
      tables.append(f"{words}, {grid(result).counts[-1]} experts:\n{aligned(table)}")
  return "\n\n".join(tables)


def by_method(result: Result, held: str, is_tuned: bool = True, intervals: bool = False) -> list[list[str]]:
  """Scores with the most experts: a row for each size and kind of base, a column for each method.

  Returns:
    rows of texts, the first of them the header; it alone if nothing is known.
  """
  found = grid(result)
  table = [["", *map(label, found.methods), *(["multitask"] if is_tuned else [])]]
  for size in found.sizes:
    for kind in found.kinds:
      where = {"size": size, "kind": kind, "held": held}
      some = [tuned(result, is_tuned, method=method, **where) for method in found.methods]
      several = [curve(one, found.counts[-1:]) for one in (*some, rows(result, "multitask", **where))]
      several = several if is_tuned else several[:-1]
      if found.counts and any(one.known.any() for one in several):
        cells = []
        for one in several:
          text = digits(one.value[0])
          if intervals and one.high[0] > one.low[0]:
            text += f" [{one.low[0]:.2f}, {one.high[0]:.2f}]"
          cells.append(text)
        table.append([f"{size}, {kind}", *cells])
  kept = [0, *(i for i in range(1, len(table[0])) if {row[i] for row in table[1:]} != {"–"})]
  return [[row[i] for i in kept] for row in table]


def numbers_text(values: object) -> str:
  """Hyper-parameters in a line.

  >>> numbers_text({"scaling": 0.4, "density": 0.2})
  'scaling 0.4, density 0.2'
  """
  pairs = values.items() if isinstance(values, dict) else ()
  return ", ".join(f"{name} {digits(number(value), '.4g')}" for name, value in pairs) or "none"


def duration(seconds: float) -> str:
  """A time for people.

  >>> duration(5012), duration(42.4)
  ('1 h 24 min', '42 s')
  """
  minutes = round(seconds / 60)
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
