"""What a merge at weights that were never evaluated would score: a process of answers, read as scores."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from merge_jax.search.fitness import Fitness
from merge_jax.search.surrogate import process
from merge_jax.search.surrogate.process import Process


class Smoothed(Protocol):
  """Scores of predicted answers, and how they change; see `merge_jax.evals.smoothing.Smoothed`."""

  @property
  def scores(self) -> np.ndarray: ...
  @property
  def slopes(self) -> np.ndarray: ...
  @property
  def spread(self) -> np.ndarray: ...


class Table(Protocol):
  """Answers of several models, column by column the same; see `merge_jax.evals.smoothing.Table`."""

  @property
  def values(self) -> np.ndarray: ...
  @property
  def tasks(self) -> np.ndarray: ...
  @property
  def weights(self) -> np.ndarray: ...
  def smoothed(self, row: np.ndarray, variance: np.ndarray) -> Smoothed: ...
  def paired_error(
    self, row: np.ndarray, other: np.ndarray, slopes: np.ndarray
  ) -> tuple[float, np.ndarray]: ...


class Answers(Protocol):
  """Makes tables of outputs; see `merge_jax.evals.answers.Answers`."""

  def table(self, outputs: Sequence[Any], losses: bool = False) -> Table: ...


class Foreseen(NamedTuple):
  """Of one point.

  Attributes:
    value: the smoothed fitness, or an error of it.
    slope: float64 `[d]`, its derivative by the point.
  """

  value: float
  slope: np.ndarray


@dataclasses.dataclass(frozen=True)
class Model:
  """A surrogate of the fitness.

  Attributes:
    table: answers of the evaluated models.
    process: of their differences from `middle`, each task's divided by its `scales`.
    middle: float32 `[columns]`.
    data: float32 `[n, columns]`, these differences.
    scales: float64 `[tasks]`.
    errors: float64 `[tasks]`, squared errors of a task's predictions for models that are left out, over what
      the process thinks they are.
    signs: +1 where a task's smoothed score is better higher.
    fitness: of the scores.
    singles: float64 `[singles, tasks]`, what normalized scores refer to.
  """

  table: Table
  process: Process
  middle: np.ndarray
  data: np.ndarray
  scales: np.ndarray
  errors: np.ndarray
  signs: np.ndarray
  fitness: Fitness
  singles: np.ndarray

  def at(self, z: np.ndarray, *, caution: float = 1.0) -> Foreseen:
    """What is foreseen at a point `[d]`; with a caution of 0 predictions are taken as if they were sure."""
    row, variance = self._row(z)
    unsure = caution * self.errors * self.scales**2
    smoothed = self.table.smoothed(row, variance * unsure)
    scores = smoothed.scores * self.signs
    by_task = self.fitness.slopes(scores[None], self.singles)[0] * self.signs
    by_point, by_variance = self.process.slopes(z)
    by_column = smoothed.slopes * (by_task[self.table.tasks] * self._column_scales).astype(np.float32)
    slope = self._through(by_point, by_column)
    slope += float(by_task @ (smoothed.spread * unsure)) * by_variance
    return Foreseen(float(self.fitness.aggregated(scores[None], self.singles)[0]), slope)

  def scores(self, z: np.ndarray) -> np.ndarray:
    """Smoothed scores `[tasks]` that are foreseen at a point, higher is better, as if they were sure."""
    return self.table.smoothed(self._row(z)[0], np.zeros(len(self.signs))).scores * self.signs

  def error(self, z: np.ndarray, other: np.ndarray) -> Foreseen:
    """Paired error, over examples, of the fitness that is foreseen at z less that at the other point."""
    slopes = self.fitness.slopes(self.scores(z)[None], self.singles)[0] * self.signs
    value, by_column = self.table.paired_error(self._row(z)[0], self._row(other)[0], slopes)
    return Foreseen(value, self._through(self.process.slopes(z)[0], by_column * self._column_scales))

  def _through(self, by_point: np.ndarray, by_column: np.ndarray) -> np.ndarray:
    """A derivative by predicted answers over their scales as one by the point."""
    return by_point.T @ (self.data @ by_column).astype(np.float64)

  def _row(self, z: np.ndarray) -> tuple[np.ndarray, float]:
    """Predicted answers, and the variance of the process there."""
    coefficients, variance = self.process.at(z)
    return self.middle + (coefficients.astype(np.float32) @ self.data) * self._column_scales, variance

  @property
  def _column_scales(self) -> np.ndarray:
    return self.scales.astype(np.float32)[self.table.tasks]


def learn(
  points: np.ndarray,
  table: Table,
  fitness: Fitness,
  signs: np.ndarray,
  singles: np.ndarray,
  start: np.ndarray = process.START,
) -> Model:
  """The surrogate of n evaluated models at `points` `[n, d]`; `start` as for `process.fit`."""
  middle = table.values.mean(axis=0)
  data = table.values - middle
  count = len(signs)
  totals = np.bincount(table.tasks, table.weights, minlength=count)
  means = np.square(data, dtype=np.float64).mean(axis=0)  # float32 ends at differences of 2e19
  squares = np.bincount(table.tasks, table.weights * means, minlength=count)
  scales = np.sqrt(np.where(squares > 0, squares / np.maximum(totals, 1e-12), 1.0))
  data = data / scales.astype(np.float32)[table.tasks]
  # Every task counts the same, however many outputs it has.
  shares = table.weights / np.maximum(totals, 1e-12)[table.tasks] / count
  gram = (data * shares.astype(np.float32)) @ data.T
  fitted = process.fit(points, gram.astype(np.float64), start)
  left_out = (fitted.inverse @ data) / np.diag(fitted.inverse)[:, None]
  ratios = (left_out**2 * np.diag(fitted.inverse)[:, None]).mean(axis=0)
  errors = np.bincount(table.tasks, shares * ratios, minlength=count) * count
  return Model(table, fitted, middle, data, scales, errors, signs, fitness, singles)
