"""Direct combinations of models, without a base."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.operators.core import STATIC, Leaf, Operator, PyTree
from merge_jax.operators.reduce import weighted_sum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear(Operator):
  """A weighted average; see `linear`."""

  normalize: bool = dataclasses.field(default=True, metadata=STATIC)

  def default_weights(self, count: int) -> Array:
    return jnp.full(count, 1.0 / count)

  def validate(self, weights: Array) -> None:
    if self.normalize and bool(jnp.any(jnp.abs(jnp.sum(weights, axis=-1)) < 1e-8)):
      raise ValueError("The weights of a linear merge sum to 0; pass others, or normalize=False.")

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    if self.normalize:
      weights = weights / jnp.sum(weights)
    return weighted_sum(leaf.experts, weights)


def linear(*, normalize: bool = True) -> Linear:
  """Weighted average of the models: `θ = Σ wᵢ θᵢ / Σ wᵢ`.

  Args:
    normalize: divide by the sum of the weights; off, `θ = Σ wᵢ θᵢ`.

  Weights default to 1/K. Concrete weights that sum to 0 are a ValueError if normalised. This is the
  merge that *If You Can't Use Them, Recycle Them* (arXiv 2412.04144) searches.

  >>> import merge_jax as mj
  >>> mj.merge(mj.linear(), [{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}], [1.0, 3.0])["w"].tolist()
  [0.75, 0.75]
  """
  return Linear(normalize)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uniform(Operator):
  """The plain mean; see `uniform`."""

  weightless = True

  def default_weights(self, count: int) -> Array:
    return jnp.full(count, 1.0 / count)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    count = len(leaf.experts)
    return weighted_sum(leaf.experts, jnp.full(count, 1.0 / count))


def uniform() -> Uniform:
  """Uniform soup: the mean of the models, `θ = Σ θᵢ / K`; weights are refused.

  Source: Model soups (arXiv 2203.05482).

  >>> import merge_jax as mj
  >>> mj.merge(mj.uniform(), [{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"].tolist()
  [0.5, 0.5]
  """
  return Uniform()
