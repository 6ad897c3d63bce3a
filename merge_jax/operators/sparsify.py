"""Sparsifiers: which elements of the task vectors are kept, and how what is kept is rescaled."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import counting, hashing, selection
from merge_jax.operators.core import STATIC, Leaf, PyTree, Ranked, Survey, check_choice, check_number, pytree
from merge_jax.operators.sums import total

Deltas = tuple[Array, ...]


class Block:
  """A frozen dataclass, registered as a pytree, with a survey of task vectors where it needs one."""

  def survey(self) -> Survey | None:
    """The statistic that the block needs, if any."""
    return None


class Sparsifier(Block, abc.ABC):
  """Which elements of the differences to the base are kept; not finite ones always are.

  `random` says whether it needs keys, `by_rows` whether it needs tensors as `[out, in]`.
  """

  random: bool = False
  by_rows: bool = False

  @abc.abstractmethod
  def fit(self, deltas: Deltas, keys: tuple[Any, ...], surveyed: PyTree) -> PyTree:
    """What `apply` needs beside the K task vectors, small; `surveyed` is the result of its survey."""

  @abc.abstractmethod
  def apply(self, fitted: PyTree, deltas: Deltas) -> Deltas:
    """The sparse task vectors, of the same shapes and dtypes."""


Rescale = Literal["none", "inverse", "l1"]


class Mask(Sparsifier):
  """A sparsifier that looks at one model at a time; its numbers are scalars, or `[K]` for one a model.

  Attributes:
    rescale: what is kept is left as it is, divided by the probability of keeping it ("inverse"), or
      multiplied so that its L1 norm in this tensor is that of the whole task vector (mergekit).
  """

  rescale: Rescale = "none"

  @abc.abstractmethod
  def choose(self, deltas: Deltas, keys: tuple[Any, ...], surveyed: PyTree) -> Sequence[PyTree]:
    """For each model what `kept` needs beside its task vector, small."""

  @abc.abstractmethod
  def kept(self, chosen: PyTree, delta: Array) -> Array:
    """Which elements are kept."""

  def probability(self, chosen: PyTree, delta: Array) -> Array:
    """With which probability each one was."""
    raise ValueError(f"{type(self).__name__} is not random: rescale is 'none' or 'l1'.")

  def each(self, count: int) -> list[Self]:
    """This sparsifier for each of K models, with that model's numbers.

    Raises:
      ValueError: numbers that are neither one nor one for each model.
    """
    children, structure = jax.tree_util.tree_flatten_with_path(self)
    rows: list[list[Any]] = [[] for _ in range(count)]
    for path, value in children:
      shape = jnp.shape(value)
      if shape not in ((), (count,)):
        name = jax.tree_util.keystr(path, simple=True)
        raise ValueError(f"{name} has shape {shape}; expected one number, or one for each of {count} models.")
      for i, row in enumerate(rows):
        row.append(jnp.asarray(value)[i] if shape else value)
    return [jax.tree.unflatten(structure, row) for row in rows]

  def fit(self, deltas: Deltas, keys: tuple[Any, ...], surveyed: PyTree) -> PyTree:
    rows = zip(self.each(len(deltas)), self.choose(deltas, keys, surveyed), deltas, strict=True)
    return tuple((chosen, one._factor(chosen, delta)) for one, chosen, delta in rows)

  def apply(self, fitted: PyTree, deltas: Deltas) -> Deltas:
    rows = zip(self.each(len(deltas)), fitted, deltas, strict=True)
    return tuple(one._apply(fit, delta) for one, fit, delta in rows)

  def _factor(self, chosen: PyTree, delta: Array) -> Array | None:
    if self.rescale != "l1":
      return None
    size = jnp.where(jnp.isfinite(delta), jnp.abs(delta), 0.0)
    whole, part = total(size), total(jnp.where(self.kept(chosen, delta), size, 0.0))
    return jnp.where(part == 0, 1.0, whole / jnp.where(part == 0, 1.0, part))

  def _apply(self, fitted: PyTree, delta: Array) -> Array:
    chosen, factor = fitted
    sparse = jnp.where(self.kept(chosen, delta) | ~jnp.isfinite(delta), delta, 0.0)
    if self.rescale == "l1":
      return sparse * factor
    if self.rescale == "inverse":
      return sparse / jnp.maximum(self.probability(chosen, delta), jnp.finfo(delta.dtype).tiny)
    return sparse


Scope = Literal["model", "tensor", "row"]
Keep = Literal["threshold", "exact"]


@pytree
class Trim(Mask):
  """Keeps the largest magnitudes of each task vector and zeroes the rest.

  Attributes:
    density: fraction kept, in [0, 1], one number or one for each model `[K]`; read as float32, as the
      magnitudes are.
    scope: one threshold for the whole model (the TIES authors'), for each tensor (mergekit, PEFT), or for
      each row of `[out, in]`.
    keep: "threshold" keeps all that reach the (n-k)-th smallest magnitude, k = floor(n density):
      k + 1 elements and their equals, as the TIES authors' code; "exact" keeps exactly k, at least one
      unless the density is 0, the first in row-major order among equals (scope "tensor" alone).
    rescale: "none", or "l1": see `Mask`.

  NaN and infinity are the largest magnitudes, and always kept.

  Raises:
    ValueError: unknown variants, "exact" with another scope, a concrete density outside [0, 1].

  Source: TIES-Merging (arXiv 2306.01708), section 4.

  >>> import merge_jax as mj
  >>> rule = mj.TaskVector((trim(0.5, scope="tensor", keep="exact"),))
  >>> mj.merge(rule, [{"w": jnp.array([0.1, -3.0, 1.0, 0.2])}], base={"w": jnp.zeros(4)})["w"].tolist()
  [0.0, -3.0, 1.0, 0.0]
  """

  density: ArrayLike = 0.2
  scope: Scope = dataclasses.field(default="model", kw_only=True, metadata=STATIC)
  keep: Keep = dataclasses.field(default="threshold", kw_only=True, metadata=STATIC)
  rescale: Rescale = dataclasses.field(default="none", kw_only=True, metadata=STATIC)

  def __post_init__(self) -> None:
    check_choice("scope", self.scope, get_args(Scope))
    check_choice("keep", self.keep, get_args(Keep))
    check_choice("rescale", self.rescale, ("none", "l1"))
    check_number("density", self.density, 0.0, 1.0)
    if self.keep == "exact" and self.scope != "tensor":
      raise ValueError(f"keep='exact' needs scope='tensor'; equals in a {self.scope} have no order here.")

  @property
  def by_rows(self) -> bool:  # type: ignore[override]
    return self.scope == "row"

  def survey(self) -> Survey | None:
    """The threshold of each model, in the whole of it or in each tensor."""

    def keys(leaf: Leaf) -> tuple[Array, ...]:
      return tuple(map(selection.magnitude, leaf.experts))

    def ranks(size: Array, count: int) -> tuple[Array, ...]:
      return tuple(one.rank(size) for one in self.each(count))

    if self.scope == "row":
      return None
    return Ranked(keys, ranks, whole=self.scope == "model", exact=self.keep == "exact")

  def rank(self, size: Array) -> Array:
    """The rank of the threshold among `size` (limbs) magnitudes: the authors' is the (k+1)-th largest."""
    density = jnp.asarray(self.density, jnp.float32)
    k = counting.fraction(size, density)
    more = (density > 0) & (density < 1) & ((self.keep == "threshold") | ~jnp.any(k > 0))
    return counting.carry(k + jnp.where(more, counting.limbs(1), 0))

  def choose(self, deltas: Deltas, keys: tuple[Any, ...], surveyed: PyTree) -> Sequence[PyTree]:
    if self.scope != "row":
      return surveyed
    size, bits = counting.limbs(deltas[0].shape[-1]), map(selection.magnitude, deltas)
    pairs = zip(bits, self.each(len(deltas)), strict=True)
    return [selection.kth_of_rows(x, one.rank(size)) for x, one in pairs]

  def kept(self, chosen: PyTree, delta: Array) -> Array:
    keys = selection.magnitude(delta)
    return keys >= chosen if self.scope == "row" else selection.reaches(keys, chosen)


trim = Trim

Generator = Literal["hash", "threefry"]


@pytree
class Drop(Mask):
  """Keeps each element of a task vector with probability `density`, independently (DARE).

  The mask of a tensor depends on seed, model and canonical name alone. NaN and infinity are kept.

  Attributes:
    density: probability of keeping, 1 - drop rate; in [0, 1], 0 gives zeros; one number, or one for each
      model `[K]`.
    rescale: "inverse" divides what is kept by the density, so that the expectation is the task vector
      itself; "l1" (mergekit) and "none": see `Mask`.
    generator: "hash" (`hashing.py`), or "threefry": the masks of versions before 0.3.

  Raises:
    ValueError: unknown variants, a concrete density outside [0, 1].

  Source: Language Models are Super Mario (arXiv 2311.03099).

  >>> drop(0.9).density
  0.9
  """

  density: ArrayLike
  rescale: Rescale = dataclasses.field(default="inverse", kw_only=True, metadata=STATIC)
  generator: Generator = dataclasses.field(default="hash", kw_only=True, metadata=STATIC)
  random = True

  def __post_init__(self) -> None:
    check_choice("rescale", self.rescale, get_args(Rescale))
    check_choice("generator", self.generator, get_args(Generator))
    check_number("density", self.density, 0.0, 1.0)

  def choose(self, deltas: Deltas, keys: tuple[Any, ...], surveyed: PyTree) -> Sequence[PyTree]:
    return keys

  def kept(self, chosen: PyTree, delta: Array) -> Array:
    draws = hashing.uniform(chosen, delta) if self.generator == "hash" else _threefry(chosen, delta)
    return draws < jnp.asarray(self.density, jnp.float32)

  def probability(self, chosen: PyTree, delta: Array) -> Array:
    return jnp.asarray(self.density, delta.dtype)


drop = Drop


def _threefry(key: Array, delta: Array) -> Array:
  sharding = hashing.explicit(delta)
  return jax.random.uniform(key, delta.shape, jnp.float32, out_sharding=sharding)
