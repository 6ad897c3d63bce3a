"""Task-vector methods: one operator made of blocks, and its presets.

task vectors -> sparsify -> reduce -> times scaling -> add to base
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import reduce as reducers
from merge_jax.operators import sparsify as sparsifiers
from merge_jax.operators.core import STATIC, Leaf, Operator, PyTree
from merge_jax.operators.reduce import AgreeingMean, Reducer, WeightedSum
from merge_jax.operators.sparsify import Sparsifier, check_choice, drop, trim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskVector(Operator):
  """`θ = θ₀ + λ reduce(sparsify(θ₁ - θ₀), …)`, from blocks.

  Attributes:
    sparsify: sparsifiers, applied in order.
    reduce: makes one task vector of K.
    scaling: λ.

  >>> import merge_jax as mj
  >>> own = TaskVector((mj.trim(0.5), mj.drop(0.9)), mj.AgreeingMean(), 1.0)  # trim, then drop
  >>> own.needs_key
  True
  """

  sparsify: tuple[Sparsifier, ...] = ()
  reduce: Reducer = dataclasses.field(default_factory=WeightedSum)
  scaling: ArrayLike = 1.0
  needs_base = True

  @property
  def needs_key(self) -> bool:  # type: ignore[override]
    return any(block.random for block in self.sparsify)

  def survey(self) -> tuple[Any, ...]:
    stages = [_Stage(self, i) for i, block in enumerate(self.sparsify) if block.surveys]
    return (*stages, _Last(self)) if self.reduce.surveys else tuple(stages)

  def prepare(self, leaf: Leaf, surveyed: tuple[PyTree, ...]) -> PyTree:
    return (
      self._fits(leaf, surveyed, len(self.sparsify))[1],
      surveyed[-1][0] if self.reduce.surveys else (),
    )

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    fits, elected = prepared
    deltas = []
    for delta, aux in zip(_deltas(leaf), fits, strict=True):
      for block, fit in zip(self.sparsify, aux, strict=True):
        delta = block.apply(fit, delta)
      deltas.append(delta)
    merged = self.reduce.reduce(tuple(deltas), weights, elected)
    return _base(leaf) + jnp.asarray(self.scaling, jnp.float32) * merged

  def _fits(
    self, leaf: Leaf, surveyed: tuple[PyTree, ...], stages: int
  ) -> tuple[tuple[Array, ...], tuple[PyTree, ...]]:
    """Task vectors after the first `stages` blocks, and what these blocks fitted."""
    deltas, fits = [], []
    for model, delta in enumerate(_deltas(leaf)):
      aux, results = [], iter(surveyed)
      for i, block in enumerate(self.sparsify[:stages]):
        key = None
        if block.random and leaf.keys is not None:
          key = jax.random.fold_in(leaf.keys[model], i)
        fit = block.fit(delta, key, next(results)[model] if block.surveys else ())
        delta = block.apply(fit, delta)
        aux.append(fit)
      deltas.append(delta)
      fits.append(tuple(aux))
    return tuple(deltas), tuple(fits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Stage:
  """The survey of one sparsifier: a fold for each model, side by side."""

  operator: TaskVector
  stage: int = dataclasses.field(metadata=STATIC)

  @property
  def block(self) -> Sparsifier:
    return self.operator.sparsify[self.stage]

  def init(self, size: int, count: int) -> PyTree:
    return tuple(self.block.init(size) for _ in range(count))

  def measure(self, carry: PyTree, leaf: Leaf, surveyed: tuple[PyTree, ...]) -> PyTree:
    deltas, _ = self.operator._fits(leaf, surveyed, self.stage)
    return tuple(self.block.measure(c, delta) for c, delta in zip(carry, deltas, strict=True))

  def update(self, carry: PyTree, total: PyTree) -> PyTree:
    models = zip(carry, total, strict=True)
    return tuple(_keep(self.block.done(c), c, self.block.update(c, t)) for c, t in models)

  def done(self, carry: PyTree) -> Array:
    return jnp.all(jnp.stack([self.block.done(c) for c in carry]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Last:
  """The survey of the reducer: one pass over the sparse task vectors of all models."""

  operator: TaskVector

  def init(self, size: int, count: int) -> PyTree:
    return jnp.float32(0), jnp.array(False)

  def measure(self, carry: PyTree, leaf: Leaf, surveyed: tuple[PyTree, ...]) -> PyTree:
    deltas, _ = self.operator._fits(leaf, surveyed, len(self.operator.sparsify))
    return self.operator.reduce.measure(deltas)

  def update(self, carry: PyTree, total: PyTree) -> PyTree:
    return self.operator.reduce.result(total), jnp.array(True)

  def done(self, carry: PyTree) -> Array:
    return carry[1]


def _keep(condition: Array, old: PyTree, new: PyTree) -> PyTree:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), old, new)


def _base(leaf: Leaf) -> Array:
  if leaf.base is None:
    raise ValueError("Task-vector methods need a base.")
  return leaf.base.astype(jnp.float32)


def _deltas(leaf: Leaf) -> list[Array]:
  base = _base(leaf)
  return [expert.astype(jnp.float32) - base for expert in leaf.experts]


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
  scope: sparsifiers.Scope = "model",
  keep: sparsifiers.Keep = "threshold",
  election: reducers.Election = "unweighted",
  divisor: reducers.Divisor = "count",
  zero_sign: reducers.ZeroSign = "majority",
) -> TaskVector:
  """TIES: trim each task vector, elect a sign for each element, average what agrees.

      τ̂ᵢ = trim(θᵢ - θ₀)     e = sign(Σ τ̂ᵢ)     θ = θ₀ + λ Σ [sign(τ̂ᵢ) = e] wᵢ τ̂ᵢ / D

  Args:
    density: fraction of each task vector that is kept; the authors' is 0.2.
    scaling: λ, the authors sweep 0.8 … 2.5.
    scope, keep: of the trim, see `trim`. mergekit: "tensor", "exact".
    election, divisor, zero_sign: see `AgreeingMean`. mergekit: "weighted", "weights", "positive".

  Weights default to 1 for every model; the defaults are those of the authors' code. Raises
  ValueError for an unknown variant or a density outside [0, 1].
  Source: TIES-Merging (arXiv 2306.01708).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros(3)}
  >>> experts = [{"w": jnp.array([3.0, 1.0, 0.1])}, {"w": jnp.array([1.0, -2.0, 0.2])}]
  >>> mj.merge(mj.ties(density=0.5, scope="tensor"), experts, base=base)["w"].tolist()
  [2.0, -2.0, 0.0]
  """
  return TaskVector(
    (trim(density, scope=scope, keep=keep),), _agreeing(election, divisor, zero_sign), scaling
  )


def dare_ties(
  density: ArrayLike,
  *,
  scaling: ArrayLike = 1.0,
  rescale: bool = True,
  election: reducers.Election = "unweighted",
  divisor: reducers.Divisor = "count",
  zero_sign: reducers.ZeroSign = "majority",
) -> TaskVector:
  """DARE in place of the trim of TIES: drop elements at random and rescale, elect, average.

      mᵢ ~ Bernoulli(density)     τ̂ᵢ = mᵢ (θᵢ - θ₀) / density     then as `ties`

  Args:
    density: probability that an element is kept, 1 - drop rate; has no default, the authors use
      0.1 … 0.9.
    scaling: λ.
    rescale: divide what is kept by the density.
    election, divisor, zero_sign: see `AgreeingMean`.

  Needs `key=`. Sources: arXiv 2311.03099 (DARE), 2306.01708 (TIES).

  >>> import merge_jax as mj
  >>> base, experts = {"w": jnp.zeros(2)}, [{"w": jnp.array([1.0, 2.0])}]
  >>> mj.merge(mj.dare_ties(1.0), experts, base=base, key=jax.random.key(0))["w"].tolist()
  [1.0, 2.0]
  """
  return TaskVector((drop(density, rescale=rescale),), _agreeing(election, divisor, zero_sign), scaling)


def _agreeing(
  election: reducers.Election, divisor: reducers.Divisor, zero_sign: reducers.ZeroSign
) -> AgreeingMean:
  check_choice("election", election, ("unweighted", "weighted"))
  check_choice("divisor", divisor, ("count", "weights", "none"))
  check_choice("zero_sign", zero_sign, ("majority", "positive", "neither"))
  return AgreeingMean(election, divisor, zero_sign)
