"""Iso-CTS: isotropic merging in a common subspace and one of each task."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.errors import shown
from merge_jax.operators import layout
from merge_jax.operators.contrib import spectral
from merge_jax.operators.core import Leaf, Operator, PyTree
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.pytrees import STATIC, check_number, pytree


@pytree
class IsoCTS(Operator):
  """Isotropic merging in common and task-specific subspaces.

      U_c: the k leading left singular vectors of Σ wᵢ τᵢ                τᵢ = θᵢ - θ₀
      Uᵢ Sᵢ Vᵢᵀ: the (r - k)/K leading components of wᵢ (τᵢ - U_c U_cᵀ τᵢ)   r = min(out, in)
      θ = θ₀ + λ mean(S) polar([U₁ … U_K U_c]) polar([V₁ … V_K V_c])ᵀ

  Attributes:
    scaling: λ; the authors sweep 0.1 … 3.
    common: share of the r directions that is common, in [0, 1]; the nearest number of which the rest is
      divided evenly among the tasks. It decides shapes and is static; 1 is Iso-C.

  Weights default to 1 for every model. Vectors, and matrices of one row or column, give the mean of
  weighted task vectors `Σ wᵢ τᵢ / K`. Directions that are rounding noise count neither in the mean nor in
  the result, as in `iso_c`. One model does not give itself back. On a mesh the K task vectors of one
  tensor at a time are gathered.

  Raises:
    ValueError: a concrete scaling that is not finite, a share outside [0, 1].

  Source: No Task Left Behind (arXiv 2502.04959).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros((2, 2))}
  >>> experts = [{"w": jnp.diag(jnp.array([3.0, 0.0]))}, {"w": jnp.diag(jnp.array([0.0, 1.0]))}]
  >>> mj.merge(iso_cts(common=0.0), experts, base=base)["w"].round(4).tolist()
  [[2.0, 0.0], [0.0, 2.0]]
  """

  scaling: ArrayLike = 1.0
  common: float = dataclasses.field(default=0.8, kw_only=True, metadata=STATIC)
  needs_base = True
  by_rows = True

  def __post_init__(self) -> None:
    check_number("scaling", self.scaling)
    plain = isinstance(self.common, int | float | np.number) and not isinstance(self.common, bool)
    if not plain or not 0 <= self.common <= 1:
      raise ValueError(f"common is {shown(self.common)}; expected a plain number between 0 and 1.")

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    if min(base.shape) < 2:
      merged = weighted_sum(deltas, weights / len(deltas))
    else:
      merged = layout.as_sharded(self._isotropic(deltas, weights), base)
    return base + jnp.asarray(self.scaling, base.dtype) * merged

  def _isotropic(self, deltas: tuple[Array, ...], weights: Array) -> Array:
    tasks = tuple(w * layout.whole(delta) for w, delta in zip(weights, deltas, strict=True))
    each = _own(min(tasks[0].shape), len(tasks), self.common)
    count = min(tasks[0].shape) - each * len(tasks)
    total = sum(tasks[1:], tasks[0])
    common = _leading(total, count, spectral.norm(total))
    parts = []
    for task in tasks if each else ():
      rest = task - spectral.matmul(common[0], spectral.matmul(common[0].T, task))
      parts.append(_leading(rest, each, spectral.norm(task)))
    lefts, strengths, rights = zip(*parts, common, strict=True)
    left, right = spectral.polar(jnp.concatenate(lefts, 1))[0], spectral.polar(jnp.concatenate(rights))[0]
    return spectral.mean_above_noise(jnp.concatenate(strengths)) * spectral.matmul(left, right)


iso_cts = IsoCTS


def _own(size: int, count: int, common: float) -> int:
  """How many of `size` directions each of `count` tasks has for itself."""
  return min(round((size - int(size * common)) / count), size // count)


def _leading(x: Array, count: int, scale: Array) -> tuple[Array, Array, Array]:
  """The leading components of x; 0 where they are the rounding of a matrix of norm `scale`."""
  u, s, v = spectral.svd(x)
  kept = spectral.above_noise(s, x.shape, scale)[:count]
  return (
    jnp.where(kept[None, :], u[:, :count], 0.0),
    jnp.where(kept, s[:count], 0.0),
    jnp.where(kept[:, None], v[:count], 0.0),
  )
