"""One number for a candidate, higher is better, from its scores on all tasks."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from merge_jax.errors import unknown
from merge_jax.search.journal import Record
from merge_jax.search.scores import Scores, signed

AGGREGATES = ("mean", "normalized", "worst")
SOURCES = ("metric", "loss", "auto")


@dataclasses.dataclass(frozen=True)
class Fitness:
  """How scores become a fitness.

      mean        Σ wₜ sₜ / Σ wₜ
      normalized  the same of (sₜ - worst single) / (best single - worst single)
      worst       the smallest of these normalized scores

  Attributes:
    tasks: names, in order.
    signs: +1 where a higher metric is better, -1 for a loss.
    aggregate: one of `AGGREGATES`.
    source: "metric" uses each task's own metric, "loss" minus its mean negative log-likelihood
      (smoother: the same examples tell more), "auto" the loss wherever the scorer gives one.
    weights: wₜ by task; tasks left out have 1. "worst" takes none.
  """

  tasks: tuple[str, ...]
  signs: tuple[float, ...]
  aggregate: str = "mean"
  source: str = "metric"
  weights: tuple[tuple[str, float], ...] = ()

  def __post_init__(self) -> None:
    if self.aggregate not in AGGREGATES:
      raise ValueError(unknown("fitness", self.aggregate, AGGREGATES))
    if self.source not in SOURCES:
      raise ValueError(unknown("fitness source", self.source, SOURCES))
    for name, value in self.weights:
      if name not in self.tasks:
        raise ValueError(unknown("task in the fitness weights", name, self.tasks))
      if not 0 <= value < np.inf:
        raise ValueError(f"The fitness weight of task {name!r} is {value}; expected a finite number from 0.")
    if self.weights and self.aggregate == "worst":
      raise ValueError(
        "Fitness 'worst' is that of the worst task, whatever weights tasks have; leave the weights out, or "
        "take fitness 'mean' or 'normalized'."
      )
    if not self._task_weights().sum() > 0:
      raise ValueError("The fitness weights of all tasks are 0; expected a positive one.")

  def values(self, scores: Sequence[Scores], losses: Sequence[Scores | None]) -> np.ndarray:
    """What each task contributes, higher is better: float64 `[models, tasks]`, NaN where not finite.

    Raises:
      ValueError: losses are asked for, and there are none.
    """
    known = any(one is not None for one in losses)
    if self.source == "metric" or (self.source == "auto" and not known):
      return signed(scores, self.tasks, self.signs)
    if not known and losses:
      raise ValueError("The fitness asks for losses, but the scorer gives scores alone.")
    missing = dict.fromkeys(self.tasks)
    return signed([missing if one is None else one for one in losses], self.tasks, [-1.0] * len(self.tasks))

  def of(self, records: Sequence[Record]) -> np.ndarray:
    """The fitness of every record, float64; NaN where not finite or not yet defined."""
    return self.aggregated(self._contributions(records), self.singles(records))

  def _contributions(self, records: Sequence[Record]) -> np.ndarray:
    return self.values([r.scores for r in records], [r.losses for r in records])

  def singles(self, records: Sequence[Record]) -> np.ndarray:
    """Per-task values of the single checkpoints, which normalized scores refer to."""
    return self._contributions([r for r in records if r.kind == "single"])

  def aggregated(self, points: np.ndarray, singles: np.ndarray) -> np.ndarray:
    """Fitness of values `[models, tasks]`, given those of the single checkpoints."""
    parts = self.scaled(points, singles)
    if self.aggregate == "worst":
      return parts.min(axis=1)
    weights = self._task_weights()
    # By itself, or equal models would differ in the last digit by their places.
    return (parts * weights).sum(axis=1) / weights.sum()

  def parts(self, records: Sequence[Record]) -> np.ndarray:
    """What is averaged, or of which the worst counts: float64 `[records, tasks]`, NaN where not finite."""
    return self.scaled(self._contributions(records), self.singles(records))

  def scaled(self, points: np.ndarray, singles: np.ndarray) -> np.ndarray:
    """What is averaged, or of which the worst counts, of values `[models, tasks]`."""
    low, spread = self._scale(singles)
    return (points - low) / spread

  def slopes(self, points: np.ndarray, singles: np.ndarray) -> np.ndarray:
    """How the fitness changes with each value: float64 `[models, tasks]`; "worst" with the worst task's."""
    low, spread = self._scale(singles)
    if self.aggregate == "worst":
      worst = np.argmin((points - low) / spread, axis=1)
      return np.eye(len(self.tasks))[worst] / spread
    weights = self._task_weights()
    return np.broadcast_to(weights / weights.sum() / spread, points.shape)

  def _scale(self, singles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted from the values of each task, and what the rest is divided by."""
    tasks = len(self.tasks)
    if self.aggregate == "mean":
      return np.zeros(tasks), np.ones(tasks)
    finite = singles[np.isfinite(singles).all(axis=1)]
    if not len(finite):
      return np.full(tasks, np.nan), np.ones(tasks)
    low, high = finite.min(0), finite.max(0)
    return low, np.where(high > low, high - low, 1.0)

  @property
  def relative(self) -> bool:
    """Whether it is not defined before the single checkpoints are scored."""
    return self.aggregate != "mean"

  @property
  def uses_losses(self) -> bool:
    """Whether the fitness is of losses where there are some."""
    return self.source != "metric"

  def _task_weights(self) -> np.ndarray:
    given = dict(self.weights)
    return np.array([given.get(task, 1.0) for task in self.tasks])
