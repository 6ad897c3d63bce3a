"""Tensors as vectors on a sphere: their norms, and the chords between their directions.

Rules on the sphere stay in the span of the K inputs, so K norms and K × K chords say all about them.
With the unit vectors `uᵢ` and `Cᵢⱼ = ‖uᵢ - uⱼ‖²`, a sum `Σ bᵢ uᵢ` has the squared norm

    (Σ bᵢ)² - ½ Σ bᵢ bⱼ Cᵢⱼ

Chords, unlike cosines, are exact in float32 for the nearly parallel vectors that fine-tunes of one
base are. Where the sum of weighted directions nearly cancels to a norm R, it is known to 10⁻⁷/R².
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.operators.core import Leaf
from merge_jax.operators.differences import vectors
from merge_jax.operators.sums import total


class Directions(NamedTuple):
  """What K vectors look like.

  Attributes:
    norms: `[K]`, up to a factor that all share.
    chords: `[K, K]`, squared distances of the unit vectors; that of a zero vector is zero.
  """

  norms: Array
  chords: Array


def scaled(leaf: Leaf) -> tuple[tuple[Array, ...], Array]:
  """Task vectors over a power of two, or models where there is no base, and the exponent of that power.

  The largest element of all inputs comes to about 1, so that squares neither overflow nor, down to 10⁻¹⁹ of
  it, underflow.
  """
  inputs = leaf.experts if leaf.base is None else (*leaf.experts, leaf.base)
  largest = functools.reduce(jnp.maximum, map(jnp.abs, jax.lax.stop_gradient(inputs)))
  _, power = jnp.frexp(jnp.max(largest))
  one = jnp.ones((), largest.dtype)
  low, high = jnp.ldexp(one, -(power // 2)), jnp.ldexp(one, power // 2 - power)  # one factor may be subnormal
  inputs = tuple(x * low * high for x in inputs)
  return inputs if leaf.base is None else vectors(Leaf(inputs[:-1], inputs[-1])), power


def norm(x: Array, axis: int | None = None) -> Array:
  """Norm of all, or along an axis that stays; its gradient at 0 is 0."""
  square = total(x * x) if axis is None else jnp.sum(x * x, axis=axis, keepdims=True)
  zero = square == 0
  return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def directions(leaf: Leaf) -> Directions:
  """Norms and chords of the task vectors, or of the models where there is no base."""
  xs, _ = scaled(leaf)
  norms = [norm(x) for x in xs]
  scales = [1.0 / jnp.where(size == 0, 1.0, size) for size in norms]
  chords = [[jnp.zeros_like(norms[0])] * len(xs) for _ in xs]
  for i, j in itertools.combinations(range(len(xs)), 2):
    chords[i][j] = chords[j][i] = total((xs[i] * scales[i] - xs[j] * scales[j]) ** 2)
  return Directions(jnp.stack(norms), jnp.stack([jnp.stack(row) for row in chords]))


def known(found: Directions, weights: Array) -> Array:
  """Weights `[K]` with 0 for zero vectors, which have no direction."""
  return jnp.where(found.norms == 0, 0.0, weights)


def spread(chords: Array, weights: Array) -> Array:
  """`½ Σ bᵢ bⱼ Cᵢⱼ`: by how much the squared norm of `Σ bᵢ uᵢ` falls short of `(Σ bᵢ)²`."""
  return 0.5 * jnp.sum(weights[:, None] * weights[None, :] * chords)


def cancels(square: Array, weights: Array) -> Array:
  """Whether a squared norm of `Σ bᵢ uᵢ` is rounding, so that its direction means nothing."""
  return square <= 16.0 * jnp.finfo(square.dtype).eps * jnp.sum(jnp.abs(weights)) ** 2


def over_norms(found: Directions, coefficients: Array, length: Array) -> Array:
  """Coefficients of the vectors themselves, from those of their unit vectors, for a sum of this length.

  What norms share cancels in `length / norm`.
  """
  return coefficients * (length / jnp.where(found.norms == 0, 1.0, found.norms))
