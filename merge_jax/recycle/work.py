"""What all processes of a job do together; the lead, which decides and keeps the journal, says each step.

A follower runs no search of its own: what it does are the commands that it hears, so that all processes take
the same step whatever clocks, signals and journals say.
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


class Read(msgspec.Struct, frozen=True, tag=True):
  """The checks that read tensors."""


class Place(msgspec.Struct, frozen=True, tag=True):
  """The pool, to where it is held."""


class Evaluate(msgspec.Struct, frozen=True, tag=True):
  """A batch of candidates on the examples of a split."""

  candidates: list[Candidate]
  split: str


class Measure(msgspec.Struct, frozen=True, tag=True):
  """Inner products of the pool's task vectors."""


class Time(msgspec.Struct, frozen=True, tag=True):
  """The merge of a candidate, alone."""

  candidate: Candidate


class Write(msgspec.Struct, frozen=True, tag=True):
  """The merge of a candidate, into a folder."""

  candidate: Candidate
  folder: str


class Finish(msgspec.Struct, frozen=True, tag=True):
  """The job is done: the content of `result.json`."""

  result: dict[str, Any]


Command = Read | Place | Evaluate | Measure | Time | Write | Finish


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
    self._problem = problem
    self._send = lambda command: send(msgspec.to_builtins(command))
    self._pool: pools.Pool | None = None

  def read(self) -> list[Finding]:
    """Findings of the checks that read tensors; every process reads its share of the models."""
    self._send(Read())
    return list(preflight.read(self._problem.pool, self._problem.base))

  def place(self) -> None:
    """Reads the pool to where it is held."""
    self._send(Place())
    self._pool = pools.place(self._problem)
    self.batch = self._pool.objective.batch

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> Any:
    """See `JittedObjective.evaluate`."""
    self._send(Evaluate(list(candidates), split))
    return self._placed.objective.evaluate(candidates, split)

  def gram(self) -> np.ndarray:
    """Inner products of the task vectors of the searched method; see `Pool.gram`."""
    self._send(Measure())
    return self._placed.gram(self._problem.method, self._problem.patterns)

  def merge_seconds(self, candidate: Candidate) -> float:
    """See `JittedObjective.merge_seconds`."""
    self._send(Time(candidate))
    return self._placed.objective.merge_seconds(candidate)

  def write(self, candidate: Candidate, folder: Path) -> None:
    """Writes a merge into a folder of the lead's, each process its share."""
    self._send(Write(candidate, str(folder)))
    merged.write(self._problem, candidate, folder, self._placed.merges)
    self._placed.objective.watch.check(copied=True)

  def finish(self, result: dict[str, Any]) -> dict[str, Any]:
    """Ends the job of all."""
    self._send(Finish(result))
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
    result: dict[str, Any] = {}
    for plain in host.commands():
      match msgspec.convert(plain, Command):
        case Read():
          self.read()
        case Place():
          self.place()
        case Evaluate(candidates, split):
          self.evaluate(candidates, split)
        case Measure():
          self.gram()
        case Time(candidate):
          self.merge_seconds(candidate)
        case Write(candidate, folder):
          self.write(candidate, storage.path(folder))
        case Finish(result):
          pass
    return result
