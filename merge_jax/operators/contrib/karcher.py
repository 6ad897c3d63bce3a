"""The weighted Karcher mean of the models' directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.contrib import sphere
from merge_jax.operators.core import Leaf, Operator, PyTree, Survey, Surveyed
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.pytrees import STATIC, check_number, check_whole, pytree


@pytree
class Karcher(Operator):
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
  elementwise = True

  def __post_init__(self) -> None:
    check_number("tol", self.tol, 0.0)
    check_whole("max_iter", self.max_iter, 0)

  def default_weights(self, count: int) -> np.ndarray:
    return np.full(count, 1.0 / count)

  def survey(self) -> tuple[Survey, ...]:
    return sphere.survey()

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    return sphere.directions(surveyed)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    weights = weights / jnp.sum(weights)
    pulls = sphere.known(prepared, weights)
    total = jnp.sum(pulls)
    mean = self._mean(prepared.chords, pulls / jnp.where(total == 0, 1.0, total))
    return weighted_sum(leaf.experts, sphere.over_norms(prepared, mean, jnp.sum(weights * prepared.norms)))

  def _mean(self, chords: Array, weights: Array) -> Array:
    """Coefficients `[K]` of the unit vectors, whose sum is the mean."""
    square = jnp.sum(weights) ** 2 - sphere.spread(chords, weights)
    lost = sphere.cancels(square, weights)
    start = weights / jnp.sqrt(jnp.where(lost, 1.0, square))
    used = (jnp.cumsum(weights != 0) == 1) & (weights != 0)
    tol = jnp.asarray(self.tol, chords.dtype)

    def step(_: int, mean: Array) -> Array:
      # ‖u - uᵢ‖² for u of norm 1: 1 - Σ mean = -spread / (1 + Σ mean), without cancellation.
      short = 2.0 * sphere.spread(chords, mean) / (1.0 + jnp.sum(mean))
      chord = jnp.sum(chords * mean[None, :], axis=1) - short
      pulls = weights * _log_factor(chord)
      tangent = pulls - jnp.sum(pulls * (1.0 - chord / 2)) * mean
      square = jnp.maximum(jnp.sum(tangent) ** 2 - sphere.spread(chords, tangent), 0.0)
      moved = _cos_root(square) * mean + _sinc_root(square) * tangent
      size = jnp.sum(moved) ** 2 - sphere.spread(chords, moved)
      moved = moved / jnp.sqrt(jnp.where(size == 0, 1.0, size))
      ended = jax.lax.stop_gradient(mean - moved) + moved  # with the slope of a step: the start's is another
      return jnp.where(square < tol**2, ended, moved)

    return jax.lax.fori_loop(0, self.max_iter, step, jnp.where(lost, used.astype(start.dtype), start))


karcher = Karcher


def _log_factor(chord: Array) -> Array:
  """`φ / sin φ` from the squared chord `4 sin²(φ/2)`; 0 within 0.1 of π, where it has a pole."""
  small, far = chord < 1e-3, chord > 3.99
  safe = jnp.where(small | far, 1.0, chord)
  large = 2.0 * jnp.arcsin(jnp.sqrt(safe) / 2) / jnp.sqrt(safe * (1.0 - safe / 4))
  series = 1.0 + chord * (1 / 6 + chord * (1 / 30 + chord * (1 / 140 + chord / 630)))
  return jnp.where(far, 0.0, jnp.where(small, series, large))


def _cos_root(square: Array) -> Array:
  """`cos √x`, whose gradient is finite at 0."""
  small = square < 1e-3
  series = 1.0 - square / 2 * (1.0 - square / 12 * (1.0 - square / 30 * (1.0 - square / 56)))
  return jnp.where(small, series, jnp.cos(jnp.sqrt(jnp.where(small, 1.0, square))))


def _sinc_root(square: Array) -> Array:
  """`sin √x / √x`, likewise."""
  small = square < 1e-3
  root = jnp.sqrt(jnp.where(small, 1.0, square))
  series = 1.0 - square / 6 * (1.0 - square / 20 * (1.0 - square / 42 * (1.0 - square / 72)))
  return jnp.where(small, series, jnp.sin(root) / root)
