"""What single examples scored: the numbers that scores and their errors are computed from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from merge_jax.decoding import convert

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Examples:
  """What every example of every task scored; a score is a ratio of sums.

  Attributes:
    tasks: names in order.
    signs: +1 where a higher score of the task is better, -1 for a loss.
    counts: numbers of examples of the tasks.
    values: float64 `[4, examples]`: numerator and denominator of the metric, then of the loss.
  """

  tasks: tuple[str, ...]
  signs: tuple[float, ...]
  counts: tuple[int, ...]
  values: Floats

  def of(self, task: int, loss: bool = False) -> tuple[Floats, Floats]:
    """Numerators and denominators of one task's examples."""
    start = sum(self.counts[:task])
    part = self.values[:, start : start + self.counts[task]]
    return (part[2], part[3]) if loss else (part[0], part[1])

  @np.errstate(invalid="ignore", divide="ignore")
  def scores(self, loss: bool = False) -> dict[str, float]:
    """The score of each task by its metric, or its loss; NaN without examples."""
    result = {}
    for i, name in enumerate(self.tasks):
      top, bottom = self.of(i, loss)
      result[name] = float(top.sum() / bottom.sum())
    return result

  def to_plain(self) -> dict[str, dict[str, list[float | None]]]:
    """The metric's numbers for a JSON file, null where not finite; losses are left out.

    >>> Examples(("a",), (1.0,), (2,), np.array([[1.0, 0], [1, 1], [2, np.nan], [3, 3]])).to_plain()
    {'a': {'sums': [1.0, 0.0], 'counts': [1.0, 1.0]}}
    """
    columns = {name: self.of(i) for i, name in enumerate(self.tasks)}
    return {name: {"sums": _nulls(top), "counts": _nulls(bottom)} for name, (top, bottom) in columns.items()}

  @classmethod
  def from_plain(cls, plain: Any, signs: Mapping[str, float], where: str = "Examples") -> "Examples":
    """Reads what `to_plain` gave; losses are NaN.

    Args:
      plain: by task.
      signs: of the tasks, in their order.
      where: file and line, for errors.

    Raises:
      ValueError: tasks are missing or others, or columns differ in length.
    """
    columns = convert(plain, dict[str, _Columns], where)
    if columns.keys() != signs.keys():
      raise ValueError(f"{where}: examples of the tasks {sorted(columns)}; expected {sorted(signs)}.")
    for name, column in columns.items():
      if len(column.sums) != len(column.counts):
        raise ValueError(
          f"{where}: task {name!r} has {len(column.sums)} sums and {len(column.counts)} counts."
        )
    parts = [np.array([columns[name].sums, columns[name].counts], np.float64) for name in signs]
    values = np.concatenate(parts, axis=1)
    unknown = np.full_like(values, np.nan)
    sizes = tuple(part.shape[1] for part in parts)
    return cls(tuple(signs), tuple(signs.values()), sizes, np.concatenate([values, unknown]))


class _Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  sums: list[float | None]
  counts: list[float | None]


def _nulls(values: Floats) -> list[float | None]:
  return [value if np.isfinite(value) else None for value in values.tolist()]
