"""The weighted Karcher mean of the models' directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.contrib import sphere
from merge_jax.operators.core import Leaf, PyTree, Survey, Surveyed
from merge_jax.operators.linear import Combination, library
from merge_jax.operators.pytrees import STATIC, check_number, check_whole, pytree


@pytree
class Karcher(Combination):
  """Mean on the sphere of directions, times the mean norm, tensor by tensor.

      u = argmin Σ aᵢ ∠(u, xᵢ)²        θ = u Σ aᵢ ‖xᵢ‖        aᵢ = wᵢ / Σ w

  found by steps of gradient descent on the sphere, from the normalised `Σ aᵢ uᵢ`:

      T = Σ aᵢ φᵢ / sin φᵢ (uᵢ - cos φᵢ u)        u ← cos‖T‖ u + sin‖T‖ T / ‖T‖        φᵢ = ∠(u, uᵢ)

  Attributes:
    max_iter: number of steps.
    tol: steps end where ‖T‖ is less.

  Raises:
    ValueError: max_iter that is no whole number from 0 on, weights that sum to 0.

  The steps change K coefficients, not tensors. A zero vector has no direction, but counts in the mean norm.
  If the directions cancel, the first is where the steps start; one within 0.1 of the opposite of u says
  nothing about where to go, and is left out of a step. One model is itself. Weights default to 1/K.

  Source: Functionality-Oriented LLM Merging on the Fisher-Rao Manifold (arXiv 2603.04972).

  >>> import merge_jax as mj
  >>> models = [{"w": jnp.array([4.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}]
  >>> mj.merge(karcher(), models, [0.5, 0.5])["w"].round(4).tolist()
  [2.12..., 2.12...]
  """

  max_iter: int = dataclasses.field(default=10, kw_only=True, metadata=STATIC)
  tol: ArrayLike = dataclasses.field(default=1e-5, kw_only=True)
  normalize = True

  def __post_init__(self) -> None:
    check_number("tol", self.tol, 0.0)
    check_whole("max_iter", self.max_iter, 0)

  def default_weights(self, count: int) -> np.ndarray:
    return np.full(count, 1.0 / count)

  def survey(self) -> tuple[Survey, ...]:
    return sphere.survey()

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    return sphere.directions(surveyed)

  def coefficients(self, prepared: PyTree, weights: Array) -> Array:
    weights = weights / weights.sum()
    pulls = sphere.known(prepared, weights)
    mean = self._mean(prepared.chords, pulls / sphere.or_one(pulls.sum()))
    return sphere.over_norms(prepared, mean, (weights * prepared.norms).sum())

  def _mean(self, chords: Array, weights: Array) -> Array:
    """Coefficients `[K]` of the unit vectors, whose sum is the mean."""
    xp = library(weights)
    square = weights.sum() ** 2 - sphere.spread(chords, weights)
    lost = sphere.cancels(square, weights)
    used = (xp.cumsum(weights != 0) == 1) & (weights != 0)
    start = xp.where(lost, used.astype(weights.dtype), weights / xp.sqrt(xp.where(lost, 1.0, square)))
    least = xp.asarray(self.tol, chords.dtype) ** 2

    def step(mean: Array) -> tuple[Array, Array]:
      """The next mean, and the square of the way to it."""
      # ‖u - uᵢ‖² for u of norm 1: 1 - Σ mean = -spread / (1 + Σ mean), without cancellation.
      short = 2.0 * sphere.spread(chords, mean) / (1.0 + mean.sum())
      chord = (chords * mean[None, :]).sum(axis=1) - short
      pulls = weights * _log_factor(chord)
      tangent = pulls - (pulls * (1.0 - chord / 2)).sum() * mean
      square = xp.maximum(tangent.sum() ** 2 - sphere.spread(chords, tangent), 0.0)
      moved = _cos_root(square) * mean + _sinc_root(square) * tangent
      return moved / xp.sqrt(sphere.or_one(moved.sum() ** 2 - sphere.spread(chords, moved))), square

    def traced(_: int, mean: Array) -> Array:
      moved, square = step(mean)
      ended = jax.lax.stop_gradient(mean - moved) + moved  # with the slope of a step: the start's is another
      return jnp.where(square < least, ended, moved)

    if xp is not np:
      return jax.lax.fori_loop(0, self.max_iter, traced, start)
    mean = start
    for _ in range(self.max_iter):
      moved, square = step(mean)
      if square < least:
        break
      mean = moved
    return mean


karcher = Karcher


def _log_factor(chord: Array) -> Array:
  """`φ / sin φ` from the squared chord `4 sin²(φ/2)`; 0 within 0.1 of π, where it has a pole."""
  xp = library(chord)
  small, far = chord < 1e-3, chord > 3.99
  safe = xp.where(small | far, 1.0, chord)
  large = 2.0 * xp.arcsin(xp.sqrt(safe) / 2) / xp.sqrt(safe * (1.0 - safe / 4))
  series = 1.0 + chord * (1 / 6 + chord * (1 / 30 + chord * (1 / 140 + chord / 630)))
  return xp.where(far, 0.0, xp.where(small, series, large))


def _cos_root(square: Array) -> Array:
  """`cos √x`, whose gradient is finite at 0."""
  xp, small = library(square), square < 1e-3
  series = 1.0 - square / 2 * (1.0 - square / 12 * (1.0 - square / 30 * (1.0 - square / 56)))
  return xp.where(small, series, xp.cos(xp.sqrt(xp.where(small, 1.0, square))))


def _sinc_root(square: Array) -> Array:
  """`sin √x / √x`, likewise."""
  xp, small = library(square), square < 1e-3
  root = xp.sqrt(xp.where(small, 1.0, square))
  series = 1.0 - square / 6 * (1.0 - square / 20 * (1.0 - square / 42 * (1.0 - square / 72)))
  return xp.where(small, series, xp.sin(root) / root)
