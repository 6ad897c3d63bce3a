"""Geometric methods: merges along the sphere rather than the chord."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.core import Leaf, Operator, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slerp(Operator):
  """Spherical interpolation of two models; see `slerp`."""

  t: ArrayLike | None = None
  models = 2

  def prepare(self, leaf: Leaf, surveyed: tuple[PyTree, ...]) -> PyTree:
    """The angle between the two tensors, each taken as one vector."""
    a, b = (x.astype(jnp.float32) for x in leaf.experts)
    # Divide first: squares of small float32 numbers underflow. A zero tensor has no direction; it
    # counts as orthogonal to everything. Sums, never vdot: that does not shard in Explicit mode.
    a, b = _unit(a), _unit(b)
    # atan2 of chord lengths is exact at small angles, where arccos of a cosine is not.
    return 2.0 * jnp.arctan2(jnp.sqrt(jnp.sum((a - b) ** 2)), jnp.sqrt(jnp.sum((a + b) ** 2)))

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    t = weights[1] / (weights[0] + weights[1]) if self.t is None else jnp.asarray(self.t, jnp.float32)
    a, b = (x.astype(jnp.float32) for x in leaf.experts)
    angle = prepared
    # sin(tΩ)/sin Ω loses its meaning where sin Ω vanishes: parallel or opposite tensors.
    degenerate = jnp.sin(angle) < 1e-6
    safe = jnp.where(degenerate, 1.0, angle)
    from_a = jnp.where(degenerate, 1.0 - t, jnp.sin((1.0 - t) * safe) / jnp.sin(safe))
    from_b = jnp.where(degenerate, t, jnp.sin(t * safe) / jnp.sin(safe))
    return from_a * a + from_b * b


def _unit(x: Array) -> Array:
  largest = jnp.max(jnp.abs(x))
  x = x / jnp.where(largest == 0, 1.0, largest)
  norm = jnp.sqrt(jnp.sum(x * x))
  return x / jnp.where(norm == 0, 1.0, norm)


def slerp(t: ArrayLike | None = None) -> Slerp:
  """Spherical linear interpolation of exactly two models, tensor by tensor.

      θ = [sin((1-t)Ω) θ₁ + sin(tΩ) θ₂] / sin Ω        Ω = angle between θ₁ and θ₂ as vectors

  Args:
    t: 0 gives the first model, 1 the second. None takes it from the weights: `w₂ / (w₁ + w₂)`.

  Linear only where sin Ω < 1e-6 (mergekit: from a cosine of 0.9995 on, which most fine-tunes of one
  base reach). More or fewer than two models are a ValueError.

  >>> import merge_jax as mj
  >>> ends = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}]
  >>> mj.merge(mj.slerp(0.5), ends)["w"].round(4).tolist()
  [0.707..., 0.707...]
  """
  return Slerp(t)
