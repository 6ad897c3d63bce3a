"""Sparsifiers of task vectors: which elements of a difference to the base are kept.

A sparsifier works on the task vector of one model: `fit` finds something small, `apply` masks. One
with a whole-model statistic folds over all tensors first (`init`, `measure`, `update`, `done`).
Others to come as blocks of the same kind: drop by magnitude (DELLA), trim outliers (Breadcrumbs),
keep high variance (SCE).
"""

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import selection
from merge_jax.operators.core import STATIC

PyTree = Any


class Sparsifier(abc.ABC):
  """The interface; subclasses are frozen dataclasses, registered as pytrees."""

  random = False
  surveys = False
  """Whether `fit` needs the result of a fold over the whole model."""

  def init(self, size: int) -> PyTree:
    """The first carry of the fold, for a model of `size` elements."""
    return ()

  def measure(self, carry: PyTree, delta: Array) -> PyTree:
    """What one tensor adds to the total."""
    return ()

  def update(self, carry: PyTree, total: PyTree) -> PyTree:
    """The next carry."""
    return carry

  def done(self, carry: PyTree) -> Array:
    """Whether the fold has ended."""
    return jnp.array(True)

  @abc.abstractmethod
  def fit(self, delta: Array, key: Array | None, surveyed: PyTree) -> PyTree:
    """What `apply` needs beside the task vector; small."""

  @abc.abstractmethod
  def apply(self, aux: PyTree, delta: Array) -> Array:
    """The sparse task vector, float32, of the same shape."""


Scope = Literal["model", "tensor"]
Keep = Literal["threshold", "exact"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trim(Sparsifier):
  """Keeps the elements of largest magnitude; see `trim`."""

  density: ArrayLike
  scope: Scope = dataclasses.field(default="model", metadata=STATIC)
  keep: Keep = dataclasses.field(default="threshold", metadata=STATIC)

  @property
  def surveys(self) -> bool:  # type: ignore[override]
    return self.scope == "model"

  def _rank(self, size: int) -> Array:
    """The rank of the threshold: the authors' is the (k+1)-th largest."""
    k = selection.fraction(size, jnp.asarray(self.density))
    if self.keep == "exact":
      return k
    more = selection.carry(k + jnp.array([1, 0, 0], jnp.uint32))
    density = jnp.asarray(self.density)
    return jnp.where((density <= 0) | (density >= 1), k, more)

  def init(self, size: int) -> PyTree:
    return selection.bracket(size, self._rank(size))

  def measure(self, carry: PyTree, delta: Array) -> PyTree:
    return selection.count(selection.magnitude(delta) >= selection.probe(carry))

  def update(self, carry: PyTree, total: PyTree) -> PyTree:
    return selection.narrow(carry, total)

  def done(self, carry: PyTree) -> Array:
    return selection.found(carry)

  def fit(self, delta: Array, key: Array | None, surveyed: PyTree) -> PyTree:
    if self.scope == "model":
      return surveyed.low, None
    k = self._rank(delta.size)
    threshold = selection.kth_magnitude(delta, k)
    return threshold, selection.last_tie(delta, threshold, k) if self.keep == "exact" else None

  def apply(self, aux: PyTree, delta: Array) -> Array:
    threshold, last = aux
    bits = selection.magnitude(delta)
    kept = bits >= threshold
    if last is not None:
      kept = (bits > threshold) | ((bits == threshold) & selection.up_to(delta.shape, last))
    return jnp.where(kept, delta, 0.0)


def trim(density: ArrayLike = 0.2, *, scope: Scope = "model", keep: Keep = "threshold") -> Trim:
  """Keeps the largest magnitudes of each task vector and zeroes the rest.

  Args:
    density: fraction kept, in [0, 1]; read as float32.
    scope: one threshold for the whole model (the TIES authors'), or for each tensor (mergekit, PEFT).
    keep: "threshold" keeps all that reach the (n-k)-th smallest magnitude, k = floor(n density):
      k + 1 elements and their equals, as the TIES authors' code; "exact" keeps exactly k, the first
      in row-major order among equals (scope "tensor" alone).

  Raises:
    ValueError: for an unknown scope or keep, "exact" with scope "model", or a concrete density
      outside [0, 1].

  Source: TIES-Merging (arXiv 2306.01708), section 4.

  >>> block = trim(0.5, scope="tensor", keep="exact")
  >>> delta = jnp.array([0.1, -3.0, 1.0, 0.2])
  >>> block.apply(block.fit(delta, None, ()), delta).tolist()
  [0.0, -3.0, 1.0, 0.0]
  """
  check_choice("scope", scope, ("model", "tensor"))
  check_choice("keep", keep, ("threshold", "exact"))
  if keep == "exact" and scope == "model":
    raise ValueError("keep='exact' needs scope='tensor': the ties of a whole model have no order.")
  return Trim(check_fraction("density", density), scope, keep)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drop(Sparsifier):
  """Keeps elements at random; see `drop`."""

  density: ArrayLike
  rescale: bool = dataclasses.field(default=True, metadata=STATIC)
  random = True

  def fit(self, delta: Array, key: Array | None, surveyed: PyTree) -> PyTree:
    return key

  def apply(self, aux: PyTree, delta: Array) -> Array:
    density = jnp.asarray(self.density, jnp.float32)
    sharding = getattr(jax.typeof(delta), "sharding", None)
    explicit = sharding is not None and not sharding.mesh.empty and sharding.mesh.are_all_axes_explicit
    bits = jax.random.uniform(aux, delta.shape, out_sharding=sharding if explicit else None)
    kept = jnp.where(bits < density, delta, 0.0)
    return kept / jnp.maximum(density, jnp.finfo(jnp.float32).tiny) if self.rescale else kept


def drop(density: ArrayLike, *, rescale: bool = True) -> Drop:
  """Keeps each element of a task vector with probability `density`, independently (DARE).

  Kept elements are divided by the density, so that the expectation is the task vector itself. The
  mask of a tensor depends on seed, model and canonical name alone.

  Args:
    density: probability of keeping, 1 - drop rate; in [0, 1], and 0 gives zeros.
    rescale: whether to divide by the density.

  Source: Language Models are Super Mario (arXiv 2311.03099).

  >>> drop(0.9).density
  0.9
  """
  return Drop(check_fraction("density", density), rescale)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  """Raises ValueError if a variant's name is not one of `choices`."""
  if value not in choices:
    raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")


def check_fraction(name: str, value: ArrayLike) -> ArrayLike:
  """Returns the value; ValueError if it is a concrete number outside [0, 1]."""
  if isinstance(value, int | float) and not 0.0 <= value <= 1.0:
    raise ValueError(f"{name} is {value}; expected a number between 0 and 1.")
  return value
