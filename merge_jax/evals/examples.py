"""What single examples scored: the numbers that scores and their errors are computed from."""

import dataclasses
import itertools
from collections.abc import Collection, Mapping
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
    groups: int64 `[examples]`, the independent unit of each (see `tasks.units`); None: each is one.
    smooth: float64 `[examples]`, numerators of the smoothed metric (`metrics.smoothed`); None where they are
      not known.
  """

  tasks: tuple[str, ...]
  signs: tuple[float, ...]
  counts: tuple[int, ...]
  values: Floats
  groups: npt.NDArray[np.int64] | None = None
  smooth: Floats | None = None

  @classmethod
  def of_scores(cls, scores: Mapping[str, npt.ArrayLike], signs: Mapping[str, float]) -> "Examples":
    """Of what each example scored, by task, where a task's score is the mean; losses are not known.

    >>> Examples.of_scores({"a": [1.0, 0.0, 0.5]}, {"a": 1.0}).scores()
    {'a': 0.5}
    """
    columns = [np.ravel(np.asarray(scores[name], np.float64)) for name in signs]
    sums, counts = np.concatenate(columns), tuple(map(len, columns))
    none = np.full_like(sums, np.nan)
    values = np.stack([sums, np.ones_like(sums), none, none])
    return cls(tuple(signs), tuple(signs.values()), counts, values)

  @property
  def units(self) -> npt.NDArray[np.int64]:
    """The unit of each example, from 0."""
    return np.arange(sum(self.counts)) if self.groups is None else self.groups

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

  def average(self) -> float:
    """The mean of the tasks' scores, higher is better; NaN without tasks."""
    values = np.array([*self.scores().values()]) * np.array(self.signs)
    return float(values.mean()) if len(values) else np.nan

  def only(self, chosen: npt.NDArray[np.bool_]) -> "Examples":
    """Those examples that are marked: bool `[examples]`."""
    ends = np.cumsum(self.counts)
    sizes = tuple(int(chosen[e - n : e].sum()) for e, n in zip(ends, self.counts, strict=True))
    smooth = None if self.smooth is None else self.smooth[chosen]
    return Examples(self.tasks, self.signs, sizes, self.values[:, chosen], self.units[chosen], smooth)

  def of_tasks(self, names: Collection[str]) -> "Examples":
    """Those of some tasks, in the same order."""
    wanted = [name in names for name in self.tasks]
    own = self.only(np.repeat(wanted, self.counts))

    def kept(values: tuple[Any, ...]) -> tuple[Any, ...]:
      return tuple(itertools.compress(values, wanted))

    return dataclasses.replace(own, tasks=kept(own.tasks), signs=kept(own.signs), counts=kept(own.counts))

  def smoothed(self) -> "Examples":
    """The same with the smoothed metric in place of the metric.

    Raises:
      ValueError: it is not known.
    """
    if self.smooth is None:
      raise ValueError("These examples have no smoothed scores; ask `make_scorer` for them.")
    return dataclasses.replace(self, values=np.concatenate([self.smooth[None], self.values[1:]]), smooth=None)

  def to_plain(self, *, losses: bool = False) -> dict[str, dict[str, list[float | None]]]:
    """The metric's numbers for a JSON file, smoothed ones if there are, and on request those of the loss.

    null stands for what is not finite.

    >>> Examples(("a",), (1.0,), (2,), np.array([[1.0, 0], [1, 1], [2, np.nan], [3, 3]])).to_plain()
    {'a': {'sums': [1.0, 0.0], 'counts': [1.0, 1.0]}}
    """
    names = ("sums", "counts", "losses", "tokens") if losses else ("sums", "counts")
    rows = dict(zip(names, self.values, strict=False))
    if self.smooth is not None:
      rows["smooth"] = self.smooth
    ends = np.cumsum(self.counts)
    return {
      name: {key: _nulls(row[end - count : end]) for key, row in rows.items()}
      for name, count, end in zip(self.tasks, self.counts, ends, strict=True)
    }

  @classmethod
  def from_plain(
    cls,
    plain: Any,
    signs: Mapping[str, float],
    where: str = "Examples",
    groups: npt.NDArray[np.int64] | None = None,
  ) -> "Examples":
    """Reads what `to_plain` gave; losses that were not asked for are NaN, and smoothed scores of all tasks
    or none.

    Args:
      plain: by task.
      signs: of the tasks, in their order.
      where: file and line, for errors.
      groups: see the attribute; those of another number of examples are an error.

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
      for what, some in (("losses", column.losses), ("tokens", column.tokens), ("smooth", column.smooth)):
        if some is not None and len(some) != len(column.sums):
          raise ValueError(f"{where}: task {name!r} has {len(column.sums)} sums and {len(some)} {what}.")
    values = np.concatenate([columns[name].array for name in signs], axis=1)
    sizes = tuple(len(columns[name].sums) for name in signs)
    if groups is not None and len(groups) != sum(sizes):
      raise ValueError(f"{where}: {sum(sizes)} examples; the tasks have {len(groups)}.")
    smooth = [columns[name].smooth for name in signs]
    known = None if None in smooth else np.concatenate([np.array(x, np.float64) for x in smooth])
    return cls(tuple(signs), tuple(signs.values()), sizes, values, groups, known)


class _Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  sums: list[float | None]
  counts: list[float | None]
  losses: list[float | None] | None = None
  tokens: list[float | None] | None = None
  smooth: list[float | None] | None = None

  @property
  def array(self) -> Floats:
    """The first four, float64 `[4, examples]`; NaN where there are none."""
    none = [None] * len(self.sums)
    return np.array([self.sums, self.counts, self.losses or none, self.tokens or none], np.float64)


def _nulls(values: Floats) -> list[float | None]:
  return [value if np.isfinite(value) else None for value in values.tolist()]
