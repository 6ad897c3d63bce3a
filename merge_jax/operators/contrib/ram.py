"""Merging sparse task vectors: what one model changes is kept whole, what several change is averaged."""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import counting
from merge_jax.operators.core import Leaf, Operator, PyTree, Survey, Surveyed, Total
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import STATIC, check_choice, check_number, pytree

Scope = Literal["model", "tensor"]


@pytree
class Ram(Operator):
  """The mean over the models that change an element; weights are refused.

      Aᵢ = [|τᵢ| > ε]        θ = θ₀ + Σ Aᵢ τᵢ / max(Σ Aᵢ, 1)        τᵢ = θᵢ - θ₀

  Attributes:
    epsilon: magnitude above which a task vector counts as active; absolute.

  Raises:
    ValueError: a negative epsilon.

  Source: Behavior Knowledge Merge in Reinforced Agentic Models (arXiv 2601.13572).

  >>> import merge_jax as mj
  >>> models = [{"w": jnp.array([1.0, 0.0, 2.0])}, {"w": jnp.array([0.0, 0.0, 4.0])}]
  >>> mj.merge(ram(), models, base={"w": jnp.zeros(3)})["w"].tolist()
  [1.0, 0.0, 3.0]
  """

  epsilon: ArrayLike = dataclasses.field(default=1e-5, kw_only=True)
  needs_base = True
  weightless = True
  elementwise = True

  def __post_init__(self) -> None:
    check_number("epsilon", self.epsilon, 0.0)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas, active = self._active(leaf)
    summed = sum((a * d for a, d in zip(active, deltas, strict=True)), jnp.zeros_like(base))
    return base + summed / jnp.maximum(sum(active[1:], active[0]), 1.0)

  def _active(self, leaf: Leaf) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """The base, task vectors, and where they are active: 1 or 0, and 1 for NaN."""
    base, deltas = task_vectors(leaf)
    epsilon = jnp.asarray(self.epsilon, deltas[0].dtype)
    return base, deltas, tuple((~(jnp.abs(d) <= epsilon)).astype(d.dtype) for d in deltas)


ram = Ram


@pytree
class RamPlus(Ram):
  """`ram`, with what one model alone changes enlarged the more, the more that model shares.

      λᵢ = 1 + r clip(ρᵢ, 0, α)        ρᵢ = #{Aᵢ, changed by others too} / #{Aᵢ, by i alone}

  Attributes:
    r, alpha: see λ.
    epsilon: as of `ram`.
    scope: ρᵢ of the whole model (the paper), or of each tensor (mergekit's `ramplus_tl`).

  Raises:
    ValueError: a negative number, an unknown scope.

  Source: arXiv 2601.13572.

  >>> import merge_jax as mj
  >>> models = [{"w": jnp.array([1.0, 0.0, 2.0])}, {"w": jnp.array([0.0, 0.0, 4.0])}]
  >>> mj.merge(ram_plus(alpha=1.0), models, base={"w": jnp.zeros(3)})["w"].round(4).tolist()
  [1.1..., 0.0, 3.0]
  """

  r: ArrayLike = dataclasses.field(default=0.1, kw_only=True)
  alpha: ArrayLike = dataclasses.field(default=0.2, kw_only=True)
  scope: Scope = dataclasses.field(default="model", kw_only=True, metadata=STATIC)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_number("r", self.r, 0.0)
    check_number("alpha", self.alpha, 0.0)
    check_choice("scope", self.scope, get_args(Scope))

  def survey(self) -> tuple[Survey, ...]:
    whole = self.scope == "model"
    return (Total(self._counts, lambda total, _: counting.carry(total), whole=whole, kind="count"),)

  def _counts(self, leaf: Leaf, surveyed: Surveyed) -> Array:
    """How many elements each model changes with others, and alone: limbs `[2, K, 3]`."""
    _, _, active = self._active(leaf)
    count = sum(active[1:], active[0])
    return jnp.stack(
      [jnp.stack([counting.count((a != 0) & where) for a in active]) for where in (count > 1, count == 1)]
    )

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """λ of each model."""
    dtype = leaf.experts[0].dtype
    low, middle, high = (surveyed[0][..., i].astype(dtype) for i in range(3))
    shared, alone = low + 2.0**16 * middle + 2.0**32 * high
    r, alpha = (jnp.asarray(x, dtype) for x in (self.r, self.alpha))
    return 1.0 + r * jnp.clip(shared / jnp.maximum(alone, 1.0), 0.0, alpha)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas, active = self._active(leaf)
    count = sum(active[1:], active[0])
    scales = [jnp.where(count == 1, scale, 1.0) for scale in prepared]
    parts = zip(active, deltas, scales, strict=True)
    summed = sum((a * d * scale for a, d, scale in parts), jnp.zeros_like(base))
    return base + summed / jnp.maximum(count, 1.0)


ram_plus = RamPlus
