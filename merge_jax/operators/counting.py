"""Counts of elements, exact beyond 2^32 without 64-bit types.

A count is three 16-bit limbs in uint32, little end first, `[..., 3]`, of which 65,536 may be added with
`+` before `carry` brings them back below 2^16.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import layout


def limbs(number: int) -> Array:
  """A count as limbs `[3]`."""
  return jnp.array([number & 0xFFFF, number >> 16 & 0xFFFF, number >> 32], jnp.uint32)


@functools.partial(jax.jit, inline=True)
def carry(total: Array) -> Array:
  """Normalises summed limbs `[..., 3]` to values below 2^16 (the last takes what is left)."""
  middle = total[..., 1] + (total[..., 0] >> 16)
  return jnp.stack([total[..., 0] & 0xFFFF, middle & 0xFFFF, total[..., 2] + (middle >> 16)], -1)


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """`a + b` of concrete limbs, normalised, however many are added."""
  low, middle, high = np.moveaxis(np.add(a, b, dtype=np.uint64), -1, 0)
  middle = middle + (low >> np.uint64(16))
  return np.stack([low & 0xFFFF, middle & 0xFFFF, high + (middle >> np.uint64(16))], -1).astype(np.uint32)


def whole(total: Array) -> int:
  """A concrete count, carried or not, as a Python integer."""
  low, middle, high = (int(x) for x in np.asarray(total))
  return low + (middle << 16) + (high << 32)


@functools.partial(jax.jit, inline=True)
def at_least(a: Array, b: Array) -> Array:
  """Whether normalised limbs `a >= b`."""
  (a0, a1, a2), (b0, b1, b2) = (tuple(x[..., i] for i in range(3)) for x in (a, b))
  return (a2 > b2) | ((a2 == b2) & ((a1 > b1) | ((a1 == b1) & (a0 >= b0))))


@functools.partial(jax.jit, inline=True)
def minus(a: Array, b: Array) -> Array:
  """`a - b` of normalised limbs, as limbs; b is not larger."""
  signed = a.astype(jnp.int32) - b.astype(jnp.int32)
  low = signed[..., 0] & 0xFFFF
  middle = signed[..., 1] + (signed[..., 0] >> 16)
  return jnp.stack([low, middle & 0xFFFF, signed[..., 2] + (middle >> 16)], -1).astype(jnp.uint32)


def number(total: Array) -> Array:
  """Limbs as float32: exact below 2^24."""
  return jnp.sum(total.astype(jnp.float32) * jnp.array([1.0, 2.0**16, 2.0**32], jnp.float32), -1)


def sum_counts(counts: Array, size: int, kept: int = 0) -> Array:
  """Adds counts (uint32) that may exceed 2^32 in total, `size` being the most it can be: limbs `[..., 3]`.

  The first `kept` axes stay.
  """
  axes = tuple(range(kept, counts.ndim))
  low = jnp.sum(counts, axis=axes, dtype=jnp.uint32)
  high = jnp.zeros_like(low)
  if size >= 1 << 32:  # a float32 sum tells which multiple of 2^32 the exact sum modulo 2^32 lacks
    rest = jnp.sum(counts.astype(jnp.float32), axis=axes) - low.astype(jnp.float32)
    high = jnp.round(rest / 4294967296.0).astype(jnp.uint32)
  return jnp.stack([low & 0xFFFF, low >> 16, high], axis=-1)


def count(mask: Array) -> Array:
  """Number of true elements as limbs `[3]`."""
  block = layout.block(mask, 64)
  if block == 1:
    return sum_counts(mask.astype(jnp.uint32), mask.size)
  blocks = mask.astype(jnp.int8).reshape(*mask.shape[:-1], -1, block)
  return sum_counts(jnp.sum(blocks, axis=-1, dtype=jnp.int8).astype(jnp.uint32), mask.size)


def tally(keys: Array, thresholds: Array) -> Array:
  """How many keys reach each of four thresholds: limbs `[4, 3]`.

  The thresholds share a word, a byte each, while a few keys are added: one pass over memory for all of them.
  """
  reached = [jnp.where(keys >= thresholds[i], np.uint32(1 << 8 * i), np.uint32(0)) for i in range(4)]
  packed, block = sum(reached[1:], reached[0]), layout.block(keys, 8)
  if block > 1:
    packed = jnp.sum(packed.reshape(*keys.shape[:-1], -1, block), axis=-1, dtype=jnp.uint32)
  counts = jnp.stack([packed >> 8 * i & 255 for i in range(4)])
  return sum_counts(counts, keys.size, kept=1)


@functools.partial(jax.jit, inline=True)
def fraction(size: Array, density: Array) -> Array:
  """k = floor(size * density), exactly, for a float32 density in [0, 1]; size and k are limbs `[3]`.

  Half a unit in the last place is added to the density first, so that a decimal that float32
  rounds down counts as what was written: 0.7 of 10 is 7.
  """
  mantissa, exponent = jnp.frexp(jnp.asarray(density, jnp.float32))
  odd = 2 * (mantissa * 2**24).astype(jnp.uint32) + 1  # the density is odd / 2^(25 - exponent)
  k = limbs(0)
  for place in (5, 4, 3, 2, 1):  # Horner's rule over the density's digits in base 2^16
    left = 16 * place - 25 + exponent
    right, left = (jnp.clip(shift, 0, 31).astype(jnp.uint32) for shift in (-left, left))
    product = size * (odd >> right << left & 0xFFFF)
    low = carry(k + (product & 0xFFFF))
    k = jnp.stack([low[1], low[2] & 0xFFFF, low[2] >> 16]) + (product >> 16)
  return jnp.where(density >= 1, size, jnp.where(density > 0, carry(k), limbs(0)))


def strides(shape: tuple[int, ...], every: int) -> tuple[int, ...]:
  """A step along each axis, so that about one element in `every` is met.

  >>> strides((4096, 1024), 1024)
  (32, 32)
  """
  steps = []
  for left, size in zip(range(len(shape), 0, -1), shape, strict=True):
    step = max(1, min(round(every ** (1 / left)), size))
    every = max(1, math.ceil(every / step))
    steps.append(step)
  return tuple(steps)
