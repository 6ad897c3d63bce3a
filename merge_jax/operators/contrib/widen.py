"""WIDEN: weights per input column, by how much a model changed its norm and its direction."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import layout
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import check_number, pytree
from merge_jax.operators.sums import exponent, scaled


@pytree
class Widen(Operator):
  """Adds task vectors by the importance of each column of `[out, in]`; weights are refused.

      mᵢⱼ = | ‖θᵢ[:, j]‖ - ‖θ₀[:, j]‖ |        dᵢⱼ = 1 - cos(θᵢ[:, j], θ₀[:, j])
      rᵢⱼ = rank of mᵢⱼ (dᵢⱼ) in model i / in, in [0, 1)
      sᵢⱼ = score where rᵢⱼ > threshold · meanⱼ rᵢⱼ, else softmaxᵢ rᵢⱼ
      θ = θ₀ + Σ ½ (sᵢⱼ of m + sᵢⱼ of d) (θᵢ - θ₀)[:, j]

  Attributes:
    threshold: 0 or more; above it a column is important.
    score: of an important column; 1 takes all of its task vector, whatever other models do.

  Raises:
    ValueError: negative numbers.

  A vector, or a matrix of one row, has the magnitudes `|θᵢ - θ₀|` themselves in place of ranks, and one
  score. The authors transpose embeddings first: give them `Axes(out=(1,))`. A zero column has cosine 0 with
  all others and 1 with another zero, and equal changes are ranked by position. One model is itself.

  Source: Extend Model Merging from Fine-Tuned to Pre-Trained LLMs (arXiv 2408.03092).

  >>> import merge_jax as mj
  >>> model = {"w": jnp.array([[1.0, 2.0], [3.0, 5.0]])}
  >>> mj.merge(widen(), [model], base={"w": jnp.ones((2, 2))})["w"].tolist()
  [[1.0, 2.0], [3.0, 5.0]]
  """

  threshold: ArrayLike = dataclasses.field(default=1.0, kw_only=True)
  score: ArrayLike = dataclasses.field(default=1.0, kw_only=True)
  needs_base = True
  weightless = True
  by_rows = True

  def __post_init__(self) -> None:
    check_number("threshold", self.threshold, 0.0)
    check_number("score", self.score, 0.0)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """The weight of each column, K arrays `[1, in]`."""
    base, deltas = task_vectors(leaf)
    if base.shape[0] == 1:
      return self._scores([jnp.abs(delta) for delta in deltas])
    changes = [_changes(x, base) for x in leaf.experts]
    by_norm, by_direction = (self._scores([_ranks(x) for x in of]) for of in zip(*changes, strict=True))
    return tuple((a + b) / 2 for a, b in zip(by_norm, by_direction, strict=True))

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    return base + sum((w * d for w, d in zip(prepared, deltas, strict=True)), jnp.zeros_like(base))

  def _scores(self, values: list[Array]) -> tuple[Array, ...]:
    """Softmax over the models, or the fixed score of what is important."""
    shares = jax.nn.softmax(jnp.stack(values), axis=0)
    threshold, score = (jnp.asarray(x, shares.dtype) for x in (self.threshold, self.score))
    important = [x > (1.0 + 1e-6) * threshold * jnp.mean(x) for x in values]  # what equals it does so rounded
    return tuple(jnp.where(one, score, share) for one, share in zip(important, shares, strict=True))


widen = Widen


def _changes(x: Array, base: Array) -> tuple[Array, Array]:
  """Change of the columns' norms and of their directions, `[1, in]` each, without cancellation."""
  power = exponent(jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(base))))
  x, base = scaled([x, base], power)
  norm, start = (jnp.sqrt(jnp.sum(a * a, axis=0, keepdims=True)) for a in (x, base))
  both = norm + start
  difference = jnp.sum((x - base) * (x + base), axis=0, keepdims=True)
  unit, unit_start = (a / jnp.where(size == 0, 1.0, size) for a, size in ((x, norm), (base, start)))
  direction = jnp.sum((unit - unit_start) ** 2, axis=0, keepdims=True) / 2
  direction = jnp.where(direction < (4.0 * jnp.finfo(x.dtype).eps) ** 2, 0.0, direction)  # rounding
  direction = jnp.where((norm == 0) == (start == 0), direction, 1.0)
  (change,) = scaled([jnp.abs(difference) / jnp.where(both == 0, 1.0, both)], -power)
  return change, direction


def _ranks(values: Array) -> Array:
  """Ranks of `[1, in]` from 0 on, over their number."""
  values = layout.whole_rows(values)
  return jnp.argsort(jnp.argsort(values, axis=1), axis=1).astype(values.dtype) / values.shape[1]
