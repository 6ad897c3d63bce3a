"""Tensors in flat blocks of one length: one program of a rule serves tensors, and models, of every shape."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merge_jax.checkpoints.safetensors_file import ALIGNMENT
from merge_jax.operators.core import Leaf, PyTree
from merge_jax.operators.naming import Axes
from merge_jax.operators.selection import Cut

LONGEST = 1 << 18  # elements, that all models' are in the caches of a CPU
SHORTEST = 1 << 10


class OfBlocks(NamedTuple):
  """What a survey finds for each block of a tensor, in order."""

  results: list[PyTree]


class Block(NamedTuple):
  """A part of one tensor of all models.

  Attributes:
    leaf: flat arrays of one length, or rows of a matrix, 0 behind the end of the tensor; or a whole tensor.
    number: which block of the tensor it is, from 0 on.
    start: position of the first element.
    size: number of elements that belong to the tensor.
    axes: what the axes mean.
  """

  leaf: Leaf
  number: int
  start: int
  size: int
  axes: Axes

  def aligned(self) -> Leaf:
    """The leaf in memory that JAX uses in place; of other memory it makes a copy in a thread of its own."""
    return jax.tree.map(_aligned, self.leaf)

  def relative(self, surveyed: PyTree) -> PyTree:
    """Results of surveys as this block needs them: its own, and positions from its start."""
    shape = self.leaf.experts[0].shape

    def own(x: Any) -> Any:
      if isinstance(x, OfBlocks):
        return x.results[self.number]
      if not isinstance(x, Cut) or x.last is None or self.leaf.start is None:
        return x
      last = int(np.clip(x.last[0] - self.start, -1, self.size))
      place = [last] if len(shape) == 1 else [last // shape[1], last % shape[1]]
      return x._replace(last=np.array(place, np.int32))

    return jax.tree.map(own, surveyed, is_leaf=lambda x: isinstance(x, Cut | OfBlocks)) if surveyed else ()


def length_for(sizes: Iterable[int]) -> int:
  """The length of blocks for tensors of these sizes: the longest, or one that fills their last blocks better.

  Tensors of more than 2^32 elements get a power of two, so that low words of positions do not run over within
  a block.

  >>> length_for([3 << 16])
  262144
  >>> length_for([3 << 16, 3 << 18])
  196608
  """
  sizes = list(sizes)
  longest = max(sizes, default=0)
  if not LONGEST < longest <= 1 << 32:
    return min(max(1 << (longest - 1).bit_length(), SHORTEST), LONGEST)
  lengths = [LONGEST * eighths // 8 for eighths in range(8, 3, -1)]
  return min(lengths, key=lambda length: sum(-(-size // length) for size in sizes) * (length + LONGEST // 8))


def shape_of(shape: tuple[int, ...], length: int, rows: bool) -> tuple[int, ...] | None:
  """The shape of a tensor's blocks, flat or of whole rows; None: the tensor stays whole."""
  if not rows:
    return (length,)
  if len(shape) != 2 or shape[0] * shape[1] >= 1 << 32:  # low words of positions would run over in a block
    return None
  count = -(-shape[0] // max(1, length // shape[1]))
  return -(-shape[0] // count), shape[1]


def split(leaf: Leaf, axes: Axes, shape: tuple[int, ...] | None) -> list[Block]:
  """The blocks of a tensor, on the host, in order, views of it but for the last; or the tensor as it is."""
  arrays, structure = jax.tree.flatten(leaf._replace(keys=None))
  whole, size = arrays[0].shape, arrays[0].size
  if shape is None or any(x.shape != whole for x in arrays):
    return [Block(jax.tree.map(_aligned, leaf), 0, 0, size, axes)]
  flat, blocks, length = [np.reshape(x, -1) for x in arrays], [], math.prod(shape)
  for number, start in enumerate(range(0, size, length)):
    parts = [_part(x, start, length).reshape(shape) for x in flat]
    place = np.array([start >> 32, start & 0xFFFFFFFF], np.uint32)
    one = jax.tree.unflatten(structure, parts)._replace(keys=leaf.keys, start=place)
    blocks.append(Block(one, number, start, min(length, size - start), Axes()))
  return blocks


def thinned(blocks: Sequence[Block]) -> Block:
  """A block of elements from all over a tensor, about half of its length; all of them if they fit."""
  size, length = blocks[-1].start + blocks[-1].size, blocks[0].leaf.experts[0].size
  every = 1 if size <= length else -(-2 * size // length) | 1  # odd, so that all columns are met

  def some(*parts: np.ndarray) -> np.ndarray:
    pairs = zip(parts, blocks, strict=True)
    thin = [x.reshape(-1)[-one.start % every : one.size : every] for x, one in pairs]
    return _part(np.concatenate(thin), 0, length)

  leaves = [one.leaf._replace(keys=None, start=None) for one in blocks]
  leaf = jax.tree.map(some, *leaves)._replace(keys=blocks[0].leaf.keys, start=blocks[0].leaf.start)
  return Block(leaf, 0, 0, -(-size // every), Axes())


def _part(x: np.ndarray, start: int, length: int) -> np.ndarray:
  part = x[start : start + length]
  if len(part) == length:
    return part
  padded = _room((length,), x.dtype)
  padded[: len(part)], padded[len(part) :] = part, 0
  return padded


def _aligned(x: Any) -> Any:
  if not isinstance(x, np.ndarray) or x.__array_interface__["data"][0] % ALIGNMENT == 0:
    return x
  copy = _room(x.shape, x.dtype)
  copy[...] = x
  return copy


def _room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + ALIGNMENT, np.uint8)
  start = -memory.__array_interface__["data"][0] % ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)
