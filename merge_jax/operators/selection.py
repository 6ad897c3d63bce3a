"""The exact k-th magnitude of a tensor or a whole model, without sorting.

A float32 magnitude orders like its bits, so a threshold is a 31-bit integer and the k-th magnitude
is found by counting passes over a shrinking bracket. A pass is elementwise with one small
reduction: it shards with scalar all-reduces, and never flattens or gathers a tensor.

Counts are exact beyond 2^32 without 64-bit types: three 16-bit limbs in uint32, little end first.
Limbs may be added with `+` (up to 65,536 of them) before `carry` brings them back below 2^16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LIMBS = 3
_TOP = 1 << 31  # above every magnitude, NaN included


def magnitude(x: Array) -> Array:
  """Bits of |x| in float32, as uint32: they order like the magnitudes, NaN above infinity."""
  return jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)


def carry(limbs: Array) -> Array:
  """Normalises summed limbs `[3]` to values below 2^16 (the last takes what is left)."""
  low = limbs[0]
  middle = limbs[1] + (low >> 16)
  return jnp.stack([low & 0xFFFF, middle & 0xFFFF, limbs[2] + (middle >> 16)])


def at_least(a: Array, b: Array) -> Array:
  """Whether normalised limbs `a >= b`."""
  higher = (a[2] > b[2]) | ((a[2] == b[2]) & (a[1] > b[1]))
  return higher | ((a[2] == b[2]) & (a[1] == b[1]) & (a[0] >= b[0]))


def as_float(limbs: Array) -> Array:
  """The count as float32, rounded."""
  f = limbs.astype(jnp.float32)
  return f[0] + 65536.0 * f[1] + 4294967296.0 * f[2]


def sum_counts(counts: Array, size: int) -> Array:
  """Adds many counts (uint32) that may exceed 2^32 in total, `size` being the most it can be.

  The sum modulo 2^32 is exact in uint32, and a float32 sum tells which multiple of 2^32 is missing.
  """
  low = jnp.sum(counts, dtype=jnp.uint32)
  high = jnp.zeros((), jnp.uint32)
  if size >= 1 << 32:
    rest = jnp.sum(counts.astype(jnp.float32)) - low.astype(jnp.float32)
    high = jnp.round(rest / 4294967296.0).astype(jnp.uint32)
  return jnp.stack([low & 0xFFFF, low >> 16, high])


def count(mask: Array) -> Array:
  """Number of true elements as limbs `[3]`.

  Blocks of the last axis are added in int8 first: on a CPU that is several times faster than a sum
  in a wider type, and it keeps every shard where it is.
  """
  size = mask.size
  block = next((b for b in (64, 32, 16, 8) if mask.ndim and mask.shape[-1] % b == 0), 1)
  if block == 1:
    return sum_counts(mask.astype(jnp.uint32), size)
  blocks = mask.astype(jnp.int8).reshape(*mask.shape[:-1], -1, block)
  return sum_counts(jnp.sum(blocks, axis=-1, dtype=jnp.int8).astype(jnp.uint32), size)


def fraction(size: int, density: Array) -> Array:
  """k = floor(size * density) as limbs `[3]`, exactly, for a float32 density in [0, 1].

  Half a unit in the last place is added to the density first, so that a decimal that float32
  rounds down counts as what was written: 0.7 of 10 is 7.
  """
  mantissa, exponent = jnp.frexp(jnp.asarray(density, jnp.float32))
  twice = 2 * (mantissa * 2**24).astype(jnp.uint32) + 1  # 25 bits: 2 m + 1, the value is /2^(25-e)
  factors = (twice & 0xFFFF, twice >> 16)
  parts = [size >> shift & 0xFFFF for shift in (0, 16, 32)]
  product = [jnp.zeros((), jnp.uint32) for _ in range(2 * LIMBS)]
  for i, part in enumerate(parts):
    for j, factor in enumerate(factors):
      value = factor * jnp.uint32(part)
      product[i + j] += value & 0xFFFF
      product[i + j + 1] += value >> 16
  for i in range(len(product) - 1):
    product[i + 1] += product[i] >> 16
    product[i] &= 0xFFFF
  shift = (25 - exponent).astype(jnp.uint32)
  words = jnp.stack([*product, *[jnp.zeros((), jnp.uint32)] * (LIMBS + 1)])
  start = jnp.minimum(shift >> 4, 2 * LIMBS)
  bits = shift & 15
  window = jax.lax.dynamic_slice(words, (start,), (LIMBS + 1,))
  shifted = ((window[:-1] >> bits) | (window[1:] << (16 - bits))) & 0xFFFF
  whole = jnp.array([size & 0xFFFF, size >> 16 & 0xFFFF, size >> 32], jnp.uint32)
  none = jnp.zeros(LIMBS, jnp.uint32)
  return jnp.where(density >= 1, whole, jnp.where(density > 0, shifted, none))


class Bracket(NamedTuple):
  """A search for the largest threshold that at least k magnitudes reach.

  Attributes:
    low, high: thresholds (uint32) that at least k, and fewer than k, magnitudes reach.
    at_low, at_high: these numbers as limbs `[3]`.
    k: limbs `[3]`.
    turn: passes done; odd ones bisect, so that the bracket at least halves every second pass.
  """

  low: Array
  high: Array
  at_low: Array
  at_high: Array
  k: Array
  turn: Array


def bracket(size: int, k: Array) -> Bracket:
  """The first bracket, for the k-th largest of `size` magnitudes."""
  whole = jnp.array([size & 0xFFFF, size >> 16 & 0xFFFF, size >> 32], jnp.uint32)
  none = jnp.zeros(LIMBS, jnp.uint32)
  low = jnp.where(jnp.any(k > 0), jnp.uint32(0), jnp.uint32(_TOP - 1))  # k = 0: nothing reaches it
  return Bracket(low, jnp.uint32(_TOP), whole, none, k, jnp.zeros((), jnp.int32))


def probe(state: Bracket) -> Array:
  """The threshold to count next: by the secant through the ends, or the middle."""
  width = (state.high - state.low).astype(jnp.float32)
  at_low, at_high, k = (as_float(x) for x in (state.at_low, state.at_high, state.k))
  secant = width * jnp.clip((at_low - k) / jnp.maximum(at_low - at_high, 1.0), 0.0, 1.0)
  step = jnp.where(state.turn % 2 == 0, (state.high - state.low) >> 1, secant.astype(jnp.uint32))
  return state.low + jnp.clip(step, 1, state.high - state.low - 1)


def narrow(state: Bracket, reached: Array) -> Bracket:
  """The next bracket, when `reached` (limbs, summed) magnitudes reach `probe(state)`."""
  at, reached = probe(state), carry(reached)
  enough = at_least(reached, state.k)
  return Bracket(
    jnp.where(enough, at, state.low),
    jnp.where(enough, state.high, at),
    jnp.where(enough, reached, state.at_low),
    jnp.where(enough, state.at_high, reached),
    state.k,
    state.turn + 1,
  )


def found(state: Bracket) -> Array:
  """Whether `state.low` is the k-th magnitude, or separates exactly the k largest."""
  return (state.high - state.low <= 1) | jnp.all(state.at_low == state.k)


def kth_magnitude(x: Array, k: Array) -> Array:
  """A threshold (uint32 bits) that the k largest magnitudes of `x` reach.

  Args:
    x: any shape, any floating dtype; compared as float32.
    k: limbs `[3]` of a count between 0 and `x.size`.

  Returns:
    The largest threshold that at least k magnitudes reach: only those equal to the k-th can be
    more; or a lower one that exactly k reach. For k = 0 a threshold above infinity.

  >>> x = jnp.array([0.5, -3.0, 1.0, 2.0])
  >>> (magnitude(x) >= kth_magnitude(x, fraction(4, 0.5))).tolist()
  [False, True, False, True]
  """
  bits = magnitude(x)

  def step(state: Bracket) -> Bracket:
    return narrow(state, count(bits >= probe(state)))

  return jax.lax.while_loop(lambda s: ~found(s), step, bracket(x.size, k)).low


def last_tie(x: Array, threshold: Array, k: Array) -> Array:
  """Where to stop among equals, so that exactly k elements of `x` are kept.

  Args:
    x: the tensor.
    threshold: from `kth_magnitude(x, k)`.
    k: limbs `[3]`.

  Returns:
    Index (int32 `[ndim]`) of the last element at the threshold to keep, in row-major order: what a
    stable descending sort keeps. Found axis by axis, since a linear index may exceed 2^31.
  """
  bits = magnitude(x)
  tied = bits == threshold
  seen = carry(count(bits > threshold))
  index = []
  for axis in range(x.ndim):
    at = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)

    def step(
      ends: tuple[Array, Array], tied: Array = tied, at: Array = at, seen: Array = seen
    ) -> tuple[Array, Array]:
      low, high = ends
      middle = (low + high) // 2
      enough = at_least(carry(seen + count(tied & (at <= middle))), k)
      return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    ends = (jnp.int32(0), jnp.int32(x.shape[axis] - 1))
    low, _ = jax.lax.while_loop(lambda ends: ends[0] < ends[1], step, ends)
    seen = carry(seen + count(tied & (at < low)))
    tied = tied & (at == low)
    index.append(low)
  return jnp.stack(index) if index else jnp.zeros(0, jnp.int32)


def up_to(shape: tuple[int, ...], index: Array) -> Array:
  """Mask of the elements up to and including `index` in row-major order."""
  before = jnp.zeros(shape, bool)
  same = jnp.ones(shape, bool)
  for axis in range(len(shape)):
    at = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    before = before | (same & (at < index[axis]))
    same = same & (at == index[axis])
  return before | same
