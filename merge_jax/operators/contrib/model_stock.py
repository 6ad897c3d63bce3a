"""Between the base and the mean of the models, by the angle between their task vectors."""

import dataclasses
import itertools
from typing import Literal, get_args

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.contrib import sphere
from merge_jax.operators.core import Leaf, Operator, PyTree, Survey, Surveyed, Total
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import STATIC, check_choice, check_number, pytree
from merge_jax.operators.sums import exponent, largest, scale, scaled, totals

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

  Raises:
    ValueError: fewer than two models, a negative floor.

  A zero task vector has cosine 0 with all others. t = 0 where `|1 + (K - 1) c| < 1e-6`.

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

  @property
  def elementwise(self) -> bool:  # type: ignore[override]
    return self.by == "tensor"

  def survey(self) -> tuple[Survey, ...]:
    """The scale, and at it the squares and the products of the task vectors; of tensors."""

    def products(leaf: Leaf, surveyed: Surveyed) -> PyTree:
      return jnp.stack(totals(_products(leaf, surveyed[0])))

    if self.by == "row":
      return ()
    return scale(lambda surveyed: [sphere.squares(surveyed[1])]), Total(products, whole=False)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """t, for each row `[rows, 1]` where it differs."""
    count = len(leaf.experts)
    if count < 2:
      raise ValueError("ModelStock takes its angle from pairs of models, got 1; pass two or more.")
    if self.by == "row":
      most = largest(leaf)
      surveyed = most, jnp.stack([jnp.sum(x, axis=1, keepdims=True) for x in _products(leaf, most)])
    most, products = surveyed
    norms, dots = sphere.root(products[:count]), products[count:]
    lengths = jnp.stack([x * y for x, y in itertools.combinations(norms, 2)])
    (least,) = scaled([jnp.asarray(self.floor, lengths.dtype)], 2 * exponent(most))
    shrink = jnp.where(lengths < least, lengths / jnp.where(least == 0, 1.0, least), 1.0)
    mean = jnp.mean(shrink * jnp.clip(dots / jnp.where(lengths == 0, 1.0, lengths), -1.0, 1.0), axis=0)
    below = 1.0 + (count - 1) * mean
    none = jnp.abs(below) < 1e-6
    t = jnp.where(none, 0.0, count * mean / jnp.where(none, 1.0, below))
    return jnp.clip(t, 0.0, 1.0) if self.clamp else t

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    return base + prepared / len(deltas) * sum(deltas[1:], deltas[0])


model_stock = ModelStock


def _products(leaf: Leaf, most: Array) -> list[Array]:
  """Squares of the scaled task vectors, then the products of pairs, element by element."""
  deltas = sphere.scaled_vectors(leaf, most)
  return [x * x for x in deltas] + [x * y for x, y in itertools.combinations(deltas, 2)]
