"""Scores merges of one pool: combine and all tasks in one jitted program, nothing written."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array

from merge_jax import operators as mj
from merge_jax.search.journal import Candidate
from merge_jax.search.loop import Evaluation


class ScoredExamples(Protocol):
  """What one evaluation tells of every example; see `merge_jax.evals.Examples`."""

  def scores(self, loss: bool = False) -> dict[str, float]: ...


class ExampleScorer(Protocol):
  """A traceable `(params, batches) -> values`, its data, and how to read the values."""

  @property
  def function(self) -> Callable[[Any, Any], Array]: ...
  @property
  def batches(self) -> Any: ...
  def read(self, values: Array) -> Any: ...


class Objective(Protocol):
  """Scores candidates on the examples of a split."""

  def examples(self, candidate: Candidate, split: str) -> ScoredExamples | None:
    """Example by example, or None if the scorer gives scores alone."""
    ...

  def evaluate(self, candidate: Candidate, split: str) -> Evaluation:
    """Scores (and losses) by task."""
    ...


class JittedObjective:
  """Merges and scores in one compiled program.

  Args:
    prepared: the pool by method: "linear" for the known points, "search" for the operator that is
      searched.
    scorers: by split.

  A change of weights never compiles again; if it does, that is a RuntimeError, since it would
  silently cost seconds a candidate.
  """

  def __init__(self, prepared: Mapping[str, mj.Prepared], scorers: Mapping[str, ExampleScorer]):
    self._prepared, self._scorers = prepared, scorers
    self._traces: dict[tuple[str, type], int] = {}
    self._programs = {split: self._program(split) for split in scorers}

  def _program(self, split: str) -> Callable[..., Array]:
    score = self._scorers[split].function

    def run(prepared: mj.Prepared, weights: Array, data: Any) -> Array:
      key = (split, type(prepared.operator))
      self._traces[key] = self._traces.get(key, 0) + 1
      if self._traces[key] > 1:
        raise RuntimeError(f"The program of {key} was traced twice: candidates must not differ in "
                           "shape, dtype or sharding.")  # fmt: skip
      return score(mj.combine(prepared, weights), data)

    return jax.jit(run)

  def examples(self, candidate: Candidate, split: str) -> Any:
    """Every example's score for a candidate."""
    weights = np.asarray(candidate.weights, np.float32)
    scorer = self._scorers[split]
    prepared = self._prepared[candidate.method]
    return scorer.read(self._programs[split](prepared, weights, scorer.batches))

  def evaluate(self, candidate: Candidate, split: str) -> Evaluation:
    """Scores and losses by task."""
    examples = self.examples(candidate, split)
    return Evaluation(examples.scores(), examples.scores(loss=True))


class FunctionObjective:
  """Merges, then calls a user's own `(params, split) -> {task: score}` on the host.

  Args:
    prepared: the pool by method.
    score: any function of parameters and the split's name. NaN marks a failed candidate; an
      exception ends the search, and the journal stays.

  >>> from merge_jax import search
  >>> pool = [{"w": np.array([1.0, 0.0], np.float32)}, {"w": np.array([0.0, 1.0], np.float32)}]
  >>> linear = mj.prepare(mj.linear(normalize=False), pool)
  >>> mine = FunctionObjective(
  ...   {"linear": linear, "search": linear}, lambda params, split: {"middle": float(params["w"].min())}
  ... )
  >>> fitness = search.Fitness(("middle",), signs=(1.0,))
  >>> propose = search.proposer("line_search", search.Setting(search.space("simplex"), fitness, count=2))
  >>> found = search.search(
  ...   propose, lambda candidate: mine.evaluate(candidate, "search"), search.Journal(), fitness,
  ...   search.Budget(10),
  ... )
  >>> max(found.records, key=lambda record: record.fitness).weights
  (0.5, 0.5)
  """

  def __init__(
    self,
    prepared: Mapping[str, mj.Prepared],
    score: Callable[[Any, str], Mapping[str, float]],
  ):
    self._prepared, self._score = prepared, score

  def examples(self, candidate: Candidate, split: str) -> None:
    """None: there are scores alone."""

  def evaluate(self, candidate: Candidate, split: str) -> Evaluation:
    """Scores by task."""
    weights = np.asarray(candidate.weights, np.float32)
    params = mj.combine(self._prepared[candidate.method], weights)
    return Evaluation(dict(self._score(params, split)))
