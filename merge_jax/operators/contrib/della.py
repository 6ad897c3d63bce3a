"""DELLA: drop at random, small differences more often than large ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.errors import shown
from merge_jax.operators import hashing, rows, selection
from merge_jax.operators import reduce as reducers
from merge_jax.operators.core import Leaf, PyTree, Ranks, Survey
from merge_jax.operators.pytrees import STATIC, check_choice, check_number, pytree
from merge_jax.operators.reduce import AgreeingMean, WeightedSum
from merge_jax.operators.sparsify import Mask, Rescale, random_keys
from merge_jax.operators.sums import rounded
from merge_jax.operators.task_vector import TaskVector


@pytree
class DropByMagnitude(Mask):
  """Keeps each element with a probability that grows with its rank by magnitude in its row (MagPrune).

      qⱼ = density - ε + 2 ε rⱼ / (c - 1)        rⱼ = 0 … c - 1, the rank in a row of c

  Equal magnitudes share the mean of their ranks; a row of one element has q = density.

  Attributes:
    density: mean probability of keeping, one number or one for each model `[K]`; 1 keeps all, 0 nothing.
    epsilon: half of the range of the probabilities (half of the authors' window size), one number or
      one for each model; 0 < density - ε and density + ε < 1, unless the density is 0 or 1 or ε is 0. 0, the
      authors' default, drops all magnitudes alike, as DARE does.
    rescale: "inverse" divides what is kept by its own q (authors); "l1" (mergekit), "none": see `Mask`.

  Raises:
    ValueError: unknown variants, concrete numbers out of range.

  Source: DELLA-Merging (arXiv 2406.11617).

  >>> drop_by_magnitude(0.5, 0.2).epsilon
  0.2
  """

  density: ArrayLike
  epsilon: ArrayLike = 0.0
  rescale: Rescale = dataclasses.field(default="inverse", kw_only=True, metadata=STATIC)
  random = True
  rowwise = True
  per_model = ("density", "epsilon")

  def __post_init__(self) -> None:
    check_choice("rescale", self.rescale, get_args(Rescale))
    check_number("density", self.density, 0.0, 1.0)
    check_number("epsilon", self.epsilon, 0.0, 0.5)
    if any(isinstance(x, jax.core.Tracer) for x in (self.density, self.epsilon)):
      return
    density, epsilon = np.asarray(self.density), np.asarray(self.epsilon)
    if density.ndim and epsilon.ndim and density.shape != epsilon.shape:
      raise ValueError(
        f"density has shape {density.shape}, epsilon {epsilon.shape}; expected numbers of the same models."
      )
    inside = (density - epsilon > 0) & (density + epsilon < 1)
    if not np.all(inside | (density <= 0) | (density >= 1) | (epsilon == 0)):
      raise ValueError(
        f"density is {shown(self.density)} and epsilon {shown(self.epsilon)}; expected 0 < density - epsilon "
        "and density + epsilon < 1."
      )

  def order(self) -> Survey:
    """The ranks of the magnitudes."""
    return Ranks(lambda leaf, _: tuple(map(selection.magnitude, leaf.experts)))

  def choose(self, leaf: Leaf, ordered: PyTree) -> Sequence[PyTree]:
    keys = random_keys(leaf)
    return list(zip(keys, ordered or [None] * len(keys), strict=True))

  def kept(self, chosen: PyTree, delta: Array) -> Array:
    return hashing.uniform(chosen[0], delta) < self._probability(chosen, delta, jnp.float32)

  def probability(self, chosen: PyTree, delta: Array) -> Array:
    return self._probability(chosen, delta, delta.dtype)

  def _probability(self, chosen: PyTree, delta: Array, dtype: Any) -> Array:
    density, epsilon = (jnp.asarray(x, dtype) for x in (self.density, self.epsilon))
    size = delta.shape[-1]
    if size == 1:
      return jnp.full(delta.shape, density)
    epsilon = jnp.where(density > 0, epsilon, 0.0)
    ranks = chosen[1] if chosen[1] is not None else rows.ranks_in_rows(selection.magnitude(delta))
    ranks = ranks.astype(dtype)
    # Blocks after this one compare what is divided by the probability, to the bit.
    rise = rounded(ranks * (2 * epsilon * np.asarray(1 / (size - 1), dtype)))
    return jnp.where(density >= 1, 1.0, density - epsilon + rise)


drop_by_magnitude = DropByMagnitude


def della(
  density: ArrayLike,
  epsilon: ArrayLike = 0.0,
  *,
  scaling: ArrayLike = 1.0,
  rescale: Rescale = "inverse",
  election: reducers.Election = "weighted",
  divisor: reducers.Divisor = "weights",
  zero_sign: reducers.ZeroSign = "positive",
) -> TaskVector:
  """DELLA: drop by magnitude, elect a sign, average what agrees by weight.

  Args:
    density, epsilon, rescale: see `DropByMagnitude`; without an epsilon it is DARE's drop. mergekit's is
      0.15, its rescale "l1".
    scaling: λ; the authors' example has 1.1.
    election, divisor, zero_sign: see `AgreeingMean`; the authors' and mergekit's are the defaults.

  Needs `key=`. Source: DELLA-Merging (arXiv 2406.11617).

  >>> import merge_jax as mj
  >>> base, experts = {"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 2.0])}]
  >>> mj.merge(mj.della(1.0), experts, base=base, key=jax.random.key(0))["w"].tolist()
  [1.0, 2.0]
  """
  block = DropByMagnitude(density, epsilon, rescale=rescale)
  return TaskVector((block,), AgreeingMean(election, divisor, zero_sign), scaling)


def della_linear(
  density: ArrayLike,
  epsilon: ArrayLike = 0.0,
  *,
  scaling: ArrayLike = 1.0,
  rescale: Rescale = "inverse",
  normalize: bool = False,
) -> TaskVector:
  """DELLA's drop before task arithmetic: `θ = θ₀ + λ Σ wᵢ τ̂ᵢ`.

  Args:
    density, epsilon, rescale: see `DropByMagnitude`.
    scaling: λ.
    normalize: divide by `Σ wᵢ`.

  Needs `key=`. Source: arXiv 2406.11617; the combination is mergekit's.

  >>> import merge_jax as mj
  >>> base, experts = {"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 2.0])}]
  >>> mj.merge(mj.della_linear(1.0), experts, [0.5], base=base, key=jax.random.key(0))["w"].tolist()
  [0.5, 1.0]
  """
  return TaskVector((DropByMagnitude(density, epsilon, rescale=rescale),), WeightedSum(normalize), scaling)
