"""One model as it is, or times a number."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.core import Leaf, Operator, PyTree
from merge_jax.operators.pytrees import check_number, pytree


@pytree
class Passthrough(Operator):
  """The tensors of one model: `θ = s θ₁`; weights are refused.

  Attributes:
    scale: s; 1 gives the model's bytes.

  Raises:
    ValueError: not exactly one model, a scale that is not finite.

  Layers are stacked, left out or repeated by the recipe that says which tensor comes from where.
  Source: mergekit's documentation (no paper).

  >>> import merge_jax as mj
  >>> mj.merge(passthrough(0.5), [{"w": jnp.array([2.0, -4.0])}])["w"].tolist()
  [1.0, -2.0]
  """

  scale: ArrayLike = 1.0
  models = 1
  weightless = True
  elementwise = True

  def __post_init__(self) -> None:
    check_number("scale", self.scale)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    (only,) = leaf.experts
    return jnp.asarray(self.scale, only.dtype) * only


passthrough = Passthrough
