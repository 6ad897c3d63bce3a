"""Tensors as vectors on a sphere: their norms, and the chords between their directions.

Rules on the sphere stay in the span of the K inputs, so K norms and K × K chords say all about them.
With the unit vectors `uᵢ` and `Cᵢⱼ = ‖uᵢ - uⱼ‖²`, a sum `Σ bᵢ uᵢ` has the squared norm

    (Σ bᵢ)² - ½ Σ bᵢ bⱼ Cᵢⱼ        Cᵢⱼ = (‖xᵢ - xⱼ‖² - (‖xᵢ‖ - ‖xⱼ‖)²) / ‖xᵢ‖ ‖xⱼ‖

Distances, unlike products, are exact in float32 for the nearly parallel vectors that fine-tunes of one base
are; of vectors whose norms differ much they say little, so these are divided by their norms first. Where the
sum of weighted directions nearly cancels to a norm R, it is known to 10⁻⁷/R².

What is no survey is computed by the library of its arguments, NumPy or JAX.
"""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators.core import Leaf, Survey, Surveyed, Total
from merge_jax.operators.differences import vectors
from merge_jax.operators.linear import library
from merge_jax.operators.sums import exponent, scale, scaled, totals


class Directions(NamedTuple):
  """What K vectors look like.

  Attributes:
    norms: `[K]`, up to a factor that all share.
    chords: `[K, K]`, squared distances of the unit vectors; that of a zero vector means nothing.
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
  xp, zero = library(square), square == 0
  return xp.where(zero, 0.0, xp.sqrt(xp.where(zero, 1.0, square)))


def or_one(x: Array) -> Array:
  """What can be divided by: 1 for 0."""
  return library(x).where(x == 0, 1.0, x)


def norms(leaf: Leaf, surveyed: Surveyed) -> Array:
  """Squared norms `[K]` of the scaled vectors."""
  return jnp.stack(totals([x * x for x in scaled_vectors(leaf, surveyed[0])]))


def survey() -> tuple[Survey, ...]:
  """What `directions` needs: the scale, squared norms, then squares and distances of vectors of about norm 1.

  Vectors whose norms are within twice of each other are taken as they are, in one pass.
  """

  def products(leaf: Leaf, surveyed: Surveyed) -> Array:
    vectors = scaled_vectors(leaf, surveyed[0])
    scales = jnp.broadcast_to(1.0 / or_one(root(surveyed[1])), (len(vectors),))
    units = [x * scale for x, scale in zip(vectors, scales, strict=True)]
    pairs = itertools.combinations(units, 2)
    return jnp.stack(totals([x * x for x in units] + [(x - y) ** 2 for x, y in pairs]))

  def alike(surveyed: Surveyed) -> bool:
    found = squares(surveyed[2])
    return bool(found.max() <= 4.0 * found.min())

  return (
    scale(lambda surveyed: [squares(surveyed[2])]),
    Total(norms, whole=False, usual=(np.float32(1.0), alike)),
    Total(products, whole=False),
  )


def directions(surveyed: Surveyed) -> Directions:
  """Norms and chords from the results of `survey`."""
  _, rough, sums = surveyed
  xp = library(sums)
  lengths = root(squares(sums))
  count = len(lengths)
  i, j = np.triu_indices(count, 1)
  distances = sums[count:] - (lengths[i] - lengths[j]) ** 2
  chords = xp.maximum(distances, 0.0) / or_one(lengths[i] * lengths[j])
  place = np.zeros((count, count), int)
  place[i, j] = place[j, i] = np.arange(1, len(i) + 1)
  return Directions(root(rough) * lengths, xp.pad(chords, (1, 0))[place])


def squares(sums: Array) -> Array:
  """The first K of K squares and K (K - 1) / 2 numbers of pairs."""
  return sums[: (math.isqrt(8 * len(sums) + 1) - 1) // 2]


def known(found: Directions, weights: Array) -> Array:
  """Weights `[K]` with 0 for zero vectors, which have no direction."""
  return library(weights).where(found.norms == 0, 0.0, weights)


def spread(chords: Array, weights: Array) -> Array:
  """`½ Σ bᵢ bⱼ Cᵢⱼ`: by how much the squared norm of `Σ bᵢ uᵢ` falls short of `(Σ bᵢ)²`."""
  return 0.5 * (weights[:, None] * weights[None, :] * chords).sum()


def cancels(square: Array, weights: Array) -> Array:
  """Whether a squared norm of `Σ bᵢ uᵢ` is rounding, so that its direction means nothing."""
  return square <= 16.0 * np.finfo(square.dtype).eps * abs(weights).sum() ** 2


def over_norms(found: Directions, coefficients: Array, length: Array) -> Array:
  """Coefficients of the vectors themselves, from those of their unit vectors, for a sum of this length.

  What norms share cancels in `length / norm`.
  """
  return coefficients * (length / or_one(found.norms))
