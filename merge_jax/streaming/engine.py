"""Runs jobs: reads ahead, computes and writes behind in threads, within a bound of memory.

Each tensor is merged whole by one jitted program, so that the result does not depend on threads or memory;
tensors of one shape share a compilation, whatever their numbers.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from jax import Array

from merge_jax import storage
from merge_jax.checkpoints import Writer, nonfinite
from merge_jax.operators import leafwise
from merge_jax.operators.core import PyTree
from merge_jax.streaming import survey
from merge_jax.streaming.job import Job

T = TypeVar("T")
SMALL = 1 << 20  # bytes of jobs that go together, as one task


class Stopped(RuntimeError):
  """The merge was asked to stop; the same command continues after the last complete shard."""


def stream(
  jobs: Sequence[Job],
  writer: Writer,
  *,
  key: Array | None = None,
  memory_gib: float | None = None,
  threads: int | None = None,
  allow_nonfinite: bool = False,
  progress: Callable[[int], None] = lambda done: None,
  stop: Callable[[], bool] = lambda: False,
) -> None:
  """Merges every job and hands the result to a writer.

  Args:
    jobs: in the order of the writer's tensors, so that one shard is open at a time.
    writer: takes tensors in any order, from several threads; what it has already is not made again.
    key: seed of random rules.
    memory_gib: of tensors in work at once, in GiB; one job is always in work. None: half of what is free.
    threads: workers; None: one for each core, at most 8.
    allow_nonfinite: write NaN and infinity rather than raise.
    progress: called with the number of finished jobs.
    stop: asked between jobs; true ends the merge.

  Raises:
    ValueError: tensors that cannot be read; integer tensors that differ between models; NaN or infinity in
      a result, and in which input.
    Stopped: see `stop`.
  """
  limit = storage.available_memory() / 2 if memory_gib is None else memory_gib * (1 << 30)
  workers = threads or min(os.cpu_count() or 1, 8)
  have = writer.done()
  left = [job for job in jobs if job.name not in have]
  done = len(jobs) - len(left)
  with ThreadPoolExecutor(workers) as pool:

    def each(function: Callable[[Job], T], jobs: Sequence[Job]) -> Iterator[T]:
      return _each(pool, workers, limit, function, jobs, stop)

    whole = _surveys(jobs, left, key, each)

    def finish(job: Job) -> None:
      result = _merge(job, key, whole.get(job.group, ()))
      if not allow_nonfinite:
        _require_finite(job, result)
      writer.write(job.name, result)
      for source in job.sources:
        source.release()

    for _ in each(finish, left):
      done += 1
      progress(done)


def _surveys(
  jobs: Sequence[Job], left: Sequence[Job], key: Array | None, each: Any
) -> dict[int, tuple[PyTree, ...]]:
  """Whole-model statistics of the groups that have something left to merge."""
  members: dict[int, list[Job]] = {}
  for job in jobs:
    if job.merged:
      members.setdefault(job.group, []).append(job)
  wanted = {job.group for job in left if job.merged}
  return {group: survey.of_models(members[group], key, each) for group in sorted(wanted)}


def _merge(job: Job, key: Array | None, whole: Sequence[PyTree]) -> np.ndarray:
  if not job.merged:
    return _carried(job)
  weights = job.operator.default_weights(len(job.experts)) if job.weights is None else job.weights
  leaf = job.leaf(key)
  surveyed = survey.of_tensor(job, leaf, whole)
  numbers = np.asarray(weights, np.float32)
  merged = leafwise.merge(job.operator, leaf, surveyed, numbers, job.axes, np.dtype(job.spec.dtype))
  return np.asarray(merged)


def _carried(job: Job) -> np.ndarray:
  """A tensor that is not computed; of a dtype that does not merge, the same in all models."""
  first, *others = job.experts if job.base is None else (*job.experts, job.base)
  value = first.read()
  for other in () if job.copied else others:
    if not np.array_equal(value, other.read()):
      raise ValueError(
        f"Tensor {job.name!r} of dtype {value.dtype} differs between {first} and {other}; only floating "
        "tensors merge. Make it equal, or leave it out."
      )
  with np.errstate(over="ignore"):  # what is too large is infinite, and reported as such
    return value.astype(job.spec.dtype, copy=False)


def _require_finite(job: Job, result: np.ndarray) -> None:
  """What is not finite in an input is not finite in the result, so that inputs need no look before."""
  count = nonfinite(result)
  if not count:
    return
  for source in job.sources:
    if found := nonfinite(source.read()):
      raise ValueError(
        f"Tensor {source} holds {found} values that are NaN or infinite; mend it, or go on with "
        "--allow_nonfinite."
      )
  raise ValueError(
    f"Tensor {job.name!r} of the result holds {count} values that are NaN or too large for {result.dtype}, "
    "although its inputs are finite; choose a wider dtype, or go on with --allow_nonfinite."
  )


def _each(
  pool: ThreadPoolExecutor,
  workers: int,
  limit: float,
  function: Callable[[Job], T],
  jobs: Sequence[Job],
  stop: Callable[[], bool],
) -> Iterator[T]:
  """Results in the order of the jobs; as many in work as workers and memory allow."""
  running: deque[tuple[Future[list[T]], int]] = deque()
  held, failed = 0, threading.Event()

  def run(batch: list[Job]) -> list[T]:
    results: list[T] = []
    try:
      for job in () if failed.is_set() else batch:
        if stop():
          raise Stopped("Stopped; the same command continues after the last complete shard.")
        results.append(function(job))
    except BaseException:
      failed.set()
      raise
    return results

  def first() -> list[T]:
    nonlocal held
    future, nbytes = running.popleft()
    held -= nbytes
    return future.result()

  try:
    for batch in _batches(jobs):
      nbytes = sum(job.nbytes for job in batch)
      while running and (len(running) > 2 * workers or held + nbytes > limit):
        yield from first()
      held += nbytes
      running.append((pool.submit(run, batch), nbytes))
    while running:
      yield from first()
  finally:
    failed.set()
    for future, _ in running:
      future.cancel()


def _batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
  """Small jobs together, so that hand-over costs nothing beside them."""
  batch: list[Job] = []
  size = 0
  for job in jobs:
    if batch and size + job.nbytes > SMALL:
      yield batch
      batch, size = [], 0
    batch.append(job)
    size += job.nbytes
  if batch:
    yield batch
