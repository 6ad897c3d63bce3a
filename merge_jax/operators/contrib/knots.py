"""KnOTS: task vectors of LoRA adapters in one basis, where any other rule then merges them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.errors import shown
from merge_jax.operators import layout, leafwise
from merge_jax.operators.contrib import spectral
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import STATIC, check_whole, pytree
from merge_jax.operators.task_vector import ties


def _default() -> Operator:
  return ties(0.2, scope="tensor", zero_sign="positive")


@pytree
class Knots(Operator):
  """Aligns task vectors by a joint SVD, merges what is aligned, and goes back.

      [τ₁ … τ_K] = U S [V₁ᵀ … V_Kᵀ],  τᵢ = θᵢ - θ₀        θ = θ₀ + U rule(S V₁ᵀ, …, S V_Kᵀ)

  Attributes:
    rule: merges the aligned `[rank, in]` tensors as if they were task vectors: `ties`, `dare_ties`, …
    rank: components kept, the sum of the adapters' ranks. It matters for rules with a density, which
      is a fraction of `rank × in` elements. None keeps all `min(out, K in)`.

  Trims and signs are those of one tensor; the authors' count over all layers. A component that is
  rounding noise is 0 (theirs: s ≤ 1e-5). Vectors, and matrices of one row or column, are merged by the
  rule as they are. Weights are the rule's. A linear rule gives what it gives without alignment.
  On a mesh the K task vectors of one tensor at a time are gathered, once for the basis and for every merge.

  Raises:
    ValueError: a rule that is none, takes no base or needs a statistic of the whole model; a rank that
      is no positive number.

  Source: Model Merging with SVD to Tie the KnOTS (arXiv 2410.19735).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros((2, 2))}
  >>> experts = [{"w": jnp.array([[1.0, 2.0], [1.0, 2.0]])}, {"w": jnp.array([[4.0, 1.0], [4.0, 1.0]])}]
  >>> mj.merge(knots(mj.task_arithmetic(), rank=1), experts, base=base)["w"].round(4).tolist()
  [[5.0, 3.0], [5.0, 3.0]]
  """

  rule: Operator = dataclasses.field(default_factory=_default)
  rank: int | None = dataclasses.field(default=None, kw_only=True, metadata=STATIC)
  needs_base = True
  by_rows = True

  def __post_init__(self) -> None:
    if not isinstance(self.rule, Operator) or not self.rule.needs_base:
      raise ValueError(f"rule is {shown(self.rule)}; expected one of task vectors, as mj.task_arithmetic().")
    if any(one.whole for one in self.rule.survey()):
      raise ValueError(
        "rule needs a statistic of the whole model, but aligned tensors are merged one by one; pass "
        "scope='tensor' and another zero_sign than 'majority'."
      )
    if self.rank is not None:
      check_whole("rank", self.rank, 1)

  @property
  def needs_key(self) -> bool:  # type: ignore[override]
    return self.rule.needs_key

  @property
  def models(self) -> int | None:  # type: ignore[override]
    return self.rule.models

  @property
  def weightless(self) -> bool:  # type: ignore[override]
    return self.rule.weightless

  @property
  def normalize(self) -> bool:  # type: ignore[override]
    return self.rule.normalize

  def default_weights(self, count: int) -> np.ndarray:
    """Those of the rule."""
    return self.rule.default_weights(count)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    base, deltas = task_vectors(leaf)
    basis = None
    if min(base.shape) > 1:
      joint = jnp.concatenate(tuple(map(layout.whole, deltas)), 1)
      u, s = spectral.left(joint)
      kept = spectral.above_noise(s, joint.shape, s[0])
      basis = jnp.where(kept[None, :], u, 0.0)[:, : self.rank]
    aligned = _aligned(leaf, basis)
    return basis, leafwise.prepare_alone(self.rule, aligned)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    basis, inner = prepared
    base, _ = task_vectors(leaf)
    merged = self.rule.combine(_aligned(leaf, basis), inner, weights)
    if basis is not None:
      merged = layout.as_sharded(spectral.matmul(basis, merged), base)
    return base + merged


knots = Knots


def _aligned(leaf: Leaf, basis: Array | None) -> Leaf:
  """Task vectors in a basis, with 0 as their base."""
  _, deltas = task_vectors(leaf)
  if basis is not None:
    deltas = tuple(spectral.matmul(basis.T, layout.whole(delta)) for delta in deltas)
  return leaf._replace(experts=deltas, base=jnp.zeros_like(deltas[0]))
