"""The blocks of task-vector methods: sparsifiers of each model's task vector, and reducers of all to one.

To come as sparsifiers: drop by magnitude (DELLA), trim outliers (Breadcrumbs), keep high variance (SCE).
"""

import abc
import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import selection
from merge_jax.operators.core import STATIC, Leaf, PyTree, Survey, check_choice, check_number, pytree
from merge_jax.operators.linear import weighted_sum


class Block:
  """A frozen dataclass, registered as a pytree, with a survey of task vectors where it needs one."""

  def survey(self) -> Survey | None:
    """The whole-model statistic that the block needs, if any."""
    return None


class Sparsifier(Block, abc.ABC):
  """Which elements of a difference to the base are kept; not finite ones always are."""

  random = False

  @abc.abstractmethod
  def fit(self, delta: Array, key: Array | None, surveyed: PyTree) -> PyTree:
    """What `apply` needs beside the task vector, small; `surveyed` is the model's item of its survey."""

  @abc.abstractmethod
  def apply(self, fitted: PyTree, delta: Array) -> Array:
    """The sparse task vector, of the same shape and dtype."""


Scope = Literal["model", "tensor"]
Keep = Literal["threshold", "exact"]


@pytree
class Trim(Sparsifier):
  """Keeps the largest magnitudes of each task vector and zeroes the rest.

  Attributes:
    density: fraction kept, in [0, 1]; read as float32, as the magnitudes are.
    scope: one threshold for the whole model (the TIES authors'), or for each tensor (mergekit, PEFT).
    keep: "threshold" keeps all that reach the (n-k)-th smallest magnitude, k = floor(n density):
      k + 1 elements and their equals, as the TIES authors' code; "exact" keeps exactly k, the first
      in row-major order among equals (scope "tensor" alone).

  NaN and infinity are the largest magnitudes, and always kept.

  Raises:
    ValueError: unknown variants, "exact" with scope "model", a concrete density outside [0, 1].

  Source: TIES-Merging (arXiv 2306.01708), section 4.

  >>> block = trim(0.5, scope="tensor", keep="exact")
  >>> delta = jnp.array([0.1, -3.0, 1.0, 0.2])
  >>> block.apply(block.fit(delta, None, ()), delta).tolist()
  [0.0, -3.0, 1.0, 0.0]
  """

  density: ArrayLike = 0.2
  scope: Scope = dataclasses.field(default="model", kw_only=True, metadata=STATIC)
  keep: Keep = dataclasses.field(default="threshold", kw_only=True, metadata=STATIC)

  def __post_init__(self) -> None:
    check_choice("scope", self.scope, get_args(Scope))
    check_choice("keep", self.keep, get_args(Keep))
    check_number("density", self.density, 0.0, 1.0)
    if self.keep == "exact" and self.scope == "model":
      raise ValueError("keep='exact' needs scope='tensor': the ties of a whole model have no order.")

  def survey(self) -> Survey | None:
    """A bracket around the threshold of each model, narrowed side by side."""

    def init(size: int, count: int) -> PyTree:
      return (selection.bracket(size, self.rank(size)),) * count

    def measure(carry: PyTree, leaf: Leaf) -> PyTree:
      pairs = zip(carry, leaf.experts, strict=True)
      return tuple(selection.count(selection.magnitude(x) >= selection.probe(state)) for state, x in pairs)

    def update(carry: PyTree, total: PyTree) -> PyTree:
      return tuple(map(selection.narrow, carry, total))

    def done(carry: PyTree) -> Array:
      return jnp.all(jnp.stack([selection.found(state) for state in carry]))

    return Survey(init, measure, update, done) if self.scope == "model" else None

  def rank(self, size: int) -> Array:
    """The rank of the threshold among `size` magnitudes: the authors' is the (k+1)-th largest."""
    density = jnp.asarray(self.density, jnp.float32)
    k = selection.fraction(size, density)
    more = (density > 0) & (density < 1) & (self.keep == "threshold")
    return selection.carry(k + jnp.where(more, selection.limbs(1), 0))

  def fit(self, delta: Array, key: Array | None, surveyed: PyTree) -> PyTree:
    if self.scope == "model":
      return surveyed.low, None
    bits, k = selection.magnitude(delta), self.rank(delta.size)
    threshold = selection.kth(bits, k)
    if self.keep == "threshold":
      return threshold, None
    return threshold, selection.kth(selection.order(bits, threshold), k, delta.size + 2)

  def apply(self, fitted: PyTree, delta: Array) -> Array:
    (threshold, last), bits = fitted, selection.magnitude(delta)
    kept = bits >= threshold if last is None else selection.order(bits, threshold) >= last
    return jnp.where(kept | ~jnp.isfinite(delta), delta, 0.0)


trim = Trim


