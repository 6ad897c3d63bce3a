"""Random bits by position: a hash of (key, index), the same on every layout, block and device.

The index of an element is its place in row-major order, 64 bits. Its high word goes into the key; its low
word and both words of that are mixed once for each element. The mixer is `lowbias32` of Chris Wellons' hash
prospector (bias 0.107 of its avalanche against the ideal; 2018, improved 2022). Several times faster on CPUs
than Threefry, and tested here for uniformity, serial correlation and independence between keys. Not for
cryptography.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import layout

_WORD = 0xFFFFFFFF
_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 / golden ratio: neighbours differ in many bits


class Key(NamedTuple):
  """What random bits of a tensor are made from.

  Attributes:
    key: a random key, or its two words (uint32).
    use: a number for each use of a key.
    start: the index of the first element, two words, the high one first; None is 0.
  """

  key: Array
  use: int | Array = 0
  start: Array | None = None


@functools.partial(jax.jit, inline=True)
def mix(x: Array) -> Array:
  """A bijection of uint32 in which every input bit flips every output bit about half of the time."""
  x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
  x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
  return x ^ (x >> 15)


def words(key: Array) -> Array:
  """The words of a random key."""
  return key if key.dtype == jnp.uint32 else jax.random.key_data(key).reshape(-1)


def fold_in(words: tuple[int, int], data: int) -> tuple[int, int]:
  """`jax.random.fold_in` for the words of a Threefry key and a number below 2^32, on the host.

  To trace and compile JAX's took a twentieth of a DARE merge of 200 MB. Source: Threefry-2x32 with 20 rounds,
  Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).

  >>> jax.random.key_data(jax.random.fold_in(jax.random.key(3), 7)).tolist() == list(fold_in((0, 3), 7))
  True
  """
  schedule = (*words, words[0] ^ words[1] ^ 0x1BD11BDA)
  x, y = words[0], data + words[1] & _WORD  # the counter is (0, data)
  for i in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
      x = x + y & _WORD
      y = (y << turn & _WORD | y >> 32 - turn) ^ x
    x = x + schedule[(i + 1) % 3] & _WORD
    y = y + schedule[(i + 2) % 3] + i + 1 & _WORD
  return x, y


def bits(key: Key, like: Array) -> Array:
  """32 random bits for each element, of the shape and sharding of `like`.

  >>> bits(Key(jax.random.key(0)), jnp.zeros((2, 3))).shape
  (2, 3)
  """
  data, use = words(key.key), jnp.asarray(key.use, jnp.uint32) * _GOLDEN
  high, low = _index(like)
  if key.start is not None:  # blocks are aligned, so that low words do not run over
    high, low = high + key.start[0], low + key.start[1]
  first = mix(mix(data[0] ^ _GOLDEN) + use + high * _GOLDEN)
  second = mix(mix(mix(data[-1] + _GOLDEN) ^ use) + high)
  return mix((low ^ first) * (second | np.uint32(1)))


def _index(like: Array) -> tuple[Array, Array]:
  """The place of each element in row-major order, high and low word; they broadcast to `like`."""
  high = low = jnp.uint32(0)
  for axis, size in enumerate(like.shape):
    index = positions(like, axis)
    along = low * np.uint32(size) + index if axis else index
    if like.size >= 1 << 32:
      high = high * np.uint32(size) + _high_word(low, size) + (along < index)
    low = along
  return high, low


def _high_word(x: Array, factor: int) -> Array:
  """What `x * factor` has above its 32 low bits."""
  low, high, by_low, by_high = x & 0xFFFF, x >> 16, np.uint32(factor & 0xFFFF), np.uint32(factor >> 16)
  middle = high * by_low + (low * by_low >> 16)
  return high * by_high + (middle >> 16) + (low * by_high + (middle & 0xFFFF) >> 16)


@functools.partial(jax.jit, inline=True)
def uniform(key: Key, like: Array) -> Array:
  """float32 in [0, 1), multiples of 2^-24, of the shape and sharding of `like`."""
  return (bits(key, like) >> 8).astype(jnp.float32) * np.float32(2**-24)


def positions(like: Array, axis: int) -> Array:
  """Index along an axis (uint32); all others have length 1. Sharded as `like`."""
  shape = tuple(size if i == axis else 1 for i, size in enumerate(like.shape))
  sharding = layout.explicit(like)
  if sharding is not None:
    spec = (*sharding.spec, *[None] * like.ndim)[: like.ndim]
    own = jax.sharding.PartitionSpec(*(s if i == axis else None for i, s in enumerate(spec)))
    sharding = jax.sharding.NamedSharding(sharding.mesh, own)
  return jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=sharding)
