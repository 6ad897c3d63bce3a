"""Consensus task arithmetic: what too few tasks use is left out (TALL masks)."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.core import Leaf, Operator, PyTree
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import check_number, pytree


@pytree
class Consensus(Operator):
  """Task arithmetic on the elements that at least k tasks use.

      τ = Σ τᵢ     mᵢ = [|τᵢ| > λᵢ |τ - τᵢ|]     θ = θ₀ + α τ [Σ mᵢ ≥ k]     τᵢ = wᵢ (θᵢ - θ₀)

  Attributes:
    threshold: λ, one for all models or `[K]`; the authors choose each of {0.2, …, 0.6} on validation data.
    k: 2 leaves out what is used by one task or none, 1 by none, 0 nothing (task arithmetic).
    scaling: α; the authors search 0.1 … 1.

  Raises:
    ValueError: a negative threshold or k, numbers that are not finite.

  Weights default to 1 for every model, and scale task vectors before all else.
  Source: Localizing Task Information for Improved Model Merging and Compression (arXiv 2405.07813).

  >>> import merge_jax as mj
  >>> models = [{"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([1.0, 0.0])}]
  >>> mj.merge(consensus(), models, base={"w": jnp.zeros(2)})["w"].tolist()
  [2.0, 0.0]
  """

  threshold: ArrayLike = 0.4
  k: ArrayLike = dataclasses.field(default=2, kw_only=True)
  scaling: ArrayLike = dataclasses.field(default=1.0, kw_only=True)
  needs_base = True
  elementwise = True
  per_model = ("threshold",)

  def __post_init__(self) -> None:
    check_number("threshold", self.threshold, 0.0)
    check_number("k", self.k, 0.0)
    check_number("scaling", self.scaling)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    deltas = tuple(w * delta for w, delta in zip(weights, deltas, strict=True))
    total = sum(deltas[1:], deltas[0])
    thresholds = jnp.broadcast_to(jnp.asarray(self.threshold, base.dtype), (len(deltas),))
    pairs = zip(deltas, thresholds, strict=True)
    votes = sum((jnp.abs(d) > limit * jnp.abs(total - d)).astype(base.dtype) for d, limit in pairs)
    agreed = (votes >= jnp.asarray(self.k, base.dtype)) | ~jnp.isfinite(total)
    return base + jnp.asarray(self.scaling, base.dtype) * jnp.where(agreed, total, 0.0)


consensus = Consensus