@pytree
class Drop(Sparsifier):
  """Keeps each element of a task vector with probability `density`, independently (DARE).

  Kept elements are divided by the density, so that the expectation is the task vector itself. The
  mask of a tensor depends on seed, model and canonical name alone. NaN and infinity are kept.

  Attributes:
    density: probability of keeping, 1 - drop rate; in [0, 1], and 0 gives zeros.
    rescale: whether to divide by the density.

  Source: Language Models are Super Mario (arXiv 2311.03099).

  >>> drop(0.9).density
  0.9
  """

  density: ArrayLike
  rescale: bool = dataclasses.field(default=True, kw_only=True, metadata=STATIC)
  random = True

  def __post_init__(self) -> None:
    check_number("density", self.density, 0.0, 1.0)

  def fit(self, delta: Array, key: Array | None, surveyed: PyTree) -> PyTree:
    return key

  def apply(self, fitted: PyTree, delta: Array) -> Array:
    sharding = getattr(jax.typeof(delta), "sharding", None)
    explicit = sharding is not None and not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit
    out = sharding if explicit else None
    draws = jax.random.uniform(fitted, delta.shape, jnp.float32, out_sharding=out)
    kept = draws < jnp.asarray(self.density, jnp.float32)
    sparse = jnp.where(kept | ~jnp.isfinite(delta), delta, 0.0)
    density = jnp.asarray(self.density, delta.dtype)
    return sparse / jnp.maximum(density, jnp.finfo(delta.dtype).tiny) if self.rescale else sparse


drop = Drop


class Reducer(Block, abc.ABC):
  """How the task vectors of all models become one; `normalize` as for an operator."""

  normalize: bool = False

  @abc.abstractmethod
  def reduce(self, deltas: tuple[Array, ...], weights: Array, surveyed: PyTree) -> Array:
    """The reduced task vector from K of one shape and weights `[K]`; non-finite where one of them is."""


@pytree
class WeightedSum(Reducer):
  """`Σ wᵢ τᵢ`, or `Σ wᵢ τᵢ / Σ wᵢ` with `normalize`."""

  normalize: bool = dataclasses.field(default=False, metadata=STATIC)

  def reduce(self, deltas: tuple[Array, ...], weights: Array, surveyed: PyTree) -> Array:
    total = weighted_sum(deltas, weights)
    return total / jnp.sum(weights) if self.normalize else total


Election = Literal["unweighted", "weighted"]
Divisor = Literal["count", "weights", "none"]
ZeroSign = Literal["majority", "positive", "neither"]


@pytree
class AgreeingMean(Reducer):
  """Mean, or sum, of the elements whose sign agrees with the elected one.

      e = sign(Σ τᵢ)        A_i = [sign(τᵢ) = e]        τ = Σ A_i wᵢ τᵢ / D

  Attributes:
    election: on task vectors as they are (TIES authors, PEFT), or times their weights (mergekit).
    divisor: D is the number of agreeing models (authors), the sum of their weights (mergekit's
      `normalize`), or 1.
    zero_sign: of an element whose sum is 0: the sign of most elements of the model (authors;
      negative if that is 0 too), positive (mergekit, PEFT), or neither, so that it stays 0.

  Raises:
    ValueError: an unknown variant.
  """

  election: Election = dataclasses.field(default="unweighted", metadata=STATIC)
  divisor: Divisor = dataclasses.field(default="count", metadata=STATIC)
  zero_sign: ZeroSign = dataclasses.field(default="majority", metadata=STATIC)

  def __post_init__(self) -> None:
    check_choice("election", self.election, get_args(Election))
    check_choice("divisor", self.divisor, get_args(Divisor))
    check_choice("zero_sign", self.zero_sign, get_args(ZeroSign))

  def survey(self) -> Survey | None:
    return _majority() if self.zero_sign == "majority" else None

  def reduce(self, deltas: tuple[Array, ...], weights: Array, surveyed: PyTree) -> Array:
    voters = tuple(w * d for w, d in zip(weights, deltas, strict=True))
    # A weight's sign counts where weighted task vectors vote.
    signs = voters if self.election == "weighted" else deltas
    total = sum(signs[1:], signs[0])
    elected = jnp.sign(total)
    if self.zero_sign != "neither":
      filler = surveyed[0].astype(total.dtype) if self.zero_sign == "majority" else 1.0
      elected = jnp.where(elected == 0, filler, elected)
    agreeing = tuple((s * elected > 0).astype(total.dtype) for s in signs)
    merged = sum((a * v for a, v in zip(agreeing, voters, strict=True)), jnp.zeros_like(total))
    if self.divisor == "count":
      merged = merged / jnp.maximum(sum(agreeing[1:], agreeing[0]), 1.0)
    elif self.divisor == "weights":
      scale = weighted_sum(agreeing, weights)
      merged = merged / jnp.where(scale == 0, 1.0, scale)
    return jnp.where(jnp.isnan(total), total, merged)  # nobody agrees with NaN


def _majority() -> Survey:
  """The sign of most elements of the summed task vectors, in one pass: `(±1, whether it is known)`."""

  def measure(carry: PyTree, leaf: Leaf) -> PyTree:
    total = sum(leaf.experts[1:], leaf.experts[0])
    return selection.count(total > 0), selection.count(total < 0)

  def update(carry: PyTree, total: PyTree) -> PyTree:
    positive, negative = map(selection.carry, total)
    return jnp.where(selection.at_least(negative, positive), jnp.float32(-1), jnp.float32(1)), jnp.array(True)

  first = jnp.float32(0), jnp.array(False)
  return Survey(lambda size, count: first, measure, update, lambda carry: carry[1])
