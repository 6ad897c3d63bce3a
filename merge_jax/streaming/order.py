"""The exact order statistics of one tensor that is merged block by block, in one pass as a rule.

A sample says between which two keys the k-th lies, almost surely. A pass counts what is above, at, and
below these two, and keeps the few keys between them, among which the k-th is found by a partial sort.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from merge_jax.operators import counting, leafwise
from merge_jax.operators.core import Operator, Surveyed
from merge_jax.operators.selection import TOP, Cut
from merge_jax.streaming.blocks import Block, OfBlocks, thinned

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
  samples = [np.sort(x) for x in _sample(operator, blocks, surveyed)]
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


def _sample(operator: Operator, blocks: Sequence[Block], surveyed: Surveyed) -> list[np.ndarray]:
  """Some of the keys, from all over the tensor."""
  if not any(isinstance(one, OfBlocks) for one in surveyed):
    return keys(operator, thinned(blocks), surveyed)
  # What was found for the elements of a block is not of those that are left of several.
  every = len(blocks) | 1
  some = [[x[-one.start % every :: every] for x in keys(operator, one, surveyed)] for one in blocks]
  return [np.concatenate(parts) for parts in zip(*some, strict=True)]


def _bracket(sample: np.ndarray, share: float) -> tuple[int, int]:
  """Two keys of a sorted sample between which the one with this share of all from it on almost surely is."""
  count = len(sample)
  place, error = (1.0 - share) * count, SURE * math.sqrt(share * (1.0 - share) * count) + 1.0
  low, high = math.floor(place - error), math.ceil(place + error)
  return (
    int(sample[low]) if low >= 0 else 0,
    int(sample[high]) if high < count else int(TOP) - 1,
  )


class _Search:
  """The search for the k-th largest key, between two keys that it may equal.

  Of each block it keeps the keys in the bracket and their places; of a bracket of one key how many there are.
  """

  def __init__(self, k: int, low: int, high: int):
    self.k, self.low, self.high = k, low, high
    self.value: int | None = None if k else int(TOP) - 1
    self._start()

  def _start(self) -> None:
    self.above = 0
    self.keys: list[np.ndarray] = []
    self.places: list[np.ndarray] = []
    self.ties: list[int] = []

  def count(self, keys: np.ndarray) -> None:
    """Looks at the keys of the next block."""
    above = keys > np.uint32(self.high)
    inside = (keys >= np.uint32(self.low)) ^ above
    self.above += int(np.count_nonzero(above))
    if self.low == self.high:
      self.ties.append(int(np.count_nonzero(inside)))
    else:
      places = np.flatnonzero(inside)
      self.keys.append(keys[places])
      self.places.append(places.astype(np.uint32))

  def close(self) -> None:
    """After the last block: the value, or another bracket."""
    count, need = sum(map(len, self.keys)) + sum(self.ties), self.k - self.above
    if 0 < need <= count:
      at = count - need
      self.value = self.low if self.ties else int(np.partition(np.concatenate(self.keys), at)[at])
      return
    self.low, self.high = (self.high + 1, int(TOP) - 1) if need <= 0 else (0, self.low - 1)
    self._start()

  def last(self, blocks: Sequence[Block], keys: Callable[[int], list[np.ndarray]], which: int) -> int:
    """The place of the last of the k largest keys, -1 if there is none; `keys` are those of a block again."""
    if not self.k:
      return -1
    need, value = self.k - self.above, np.uint32(self.value or 0)
    if self.ties:
      ends = np.cumsum(self.ties)
      at = int(np.searchsorted(ends, need))
      places = np.flatnonzero(keys(at)[which] == value)
      return blocks[at].start + int(places[need - 1 - ends[at]])
    inside = np.concatenate(self.keys)
    index = np.flatnonzero(inside == value)[need - 1 - np.count_nonzero(inside > value)]
    ends = np.cumsum([len(x) for x in self.places])
    at = int(np.searchsorted(ends, index, side="right"))
    return blocks[at].start + int(self.places[at][index - ends[at]])
