"""A pool that all contestants share: placed and compiled once, no merge scored twice."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from merge_jax import errors
from merge_jax.evals.objective import Evaluation, JittedObjective
from merge_jax.recycle import metric
from merge_jax.search.fitness import Fitness
from merge_jax.search.loop import CHOOSING
from merge_jax.search.point import Candidate
from merge_jax.study.judge import Judge
from merge_jax.study.pools.members import Pool
from merge_jax.study.recycling.bench import Bench
from merge_jax.study.recycling.bench import Pool as Opened

COMPETITORS = 16
"""Wrong tokens at each target position that a surrogate learns from."""


class Scores:
  """An objective for searches over one pool.

  Args:
    pool: trained.
    judge: of its models, by a suite with the splits search, validation and test.
    granularity: of the weights that are searched, see `recycle.Search`.
    stop: asked before an evaluation; true ends it with `errors.Stopped`.
  """

  batch = 1

  def __init__(
    self,
    pool: Pool,
    judge: Judge,
    stop: Callable[[], bool] = lambda: False,
    *,
    granularity: str = "model",
  ):
    self.bench = Bench(Opened(pool.folders, pool.base.folder), judge, granularity=granularity)
    self.rows = 0 if granularity == "model" else len(self.bench.patterns)
    self.pool, self.suite, self._stop = pool, judge.suite, stop
    self._known: dict[Any, Evaluation] = {}
    self._seconds: list[float] = []

  @property
  def count(self) -> int:
    """Checkpoints of the pool."""
    return self.bench.count

  def fitness(self, source: str) -> Fitness:
    """The mean over all tasks, of "metric" or "loss"."""
    return Fitness(self.suite.names, self.suite.signs, source=source)

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> list[Evaluation]:
    """Scores of each candidate, in order."""
    return [self._one(candidate, split) for candidate in candidates]

  def _one(self, candidate: Candidate, split: str) -> Evaluation:
    point = candidate.point
    key = (split, candidate.method, point.weights, tuple(sorted(point.numbers.items())))
    if key not in self._known:
      if self._stop():
        raise errors.Stopped("Stopped within a search; the same command continues.")
      began = time.perf_counter()
      (self._known[key],) = self._objective.evaluate([candidate], split)
      if split == "search":
        self._seconds.append(time.perf_counter() - began)
    return self._known[key]

  @functools.cached_property
  def _objective(self) -> JittedObjective:
    merges = self.bench.merges
    return self.bench.judge.objective(merges, self.batch, competitors=COMPETITORS, smooth=CHOOSING)

  @property
  def seconds(self) -> float:
    """What an evaluation on the search's examples takes: the median of those that were made here."""
    return float(np.median(self._seconds)) if self._seconds else 0.0

  @functools.cached_property
  def metric(self) -> np.ndarray:
    """Gram matrix of the task vectors, float64 `[K, K]`; of those of all rows, `[rows · K, rows · K]`."""
    source = self.bench.merges["task_arithmetic"].source
    return metric.gram(source.slices() if self.rows else source.leaves.items(), self.bench.patterns)
