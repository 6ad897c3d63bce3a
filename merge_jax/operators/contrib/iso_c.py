"""Iso-C: the summed task vectors with all singular values made equal."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import layout
from merge_jax.operators.contrib import spectral
from merge_jax.operators.core import Leaf, Operator, PyTree
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.pytrees import check_number, pytree


@pytree
class IsoC(Operator):
  """Isotropic merging in the common subspace.

      Σ wᵢ (θᵢ - θ₀) = U S Vᵀ        θ = θ₀ + λ mean(S) U Vᵀ

  Attributes:
    scaling: λ; the authors sweep 0.1 … 3.

  Weights default to 1 for every model. Vectors, and matrices of one row or column, give the mean of
  weighted task vectors `Σ wᵢ τᵢ / K`. Directions whose singular value is rounding noise count neither in
  the mean nor in the result (LoRA): the authors raise them, too, along arbitrary vectors. One model
  does not give itself back. On a mesh the summed task vectors of one tensor at a time are gathered.

  Raises:
    ValueError: a concrete scaling that is not finite.

  Source: No Task Left Behind (arXiv 2502.04959).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros((2, 2))}
  >>> experts = [{"w": jnp.diag(jnp.array([3.0, 0.0]))}, {"w": jnp.diag(jnp.array([0.0, 1.0]))}]
  >>> mj.merge(iso_c(), experts, base=base)["w"].round(4).tolist()
  [[2.0, 0.0], [0.0, 2.0]]
  """

  scaling: ArrayLike = 1.0
  needs_base = True
  by_rows = True

  def __post_init__(self) -> None:
    check_number("scaling", self.scaling)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    merged = weighted_sum(deltas, weights)
    if min(merged.shape) < 2:
      merged = merged / len(deltas)
    else:
      directions, strengths = spectral.polar(layout.whole(merged))
      merged = layout.as_sharded(spectral.mean_above_noise(strengths) * directions, base)
    return base + jnp.asarray(self.scaling, base.dtype) * merged


iso_c = IsoC
