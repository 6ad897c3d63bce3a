"""A pool on the devices, ready to be searched."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merge_jax import checkpoints, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import Merge
from merge_jax.evals.objective import FunctionObjective, JittedObjective
from merge_jax.evals.streamed import StreamedObjective
from merge_jax.recycle import methods, metric
from merge_jax.recycle.problem import Problem
from merge_jax.recycle.window import Read, Window, of_tensors, on_disk, on_host
from merge_jax.search.baselines import METHOD
from merge_jax.search.loop import CHOOSING
from merge_jax.search.point import Candidate


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


class Pool(NamedTuple):
  """The merges of a pool by method, what scores them, and what notices that their files change."""

  merges: Mapping[str, Merge | Window]
  objective: JittedObjective | StreamedObjective | FunctionObjective
  watch: Watch

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> Any:
    """Scores of candidates, which do not count if an input changed under them."""
    self.watch.check()
    evaluations = self.objective.evaluate(candidates, split)
    self.watch.check()
    return evaluations

  def gram(self, method: str, patterns: Sequence[str]) -> np.ndarray:
    """Inner products of the task vectors as a method has them, `[G K, G K]`: 0 between groups of tensors."""
    merge = self.merges[method]
    if isinstance(merge, Window):
      return metric.gram(merge.leaves(), patterns)
    whole = len(patterns) == 1  # then stacks of layers need not be cut
    return metric.gram(merge.source.leaves.items() if whole else merge.source.slices(), patterns)


def place(problem: Problem) -> Pool:
  """Reads the tensors to where they are held, prepares the merges and makes the objective."""
  watch, search = Watch(problem.files), problem.settings.search
  merges = _on_devices(problem) if problem.memory == "device" else _windows(problem)
  watch.check(copied=True)
  competitors = search.competitors if problem.foresees else 0
  objective = problem.suite.objective(
    merges, search.batch, problem.layout, in_turn=search.in_turn, competitors=competitors, smooth=CHOOSING
  )
  return Pool(merges, objective, watch)


def _base(problem: Problem) -> Checkpoint | None:
  """The base, if the search has one and needs it."""
  return problem.base if methods.METHODS[problem.method].needs_base else None


def _on_devices(problem: Problem) -> dict[str, Merge]:
  suite, verify = problem.suite, problem.settings.placement.verify_load

  def placed(checkpoint: Checkpoint) -> dict[str, Any]:
    return checkpoints.place(checkpoint, problem.layout.shardings, suite.stacks, verify=verify)

  experts = {name: placed(one) for name, one in zip(problem.labels, problem.pool, strict=True)}
  base, search = None if (own := _base(problem)) is None else placed(own), problem.settings.search
  return methods.merges(
    (METHOD, problem.method), experts, base, suite.axes,
    patterns=problem.patterns, searched=[problem.method] if search.numbers else [], seed=search.seed,
  )  # fmt: skip


def _windows(problem: Problem) -> dict[str, Window]:
  first, stacks, layout = problem.pool[0], problem.suite.stacks, problem.layout
  shardings = of_tensors(first.specs, layout, stacks)

  def held(checkpoint: Checkpoint) -> Read:
    if problem.memory == "disk":
      return on_disk(checkpoint, shardings)
    return on_host(checkpoint, shardings, problem.settings.placement.verify_load)

  experts = [held(checkpoint) for checkpoint in problem.pool]
  base = None if (own := _base(problem)) is None else held(own)
  return {
    name: Window(
      methods.METHODS[name].operator,
      dict(zip(problem.labels, experts, strict=True)),
      base,
      first.specs,
      layout,
      stacks,
      patterns=problem.patterns,
      seed=problem.settings.search.seed,
    )
    for name in dict.fromkeys((METHOD, problem.method))
  }
