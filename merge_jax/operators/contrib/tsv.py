"""TSV-Merge: the leading singular vectors of every task, made orthogonal to those of the others."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import layout
from merge_jax.operators.contrib import spectral
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.pytrees import check_number, pytree


@pytree
class TSV(Operator):
  """TSV-M: each task vector keeps a K-th of its singular directions; all are orthogonalised together.

      θᵢ - θ₀ = Uᵢ Sᵢ Vᵢᵀ, ⌊r/K⌋ leading components of each, r = min(out, in)
      θ = θ₀ + λ polar([U₁ … U_K]) diag(w₁ S₁, …, w_K S_K) polar([V₁ … V_K])ᵀ

  Attributes:
    scaling: λ; the authors sweep 0.1 … 3.

  Weights default to 1 for every model. Vectors, and matrices with fewer rows or columns than models
  (where nothing would be left), give the mean of weighted task vectors `Σ wᵢ τᵢ / K`, as the authors'
  vectors do. Components that are rounding noise are left out, and directions that tasks share are
  split evenly; the authors' polar factor is arbitrary there. Equal models keep their leading components.
  `prepare` keeps the factors, two more tensors whatever K, so that a candidate costs one product. On a mesh
  it gathers the K task vectors of a tensor, one after another; on an Explicit one the factors are split as
  the tensor's rows and columns, and candidates gather nothing.

  Raises:
    ValueError: a concrete scaling that is not finite.

  Source: Task Singular Vectors (arXiv 2412.00081).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros((2, 2))}
  >>> experts = [{"w": jnp.diag(jnp.array([3.0, 1.0]))}, {"w": jnp.diag(jnp.array([1.0, 2.0]))}]
  >>> mj.merge(tsv(), experts, base=base)["w"].round(4).tolist()
  [[3.0, 0.0], [0.0, 2.0]]
  """

  scaling: ArrayLike = 1.0
  needs_base = True
  by_rows = True

  def __post_init__(self) -> None:
    check_number("scaling", self.scaling)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    base, deltas = task_vectors(leaf)
    keep = min(base.shape) // len(deltas)
    if keep == 0:
      return None
    lefts, strengths, rights = [], [], []
    for delta in deltas:
      u, s, v = spectral.svd(layout.whole(delta))
      kept = spectral.above_noise(s, base.shape, s[0])[:keep]
      lefts.append(jnp.where(kept[None, :], u[:, :keep], 0.0))
      rights.append(jnp.where(kept[:, None], v[:keep], 0.0))
      strengths.append(s[:keep])
    left, right = spectral.polar(jnp.concatenate(lefts, 1))[0], spectral.polar(jnp.concatenate(rights))[0]
    return layout.as_sharded(left, base, (0,)), jnp.stack(strengths), layout.as_sharded(right, base, (1,))

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    if prepared is None:
      merged = weighted_sum(deltas, weights / len(deltas))
    else:
      left, strengths, right = prepared
      strengths = (weights[:, None] * strengths).reshape(1, -1)
      merged = spectral.matmul(left * strengths, right)
    return base + jnp.asarray(self.scaling, base.dtype) * merged


tsv = TSV
