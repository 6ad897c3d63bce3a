"""A pool that many searches share: placed once, one compiled program a method and split for all of them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merge_jax import preflight
from merge_jax.evals.objective import Evaluation, JittedObjective, Merge
from merge_jax.operators import grouping
from merge_jax.search.baselines import METHOD, one_hot
from merge_jax.search.fitness import Fitness
from merge_jax.search.loop import SPLIT
from merge_jax.search.point import Candidate, Point
from merge_jax.study.judge import Judge


class Pool(NamedTuple):
  """Checkpoints to recycle.

  Attributes:
    folders: of the checkpoints by name, in order.
    base: folder of their common ancestor, or None.
    stages: what each was trained by, by name: "sft" or "po"; others may be left out.
  """

  folders: Mapping[str, Path]
  base: Path | None = None
  stages: Mapping[str, str] = {}


class Bench:
  """Scores merges of a pool.

  The pool is opened here, its tensors are read when the first merge is scored. What single checkpoints score
  is kept, since every search begins with them.

  Args:
    pool: see there.
    judge: of its models; all of its tasks are scored, whatever a search looks at.
    batch: candidates of one program call.
    granularity: of the weights of its merges, see `recycle.Search`.

  Raises:
    ValueError: checkpoints that do not go together, a stage of one that is not there.
  """

  def __init__(self, pool: Pool, judge: Judge, batch: int = 1, *, granularity: str = "model"):
    for name in pool.stages:
      if name not in pool.folders:
        raise ValueError(f"The pool has no checkpoint {name!r}; its names are {', '.join(pool.folders)}.")
    folders = [str(path) for path in pool.folders.values()]
    opened, base = preflight.open_pool(folders, str(pool.base or "") or None)
    preflight.require(tuple(preflight.check(opened, base, memory=tuple, values=False)))
    self.pool, self.judge, self.suite, self._batch = pool, judge, judge.suite, batch
    self.checkpoints, self.base = tuple(opened), base
    self.patterns = grouping.patterns(granularity, opened[0].specs)
    self._singles: dict[str, list[Evaluation]] = {}

  @property
  def count(self) -> int:
    """Checkpoints of the pool."""
    return len(self.checkpoints)

  def digests(self) -> dict[str, Any]:
    """Of the checkpoints, the base and the tasks: what all scores depend on."""
    base = None if self.base is None else self.base.digest()
    found = [checkpoint.digest() for checkpoint in self.checkpoints]
    return {"checkpoints": found, "base": base, "tasks": self.suite.identity()}

  @functools.cached_property
  def merges(self) -> dict[str, Merge]:
    """The pool, placed once: `linear` for known points and most searches, `task_arithmetic` on the base."""
    names, pool = (METHOD, "task_arithmetic"), self.pool
    return self.judge.merges(names, pool.folders.values(), pool.base, self.patterns)

  @functools.cached_property
  def objective(self) -> JittedObjective:
    """Compiled once."""
    return self.judge.objective(self.merges, self._batch)

  def singles(self, split: str) -> list[Evaluation]:
    """What each checkpoint scores."""
    if split not in self._singles:
      alone = [Candidate("single", METHOD, one_hot(i, self.count)) for i in range(self.count)]
      self._singles[split] = self.objective.evaluate(alone, split)
    return self._singles[split]

  def fitness(self, tasks: Sequence[str]) -> Fitness:
    """The mean of the metrics of some tasks, as the paper's.

    Raises:
      ValueError: the suite has no such task.
    """
    signs = dict(zip(self.suite.names, self.suite.signs, strict=True))
    for task in tasks:
      if task not in signs:
        raise ValueError(f"The suite has no task {task!r} to search by; its tasks are {', '.join(signs)}.")
    return Fitness(tuple(tasks), tuple(signs[task] for task in tasks), source="metric")

  def best(self, fitness: Fitness, count: int) -> tuple[int, ...]:
    """Positions of the fittest checkpoints, in the pool's order."""
    scored = self.singles(SPLIT)
    values = fitness.values([one.scores for one in scored], [None] * len(scored))
    order = np.argsort(-np.nan_to_num(fitness.aggregated(values, values), nan=-np.inf), kind="stable")
    return tuple(sorted(int(i) for i in order[:count]))


class Members(NamedTuple):
  """An objective for merges of some of the checkpoints, by the program of all: the others weigh nothing.

  Attributes:
    bench: of all.
    places: of the members.
  """

  bench: Bench
  places: tuple[int, ...]

  @property
  def batch(self) -> int:
    """Candidates of one call."""
    return self.bench.objective.batch

  def whole(self, candidate: Candidate) -> Candidate:
    """The same merge, with a weight for every checkpoint of the pool."""
    weights = np.zeros(self.bench.count)
    weights[list(self.places)] = candidate.point.array
    return Candidate(candidate.kind, candidate.method, Point.of(weights, candidate.point.numbers))

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> list[Evaluation]:
    """Scores of each candidate, in order."""
    known = [self._single(candidate, split) for candidate in candidates]
    new = [self.whole(one) for one, old in zip(candidates, known, strict=True) if old is None]
    scored = iter(self.bench.objective.evaluate(new, split) if new else [])
    return [next(scored) if old is None else old for old in known]

  def _single(self, candidate: Candidate, split: str) -> Evaluation | None:
    """Of a single checkpoint, whatever it is asked for as."""
    weights = candidate.point.weights
    if candidate.method != METHOD or [one for one in weights if one] != [1.0]:
      return None
    return self.bench.singles(split)[self.places[weights.index(1.0)]]
