"""Spherical interpolation of two models by their weights; also of task vectors, and row by row."""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import leafwise
from merge_jax.operators.core import Leaf, Operator, PyTree, Survey, Surveyed, Total
from merge_jax.operators.differences import vectors
from merge_jax.operators.linear import Slerp
from merge_jax.operators.pytrees import STATIC, check_choice, check_number, pytree

By = Literal["tensor", "row", "column"]


@pytree
class NuSlerp(Operator):
  """`slerp` of two models, `t = w₂ / (w₁ + w₂)`, or 0.5 where that sum is less than 1e-6.

      θ = θ₀ + [sin((1-t)Ω) x₁ + sin(tΩ) x₂] / sin Ω        Ω = angle between x₁ and x₂

  Attributes:
    task_vectors: `xᵢ = θᵢ - θ₀`; off, `xᵢ = θᵢ` and nothing is added.
    by: what one vector is: a tensor, or each row or column of `[out, in]` (mergekit: `flatten: false`, with
      `row_wise: true`). A vector or scalar is one row, and stays whole, as by columns does a
      matrix of one row: here the two look alike.
    lerp_above: absolute cosine above which the mean is linear; None only where rounding leaves no angle.

  Raises:
    ValueError: not exactly two models, an unknown `by`, a `lerp_above` outside [0, 1].

  Source: mergekit's documentation (no paper).

  >>> import merge_jax as mj
  >>> ends = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}]
  >>> mj.merge(nuslerp(), ends, [2.0, 1.0])["w"].round(4).tolist()
  [0.86..., 0.5]
  """

  task_vectors: bool = dataclasses.field(default=False, kw_only=True, metadata=STATIC)
  by: By = dataclasses.field(default="tensor", kw_only=True, metadata=STATIC)
  lerp_above: ArrayLike | None = dataclasses.field(default=None, kw_only=True)
  models = 2

  def __post_init__(self) -> None:
    check_choice("by", self.by, get_args(By))
    if self.lerp_above is not None:
      check_number("lerp_above", self.lerp_above, 0.0, 1.0)

  @property
  def needs_base(self) -> bool:  # type: ignore[override]
    return self.task_vectors

  @property
  def by_rows(self) -> bool:  # type: ignore[override]
    return self.by != "tensor"

  @property
  def elementwise(self) -> bool:  # type: ignore[override]
    return self.by == "tensor"

  def survey(self) -> tuple[Survey, ...]:
    """Those of `slerp`, of whole tensors."""

    def of_vectors(one: Total) -> Total:
      return one._replace(measure=lambda leaf, surveyed: one.measure(Leaf(vectors(leaf)), surveyed))

    return tuple(map(of_vectors, Slerp().survey())) if self.by == "tensor" else ()

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    def angles(*pair: Array) -> PyTree:
      whole = self.by == "tensor"
      near, opposite, cancels = (
        Slerp().prepare(leaf, surveyed) if whole else leafwise.prepare_alone(Slerp(), Leaf(pair))
      )
      if self.lerp_above is None:
        return near, opposite, cancels
      threshold = jnp.asarray(self.lerp_above, near.dtype)
      return jnp.where(jnp.cos(near) > threshold, 0.0, near), opposite, cancels

    return self._over(angles, leaf)(*vectors(leaf))

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    total = weights[0] + weights[1]
    none = jnp.abs(total) < 1e-6
    t = jnp.where(none, 0.5, weights[1] / jnp.where(none, 1.0, total))

    def interpolate(a: Array, b: Array, angles: PyTree) -> Array:
      return Slerp(t).combine(Leaf((a, b)), angles, weights)

    merged = self._over(interpolate, leaf, angles=0)(*vectors(leaf), prepared)
    return merged if leaf.base is None else leaf.base + merged

  def _over(self, function: Callable, leaf: Leaf, angles: int | None = None) -> Callable:
    """`function` of two vectors, for each row or column."""
    if self.by == "tensor":
      return function
    axis = 1 if self.by == "column" and leaf.experts[0].shape[0] > 1 else 0
    axes = (axis, axis) if angles is None else (axis, axis, angles)
    return jax.vmap(function, in_axes=axes, out_axes=0 if angles is None else axis)


nuslerp = NuSlerp
