"""Sums of all elements of a tensor: pairwise, so that rounding does not grow with its size; safe squares."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import layout
from merge_jax.operators.core import Leaf, Surveyed, Total


def totals(arrays: Sequence[Array]) -> list[Array]:
  """The sums of all elements of arrays of one shape.

  XLA adds what is flat pairwise, and faster on CPUs if it need not compute it at the same time. Of other
  arrays parts of the last axis are added to one another, which vectorises where XLA would add numbers one by
  one and leaves shards where they are; then axis after axis.

  >>> float(totals([jnp.full((300, 128), 0.5)])[0])
  19200.0
  """
  if arrays and arrays[0].ndim == 1 and layout.explicit(arrays[0]) is None:
    return [jnp.sum(x) for x in jax.lax.optimization_barrier(tuple(arrays))]
  return [_by_parts(x) for x in arrays]


def _by_parts(x: Array) -> Array:
  if layout.on_mesh(x):  # parts of all axes, then what is left at once: one number for each device is sent
    for axis in range(x.ndim):
      x = _halved(x, axis)
    return jnp.sum(x)
  if x.ndim:
    x = _halved(x, x.ndim - 1)
  for _ in range(x.ndim):
    x = jnp.sum(x, axis=-1)
  return x


def _halved(x: Array, axis: int) -> Array:
  """Parts of an axis added to one another, pairwise."""
  block = layout.block(x, 64, axis)
  x = x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])
  while block > 1:
    block //= 2
    low, high = (jax.lax.slice_in_dim(x, i * block, (i + 1) * block, axis=axis + 1) for i in range(2))
    x = low + high
  return jnp.squeeze(x, axis + 1)


def maximum(x: Array) -> Array:
  """The largest element; of flat arrays by halves, which vectorises where XLA would go one by one on CPUs."""
  if x.ndim == 1 and not layout.on_mesh(x):
    for _ in range(3 if x.size % 8 == 0 else 0):
      x = jnp.maximum(x[: x.size // 2], x[x.size // 2 :])
  return jnp.max(x)


def largest(leaf: Leaf, surveyed: Surveyed = ()) -> Array:
  """The largest magnitude in all models and the base."""
  inputs = leaf.experts if leaf.base is None else (*leaf.experts, leaf.base)
  return maximum(functools.reduce(jnp.maximum, map(jnp.abs, jax.lax.stop_gradient(inputs))))


def scale(squares: Callable[[Surveyed], Any]) -> Total:
  """The survey of the largest magnitude, by which numbers are `scaled` before they are squared.

  Args:
    squares: picks the sums of squares out of the results of a rule's surveys. Where all lie between 2^-30 and
      2^60 with numbers as they are, none needed to be scaled.
  """

  def fits(surveyed: Surveyed) -> bool:
    with np.errstate(all="ignore"):
      sums = np.concatenate([np.ravel(x) for x in squares(surveyed)])
    return bool(np.all((sums > 2.0**-30) & (sums < 2.0**60)))

  return Total(largest, whole=False, kind="largest", usual=(np.float32(0.5), fits))


def exponent(x: Array) -> Array:
  """The power of two that a magnitude comes to, 2^exponent > x; the least one for 0.

  Read from its bits: `frexp` is 29 operations of a program, `ldexp` 50, which were most of what was compiled.

  >>> exponent(jnp.array([1.0, 0.75, 0.0])).tolist()
  [1, 0, -126]
  """
  kind = jnp.finfo(x.dtype)
  unsigned = np.dtype(f"uint{kind.bits}")
  bits = jax.lax.bitcast_convert_type(x, unsigned) >> unsigned.type(kind.nmant)
  return bits.astype(np.int32) - np.int32(kind.maxexp - 2)


def scaled(arrays: Sequence[Array], power: Array) -> tuple[Array, ...]:
  """`x / 2^power`, exact: squares of what is at most about 1 do not overflow, nor underflow above 1e-19.

  >>> [x.tolist() for x in scaled([jnp.array([3.0, 2.0**-126])], jnp.int32(-126))]
  [[2.552...e+38, 1.0]]
  """
  if not arrays:
    return ()
  half = power >> 1
  first, second = (_power(x, arrays[0].dtype) for x in (-half, half - power))  # either is a normal number
  return tuple(x * first * second for x in arrays)


def _power(exponent: Array, dtype: Any) -> Array:
  """2^exponent, or the normal number next to it."""
  kind = jnp.finfo(dtype)
  unsigned = np.dtype(f"uint{kind.bits}")
  biased = jax.lax.clamp(np.int32(1), exponent + np.int32(kind.maxexp - 1), np.int32(2 * kind.maxexp - 2))
  return jax.lax.bitcast_convert_type(biased.astype(unsigned) << unsigned.type(kind.nmant), dtype)


def rounded(product: Array) -> Array:
  """A product, rounded before it is added to something.

  A compiler may add it unrounded (FMA), in one program and not in another; not through a minimum. For keys
  that several programs compute, of numbers about 1 or less.
  """
  return jnp.minimum(product, jnp.finfo(product.dtype).max)
