"""Statistics of tensors that are read from disk: of a whole model in two passes at most, or of one tensor.

An order statistic of a whole model is found digit by digit: a pass counts the upper halves of all keys, the
next one the lower halves of those whose upper half is that of the k-th. Both are sums, so that passes may be
split over workers, and there are no data for which they take longer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from merge_jax.operators import counting, leafwise, surveying
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed, Total
from merge_jax.operators.naming import Axes
from merge_jax.operators.selection import TOP, Cut
from merge_jax.streaming.job import Job

HALF = 15  # keys have 31 bits: 16 above, 15 below

Each = Callable[[Callable[[Job], PyTree], Sequence[Job]], Iterator[PyTree]]
"""Maps a function over jobs, results in order; tensors are read inside."""


def of_models(jobs: Sequence[Job], key: Array | None, each: Each) -> tuple[PyTree, ...]:
  """The results of all surveys of the whole model, for the rule that these jobs share."""
  operator = jobs[0].operator
  whole: tuple[PyTree, ...] = ()
  for index, one in enumerate(operator.survey()):
    if not one.whole:
      continue
    if isinstance(one, Total):
      whole = (*whole, one.finish(_sum(each(_measured(whole, key), jobs))))
    else:
      size = sum(job.spec.size for job in jobs)
      ranks = _ranks(operator, index, size, len(jobs[0].experts))
      whole = (*whole, _ranked(jobs, ranks, _keys(whole, key), each))
  return whole


def of_tensor(job: Job, leaf: Leaf, whole: Sequence[PyTree]) -> Surveyed:
  """The results of all surveys for one tensor, as far as those of the whole model in `whole` allow."""
  return surveying.extend(job.operator, leaf, job.axes, (), whole, _cuts)


def _cuts(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> list[Cut]:
  """By a partial sort on the host: nothing is compiled for it."""
  survey: Any = operator.survey()[len(surveyed)]
  keys = [np.asarray(x) for x in leafwise.keys(operator, leaf, surveyed, axes)]
  ranks = _ranks(operator, len(surveyed), keys[0].size, len(leaf.experts))
  return [_cut(x, k, survey.exact) for x, k in zip(keys, ranks, strict=True)]


def _ranks(operator: Operator, index: int, size: int, count: int) -> list[int]:
  found = leafwise.ranks(operator, index, counting.limbs(size), count)
  return [counting.whole(k) for k in found]


def _cut(keys: np.ndarray, k: int, exact: bool) -> Cut:
  flat = keys.reshape(-1)
  low = int(np.partition(flat, flat.size - k)[flat.size - k]) if k else int(TOP) - 1
  last = None
  if exact:
    need = k - int(np.count_nonzero(flat > low))
    at = int(np.flatnonzero(flat == low)[need - 1]) if need > 0 else -1
    position = np.unravel_index(at, keys.shape) if at >= 0 else [-1] * keys.ndim
    last = np.array(position, np.int32).reshape(keys.ndim)
  return Cut(np.uint32(low), np.uint32(low + 1), last)


def _measured(whole: Sequence[PyTree], key: Array | None) -> Callable[[Job], PyTree]:
  def measured(job: Job) -> PyTree:
    leaf = job.leaf(key)
    part = leafwise.measure(job.operator, leaf, of_tensor(job, leaf, whole), job.axes)
    return jax.tree.map(np.asarray, part)

  return measured


def _keys(whole: Sequence[PyTree], key: Array | None) -> Callable[[Job], list[np.ndarray]]:
  def keys(job: Job) -> list[np.ndarray]:
    leaf = job.leaf(key)
    found = leafwise.keys(job.operator, leaf, of_tensor(job, leaf, whole), job.axes)
    return [np.asarray(x).reshape(-1) for x in found]

  return keys


def _ranked(
  jobs: Sequence[Job], ranks: Sequence[int], keys: Callable[[Job], list[np.ndarray]], each: Each
) -> tuple[Cut, ...]:
  def upper(job: Job) -> list[np.ndarray]:
    return [np.bincount(x >> HALF, minlength=1 << 16) for x in keys(job)]

  digits, left = zip(*map(_digit, _sum(each(upper, jobs)), ranks), strict=True)

  def lower(job: Job) -> list[np.ndarray]:
    rest = [x[x >> HALF == digit] for x, digit in zip(keys(job), digits, strict=True)]
    return [np.bincount(x & (1 << HALF) - 1, minlength=1 << HALF) for x in rest]

  last, _ = zip(*map(_digit, _sum(each(lower, jobs)), left), strict=True)
  found = [(a << HALF) + b if k else int(TOP) - 1 for a, b, k in zip(digits, last, ranks, strict=True)]
  return tuple(Cut(np.uint32(x), np.uint32(x + 1)) for x in found)


def _digit(counts: np.ndarray, rank: int) -> tuple[int, int]:
  """Which digit the key of this rank, counted from the largest, has; its rank among those that have it."""
  reached = np.cumsum(counts[::-1])
  index = min(int(np.searchsorted(reached, max(rank, 1))), len(counts) - 1)
  return len(counts) - 1 - index, rank - (int(reached[index - 1]) if index else 0)


def _sum(parts: Iterable[PyTree]) -> PyTree:
  """In the order of the jobs, whoever was ready first."""
  total: Any = None
  for part in parts:
    total = part if total is None else jax.tree.map(np.add, total, part)
  return total
