"""Utilities whose highest points lie all along the front; a search for trade-offs goes up one by one."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from merge_jax.search.fitness import Fitness

AUGMENTED = 0.02
"""Share of the mean beside the worst task: of points that are alike in the worst, the better one."""


@dataclasses.dataclass(frozen=True)
class Direction(Fitness):
  """How far a point is from the best seen in each task, in the one that matters most (augmented Chebyshev).

      u = min_t λₜ (pₜ - p*ₜ) + AUGMENTED Σ λₜ (pₜ - p*ₜ)        pₜ = (sₜ - worst) / (best - worst single)

  Every point of the front, convex or not, is the highest for some λ (Steuer and Choo 1983).

  Attributes:
    importance: λ, `[tasks]`, positive, of sum 1.
    ideal: p*, `[tasks]`.
  """

  importance: tuple[float, ...] = ()
  ideal: tuple[float, ...] = ()

  @classmethod
  def toward(
    cls, fitness: Fitness, importance: np.ndarray, points: np.ndarray, singles: np.ndarray
  ) -> "Direction":
    """The utility of an importance, beside what points have reached.

    Args:
      fitness: whose tasks these are.
      importance: `[tasks]`.
      points, singles: as for `Fitness.aggregated`.
    """
    normalized = dataclasses.replace(fitness, aggregate="normalized", weights=())
    ideal = normalized.scaled(points, singles).max(axis=0)
    return cls(
      fitness.tasks, fitness.signs, "normalized", fitness.source,
      importance=tuple(importance.tolist()), ideal=tuple(ideal.tolist()),
    )  # fmt: skip

  def aggregated(self, points: np.ndarray, singles: np.ndarray) -> np.ndarray:
    """u of values `[models, tasks]`."""
    short = self._short(points, singles)
    return short.min(axis=1) + AUGMENTED * short.sum(axis=1)

  def slopes(self, points: np.ndarray, singles: np.ndarray) -> np.ndarray:
    """How u changes with each value: float64 `[models, tasks]`."""
    worst = np.eye(len(self.tasks))[self._short(points, singles).argmin(axis=1)]
    return (worst + AUGMENTED) * np.array(self.importance) / self._scale(singles)[1]

  def _short(self, points: np.ndarray, singles: np.ndarray) -> np.ndarray:
    return np.array(self.importance) * (self.scaled(points, singles) - np.array(self.ideal))


def importances(count: int, seed: int) -> Iterator[np.ndarray]:
  """Points of the simplex, evenly spread: all tasks alike first, then a scrambled Sobol sequence.

  >>> first, second = (next(all) for all in [importances(3, 0)] for _ in range(2))
  >>> first.tolist() == [1 / 3] * 3, round(float(second.sum()), 6)
  (True, 1.0)
  """
  from scipy.stats import qmc

  yield np.full(count, 1.0 / count)
  sequence = qmc.Sobol(count, rng=np.random.default_rng(seed))
  while True:
    spread = -np.log(np.clip(sequence.random(1)[0], 1e-12, 1 - 1e-12))  # exponential: uniform on the simplex
    yield np.maximum(spread / spread.sum(), 1e-3)
