"""Tensors as vectors on a sphere: their norms, and the chords between their directions.

Rules on the sphere stay in the span of the K inputs, so K norms and K × K chords say all about them.
With the unit vectors `uᵢ` and `Cᵢⱼ = ‖uᵢ - uⱼ‖²`, a sum `Σ bᵢ uᵢ` has the squared norm

    (Σ bᵢ)² - ½ Σ bᵢ bⱼ Cᵢⱼ

Chords, unlike cosines, are exact in float32 for the nearly parallel vectors that fine-tunes of one
base are. Where the sum of weighted directions nearly cancels to a norm R, it is known to 10⁻⁷/R².
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from merge_jax.operators.core import Leaf, Survey, Surveyed, Total
from merge_jax.operators.differences import vectors
from merge_jax.operators.sums import exponent, scale, scaled, totals


class Directions(NamedTuple):
  """What K vectors look like.

  Attributes:
    norms: `[K]`, up to a factor that all share.
    chords: `[K, K]`, squared distances of the unit vectors; that of a zero vector is zero.
  """

  norms: Array
  chords: Array


def scaled_vectors(leaf: Leaf, most: Array) -> tuple[Array, ...]:
  """Task vectors, or models where there is no base, over the power of two of the largest magnitude."""
  power = exponent(most)
  base = None if leaf.base is None else scaled([leaf.base], power)[0]
  return vectors(Leaf(scaled(leaf.experts, power), base))


def root(square: Array) -> Array:
  """Square root whose gradient at 0 is 0."""
  zero = square == 0
  return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def norms(leaf: Leaf, surveyed: Surveyed) -> Array:
  """Squared norms `[K]` of the scaled vectors."""
  return jnp.stack(totals([x * x for x in scaled_vectors(leaf, surveyed[0])]))


def survey() -> tuple[Survey, ...]:
  """What `directions` needs: the scale, squared norms, squared chords of pairs."""

  def chords(leaf: Leaf, surveyed: Surveyed) -> Array:
    lengths = root(surveyed[1])
    scales = 1.0 / jnp.where(lengths == 0, 1.0, lengths)
    units = [x * scale for x, scale in zip(scaled_vectors(leaf, surveyed[0]), scales, strict=True)]
    squares = totals([(x - y) ** 2 for x, y in itertools.combinations(units, 2)])
    return jnp.stack([*squares, jnp.zeros_like(scales[0])])  # one model has no pair

  return scale(lambda surveyed: [surveyed[1]]), Total(norms, whole=False), Total(chords, whole=False)


def directions(surveyed: Surveyed) -> Directions:
  """Norms and chords from the results of `survey`."""
  _, squares, pairs = surveyed
  count = len(squares)
  chords = [[jnp.zeros_like(squares[0])] * count for _ in range(count)]
  for (i, j), chord in zip(itertools.combinations(range(count), 2), pairs, strict=False):
    chords[i][j] = chords[j][i] = chord
  return Directions(root(squares), jnp.stack([jnp.stack(row) for row in chords]))


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
