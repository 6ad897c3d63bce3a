"""Statistics of tensors that are read from disk, block by block: of a whole model, or of one tensor.

An order statistic of a whole model is found digit by digit in two reads: a pass counts the upper halves of
all keys, the next one the lower halves of those whose upper half is that of the k-th. Both are sums, so that
passes may be split over workers, and there are no data for which they take longer. For a single tensor see
`order.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from merge_jax.operators import counting, leafwise, surveying
from merge_jax.operators.core import PyTree, Ranks, Surveyed, Total
from merge_jax.operators.selection import TOP, Cut
from merge_jax.streaming import order
from merge_jax.streaming.blocks import Block, OfBlocks
from merge_jax.streaming.job import Job

HALF = 15  # keys have 31 bits: 16 above, 15 below

Read = Callable[[Job], list[Block]]
Each = Callable[[Callable[[Job], PyTree], Sequence[Job]], Iterator[PyTree]]
"""Maps a function over jobs, results in order; tensors are read inside."""


def of_models(jobs: Sequence[Job], read: Read, each: Each) -> Surveyed:
  """The results of all surveys of the whole model, for the rule that these jobs share."""
  operator, count = jobs[0].operator, len(jobs[0].experts)
  size = sum(job.spec.size for job in jobs)
  whole: Surveyed = ()
  for index, one in enumerate(operator.survey()):
    if not one.whole or isinstance(one, Ranks):
      continue
    if isinstance(one, Total):

      def measured(job: Job, whole: Surveyed = whole, kind: str = one.kind) -> PyTree:
        blocks = read(job)
        return _sum(kind, _measures(job, blocks, of_tensor(job, blocks, whole)))

      total = _sum(one.kind, each(measured, jobs))
      whole = (*whole, leafwise.finish(operator, index, total, size))
    else:
      found = leafwise.ranks(operator, counting.limbs(size), count, (None,) * index)
      ranks = [counting.whole(k) for k in found]
      whole = (*whole, _ranked(jobs, ranks, _keys(whole, read, one.each), each))
  return whole


def of_tensor(job: Job, blocks: Sequence[Block], whole: Surveyed, *, trusting: bool = False) -> Surveyed:
  """The results of all surveys for one tensor, as far as those of the whole model in `whole` allow.

  Guesses (`Total.usual`) are tried first; with `trusting` their test is left out. They are not used where the
  rule also surveys the whole model: then not all results are there to be tested.
  """
  surveys = job.operator.survey()
  judges = [one.usual[1] for one in surveys if isinstance(one, Total) and one.usual]
  if judges and not any(one.whole for one in surveys):
    with np.errstate(over="ignore", invalid="ignore"):  # what does not do may be infinite
      surveyed = _of_tensor(job, blocks, whole, usual=True)
      if trusting or all(did(surveyed) for did in judges):
        return surveyed
  return _of_tensor(job, blocks, whole, usual=False)


def _of_tensor(job: Job, blocks: Sequence[Block], whole: Surveyed, *, usual: bool) -> Surveyed:
  def alone(operator: Any, leaf: Any, surveyed: Surveyed, axes: Any) -> PyTree:
    survey = operator.survey()[len(surveyed)]
    if usual and isinstance(survey, Total) and survey.usual is not None:
      return survey.usual[0]
    if isinstance(survey, Ranks):
      keys = (order.keys(operator, block, surveyed, flat=False) for block in blocks)
      return OfBlocks([tuple(map(order.ranks_in_rows, of_block)) for of_block in keys])
    if blocks[0].leaf.start is None:  # not split
      return surveying.of_tensor(operator, leaf, blocks[0].relative(surveyed), axes)
    if isinstance(survey, Total):
      size = sum(block.size for block in blocks)
      total = _sum(survey.kind, _measures(job, blocks, surveyed))
      return leafwise.finish(operator, len(surveyed), total, size)
    return order.cuts(job.operator, blocks, surveyed)

  return surveying.extend(job.operator, blocks[0].leaf, job.axes, (), whole, alone)


def _measures(job: Job, blocks: Sequence[Block], surveyed: Surveyed) -> Iterator[PyTree]:
  for block in blocks:
    yield leafwise.measure(job.operator, block.aligned(), block.relative(surveyed), block.axes)


def _keys(whole: Surveyed, read: Read, times: int) -> Callable[[Job], Iterator[list[np.ndarray]]]:
  def keys(job: Job) -> Iterator[list[np.ndarray]]:
    blocks = read(job)
    surveyed = of_tensor(job, blocks, whole)
    of_blocks = (order.keys(job.operator, block, surveyed) for block in blocks)
    return ([x for x in found for _ in range(times)] for found in of_blocks)

  return keys


def _ranked(
  jobs: Sequence[Job], ranks: Sequence[int], keys: Callable[[Job], Iterator[list[np.ndarray]]], each: Each
) -> tuple[Cut, ...]:
  def upper(job: Job) -> list[np.ndarray]:
    return _sum("sum", ([np.bincount(x >> HALF, minlength=1 << 16) for x in part] for part in keys(job)))

  digits, left = zip(*map(_digit, _sum("sum", each(upper, jobs)), ranks), strict=True)

  def lower(job: Job) -> list[np.ndarray]:
    rests = ([x[x >> HALF == one] for x, one in zip(part, digits, strict=True)] for part in keys(job))
    return _sum("sum", ([np.bincount(x & (1 << HALF) - 1, minlength=1 << HALF) for x in r] for r in rests))

  last, _ = zip(*map(_digit, _sum("sum", each(lower, jobs)), left), strict=True)
  found = [(a << HALF) + b if k else int(TOP) - 1 for a, b, k in zip(digits, last, ranks, strict=True)]
  return tuple(Cut(np.uint32(x), np.uint32(x + 1)) for x in found)


def _digit(counts: np.ndarray, rank: int) -> tuple[int, int]:
  """Which digit the key of this rank, counted from the largest, has; its rank among those that have it."""
  reached = np.cumsum(counts[::-1])
  index = min(int(np.searchsorted(reached, max(rank, 1))), len(counts) - 1)
  return len(counts) - 1 - index, rank - (int(reached[index - 1]) if index else 0)


def _sum(kind: str, parts: Iterable[PyTree]) -> PyTree:
  """The total in the order of the parts, whoever was ready first; floating numbers are added in float64."""
  total, dtypes = None, None
  for part in parts:
    part = jax.tree.map(np.asarray, part)
    if total is None:
      dtypes = jax.tree.map(lambda x: x.dtype, part)
      total = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x, part)
    else:
      total = jax.tree.map(_ADD[kind], total, part)
  return jax.tree.map(lambda x, dtype: np.asarray(x, dtype), total, dtypes)


_ADD: dict[str, Callable[..., Any]] = {"sum": np.add, "count": counting.add, "largest": np.maximum}
