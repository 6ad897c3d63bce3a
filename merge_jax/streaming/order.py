"""The exact order statistics of one tensor that is merged block by block, in one pass as a rule.

A sample says between which two keys the k-th lies, almost surely. A pass counts what is above, at, and
below these two, and keeps the few keys between them, among which the k-th is found by a partial sort.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.operators import counting, leafwise
from merge_jax.operators.core import Operator, Surveyed
from merge_jax.operators.selection import TOP, Cut
from merge_jax.streaming.blocks import Block, thinned

SURE = 5.0  # standard errors to both sides of the expected place in the sample


def keys(operator: Operator, block: Block, surveyed: Surveyed, *, flat: bool = True) -> list[np.ndarray]:
  """The keys of the operator's next survey in one block, on the host; flat ones end with the tensor."""
  found = leafwise.keys(operator, block.aligned(), block.relative(surveyed), block.axes)
  return [np.asarray(x).reshape(-1)[: block.size] if flat else np.asarray(x) for x in found]


def ranks_in_rows(keys: np.ndarray) -> np.ndarray:
  """The rank of each key `[R, C]` in its row from 0, float32; equal ones share the mean of theirs.

  >>> ranks_in_rows(np.array([[5, 9, 5, 1]], np.uint32)).tolist()
  [[1.5, 3.0, 1.5, 0.0]]
  """
  place = np.arange(keys.size, dtype=np.uint64).reshape(keys.shape)
  packed = np.sort(keys.astype(np.uint64) << np.uint64(32) | place, axis=-1)
  value, new = packed >> np.uint64(32), np.ones(keys.shape, bool)
  new[:, 1:] = value[:, 1:] != value[:, :-1]
  starts = np.flatnonzero(new)
  lengths = np.diff(starts, append=keys.size)
  shared = (starts % keys.shape[-1] + 0.5 * (lengths - 1)).astype(np.float32)
  ranks = np.empty(keys.size, np.float32)
  ranks[(packed & np.uint64(0xFFFFFFFF)).reshape(-1).astype(np.intp)] = np.repeat(shared, lengths)
  return ranks.reshape(keys.shape)


def cuts(operator: Operator, blocks: Sequence[Block], surveyed: Surveyed) -> list[Cut]:
  """The result of the operator's next survey, a `Ranked`, for one tensor."""
  survey: Any = operator.survey()[len(surveyed)]
  size = sum(block.size for block in blocks)
  found = leafwise.ranks(operator, counting.limbs(size), len(blocks[0].leaf.experts), surveyed)
  ranks = [counting.whole(k) for k in found]
  samples = [np.sort(x) for x in keys(operator, thinned(blocks), surveyed)]
  searches = [_Search(k, *_bracket(samples[i // survey.each], k / size)) for i, k in enumerate(ranks)]
  while left := [i for i, one in enumerate(searches) if one.value is None]:
    for block in blocks:
      counted = keys(operator, block, surveyed)
      for i in left:
        searches[i].count(counted[i // survey.each])
    for i in left:
      searches[i].close()
  found = [Cut(np.uint32(one.value or 0), np.uint32((one.value or 0) + 1)) for one in searches]
  if not survey.exact:
    return found

  @functools.cache
  def again(at: int) -> list[np.ndarray]:
    return keys(operator, blocks[at], surveyed)

  last = [one.last(blocks, again, i // survey.each) for i, one in enumerate(searches)]
  return [cut._replace(last=np.array([at])) for cut, at in zip(found, last, strict=True)]


def _bracket(sample: np.ndarray, share: float) -> tuple[int, int]:
  """Two keys of a sorted sample between which the one with this share of all from it on almost surely is."""
  count = len(sample)
  place, error = (1.0 - share) * count, SURE * math.sqrt(share * (1.0 - share) * count) + 1.0
  low, high = math.floor(place - error), math.ceil(place + error)
  return (
    int(sample[low]) if low >= 0 else 0,
    int(sample[high]) if high < count else int(TOP) - 1,
  )


class _Part(NamedTuple):
  """What a search keeps of a block: keys in the bracket and their places; of a single key their number."""

  ties: int
  keys: np.ndarray
  places: np.ndarray


_NOWHERE = np.zeros(0, np.uint32)


class _Search:
  """The search for the k-th largest key, between two keys that it may equal."""

  def __init__(self, k: int, low: int, high: int):
    self.k, self.low, self.high = k, low, high
    self.value: int | None = None if k else int(TOP) - 1
    self._start()

  def _start(self) -> None:
    self.above = 0
    self.parts: list[_Part] = []

  def count(self, keys: np.ndarray) -> None:
    """Looks at the keys of the next block."""
    above = keys > np.uint32(self.high)
    inside = (keys >= np.uint32(self.low)) ^ above
    wide = self.low < self.high
    places = np.flatnonzero(inside).astype(np.uint32) if wide else _NOWHERE
    tied = 0 if wide else int(np.count_nonzero(inside))
    self.above += int(np.count_nonzero(above))
    self.parts.append(_Part(tied, keys[places], places))

  def close(self) -> None:
    """After the last block: the value, or another bracket."""
    inside = np.concatenate([part.keys for part in self.parts])
    count, need = len(inside) + sum(part.ties for part in self.parts), self.k - self.above
    if 0 < need <= count:
      at = len(inside) - need
      self.value = int(np.partition(inside, at)[at]) if len(inside) else self.low
      return
    self.low, self.high = (self.high + 1, int(TOP) - 1) if need <= 0 else (0, self.low - 1)
    self._start()

  def last(self, blocks: Sequence[Block], keys: Callable[[int], list[np.ndarray]], which: int) -> int:
    """The place of the last of the k largest keys, -1 if there is none; `keys` are those of a block again."""
    if not self.k:
      return -1
    more = self.above + sum(int(np.count_nonzero(part.keys > self.value)) for part in self.parts)
    ties = [part.ties + int(np.count_nonzero(part.keys == self.value)) for part in self.parts]
    sums = np.cumsum(ties)
    at = int(np.searchsorted(sums, self.k - more))
    part, index = self.parts[at], self.k - more - int(sums[at] - ties[at]) - 1
    places = (
      np.flatnonzero(keys(at)[which] == self.value) if part.ties else part.places[part.keys == self.value]
    )
    return blocks[at].start + int(places[index])
