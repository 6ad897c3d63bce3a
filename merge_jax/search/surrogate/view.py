"""What a surrogate knows after some evaluations, seen from the best of them."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.search.journal import Record
from merge_jax.search.options import Options
from merge_jax.search.point import Candidate, Point
from merge_jax.search.surrogate import process
from merge_jax.search.surrogate.directions import Direction
from merge_jax.search.surrogate.model import Model, learn
from merge_jax.search.surrogate.region import Metric


class View(NamedTuple):
  """The surrogate of all records so far, around the best of them.

  Attributes:
    options: of the search.
    records: those it has learned from.
    heights: float64 `[records]`, their smoothed fitness, from their own answers.
    model: of their answers.
    metric: of its points; the best record lies at 0.
  """

  options: Options
  records: list[Record]
  heights: np.ndarray
  model: Model
  metric: Metric

  @classmethod
  def of(
    cls,
    records: Sequence[Record],
    options: Options,
    start: np.ndarray = process.START,
    *,
    importance: np.ndarray | None = None,
  ) -> "View | None":
    """None with fewer than two records to learn from.

    Args:
      records: of the search.
      options: of the search.
      start: see `process.fit`.
      importance: of the tasks, for heights that are those of a `Direction`; None: the search's fitness.
    """
    usable = list(itertools.compress(records, options.usable(records)))
    if len(usable) < 2 or options.evidence is None:
      return None
    fitness, evidence = options.fitness, options.evidence
    table = evidence.answers.table([evidence.outputs(record) for record in usable], fitness.uses_losses)
    signs = -np.ones(len(fitness.tasks)) if fitness.uses_losses else np.array(fitness.signs)
    none = np.zeros(len(signs))
    scores = np.array([table.smoothed(row, none).scores * signs for row in table.values])
    singles = scores[[record.kind == "single" for record in usable]]
    if importance is not None:
      fitness = Direction.toward(fitness, importance, scores, singles)
    heights = fitness.aggregated(scores, singles)
    weights = np.array([options.weights(record.point) for record in usable])
    gram = np.eye(weights.shape[1]) if options.metric is None else options.metric
    metric = Metric.of(gram, weights[np.argmax(heights)])
    model = learn(metric.z(weights), table, fitness, signs, singles, start)
    return cls(options, usable, heights, model, metric)

  @property
  def best(self) -> Record:
    """The record that is highest."""
    return self.records[int(np.argmax(self.heights))]

  def candidate(self, z: np.ndarray) -> Candidate:
    """The merge at a point."""
    options = self.options
    weights = self.metric.weights(z).reshape(-1, options.count)
    if not options.space.scaled:  # what the optimiser keeps to its tolerance only
      weights = np.maximum(weights, 0.0) / np.maximum(weights, 0.0).sum(axis=1, keepdims=True)
    point = Point.of(weights if options.rows > 1 else weights[0])
    return Candidate("surrogate", options.method, point)

  def height(self, record: Record) -> float:
    """That of an evaluated merge; -inf if it failed."""
    return next(
      (float(h) for one, h in zip(self.records, self.heights, strict=True) if one is record), -np.inf
    )
