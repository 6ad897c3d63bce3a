"""Runs jobs: reads ahead, computes and writes behind in threads, within a bound of memory.

Tensors are merged in blocks of fixed sizes by one jitted program for each, or whole where a rule looks at
rows or matrices: the result depends on neither threads nor memory, and tensors of all shapes share a program.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array

from merge_jax import errors, host, storage
from merge_jax.checkpoints import Writer, nonfinite
from merge_jax.operators import leafwise
from merge_jax.operators.core import Surveyed
from merge_jax.operators.linear import Combination, linear
from merge_jax.streaming import blocks, survey
from merge_jax.streaming.blocks import Block
from merge_jax.streaming.job import Job

T = TypeVar("T")
SMALL = 1 << 20  # bytes of jobs that go together, as one task
AHEAD = 16  # tasks a worker that may be done before a large one that stands first


class Stopped(errors.Stopped):
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
    memory_gib: of tensors in work at once, in GiB; one job is always in work. None: half of what is free, of
      which processes of a job on one machine have equal parts.
    threads: workers; None: one for each core that the process may use, at most 8, and at most its part of
      the machine's.
    allow_nonfinite: write NaN and infinity rather than raise.
    progress: called with the number of finished jobs.
    stop: asked between jobs; true ends the merge.

  Raises:
    ValueError: tensors that cannot be read; integer tensors that differ between models; NaN or infinity in
      a result, and in which input.
    Stopped: see `stop`.
  """
  shared = host.neighbours()
  limit = storage.available_memory() / 2 / shared if memory_gib is None else memory_gib * (1 << 30)
  workers = threads or min(storage.cores(shared), 8)
  have = writer.done()
  left = [job for job in jobs if job.name not in have]
  done = len(jobs) - len(left)
  with ThreadPoolExecutor(workers) as pool:

    def each(function: Callable[[Job], T], jobs: Sequence[Job]) -> Iterator[T]:
      return _each(pool, workers, limit, function, jobs, stop)

    length = blocks.length_for(job.spec.size for job in jobs if job.split)

    def read(job: Job) -> list[Block]:
      return job.blocks(key, length)

    for job in _kinds(left, length):
      _compile(job, lambda job: job.nothing(key, length))
    whole = _surveys(jobs, left, read, each)

    def finish(job: Job) -> None:
      parts = _merged(job, read(job), whole.get(job.group, ())) if job.merged else iter([_carried(job)])
      writer.write_parts(job.name, parts if allow_nonfinite else _finite(job, parts))
      for source in job.sources:
        source.release()

    for _ in each(finish, left):
      done += 1
      progress(done)


def _kinds(jobs: Sequence[Job], length: int) -> Iterable[Job]:
  """A job for each set of programs, of those that are split."""
  kinds: dict[Any, Job] = {}
  for job in jobs:
    if job.split:
      dtypes = tuple(str(source.spec.dtype) for source in job.sources)
      form = (job.block_shape(length), dtypes, str(job.spec.dtype))
      kinds.setdefault((jax.tree.structure(job.operator), form), job)
  return kinds.values()


def _compile(job: Job, nothing: survey.Read) -> None:
  """Merges zeros for once: workers that start with the same program would all trace and compile it.

  What is hardly ever needed (see `Total.usual`) is left to them.
  """
  for _ in _merged(job, nothing(job), survey.of_models([job], nothing, map), trusting=True):
    pass


def _surveys(
  jobs: Sequence[Job], left: Sequence[Job], read: survey.Read, each: survey.Each
) -> dict[int, Surveyed]:
  """Whole-model statistics of the groups that have something left to merge."""
  members: dict[int, list[Job]] = {}
  for job in jobs:
    if job.merged:
      members.setdefault(job.group, []).append(job)
  wanted = {job.group for job in left if job.merged}
  return {group: survey.of_models(members[group], read, each) for group in sorted(wanted)}


def _merged(
  job: Job, parts: Sequence[Block], whole: Surveyed, *, trusting: bool = False
) -> Iterator[np.ndarray]:
  """What each block of a tensor merges to, flat."""
  weights = job.operator.default_weights(len(job.experts)) if job.weights is None else job.weights
  numbers: Any = np.asarray(weights, np.float32)
  operator, surveyed = job.operator, survey.of_tensor(job, parts, whole, trusting=trusting)
  if isinstance(operator, Combination) and parts[0].leaf.start is not None:
    with np.errstate(all="ignore"):  # what is not finite is told of the result
      numbers = operator.coefficients(operator.prepare(parts[0].leaf, surveyed), numbers)
    operator, surveyed = linear(normalize=False), ()
  for block in parts:
    leaf, found = block.aligned(), block.relative(surveyed)
    merged = leafwise.merge(operator, leaf, found, numbers, block.axes, np.dtype(job.spec.dtype))
    yield np.asarray(merged).reshape(-1)[: block.size]


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


def _finite(job: Job, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """The parts, up to one that is not; what is not finite in an input is not finite in the result."""
  for part in parts:
    if nonfinite(part):
      _refuse(job, part.dtype)
    yield part


def _refuse(job: Job, dtype: np.dtype) -> None:
  """Says which input is not finite, or that the result is not."""
  for source in job.sources:
    if found := nonfinite(source.read()):
      raise ValueError(
        f"Tensor {source} holds {found} values that are NaN or infinite; mend it, or go on with "
        "--allow_nonfinite."
      )
  raise ValueError(
    f"Tensor {job.name!r} of the result holds values that are NaN or too large for {dtype}, "
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
  failed = threading.Event()

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

  try:
    for batch in _batches(jobs):
      nbytes = sum(job.nbytes for job in batch)
      while busy := [pair for pair in running if not pair[0].done()]:
        if len(running) > AHEAD * workers:
          yield from running.popleft()[0].result()
        elif len(busy) > 2 * workers or sum(size for _, size in busy) + nbytes > limit:
          wait([future for future, _ in busy], return_when=FIRST_COMPLETED)
        else:
          break
      running.append((pool.submit(run, batch), nbytes))
      while running and running[0][0].done():
        yield from running.popleft()[0].result()
    while running:
      yield from running.popleft()[0].result()
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
