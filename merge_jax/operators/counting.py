"""Counts of elements, exact beyond 2^32 without 64-bit types.

A count is three 16-bit limbs in uint32, little end first, `[..., 3]`, of which 65,536 may be added with
`+` before `carry` brings them back below 2^16. What is computed from concrete counts is computed by NumPy,
on the host: compiled for a dozen numbers it took half a second of a merge.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import layout


def _module(*values: Any) -> Any:
  """`jax.numpy` where a value is of JAX, a tracer for example, else `numpy`."""
  return jnp if any(isinstance(value, Array) for value in values) else np


def _anywhere(function: Callable[..., Any]) -> Callable[..., Any]:
  """Computes on the host what is concrete there; the rest is traced once for all shapes that are equal."""
  traced = jax.jit(function, inline=True)

  @functools.wraps(function)
  def either(*values: Any) -> Any:
    return function(*values) if _module(*values) is np else traced(*values)

  return either


def limbs(number: int) -> Any:
  """A count as limbs `[3]`."""
  return np.array([number & 0xFFFF, number >> 16 & 0xFFFF, number >> 32], np.uint32)


def of(mask: Any) -> Any:
  """1 where it is true, else 0: limbs `[..., 3]`."""
  xp = _module(mask)
  none = xp.zeros_like(mask)
  return xp.stack([mask, none, none], -1).astype(np.uint32)


@_anywhere
def carry(total: Any) -> Any:
  """Normalises summed limbs `[..., 3]` to values below 2^16 (the last takes what is left)."""
  middle = total[..., 1] + (total[..., 0] >> 16)
  return _module(total).stack([total[..., 0] & 0xFFFF, middle & 0xFFFF, total[..., 2] + (middle >> 16)], -1)


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """`a + b` of concrete limbs, normalised, however many are added."""
  low, middle, high = np.moveaxis(np.add(a, b, dtype=np.uint64), -1, 0)
  middle = middle + (low >> np.uint64(16))
  return np.stack([low & 0xFFFF, middle & 0xFFFF, high + (middle >> np.uint64(16))], -1).astype(np.uint32)


def whole(total: Any) -> int:
  """A concrete count, carried or not, as a Python integer."""
  low, middle, high = (int(x) for x in np.asarray(total))
  return low + (middle << 16) + (high << 32)


@_anywhere
def at_least(a: Any, b: Any) -> Any:
  """Whether normalised limbs `a >= b`."""
  (a0, a1, a2), (b0, b1, b2) = (tuple(x[..., i] for i in range(3)) for x in (a, b))
  return (a2 > b2) | ((a2 == b2) & ((a1 > b1) | ((a1 == b1) & (a0 >= b0))))


@_anywhere
def smaller(a: Any, b: Any) -> Any:
  """The smaller of two normalised counts."""
  xp = _module(a, b)
  a, b = xp.broadcast_arrays(a, b)
  return xp.where(at_least(a, b)[..., None], b, a)


@_anywhere
def larger(a: Any, b: Any) -> Any:
  """The larger of two normalised counts."""
  xp = _module(a, b)
  a, b = xp.broadcast_arrays(a, b)
  return xp.where(at_least(a, b)[..., None], a, b)


@_anywhere
def minus(a: Any, b: Any) -> Any:
  """`a - b` of normalised limbs, as limbs; b is not larger."""
  xp = _module(a, b)
  a, b = xp.broadcast_arrays(a, b)
  signed = a.astype(np.int32) - b.astype(np.int32)
  low = signed[..., 0] & 0xFFFF
  middle = signed[..., 1] + (signed[..., 0] >> 16)
  return xp.stack([low, middle & 0xFFFF, signed[..., 2] + (middle >> 16)], -1).astype(np.uint32)


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


def is_count(value: Any) -> bool:
  """Whether a density is the number of elements itself, in uint32."""
  return getattr(value, "dtype", None) == np.uint32


@_anywhere
def fraction(size: Any, density: Any) -> Any:
  """k = floor(size * density), exactly, of a size `[3]` and float32 densities `[...]` in [0, 1]: `[..., 3]`.

  Half a unit in the last place is added to the density first, so that a decimal that float32
  rounds down counts as what was written: 0.7 of 10 is 7. What `is_count` is k itself, at most `size`.
  """
  if is_count(density):
    xp = _module(size, density)
    k = xp.stack([density & 0xFFFF, density >> 16, xp.zeros_like(density)], -1)
    return smaller(k, size)
  if _module(size, density) is np:
    share = np.asarray(density, np.float32)
    counts = [_fraction(whole(size), float(x)) for x in share.flat]
    return np.array(counts, np.uint32).reshape(*share.shape, 3)
  density = jnp.asarray(density, jnp.float32)[..., None]
  size = jnp.broadcast_to(size, (*density.shape[:-1], 3))
  mantissa, exponent = jnp.frexp(density)
  odd = 2 * (mantissa * 2**24).astype(jnp.uint32) + 1  # the density is odd / 2^(25 - exponent)
  k = jnp.zeros(size.shape, jnp.uint32)
  for place in (5, 4, 3, 2, 1):  # Horner's rule over the density's digits in base 2^16
    left = 16 * place - 25 + exponent
    right, left = (jnp.clip(shift, 0, 31).astype(jnp.uint32) for shift in (-left, left))
    product = size * (odd >> right << left & 0xFFFF)
    low = carry(k + (product & 0xFFFF))
    k = jnp.stack([low[..., 1], low[..., 2] & 0xFFFF, low[..., 2] >> 16], -1) + (product >> 16)
  return jnp.where(density >= 1, size, jnp.where(density > 0, carry(k), 0))


def _fraction(size: int, density: float) -> np.ndarray:
  """`fraction` in Python's integers."""
  if not 0 < density < 1:
    return limbs(size if density >= 1 else 0)  # 0 of NaN, too
  mantissa, exponent = math.frexp(density)
  return limbs((2 * int(mantissa * 2**24) + 1) * size >> 25 - exponent)


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
