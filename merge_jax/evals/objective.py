"""Scores merges of one pool: combine and all tasks in one jitted program, nothing written."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.evals.examples import Examples
from merge_jax.evals.scoring import Scorer

PyTree = Any


class Evaluation(NamedTuple):
  """What one model scored.

  Attributes:
    scores: by task, NaN where it failed.
    losses: mean negative log-likelihood by task in nats, or None where the scorer gives scores alone.
    examples: every example's score, or None where the scorer gives scores alone.
  """

  scores: Mapping[str, float]
  losses: Mapping[str, float] | None = None
  examples: Examples | None = None


class Merge(NamedTuple):
  """How points of one method become models.

  Attributes:
    function: pure and traceable, `(source, weights, numbers) -> params`, with weights `[K]` or
      `[G, K]` and scalars by name, float32.
    source: what it reads; passed as an argument, since a closure would bake the pool in as constants.
  """

  function: Callable[[PyTree, ArrayLike, Mapping[str, ArrayLike]], PyTree]
  source: PyTree

  def at(self, point: "Point") -> PyTree:
    """The parameters at a point."""
    numbers = {name: np.float32(value) for name, value in point.numbers.items()}
    return self.function(self.source, np.asarray(point.array, np.float32), numbers)


class Point(Protocol):
  """What is merged; see `merge_jax.search.Point`."""

  @property
  def array(self) -> np.ndarray: ...
  @property
  def numbers(self) -> Mapping[str, float]: ...


class Candidate(Protocol):
  """A merge to evaluate; see `merge_jax.search.Candidate`."""

  @property
  def method(self) -> str: ...
  @property
  def point(self) -> Any: ...


class JittedObjective:
  """Merges and scores a batch of candidates in one compiled program.

  Args:
    merges: by method.
    scorers: by split.
    batch: candidates in one call, side by side (`vmap`); fewer are padded, so that nothing retraces.

  A change of weights never compiles again; if it does, that is a RuntimeError, since it would
  silently cost seconds a candidate.
  """

  def __init__(self, merges: Mapping[str, Merge], scorers: Mapping[str, Scorer], batch: int = 1):
    self.batch = batch
    self._merges, self._scorers = merges, scorers
    self._programs = {(m, s): self._program(m, s) for m in merges for s in scorers}

  def _program(self, method: str, split: str) -> Callable[..., Array]:
    merge, score, traces = self._merges[method].function, self._scorers[split].function, [0]

    def run(source: PyTree, weights: Array, numbers: Mapping[str, Array], data: Any) -> Array:
      traces[0] += 1
      if traces[0] > 1:
        raise RuntimeError(
          f"The program of method {method!r} on split {split!r} was traced twice: candidates "
          "must not differ in shape, dtype or sharding."
        )

      def one(weights: Array, numbers: Mapping[str, Array]) -> Array:
        return score(merge(source, weights, numbers), data)

      if self.batch == 1:
        return one(weights[0], {name: value[0] for name, value in numbers.items()})[None]
      return jax.vmap(one)(weights, numbers)

    return jax.jit(run)

  def on(self, sources: Mapping[str, PyTree]) -> "JittedObjective":
    """The same compiled programs for other sources of the same shapes, by method."""
    other = copy.copy(self)
    other._merges = {m: merge._replace(source=sources[m]) for m, merge in self._merges.items()}
    return other

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> list[Evaluation]:
    """Scores, losses and examples of each candidate, in order."""
    results: dict[int, Evaluation] = {}
    for method in dict.fromkeys(candidate.method for candidate in candidates):
      places = [i for i, candidate in enumerate(candidates) if candidate.method == method]
      for start in range(0, len(places), self.batch):
        part = places[start : start + self.batch]
        examples = self._call(method, split, [candidates[i].point for i in part])
        results |= dict(zip(part, map(_evaluation, examples), strict=True))
    return [results[i] for i in range(len(candidates))]

  def _call(self, method: str, split: str, points: Sequence[Point]) -> list[Examples]:
    padded = [*points, *[points[-1]] * (self.batch - len(points))]
    weights = np.stack([point.array for point in padded]).astype(np.float32)
    numbers = {name: np.array([p.numbers[name] for p in padded], np.float32) for name in points[0].numbers}
    scorer = self._scorers[split]
    values = self._programs[method, split](self._merges[method].source, weights, numbers, scorer.batches)
    return [scorer.read(one) for one in np.asarray(values)[: len(points)]]


def _evaluation(examples: Examples) -> Evaluation:
  return Evaluation(examples.scores(), examples.scores(loss=True), examples)


class FunctionObjective:
  """Merges, then calls a function `(params, split) -> {task: score}` on the host, one candidate at a time.

  Args:
    merges: by method.
    score: any function of parameters and the split's name. NaN marks a failed candidate; an
      exception ends the search, and the journal stays.
  """

  batch = 1

  def __init__(self, merges: Mapping[str, Merge], score: Callable[[PyTree, str], Mapping[str, float]]):
    self._merges, self._score = merges, score

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> list[Evaluation]:
    """Scores of each candidate, in order."""
    merged = (self._merges[candidate.method].at(candidate.point) for candidate in candidates)
    return [Evaluation(dict(self._score(params, split))) for params in merged]
