"""Task-vector methods: one operator made of blocks, and its presets."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import reduce as reducers
from merge_jax.operators.core import Leaf, Operator, PyTree, Ranks, Survey, Surveyed, Total
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.hashing import Key
from merge_jax.operators.masks import Generator, Keep, Scope, drop, trim
from merge_jax.operators.pytrees import check_number, pytree
from merge_jax.operators.reduce import AgreeingMean, Reducer, WeightedSum
from merge_jax.operators.sparsify import Rescale, Sparsifier


@pytree
class TaskVector(Operator):
  """`θ = θ₀ + λ reduce(sparsify(θ₁ - θ₀), …)`, from blocks.

  Attributes:
    sparsify: sparsifiers, applied in order.
    reduce: makes one task vector of K.
    scaling: λ.

  Raises:
    ValueError: blocks of another kind, or a concrete scaling that is not finite.

  >>> import merge_jax as mj
  >>> own = TaskVector((mj.trim(0.5), mj.drop(0.9)), mj.AgreeingMean(), 1.0)  # trim, then drop
  >>> own.needs_key
  True
  """

  sparsify: tuple[Sparsifier, ...] = ()
  reduce: Reducer = dataclasses.field(default_factory=WeightedSum)
  scaling: ArrayLike = 1.0
  needs_base = True

  def __post_init__(self) -> None:
    check_number("scaling", self.scaling)
    if not isinstance(self.sparsify, tuple) or not all(isinstance(x, Sparsifier) for x in self.sparsify):
      raise ValueError(f"sparsify is {self.sparsify!r}; expected a tuple of sparsifiers, as (trim(0.2),).")
    if not isinstance(self.reduce, Reducer):
      raise ValueError(f"reduce is {self.reduce!r}; expected a reducer, as WeightedSum().")

  @property
  def needs_key(self) -> bool:  # type: ignore[override]
    return any(block.random for block in self.sparsify)

  @property
  def normalize(self) -> bool:  # type: ignore[override]
    return self.reduce.normalize

  @property
  def weightless(self) -> bool:  # type: ignore[override]
    return self.reduce.weightless

  @property
  def by_rows(self) -> bool:  # type: ignore[override]
    return any(block.by_rows for block in self.sparsify)

  @property
  def elementwise(self) -> bool:  # type: ignore[override]
    return self.reduce.elementwise and all(block.elementwise for block in self.sparsify)

  @property
  def rowwise(self) -> bool:  # type: ignore[override]
    return self.reduce.elementwise and all(block.elementwise or block.rowwise for block in self.sparsify)

  def survey(self) -> tuple[Survey, ...]:
    surveys: list[Survey] = []
    for i, block in enumerate((*self.sparsify, self.reduce)):
      surveys += [self._of_block(one, i, len(surveys)) for one in block.survey()]
    return tuple(surveys)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    if not self.sparsify:
      return [], surveyed
    *_, last = self.sparsify
    seen, fits, left = self._sparse(leaf, surveyed, len(self.sparsify) - 1)
    fit, left = _fit(last, seen, left)  # what it leaves, `combine` makes
    return [*fits, fit], left

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    fits, surveyed = prepared
    base, deltas = task_vectors(leaf)
    for block, fit in zip(self.sparsify, fits, strict=True):
      deltas = block.apply(fit, deltas)
    return base + jnp.asarray(self.scaling, base.dtype) * self.reduce.reduce(deltas, weights, surveyed)

  def _of_block(self, survey: Survey, i: int, before: int) -> Survey:
    """A survey of block `i`, of what the blocks before leave of the task vectors; it sees its own results."""

    def within(function: Callable) -> Callable:
      return lambda leaf, surveyed: function(self._sparse(leaf, surveyed, i)[0], surveyed[before:])

    if isinstance(survey, Total):
      usual = survey.usual
      if usual is not None:
        value, did = usual
        usual = value, lambda surveyed: did(surveyed[before:])
      return survey._replace(measure=within(survey.measure), usual=usual)
    if isinstance(survey, Ranks):
      return Ranks(within(survey.keys))
    ranks = survey.ranks
    return survey._replace(
      keys=within(survey.keys), ranks=lambda size, count, surveyed: ranks(size, count, surveyed[before:])
    )

  def _sparse(self, leaf: Leaf, surveyed: Surveyed, blocks: int) -> tuple[Leaf, list[PyTree], Surveyed]:
    """Task vectors after some blocks, with keys for the next one; what was fitted; results left over."""
    deltas, fits = task_vectors(leaf)[1], []

    def seen(i: int) -> Leaf:
      return Leaf(deltas, keys=leaf.keys and tuple(Key(key, i, leaf.start) for key in leaf.keys))

    for i, block in enumerate(self.sparsify[:blocks]):
      fit, surveyed = _fit(block, seen(i), surveyed)
      deltas = block.apply(fit, deltas)
      fits.append(fit)
    return seen(blocks), fits, surveyed


def _fit(block: Sparsifier, seen: Leaf, surveyed: Surveyed) -> tuple[PyTree, Surveyed]:
  """What a block fits from its own results, the first; those of the others."""
  count = len(block.survey())
  return block.fit(seen, surveyed[:count]), surveyed[count:]


def task_arithmetic(*, scaling: ArrayLike = 1.0, normalize: bool = False) -> TaskVector:
  """Adds weighted task vectors to the base: `θ = θ₀ + λ Σ wᵢ (θᵢ - θ₀)`.

  Args:
    scaling: λ; the authors use 0.3 … 1.
    normalize: divide by `Σ wᵢ`; off by default.

  Weights default to 1 for every model. Negative ones remove a task.
  Source: Editing Models with Task Arithmetic (arXiv 2212.04089).

  >>> import merge_jax as mj
  >>> base, experts = {"w": jnp.ones(1)}, [{"w": jnp.array([2.0])}, {"w": jnp.array([4.0])}]
  >>> mj.merge(mj.task_arithmetic(scaling=0.5), experts, base=base)["w"].tolist()
  [3.0]
  """
  return TaskVector((), WeightedSum(normalize), scaling)


def ties(
  density: ArrayLike = 0.2,
  *,
  scaling: ArrayLike = 1.0,
  scope: Scope = "model",
  keep: Keep = "threshold",
  rescale: Rescale = "none",
  election: reducers.Election = "unweighted",
  divisor: reducers.Divisor = "count",
  zero_sign: reducers.ZeroSign = "majority",
) -> TaskVector:
  """TIES: trim each task vector, elect a sign for each element, average what agrees.

      τ̂ᵢ = trim(θᵢ - θ₀)     e = sign(Σ τ̂ᵢ)     θ = θ₀ + λ Σ [sign(τ̂ᵢ) = e] wᵢ τ̂ᵢ / D

  Args:
    density: fraction of each task vector that is kept, or one for each model; the authors' is 0.2.
    scaling: λ, the authors sweep 0.8 … 2.5.
    scope, keep, rescale: of the trim, see `trim`. mergekit: "tensor", "exact".
    election, divisor, zero_sign: see `AgreeingMean`. mergekit: "weighted", "weights", "positive"; the sum
      over the agreeing ("dis-sum" of the authors) is divisor "none".

  Weights default to 1 for every model; the defaults are those of the authors' code. Raises
  ValueError for an unknown variant or a density outside [0, 1].
  Source: TIES-Merging (arXiv 2306.01708).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros(3)}
  >>> experts = [{"w": jnp.array([3.0, 1.0, 0.1])}, {"w": jnp.array([1.0, -2.0, 0.2])}]
  >>> mj.merge(mj.ties(density=0.5, scope="tensor"), experts, base=base)["w"].tolist()
  [2.0, -2.0, 0.0]
  """
  reduce = AgreeingMean(election, divisor, zero_sign)
  return TaskVector((trim(density, scope=scope, keep=keep, rescale=rescale),), reduce, scaling)


def dare_linear(
  density: ArrayLike,
  *,
  scaling: ArrayLike = 1.0,
  rescale: Rescale = "inverse",
  normalize: bool = False,
  generator: Generator = "hash",
) -> TaskVector:
  """DARE before task arithmetic: drop elements at random, rescale, add.

      mᵢ ~ Bernoulli(density)     τ̂ᵢ = mᵢ (θᵢ - θ₀) / density     θ = θ₀ + λ Σ wᵢ τ̂ᵢ

  Args:
    density: probability that an element is kept, 1 - drop rate, or one for each model; the authors use
      0.1 … 0.9.
    scaling: λ.
    rescale: "inverse" divides by the density; "l1" is mergekit's; "none".
    normalize: divide by `Σ wᵢ`.
    generator: of the masks, see `drop`.

  Needs `key=`. Source: Language Models are Super Mario (arXiv 2311.03099).

  >>> import jax, merge_jax as mj
  >>> base, experts = {"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 2.0])}]
  >>> mj.merge(mj.dare_linear(1.0, scaling=0.5), experts, base=base, key=jax.random.key(0))["w"].tolist()
  [0.5, 1.0]
  """
  block = drop(density, rescale=rescale, generator=generator)
  return TaskVector((block,), WeightedSum(normalize), scaling)


def dare_ties(
  density: ArrayLike,
  *,
  scaling: ArrayLike = 1.0,
  rescale: Rescale = "inverse",
  election: reducers.Election = "unweighted",
  divisor: reducers.Divisor = "count",
  zero_sign: reducers.ZeroSign = "majority",
  generator: Generator = "hash",
) -> TaskVector:
  """DARE in place of the trim of TIES: drop elements at random and rescale, elect, average.

      mᵢ ~ Bernoulli(density)     τ̂ᵢ = mᵢ (θᵢ - θ₀) / density     then as `ties`

  Args:
    density, scaling, rescale, generator: as `dare_linear`.
    election, divisor, zero_sign: see `AgreeingMean`. mergekit: "weighted", "none", "positive".

  Needs `key=`. Sources: arXiv 2311.03099 (DARE), 2306.01708 (TIES).

  >>> import jax, merge_jax as mj
  >>> base, experts = {"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 2.0])}]
  >>> mj.merge(mj.dare_ties(1.0), experts, base=base, key=jax.random.key(0))["w"].tolist()
  [1.0, 2.0]
  """
  block = drop(density, rescale=rescale, generator=generator)
  return TaskVector((block,), AgreeingMean(election, divisor, zero_sign), scaling)
