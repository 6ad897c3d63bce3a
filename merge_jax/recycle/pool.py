"""A pool on the devices, ready to be searched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from merge_jax import storage
from merge_jax.evals import Merge
from merge_jax.evals.objective import FunctionObjective, JittedObjective
from merge_jax.recycle import methods
from merge_jax.recycle.problem import Problem
from merge_jax.search.baselines import METHOD


class InputsChanged(RuntimeError):
  """A file was rewritten while the job read from it."""


class Watch:
  """Notices a file that changes under a running job: tensors are read in place, where that is possible.

  Files on an object store were copied when they were read, and asking for each of them takes a while.
  """

  def __init__(self, files: list[Path]):
    self._files = files
    self._before = storage.fingerprint(files)

  def check(self, *, copied: bool = False) -> None:
    """Raises InputsChanged for the first file that is not as it was; those on a store only if asked for."""
    files = [file for file in self._files if copied or not isinstance(file, storage.Remote)]
    for file, now in zip(files, storage.side_by_side(_version, files), strict=True):
      if now != self._before[file.as_posix()]:
        raise InputsChanged(
          f"{file} changed while the job ran, so that its scores cannot be trusted; start it again with "
          "--overwrite."
        )


def _version(file: Path) -> list[int] | None:
  try:
    return storage.fingerprint([file])[file.as_posix()]
  except (FileNotFoundError, NotADirectoryError, PermissionError):
    return None


class Watched(NamedTuple):
  """An objective whose evaluations do not count if an input changed under them."""

  objective: JittedObjective | FunctionObjective
  watch: Watch

  @property
  def batch(self) -> int:
    """Candidates in one call."""
    return self.objective.batch

  def evaluate(self, candidates: Any, split: str) -> Any:
    """See the objective's."""
    self.watch.check()
    evaluations = self.objective.evaluate(candidates, split)
    self.watch.check()
    return evaluations


class Pool(NamedTuple):
  """The merges of a pool by method, and what scores them."""

  merges: Mapping[str, Merge]
  objective: Watched


def place(problem: Problem) -> Pool:
  """Reads the tensors, prepares the merges and makes the objective."""
  watch = Watch(problem.files)
  experts = [checkpoint.load() for checkpoint in problem.pool]
  base = None if problem.base is None else problem.base.load()
  watch.check(copied=True)
  merges = methods.merges((METHOD, problem.method), experts, base)
  objective = problem.suite.objective(merges, problem.settings.search.batch)
  return Pool(merges, Watched(objective, watch))
