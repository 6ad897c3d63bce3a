"""Direct combinations of models, without a base: along the chord, or along the sphere."""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed, Total
from merge_jax.operators.differences import vectors
from merge_jax.operators.pytrees import STATIC, check_number, pytree
from merge_jax.operators.sums import exponent, scale, scaled, totals


def weighted_sum(arrays: tuple[Array, ...], weights: Array) -> Array:
  """`Σ wᵢ xᵢ`, unrolled: a stack of K tensors would cost another pass over memory."""
  total = weights[0] * arrays[0]
  for i, x in enumerate(arrays[1:], 1):
    total = total + weights[i] * x
  return total


def library(x: Any) -> Any:
  """The functions for an array: NumPy's, or those of `jax.numpy`."""
  return jnp if isinstance(x, Array) else np


class Combination(Operator):
  """A rule whose result is `Σ cᵢ xᵢ` of models, or of task vectors where there is a base, which is added.

  A stream has surveys on the host: it computes c there, and all such rules share the program of `linear`.
  """

  elementwise = True

  @abc.abstractmethod
  def coefficients(self, prepared: PyTree, weights: Array) -> Array:
    """c `[K]`; by NumPy where the arguments are NumPy's; see `library`."""

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    merged = weighted_sum(vectors(leaf), self.coefficients(prepared, weights))
    return merged if leaf.base is None else leaf.base + merged


@pytree
class Linear(Combination):
  """Weighted average of the models: `θ = Σ wᵢ θᵢ / Σ wᵢ`.

  Attributes:
    normalize: divide by the sum of the weights, which must not be 0; off, `θ = Σ wᵢ θᵢ`.

  Weights default to 1/K. The merge that *If You Can't Use Them, Recycle Them* (arXiv 2412.04144) searches.

  >>> import merge_jax as mj
  >>> mj.merge(mj.linear(), [{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}], [1.0, 3.0])["w"].tolist()
  [0.75, 0.75]
  """

  normalize: bool = dataclasses.field(default=True, kw_only=True, metadata=STATIC)

  def default_weights(self, count: int) -> np.ndarray:
    return np.full(count, 1.0 / count)

  def coefficients(self, prepared: PyTree, weights: Array) -> Array:
    return weights / weights.sum() if self.normalize else weights


linear = Linear


@pytree
class Uniform(Combination):
  """Uniform soup: the mean of the models, `θ = Σ θᵢ / K`; weights are refused.

  Source: Model soups (arXiv 2203.05482).

  >>> import merge_jax as mj
  >>> mj.merge(mj.uniform(), [{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"].tolist()
  [0.5, 0.5]
  """

  weightless = True

  def coefficients(self, prepared: PyTree, weights: Array) -> Array:
    return library(weights).full_like(weights, 1.0 / len(weights))


uniform = Uniform


