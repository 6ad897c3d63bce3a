"""Sparsifiers: which elements of the task vectors are kept, and how what is kept is rescaled."""

import abc
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import counting
from merge_jax.operators.core import Leaf, PyTree, Survey, Surveyed, Total
from merge_jax.operators.pytrees import check_number
from merge_jax.operators.sums import totals

Deltas = tuple[Array, ...]


class Block:
  """A frozen dataclass, registered as a pytree, with surveys of task vectors where it needs some.

  Attributes:
    elementwise: whether the block, after its surveys, treats every element by itself.
    rowwise: whether it treats every row of `[out, in]` by itself.
  """

  elementwise: bool = False
  rowwise: bool = False

  def survey(self) -> tuple[Survey, ...]:
    """The statistics that the block needs; they see task vectors for experts, and its own results."""
    return ()


class Sparsifier(Block, abc.ABC):
  """Which elements of the differences to the base are kept; not finite ones always are.

  `random` says whether it needs keys, `by_rows` whether it needs tensors as `[out, in]`.
  """

  random: bool = False
  by_rows: bool = False

  @abc.abstractmethod
  def fit(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """What `apply` needs beside the K task vectors, small; `surveyed` are the results of its surveys."""

  @abc.abstractmethod
  def apply(self, fitted: PyTree, deltas: Deltas) -> Deltas:
    """The sparse task vectors, of the same shapes and dtypes."""


Rescale = Literal["none", "inverse", "l1"]


def check_share(name: str, value: Any) -> None:
  """Raises ValueError for what is concrete and neither in [0, 1] nor numbers of elements, in uint32."""
  if not counting.is_count(value):
    check_number(name, value, 0.0, 1.0)


class Mask(Sparsifier):
  """A sparsifier that looks at one model at a time; its numbers are scalars, or `[K]` for one a model.

  Attributes:
    rescale: what is kept is left as it is, divided by the probability of keeping it ("inverse"), or
      multiplied so that its L1 norm in this tensor is that of the whole task vector (mergekit).
  """

  rescale: Rescale = "none"
  per_model: ClassVar[tuple[str, ...]] = ("density",)
  """The numbers that may be one for each model."""

  @property
  def by_rows(self) -> bool:  # type: ignore[override]
    return self.rowwise

  def order(self) -> Survey | None:
    """The order statistics, or ranks, that `choose` needs, if any."""
    return None

  @abc.abstractmethod
  def choose(self, leaf: Leaf, ordered: PyTree) -> Sequence[PyTree]:
    """For each model what `kept` needs beside its task vector, small; `ordered` is the result of `order`."""

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
        row.append(value[i] if shape else value)
    return [jax.tree.unflatten(structure, row) for row in rows]

  def numbers(self, name: str, count: int) -> Array:
    """One of its numbers for each of K models, `[K]`, float32 or uint32 as it is; errors as of `each`."""
    values = [getattr(one, name) for one in self.each(count)]
    dtype = np.uint32 if counting.is_count(values[0]) else np.float32
    return (jnp if any(isinstance(x, Array) for x in values) else np).array(values, dtype)

  def survey(self) -> tuple[Survey, ...]:
    order = self.order()
    ordered = () if order is None else (order,)
    if self.rescale != "l1":
      return ordered
    return *ordered, Total(self._norms, whole=False)

  def fit(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    return tuple(self._chosen(leaf, surveyed)), surveyed[-1] if self.rescale == "l1" else None

  def apply(self, fitted: PyTree, deltas: Deltas) -> Deltas:
    chosen, norms = fitted
    norms = [None] * len(deltas) if norms is None else norms
    return tuple(map(_applied, self.each(len(deltas)), chosen, norms, deltas))

  def _chosen(self, leaf: Leaf, surveyed: Surveyed) -> Sequence[PyTree]:
    return self.choose(leaf, None if self.order() is None else surveyed[0])

  def _norms(self, leaf: Leaf, surveyed: Surveyed) -> Array:
    """For each model the L1 norms of the task vector, and of what is kept of it, `[K, 2]`."""
    each = self.each(len(leaf.experts))
    sizes = map(_sizes, each, self._chosen(leaf, surveyed), leaf.experts)
    return jnp.stack(totals([*itertools.chain.from_iterable(sizes)])).reshape(-1, 2)

  def _apply(self, chosen: PyTree, norms: PyTree, delta: Array) -> Array:
    sparse = jnp.where(self.kept(chosen, delta) | ~jnp.isfinite(delta), delta, 0.0)
    if self.rescale == "l1":
      whole, part = (jnp.asarray(x, delta.dtype) for x in norms)
      return sparse * jnp.where(part == 0, 1.0, whole / jnp.where(part == 0, 1.0, part))
    if self.rescale == "inverse":
      return sparse / jnp.maximum(self.probability(chosen, delta), jnp.finfo(delta.dtype).tiny)
    return sparse


# Functions that programs call for each model, not inlined: they are traced and lowered once.


@jax.jit
def _applied(block: Mask, chosen: PyTree, norms: PyTree, delta: Array) -> Array:
  return block._apply(chosen, norms, delta)


@jax.jit
def _sizes(block: Mask, chosen: PyTree, delta: Array) -> tuple[Array, Array]:
  """Magnitudes, and those of what is kept, else 0."""
  size = jnp.where(jnp.isfinite(delta), jnp.abs(delta), 0.0)
  return size, jnp.where(block.kept(chosen, delta), size, 0.0)


def random_keys(leaf: Leaf) -> Sequence[PyTree]:
  """A `hashing.Key` for each model; ValueError if there are none."""
  if leaf.keys is None:
    raise ValueError("The rule is random: the leaf has no keys.")
  return leaf.keys
