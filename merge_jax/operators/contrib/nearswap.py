"""From a base towards another model, by no more than a fixed step per element."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.core import Leaf, Operator, PyTree
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import check_number, pytree


@pytree
class Nearswap(Operator):
  """Takes the other model where it is near, and moves towards it elsewhere; weights are refused.

      u = clip(t / max(|θ₁ - θ₀|, 10⁻⁶), 0, 1)        θ = u θ₁ + (1 - u) θ₀

  Attributes:
    t: the distance that an element moves at most, 1e-4 for example; 0 gives the base.

  Raises:
    ValueError: not exactly one model beside the base, a negative t.

  Source: the model card of QuartetAnemoi-70B-t0.0001 (no paper).

  >>> import merge_jax as mj
  >>> ends = {"w": jnp.array([0.0, 0.0])}, {"w": jnp.array([0.25, 4.0])}
  >>> mj.merge(nearswap(0.5), [ends[1]], base=ends[0])["w"].tolist()
  [0.25, 0.5]
  """

  t: ArrayLike
  models = 1
  needs_base = True
  weightless = True
  elementwise = True

  def __post_init__(self) -> None:
    check_number("t", self.t, 0.0)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    (other,), (base, (delta,)) = leaf.experts, task_vectors(leaf)
    share = jnp.asarray(self.t, delta.dtype) / jnp.maximum(jnp.abs(delta), 1e-6)
    return jnp.where(share >= 1.0, other, base + share * delta)


nearswap = Nearswap
