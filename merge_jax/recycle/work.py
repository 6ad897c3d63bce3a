"""What all processes of a job do together; the lead, which decides and keeps the journal, says each step.

A follower runs no search of its own: what it does are the steps that it hears of, so that all processes take
the same ones whatever clocks, signals and journals say.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from merge_jax import host, preflight, storage
from merge_jax.preflight import Finding
from merge_jax.recycle import merged
from merge_jax.recycle import pool as pools
from merge_jax.recycle.problem import Problem
from merge_jax.search.point import Candidate

STEPS: dict[str, Any] = {
  "read": tuple[()],
  "place": tuple[()],
  "evaluate": tuple[list[Candidate], str],
  "gram": tuple[()],
  "merge_seconds": tuple[Candidate],
  "write": tuple[Candidate, str],
  "finish": tuple[dict[str, Any]],
}
"""What all do together, methods of `Work`, and what each is given."""


class Work:
  """One process's part of a job: on the lead the job calls its methods, on a follower `follow` does.

  Args:
    problem: the same at every process.
    send: of the lead, see `host.leading`.

  Attributes:
    batch: candidates of one evaluation, once the pool is placed.
  """

  batch = 1

  def __init__(self, problem: Problem, send: Callable[[Any], None] = lambda command: None):
    self._problem, self._send = problem, send
    self._pool: pools.Pool | None = None

  def _together(self, step: str, *given: Any) -> None:
    """Has the followers take the step that this process takes."""
    self._send([step, msgspec.to_builtins(given)])

  def read(self) -> list[Finding]:
    """Findings of the checks that read tensors; every process reads its share of the models."""
    self._together("read")
    return list(preflight.read(self._problem.pool, self._problem.base))

  def place(self) -> None:
    """Reads the pool to where it is held."""
    self._together("place")
    self._pool = pools.place(self._problem)
    self.batch = self._pool.objective.batch

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> Any:
    """See `Pool.evaluate`."""
    self._together("evaluate", candidates, split)
    return self._placed.evaluate(candidates, split)

  def gram(self) -> np.ndarray:
    """Inner products of the task vectors of the searched method; see `Pool.gram`."""
    self._together("gram")
    return self._placed.gram(self._problem.method, self._problem.patterns)

  def merge_seconds(self, candidate: Candidate) -> float:
    """See `JittedObjective.merge_seconds`."""
    self._together("merge_seconds", candidate)
    return self._placed.objective.merge_seconds(candidate)

  def write(self, candidate: Candidate, folder: Path | str) -> None:
    """Writes a merge into a folder of the lead's, each process its share."""
    self._together("write", candidate, str(folder))
    merged.write(self._problem, candidate, storage.path(folder), self._placed.merges)
    self._placed.watch.check(copied=True)

  def finish(self, result: dict[str, Any]) -> dict[str, Any]:
    """Ends the job of all."""
    self._together("finish", result)
    return result

  @property
  def _placed(self) -> pools.Pool:
    if self._pool is None:
      raise ValueError("The pool is not placed yet; call place() first.")
    return self._pool

  def follow(self) -> dict[str, Any]:
    """Does what the lead says, to the end; what the job returned.

    Raises:
      Ended, Stopped: the lead, or another process, failed or was stopped.
    """
    made: Any = None
    for step, given in host.commands():
      made = getattr(self, step)(*msgspec.convert(given, STEPS[step]))
    return made  # of `finish`, the last one
