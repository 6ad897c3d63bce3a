"""Fisher-weighted averaging: every parameter weighs as much as the model's predictions depend on it."""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import pytrees
from merge_jax.operators.core import Leaf, Operator, PyTree, Survey, Surveyed, Total
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.pytrees import STATIC, pytree
from merge_jax.operators.sums import totals

Normalize = Literal["model", "tensor", "none"]


@pytree
class Fisher(Operator):
  """Average of models weighted by their diagonal Fisher information.

      θ = Σ cᵢ Fᵢ ⊙ θᵢ / Σ cᵢ Fᵢ        Fᵢ ← max(Fᵢ / ‖Fᵢ‖, floor)

  Attributes:
    floor: least weight of a parameter, so that what no model depends on gets the weighted mean. Relative
      to the normalised Fisher; the authors floor it as it is, at 1e-6, in the first model alone.
    normalization: ‖Fᵢ‖ is the root mean square over all tensors (the authors', who take the root of the sum,
      which gives the same), over one tensor, or 1 ("none").

  Needs `statistics=`: for each expert the diagonal Fisher information, by name and of the shape of its
  tensor (`python -m launch.statistics --kind=fisher`); of a stacked leaf with the stack in front. Weights
  c default to 1/K. Where `Σ cᵢ Fᵢ` is 0, the result is the weighted mean `Σ cᵢ θᵢ / Σ cᵢ`.

  Raises:
    ValueError: an unknown variant, a negative floor; when merging, statistics that are missing or of
      another shape.

  Source: Merging Models with Fisher-Weighted Averaging (arXiv 2111.09832).

  >>> import merge_jax as mj
  >>> experts = [{"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([3.0, 3.0])}]
  >>> information = [{"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([1.0, 0.0])}]
  >>> mj.merge(fisher(normalization="none"), experts, statistics=information)["w"].tolist()
  [1.5, 2.0]
  """

  floor: ArrayLike = dataclasses.field(default=1e-6, kw_only=True)
  normalization: Normalize = dataclasses.field(default="model", kw_only=True, metadata=STATIC)
  normalize = True
  elementwise = True

  def __post_init__(self) -> None:
    pytrees.check_number("floor", self.floor, 0.0)
    pytrees.check_choice("normalization", self.normalization, get_args(Normalize))

  def default_weights(self, count: int) -> np.ndarray:
    """1/K for every model."""
    return np.full(count, 1.0 / count)

  def survey(self) -> tuple[Survey, ...]:
    """The norm of each model's information."""
    if self.normalization == "none":
      return ()
    whole = self.normalization == "model"

    def largest(leaf: Leaf, _: Surveyed) -> PyTree:
      return tuple(jnp.max(jnp.abs(x)) for x in _information(leaf))

    def squares(leaf: Leaf, surveyed: Surveyed) -> PyTree:
      pairs = zip(_information(leaf), surveyed[0], strict=True)
      return tuple(totals([(x / _or_1(most)) ** 2 for x, most in pairs]))

    def mean(sums: PyTree, size: Array) -> PyTree:
      return tuple(square / size.astype(square.dtype) for square in sums)

    return Total(largest, whole=whole, kind="largest"), Total(squares, mean, whole=whole)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """The reciprocal of each model's norm."""
    if not surveyed:
      return (None,) * len(leaf.experts)
    dtype = leaf.experts[0].dtype
    rows = zip(*surveyed, strict=True)
    return tuple((1.0 / (_or_1(most) * jnp.sqrt(_or_1(square)))).astype(dtype) for most, square in rows)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    floor = jnp.asarray(self.floor, weights.dtype)
    shares = []
    for i, (information, scale) in enumerate(zip(_information(leaf), prepared, strict=True)):
      information = information if scale is None else information * scale
      shares.append(weights[i] * jnp.maximum(information, floor))
    whole = sum(shares[1:], shares[0])
    known = whole != 0
    shares = [s / _or_1(whole) for s in shares]  # first: small shares of small numbers underflow
    merged = sum((s * x for s, x in zip(shares, leaf.experts, strict=True)), jnp.zeros_like(whole))
    return jnp.where(known, merged, weighted_sum(leaf.experts, weights / jnp.sum(weights)))


fisher = Fisher


def _information(leaf: Leaf) -> tuple[Array, ...]:
  """The experts' Fisher information in the precision of the tensor."""
  if leaf.statistics is None or any(one is None for one in leaf.statistics):
    raise ValueError("Fisher needs the diagonal Fisher information of every tensor: pass statistics=.")
  first = leaf.experts[0]
  for one in leaf.statistics:
    if jnp.shape(one) != first.shape:
      raise ValueError(
        f"Fisher: the information of a tensor of shape {first.shape} has shape {jnp.shape(one)}; expected "
        "the tensor's own, with the stack in front."
      )
  return tuple(one.astype(first.dtype) for one in leaf.statistics)


def _or_1(x: Array) -> Array:
  return jnp.where(x == 0, 1.0, x)
