"""The result of a study as its report reads it: rows by their fields, what is not there as NaN.

Any part of a `result.json` may be missing, empty or null: the report then shows less.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Result = Mapping[str, Any]
Row = Mapping[str, Any]
VERDICTS = {  # a word's colour and its sign: never the colour alone
  "holds": ("#00714f", "✓"), "does not hold": ("#b34700", "✗"), "cannot tell here": ("#5b6470", "?"),
}  # fmt: skip


class Grid(NamedTuple):
  """What was varied, each in its order.

  Attributes:
    sizes, kinds, methods: names.
    counts: numbers of experts.
    parameters: of the sizes, NaN where they are not known.
  """

  sizes: list[str]
  kinds: list[str]
  methods: list[str]
  counts: list[int]
  parameters: np.ndarray


def is_study(result: Result) -> bool:
  """Whether a `result.json` is of a study, not of a search."""
  return bool({"claims", "curves"} & {*result})


def as_in_file(part: Any) -> Any:
  """A result as JSON has it: None for numbers that are not finite.

  >>> as_in_file({"value": float("nan"), "n": (1, 2)})
  {'value': None, 'n': [1, 2]}
  """
  if isinstance(part, Mapping):
    return {name: as_in_file(one) for name, one in part.items()}
  if isinstance(part, list | tuple):
    return [as_in_file(one) for one in part]
  return None if isinstance(part, float) and not math.isfinite(part) else part


def rows(result: Result, *path: str, **fields: Any) -> list[Row]:
  """The rows of a part that have these values.

  >>> rows({"gate": [{"size": "small", "enough": True}, None]}, "gate", size="small")
  [{'size': 'small', 'enough': True}]
  """
  part: Any = result
  for name in path:
    part = part.get(name) if isinstance(part, Mapping) else None
  return where((row for row in part or () if isinstance(row, Mapping)), **fields)


def where(some: Iterable[Row], **fields: Any) -> list[Row]:
  """Those of some rows that have these values."""
  return [row for row in some if all(row.get(name) == value for name, value in fields.items())]


def said(row: Row, name: str, otherwise: str = "–") -> str:
  """A name or sentence of a row.

  >>> said({"size": "small"}, "size"), said({"size": None}, "size")
  ('small', '–')
  """
  value = row.get(name)
  return otherwise if value is None or value == "" else str(value)


def number(value: Any) -> float:
  """A number, or NaN for what is none.

  >>> number(1), number(None)
  (1.0, nan)
  """
  return float(value) if isinstance(value, int | float) else np.nan


def column(some: Iterable[Row], name: str) -> np.ndarray:
  """One number of every row."""
  return np.array([number(row.get(name)) for row in some], np.float64)


def numbers(values: Any) -> np.ndarray:
  """A list of numbers, NaN where there is none."""
  return np.array([number(value) for value in values or ()], np.float64)


def distinct(values: Iterable[Any]) -> list[Any]:
  """Each value once, in the order in which it comes; None is no value."""
  return [value for value in dict.fromkeys(values) if value is not None]


def grid(result: Result) -> Grid:
  """What was varied: as the result lists it, and what only its rows name."""
  sizes = {row["name"]: number(row.get("parameters")) for row in rows(result, "sizes") if row.get("name")}
  named = rows(result, "curves") + rows(result, "experts") + rows(result, "multitask")
  for row in named:
    sizes.setdefault(row.get("size", ""), np.nan)
  sizes.pop("", None)

  def listed(part: str, field: str) -> list[Any]:
    return distinct([*(result.get(part) or ()), *(row.get(field) for row in named)])

  return Grid(
    list(sizes),
    listed("kinds", "kind"),
    distinct([*(result.get("methods") or ()), *(row.get("method") for row in rows(result, "curves"))]),
    sorted(listed("counts", "count")),
    np.array(list(sizes.values()), np.float64),
  )


class Curve(NamedTuple):
  """Values with 95 % intervals, one for each count: `[counts]`, NaN where there is none."""

  value: np.ndarray
  low: np.ndarray
  high: np.ndarray
  n: np.ndarray

  @property
  def known(self) -> np.ndarray:
    return np.isfinite(self.value)


def curve(some: Sequence[Row], counts: Sequence[int]) -> Curve:
  """The rows of one curve, of several with one count the first."""
  by_count: dict[Any, Row] = {}
  for row in some:
    by_count.setdefault(row.get("count"), row)
  found = [by_count.get(count, {}) for count in counts]
  value, low, high, n = (column(found, name) for name in ("value", "low", "high", "n"))
  value = np.where(np.isfinite(value), value, np.nan)
  # An interval that is not known, or that ends nowhere, is none.
  bounded = np.isfinite(low) & np.isfinite(high)
  return Curve(value, np.where(bounded, low, value), np.where(bounded, high, value), n)


def tuned(result: Result, is_tuned: bool = True, /, **fields: Any) -> list[Row]:
  """Rows of the curves: with the numbers chosen on validation, or with the untuned ones."""
  return [row for row in rows(result, "curves", **fields) if (row.get("tuned") is not False) == is_tuned]


def curves(result: Result, found: Grid, size: str, kind: str, held: str) -> dict[str, Curve]:
  """The curve of each method with its tuned numbers, and under "" that of multitask training."""
  where: dict[str, Any] = {"size": size, "kind": kind, "held": held}
  several = {one: curve(tuned(result, True, method=one, **where), found.counts) for one in found.methods}
  return several | {"": curve(rows(result, "multitask", **where), found.counts)}


def at_most(one: Curve) -> Curve:
  """A curve's end: the value with the most experts."""
  return Curve(*(part[-1:] for part in one))


def difference(a: Curve, b: Curve) -> Curve:
  """a − b, with an interval as if the two were independent; a paired one is narrower where they agree."""
  value = a.value - b.value
  below = np.hypot(a.value - a.low, b.high - b.value)
  above = np.hypot(a.high - a.value, b.value - b.low)
  return Curve(value, value - below, value + above, np.fmin(a.n, b.n))


def amount(value: float) -> str:
  """A number of parameters, or of anything that is large.

  >>> amount(3.1e6), amount(212_000), amount(float("nan"))
  ('3.1M', '212k', '')
  """
  if not np.isfinite(value):
    return ""
  for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if value >= unit:
      return f"{value / unit:.3g}{name}"
  return f"{value:.3g}"


def verdict(row: Row) -> tuple[str, str, str]:
  """The word, colour and sign of a claim's verdict; without one nothing can be told."""
  word = row.get("verdict")
  word = word if word in VERDICTS else "cannot tell here"
  return word, *VERDICTS[word]


class ModelName(NamedTuple):
  """What a row of `scores` says of its model: `merge:METHOD:COUNT:SUBSET`, `expert:CATEGORY`, `base`."""

  role: str
  name: str = ""
  experts: str = ""
  subset: str = ""


def model_name(text: Any) -> ModelName:
  """Reads the name of a model.

  >>> model_name("merge:ties:8:0")
  ModelName(role='merge', name='ties', experts='8', subset='0')
  """
  return ModelName(*str(text).split(":", 3))
