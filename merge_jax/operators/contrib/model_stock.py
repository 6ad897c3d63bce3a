"""Between the base and the mean of the models, by the angle between their task vectors."""

import dataclasses
import itertools
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.contrib import sphere
from merge_jax.operators.core import (
  STATIC,
  Leaf,
  Operator,
  PyTree,
  Surveyed,
  check_choice,
  check_number,
  pytree,
)
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.sums import total

By = Literal["tensor", "row"]


@pytree
class ModelStock(Operator):
  """The point nearest to the centre of the fine-tunes, as their angles tell; weights are refused.

      c = mean over pairs of cos(τᵢ, τⱼ)        t = K c / (1 + (K - 1) c)        τᵢ = θᵢ - θ₀
      θ = θ₀ + t Σ τᵢ / K

  Attributes:
    by: one t for each tensor, or for each row of `[out, in]` (mergekit's `filter_wise`).
    clamp: t is kept in [0, 1]; off (mergekit), offsets that oppose one another give any t.
    floor: least product of two norms by which a cosine is divided; mergekit: 1e-6, which leaves small
      tensors near the base. 0 is free of scale.

  A zero task vector has cosine 0 with all others. t = 0 where `|1 + (K - 1) c| < 1e-6`. A ValueError: fewer
  than two models, a negative floor.

  Source: Model Stock (arXiv 2403.19522).

  >>> import merge_jax as mj
  >>> models = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, 1.0])}]
  >>> mj.merge(model_stock(), models, base={"w": jnp.zeros(2)})["w"].round(4).tolist()
  [0.82..., 0.41...]
  """

  by: By = dataclasses.field(default="tensor", kw_only=True, metadata=STATIC)
  clamp: bool = dataclasses.field(default=True, kw_only=True, metadata=STATIC)
  floor: ArrayLike = dataclasses.field(default=0.0, kw_only=True)
  needs_base = True
  weightless = True

  def __post_init__(self) -> None:
    check_choice("by", self.by, get_args(By))
    check_number("floor", self.floor, 0.0)

  @property
  def by_rows(self) -> bool:  # type: ignore[override]
    return self.by == "row"

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """t, for each row `[rows, 1]` where it differs."""
    count = len(leaf.experts)
    if count < 2:
      raise ValueError("ModelStock takes its angle from pairs of models, got 1; pass two or more.")
    axis = 1 if self.by == "row" else None
    deltas, power = sphere.scaled(leaf)
    norms = [sphere.norm(delta, axis) for delta in deltas]
    floor = jnp.asarray(self.floor, norms[0].dtype)

    def cosine(i: int, j: int) -> Array:
      product, both = norms[i] * norms[j], deltas[i] * deltas[j]
      dot = total(both) if axis is None else jnp.sum(both, axis=axis, keepdims=True)
      size = jnp.ldexp(product, 2 * power)
      shrink = jnp.where(size < floor, size / jnp.where(floor == 0, 1.0, floor), 1.0)
      return shrink * jnp.clip(dot / jnp.where(product == 0, 1.0, product), -1.0, 1.0)

    cosines = [cosine(i, j) for i, j in itertools.combinations(range(count), 2)]
    mean = sum(cosines[1:], cosines[0]) / len(cosines)
    below = 1.0 + (count - 1) * mean
    none = jnp.abs(below) < 1e-6
    t = jnp.where(none, 0.0, count * mean / jnp.where(none, 1.0, below))
    return jnp.clip(t, 0.0, 1.0) if self.clamp else t

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    return base + prepared / len(deltas) * sum(deltas[1:], deltas[0])


model_stock = ModelStock