@pytree
class Slerp(Operator):
  """Spherical linear interpolation of exactly two models, tensor by tensor.

      θ = [sin((1-t)Ω) θ₁ + sin(tΩ) θ₂] / sin Ω        Ω = angle between θ₁ and θ₂ as vectors

  Attributes:
    t: 0 gives the first model, 1 the second; others extrapolate, and weights are refused. None takes
      `w₂ / (w₁ + w₂)`.
    lerp_above: linear where the cosine is above it, or below its negative; mergekit has 0.9995, which most
      fine-tunes of one base reach.

  Raises:
    ValueError: not exactly two models, a t that is not finite, weights that sum to 0.

  Without it linear only where sin Ω < 1e-6. A zero tensor counts as orthogonal to everything.

  >>> import merge_jax as mj
  >>> ends = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}]
  >>> mj.merge(mj.slerp(0.5), ends)["w"].round(4).tolist()
  [0.707..., 0.707...]
  """

  t: ArrayLike | None = None
  lerp_above: ArrayLike | None = dataclasses.field(default=None, kw_only=True)
  models = 2
  elementwise = True

  def __post_init__(self) -> None:
    if self.t is not None:
      check_number("t", self.t)
    if self.lerp_above is not None:
      check_number("lerp_above", self.lerp_above, 0.0, 1.0)

  @property
  def normalize(self) -> bool:  # type: ignore[override]
    return self.t is None

  @property
  def weightless(self) -> bool:  # type: ignore[override]
    return self.t is not None

  def survey(self) -> tuple[Total, ...]:
    """How large the models are, how far b reaches along a, and what else there is of b."""
    return scale(_squares), Total(_along, whole=False), Total(_rest, whole=False)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """The angle between b and the nearer of a and -a; whether that is -a; whether a + b matters."""
    square, along = _line(surveyed[1])
    missed, rest = surveyed[2] / square  # rounding of `along`, little beside what is across
    across, along = _root(jnp.maximum(rest - missed * missed, 0.0)), along + missed
    opposite, zero = along < 0, (along == 0) & (across == 0)
    angle = jnp.arctan2(across, jnp.where(zero, 1.0, jnp.where(opposite, -along, along)))
    return jnp.where(zero, math.pi / 2, angle), opposite, along < -0.5

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    (a, b), (near, opposite, cancels) = leaf.experts, prepared
    t = weights[1] / (weights[0] + weights[1]) if self.t is None else jnp.asarray(self.t, weights.dtype)
    angle = jnp.where(opposite, math.pi - near, near)
    least = 0.0 if self.lerp_above is None else jnp.arccos(jnp.asarray(self.lerp_above, near.dtype))
    linear = near < jnp.maximum(least, 1e-6)
    sine = jnp.sin(jnp.where(linear, 1.0, near))

    def share(s: Array) -> Array:
      """sin(sΩ) / sin Ω; π - sΩ from `near`, which is exact where Ω is not."""
      arc = jnp.where(opposite & (s > 0.5), (1.0 - s) * math.pi + s * near, s * angle)
      return jnp.where(linear, s, jnp.sin(arc) / sine)

    # θ = a sin((½ - t)Ω) / sin(Ω/2) + (a + b) sin(tΩ) / sin Ω, where the formula's terms would cancel.
    half = jnp.sin(jnp.where(cancels, angle, math.pi) / 2)
    difference = jnp.where(linear, 1.0 - 2.0 * t, jnp.sin((0.5 - t) * angle) / half)
    on_a = jnp.where(cancels, difference, share(1.0 - t))
    return on_a * a + share(t) * jnp.where(cancels, a + b, b)


slerp = Slerp


def _along(leaf: Leaf, surveyed: Surveyed) -> Array:
  a, b = scaled(leaf.experts, exponent(surveyed[0]))
  return jnp.stack(totals([a * a, a * b]))  # never vdot: that does not shard in Explicit mode


def _rest(leaf: Leaf, surveyed: Surveyed) -> Array:
  """What b has beside its share of a, times a, and squared."""
  a, b = scaled(leaf.experts, exponent(surveyed[0]))
  _, along = _line(surveyed[1])
  rest = _minus(b, along, a)
  return jnp.stack(totals([rest * a, rest * rest]))


def _squares(surveyed: Surveyed) -> list[Array]:
  """Of a, and roughly of b."""
  (square, product), (_, rest) = surveyed[1:]
  return [square, product / square * product + rest]


def _line(sums: Array) -> tuple[Array, Array]:
  """The square of a, 1 for 0; b along a, roughly."""
  square = jnp.where(sums[0] == 0, 1.0, sums[0])
  return square, jax.lax.stop_gradient(sums[1] / square)


def _minus(b: Array, ratio: Array, a: Array) -> Array:
  """`b - ratio a` without the rounding of the product, by halves whose products are exact (Dekker)."""
  kind = jnp.finfo(a.dtype)

  def halves(x: Array) -> tuple[Array, Array]:
    high = jax.lax.reduce_precision(x, kind.nexp, (kind.nmant - 1) // 2)
    return high, x - high

  (high, low), (a_high, a_low) = halves(ratio), halves(a)
  return b - high * a_high - high * a_low - low * a_high - low * a_low


def _root(square: Array) -> Array:
  """Square root with gradient 0 at 0, where slerp is linear."""
  safe = jnp.where(square == 0, 1.0, square)
  return jnp.where(square == 0, 0.0, jnp.sqrt(safe))
