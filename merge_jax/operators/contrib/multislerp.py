"""The mean direction of any number of models, with their mean norm."""

import dataclasses

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.contrib import sphere
from merge_jax.operators.core import Leaf, PyTree, Survey, Surveyed
from merge_jax.operators.linear import Combination, library
from merge_jax.operators.pytrees import STATIC, check_number, pytree


@pytree
class MultiSlerp(Combination):
  """Direction of the weighted sum of directions, length of the weighted sum of norms, tensor by tensor.

      uᵢ = xᵢ / ‖xᵢ‖        θ = Σ wᵢ uᵢ / ‖Σ wᵢ uᵢ‖ · Σ wᵢ ‖xᵢ‖

  Attributes:
    task_vectors: `xᵢ = θᵢ - θ₀`, and θ₀ is added; off, `xᵢ = θᵢ`.
    normalize: weights are divided by their sum, which must not be 0.
    eps: where `‖Σ wᵢ uᵢ‖` is less than that, or only rounding, `θ = Σ wᵢ xᵢ`.

  Raises:
    ValueError: a negative eps, weights that sum to 0 with `normalize`.

  mergekit describes it as one step from that mean direction along the weighted sum of the logarithms'
  linear parts; that sum is zero in exact arithmetic. A zero vector adds no direction, but counts in the
  weights of the norm. One model is itself. Weights default to 1/K.
  Source: mergekit's documentation (no paper).

  >>> import jax.numpy as jnp
  >>> import merge_jax as mj
  >>> models = [{"w": jnp.array([4.0, 0.0])}, {"w": jnp.array([0.0, 2.0])}]
  >>> mj.merge(multislerp(), models)["w"].round(4).tolist()
  [2.12..., 2.12...]
  """

  task_vectors: bool = dataclasses.field(default=False, kw_only=True, metadata=STATIC)
  normalize: bool = dataclasses.field(default=True, kw_only=True, metadata=STATIC)
  eps: ArrayLike = dataclasses.field(default=1e-8, kw_only=True)

  def __post_init__(self) -> None:
    check_number("eps", self.eps, 0.0)

  @property
  def needs_base(self) -> bool:  # type: ignore[override]
    return self.task_vectors

  def default_weights(self, count: int) -> np.ndarray:
    return np.full(count, 1.0 / count)

  def survey(self) -> tuple[Survey, ...]:
    return sphere.survey()

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    return sphere.directions(surveyed)

  def coefficients(self, prepared: PyTree, weights: Array) -> Array:
    xp = library(weights)
    weights = weights / weights.sum() if self.normalize else weights
    pulls = sphere.known(prepared, weights)
    square = pulls.sum() ** 2 - sphere.spread(prepared.chords, pulls)
    flat = sphere.cancels(square, weights) | (square < xp.asarray(self.eps, square.dtype) ** 2)
    length = (weights * prepared.norms).sum() / xp.sqrt(xp.where(flat, 1.0, square))
    return xp.where(flat, weights, sphere.over_norms(prepared, pulls, length))


multislerp = MultiSlerp
