"""The exact k-th magnitude of a tensor or a whole model, without sorting.

A float32 magnitude orders like its bits, so the k-th is an integer that counting passes find in a
shrinking bracket. A pass is elementwise with one small reduction: it shards with scalar
all-reduces, and never flattens or gathers a tensor.

Counts are exact beyond 2^32 without 64-bit types: three 16-bit limbs in uint32, little end first,
of which 65,536 may be added with `+` before `carry` brings them back below 2^16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

TOP = 1 << 31  # above every magnitude, NaN included


def magnitude(x: Array) -> Array:
  """Bits of |x| in float32, as uint32: they order like the magnitudes, NaN above infinity."""
  return jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)


def limbs(number: int) -> Array:
  """A count as limbs `[3]`."""
  return jnp.array([number & 0xFFFF, number >> 16 & 0xFFFF, number >> 32], jnp.uint32)


def carry(total: Array) -> Array:
  """Normalises summed limbs `[3]` to values below 2^16 (the last takes what is left)."""
  middle = total[1] + (total[0] >> 16)
  return jnp.stack([total[0] & 0xFFFF, middle & 0xFFFF, total[2] + (middle >> 16)])


def at_least(a: Array, b: Array) -> Array:
  """Whether normalised limbs `a >= b`."""
  higher = (a[2] > b[2]) | ((a[2] == b[2]) & (a[1] > b[1]))
  return higher | ((a[2] == b[2]) & (a[1] == b[1]) & (a[0] >= b[0]))


def sum_counts(counts: Array, size: int) -> Array:
  """Adds many counts (uint32) that may exceed 2^32 in total, `size` being the most it can be."""
  low = jnp.sum(counts, dtype=jnp.uint32)
  high = jnp.zeros((), jnp.uint32)
  if size >= 1 << 32:  # a float32 sum tells which multiple of 2^32 the exact sum modulo 2^32 lacks
    rest = jnp.sum(counts.astype(jnp.float32)) - low.astype(jnp.float32)
    high = jnp.round(rest / 4294967296.0).astype(jnp.uint32)
  return jnp.stack([low & 0xFFFF, low >> 16, high])


def count(mask: Array) -> Array:
  """Number of true elements as limbs `[3]`."""
  # Blocks of the last axis in int8 first: several times faster on CPUs, and shards stay where they are.
  block = next((b for b in (64, 32, 16, 8) if mask.ndim and mask.shape[-1] % b == 0), 1)
  if block == 1:
    return sum_counts(mask.astype(jnp.uint32), mask.size)
  blocks = mask.astype(jnp.int8).reshape(*mask.shape[:-1], -1, block)
  return sum_counts(jnp.sum(blocks, axis=-1, dtype=jnp.int8).astype(jnp.uint32), mask.size)


def fraction(size: int, density: Array) -> Array:
  """k = floor(size * density) as limbs `[3]`, exactly, for a float32 density in [0, 1].

  Half a unit in the last place is added to the density first, so that a decimal that float32
  rounds down counts as what was written: 0.7 of 10 is 7.
  """
  mantissa, exponent = jnp.frexp(jnp.asarray(density, jnp.float32))
  odd = 2 * (mantissa * 2**24).astype(jnp.uint32) + 1  # the density is odd / 2^(25 - exponent)
  whole, k = limbs(size), limbs(0)
  for place in (5, 4, 3, 2, 1):  # Horner's rule over the density's digits in base 2^16
    left = 16 * place - 25 + exponent
    right, left = (jnp.clip(shift, 0, 31).astype(jnp.uint32) for shift in (-left, left))
    product = whole * (odd >> right << left & 0xFFFF)
    low = carry(k + (product & 0xFFFF))
    k = jnp.stack([low[1], low[2] & 0xFFFF, low[2] >> 16]) + (product >> 16)
  return jnp.where(density >= 1, whole, jnp.where(density > 0, carry(k), limbs(0)))


class Bracket(NamedTuple):
  """A search for the largest threshold that at least k keys reach.

  Attributes:
    low, high: thresholds (uint32) that at least k, and fewer than k, keys reach.
    at_low, at_high, k: these numbers as limbs `[3]`.
    turn: passes done; even ones bisect, so that the bracket at least halves every second pass.
  """

  low: Array
  high: Array
  at_low: Array
  at_high: Array
  k: Array
  turn: Array


def bracket(size: int, k: Array, top: int = TOP) -> Bracket:
  """The first bracket, for the k-th largest of `size` keys below `top`."""
  low = jnp.where(jnp.any(k > 0), jnp.uint32(0), jnp.uint32(top - 1))  # k = 0: nothing reaches it
  return Bracket(low, jnp.uint32(top), limbs(size), limbs(0), k, jnp.int32(0))


def probe(state: Bracket) -> Array:
  """The threshold to count next: by the secant through the ends, or the middle."""
  width = (state.high - state.low).astype(jnp.float32)
  low, middle, high = jnp.stack([state.at_low, state.at_high, state.k], 1).astype(jnp.float32)
  at_low, at_high, k = low + 2.0**16 * middle + 2.0**32 * high
  secant = width * jnp.clip((at_low - k) / jnp.maximum(at_low - at_high, 1.0), 0.0, 1.0)
  step = jnp.where(state.turn % 2 == 0, (state.high - state.low) >> 1, secant.astype(jnp.uint32))
  return state.low + jnp.clip(step, 1, state.high - state.low - 1)


def narrow(state: Bracket, reached: Array) -> Bracket:
  """The next bracket, when `reached` (limbs, summed) keys reach `probe(state)`."""
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
  """Whether `state.low` is the k-th key, or separates exactly the k largest."""
  return (state.high - state.low <= 1) | jnp.all(state.at_low == state.k)


def kth(keys: Array, k: Array, top: int = TOP) -> Array:
  """The largest threshold that at least k keys (uint32 below `top`) reach, or one that exactly k reach.

  k is a count between 0 and `keys.size` as limbs `[3]`; for 0 the threshold is `top - 1`.

  >>> bits = magnitude(jnp.array([0.5, -3.0, 1.0, 2.0]))
  >>> (bits >= kth(bits, fraction(4, 0.5))).tolist()
  [False, True, False, True]
  """

  def step(state: Bracket) -> Bracket:
    return narrow(state, count(keys >= probe(state)))

  return jax.lax.while_loop(lambda state: ~found(state), step, bracket(keys.size, k, top)).low


def order(bits: Array, threshold: Array) -> Array:
  """Keys that order what lies above the threshold first, then equals by position, the first highest.

  They are uint32 below `size + 2`: with `kth` of them exactly k elements are kept, those that a
  stable descending sort puts in front. A tensor of 2^32 elements has no such keys: a ValueError.
  """
  if bits.size + 2 >= 1 << 32:
    raise ValueError(f"A tensor of shape {bits.shape} has 2^32 elements or more: use keep='threshold'.")
  position = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  tied = jnp.where(bits == threshold, bits.size - position, 0)
  return jnp.where(bits > threshold, jnp.uint32(bits.size + 1), tied)
