"""Scores merges of a pool that the devices do not hold: merged a tensor at a time, then scored."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

from merge_jax.evals.objective import Candidate, Evaluation, evaluation, named, quickest, using
from merge_jax.evals.scoring import Scorer
from merge_jax.sharding import Layout


class Source(Protocol):
  """What makes the parameters of a point, laid out, from wherever the pool is."""

  def at(self, point: Any) -> Mapping[str, Any]: ...


class StreamedObjective:
  """One candidate at a time: the devices hold its merge, its activations, and a window of the pool.

  Args:
    merges: by method.
    scorers: by split.
    layout: the mesh, and where parameters lie.
  """

  batch = 1

  def __init__(
    self, merges: Mapping[str, Source], scorers: Mapping[str, Scorer], layout: Layout | None = None
  ):
    self._merges, self._scorers, self._layout = merges, scorers, layout
    whole = None if layout is None else layout.replicated
    self._programs = {s: jax.jit(scorer.function, out_shardings=whole) for s, scorer in scorers.items()}

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> list[Evaluation]:
    """Scores, losses and examples of each candidate, in order."""
    found = []
    for candidate in candidates:
      scorer = named("split", split, self._scorers)
      with using(self._layout):
        params = named("method", candidate.method, self._merges).at(candidate.point)
        values = self._programs[split](params, scorer.batches)
      found.append(evaluation(scorer, values))
    return found

  def merge_seconds(self, candidate: Candidate) -> float:
    """Seconds that a merge takes, the pool read once."""
    with using(self._layout):
      return quickest(lambda: self._merges[candidate.method].at(candidate.point), times=1)
