"""Model Breadcrumbs: drop the largest and the smallest differences, keep what lies between."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import counting, rows, selection
from merge_jax.operators import reduce as reducers
from merge_jax.operators.core import Leaf, PyTree, Ranked, Survey, Surveyed
from merge_jax.operators.pytrees import STATIC, check_choice, pytree
from merge_jax.operators.reduce import AgreeingMean, WeightedSum
from merge_jax.operators.sparsify import Mask, Rescale, check_share
from merge_jax.operators.task_vector import TaskVector


@pytree
class TrimOutliers(Mask):
  """Zeroes the ⌊γn⌋ largest magnitudes, keeps the next ⌊density n⌋, zeroes the rest.

  Attributes:
    density: fraction kept, in [0, 1], one number or one for each model `[K]`.
    gamma: fraction of outliers, in [0, 1], one number or one for each model. In uint32 both are numbers of
      elements.
    scope: of n: each row of `[out, in]` (the authors), or the whole tensor. Where density + γ > 1, rows
      keep what is left below the outliers (authors); tensors drop fewer outliers, so that the density is
      met (mergekit).
    rescale: "none", or "l1": see `Mask`.

  Among equals the first in row-major order are the largest. NaN and infinity are kept.

  Raises:
    ValueError: unknown variants, concrete numbers outside [0, 1].

  >>> import jax.numpy as jnp, merge_jax as mj
  >>> rule = mj.TaskVector((trim_outliers(0.5, 0.25),))
  >>> experts = [{"w": jnp.array([0.1, -3.0, 1.0, 0.2])}]
  >>> mj.merge(rule, experts, base={"w": jnp.zeros(4)})["w"].round(1).tolist()
  [0.0, 0.0, 1.0, 0.2...]
  """

  density: ArrayLike
  gamma: ArrayLike = 0.01
  scope: Literal["row", "tensor"] = dataclasses.field(default="row", kw_only=True, metadata=STATIC)
  rescale: Rescale = dataclasses.field(default="none", kw_only=True, metadata=STATIC)
  per_model = ("density", "gamma")

  def __post_init__(self) -> None:
    check_choice("scope", self.scope, ("row", "tensor"))
    check_choice("rescale", self.rescale, ("none", "l1"))
    check_share("density", self.density)
    check_share("gamma", self.gamma)

  def ranks(self, size: Any, density: Any, gamma: Any) -> tuple[Any, Any]:
    """How many of `size` are outliers, and how many those are with what is kept; all are limbs."""
    outliers, kept = (counting.fraction(size, x) for x in (gamma, density))
    if self.scope == "tensor":
      outliers = counting.smaller(outliers, counting.minus(size, kept))
    return outliers, counting.smaller(counting.carry(outliers + kept), size)

  @property
  def rowwise(self) -> bool:  # type: ignore[override]
    return self.scope == "row"

  @property
  def elementwise(self) -> bool:  # type: ignore[override]
    return self.scope == "tensor"

  def order(self) -> Survey | None:
    """Of each model two cuts: below the outliers, and below what is kept."""

    def keys(leaf: Leaf, _: Surveyed) -> tuple[Array, ...]:
      return tuple(map(selection.magnitude, leaf.experts))

    def ranks(size: Any, count: int, _: Surveyed) -> list[Any]:
      outliers, both = self.ranks(size, self.numbers("density", count), self.numbers("gamma", count))
      return [k for pair in zip(outliers, both, strict=True) for k in pair]

    return None if self.scope == "row" else Ranked(keys, ranks, whole=False, exact=True, each=2)

  def choose(self, leaf: Leaf, ordered: PyTree) -> Sequence[PyTree]:
    if self.scope == "tensor":
      return list(zip(ordered[::2], ordered[1::2], strict=True))
    found = []
    for delta, one in zip(leaf.experts, self.each(len(leaf.experts)), strict=True):
      bits = selection.magnitude(delta)
      ranks = one.ranks(counting.limbs(delta.shape[-1]), one.density, one.gamma)
      found.append(tuple(rows.kth_of_rows(bits, k) for k in ranks))
    return found

  def kept(self, chosen: PyTree, delta: Array) -> Array:
    keys = selection.magnitude(delta)
    if self.scope == "tensor":
      outliers, both = (selection.reaches(keys, cut) for cut in chosen)
    else:
      ranks = self.ranks(counting.limbs(delta.shape[-1]), self.density, self.gamma)
      outliers, both = (rows.largest_of_rows(keys, c, k) for c, k in zip(chosen, ranks, strict=True))
    return both & ~outliers


trim_outliers = TrimOutliers


def breadcrumbs(
  density: ArrayLike,
  gamma: ArrayLike = 0.01,
  *,
  scaling: ArrayLike = 1.0,
  scope: Literal["row", "tensor"] = "row",
  rescale: Rescale = "none",
  normalize: bool = False,
) -> TaskVector:
  """Model Breadcrumbs: task arithmetic without the largest and the smallest differences.

      τ̂ᵢ = τᵢ where its magnitude has rank ⌊γn⌋ + 1 … ⌊γn⌋ + ⌊density n⌋     θ = θ₀ + α Σ wᵢ τ̂ᵢ

  Args:
    density: fraction kept (the authors' β; they search 0.05 … 0.2), or one for each model.
    gamma: fraction of outliers that is dropped (they search 0.001 … 0.01), or one for each model.
    scaling: α; they search 0.01 … 1.
    scope, rescale: see `TrimOutliers`; mergekit: "tensor".
    normalize: divide by `Σ wᵢ`.

  Source: Model Breadcrumbs (arXiv 2312.06795).

  >>> import jax.numpy as jnp, merge_jax as mj
  >>> base, experts = {"w": jnp.zeros(4)}, [{"w": jnp.array([4.0, 3.0, 2.0, 1.0])}]
  >>> mj.merge(mj.breadcrumbs(0.5, 0.25), experts, base=base)["w"].tolist()
  [0.0, 3.0, 2.0, 0.0]
  """
  block = TrimOutliers(density, gamma, scope=scope, rescale=rescale)
  return TaskVector((block,), WeightedSum(normalize), scaling)


def breadcrumbs_ties(
  density: ArrayLike,
  gamma: ArrayLike = 0.01,
  *,
  scaling: ArrayLike = 1.0,
  scope: Literal["row", "tensor"] = "row",
  rescale: Rescale = "none",
  election: reducers.Election = "unweighted",
  divisor: reducers.Divisor = "none",
  zero_sign: reducers.ZeroSign = "majority",
) -> TaskVector:
  """Breadcrumbs in place of the trim of TIES: a sign is elected, what agrees is added.

  Args:
    density, gamma, scaling, scope, rescale: as `breadcrumbs`.
    election, divisor, zero_sign: see `AgreeingMean`. mergekit: "weighted", "none", "positive".

  Sources: arXiv 2312.06795 (Breadcrumbs), 2306.01708 (TIES); the combination is mergekit's.

  >>> import jax.numpy as jnp, merge_jax as mj
  >>> base, experts = {"w": jnp.zeros(4)}, [{"w": jnp.array([4.0, 3.0, 2.0, 1.0])}]
  >>> mj.merge(mj.breadcrumbs_ties(0.5, 0.25, scope="tensor"), experts, base=base)["w"].tolist()
  [0.0, 3.0, 2.0, 0.0]
  """
  block = TrimOutliers(density, gamma, scope=scope, rescale=rescale)
  return TaskVector((block,), AgreeingMean(election, divisor, zero_sign), scaling)
