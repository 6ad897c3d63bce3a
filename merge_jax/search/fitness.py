"""One number for a candidate, higher is better, from its scores on all tasks."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from merge_jax.errors import unknown
from merge_jax.search.journal import Record

AGGREGATES = ("mean", "normalized", "worst")
SOURCES = ("auto", "metric", "loss")


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
    weights: wₜ by task; tasks left out have 1.
  """

  tasks: tuple[str, ...]
  signs: tuple[float, ...]
  aggregate: str = "mean"
  source: str = "auto"
  weights: tuple[tuple[str, float], ...] = ()

  def __post_init__(self) -> None:
    if self.aggregate not in AGGREGATES:
      raise ValueError(unknown("fitness", self.aggregate, AGGREGATES))
    if self.source not in SOURCES:
      raise ValueError(unknown("fitness source", self.source, SOURCES))
    for name, value in self.weights:
      if name not in self.tasks:
        raise ValueError(unknown("task in the fitness weights", name, self.tasks))
      if not value >= 0:
        raise ValueError(f"The fitness weight of task {name!r} is {value}; expected 0 or more.")

  def values(
    self,
    scores: Mapping[str, float | None],
    losses: Mapping[str, float | None] | None,
  ) -> np.ndarray:
    """What each task contributes, higher is better: float64 `[tasks]`, NaN where not finite."""
    by_loss = self.source == "loss" or (self.source == "auto" and losses is not None)
    if by_loss and losses is None:
      raise ValueError("The fitness asks for losses, but the scorer gives scores alone.")
    source = losses if by_loss and losses is not None else scores
    signs = (-1.0,) * len(self.tasks) if by_loss else self.signs
    raw = [source[task] for task in self.tasks]
    return np.array([np.nan if v is None else v for v in raw], np.float64) * np.array(signs)

  def of(self, records: Sequence[Record]) -> np.ndarray:
    """The fitness of every record, float64; NaN where not finite or not yet defined."""
    if not records:
      return np.zeros(0)
    points = np.stack([self.values(record.scores, record.losses) for record in records])
    return self.aggregated(points, self.singles(records))

  def singles(self, records: Sequence[Record]) -> np.ndarray:
    """Per-task values of the single checkpoints, which normalized scores refer to."""
    singles = [self.values(r.scores, r.losses) for r in records if r.kind == "single"]
    return np.stack(singles) if singles else np.full((1, len(self.tasks)), np.nan)

  def aggregated(self, points: np.ndarray, singles: np.ndarray) -> np.ndarray:
    """Fitness of values `[points, tasks]`, given those of the singles."""
    if self.aggregate != "mean":
      finite = singles[np.isfinite(singles).all(axis=1)]
      low, high = (finite.min(0), finite.max(0)) if len(finite) else (np.nan, np.nan)
      spread = np.where(high > low, high - low, 1.0)
      points = (points - low) / spread
    if self.aggregate == "worst":
      return points.min(axis=1)
    weights = np.array([dict(self.weights).get(task, 1.0) for task in self.tasks])
    return points @ weights / weights.sum()


def metric_average(record: Record, signs: Sequence[float]) -> float:
  """Plain mean of a record's task scores, higher is better; NaN if one is missing."""
  values = [np.nan if v is None else v for v in record.scores.values()]
  return float(np.mean(np.array(values) * np.array(signs)))


def best(values: np.ndarray) -> int | None:
  """Index of the largest finite value (the first among equals), or None."""
  finite = np.where(np.isfinite(values), values, -np.inf)
  return int(np.argmax(finite)) if len(values) and np.isfinite(finite).any() else None
