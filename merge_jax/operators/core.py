"""The one interface of every merge rule.

An operator works on one tensor of all models at a time: `prepare` finds what does not depend on the
weights and is small, `combine` makes the merged tensor. It is a pytree: its numbers are traced,
vmapped and differentiated like any array, its variants are static. `leafwise.py` takes it from a
plain tensor to any layout and dtype, `lifting.py` to whole models, in memory or under `jit`.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.errors import shown, unknown
from merge_jax.operators import naming

PyTree = Any
Surveyed = tuple[PyTree, ...]  # the results of surveys, in order
T = TypeVar("T")

STATIC = {"static": True}
"""Metadata of a dataclass field that is part of a pytree's structure, not one of its numbers."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: type[T]) -> type[T]:
  """Makes a frozen dataclass that is a pytree, all fields but `STATIC` ones its children.

  JAX builds pytrees again from tracers, gradients and placeholders; unlike
  `jax.tree_util.register_dataclass` this does not run `__post_init__` then, which checks what a user gives.
  """
  frozen: Any = dataclasses.dataclass(frozen=True)(cls)
  static = [field.name for field in dataclasses.fields(frozen) if field.metadata == STATIC]
  numbers = [field.name for field in dataclasses.fields(frozen) if field.metadata != STATIC]

  def flatten(tree: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    children = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in numbers]
    return children, tuple(getattr(tree, name) for name in static)

  def unflatten(structure: tuple[Any, ...], children: Iterable[Any]) -> Any:
    tree = object.__new__(frozen)
    vars(tree).update(zip((*static, *numbers), (*structure, *children), strict=True))
    return tree

  jax.tree_util.register_pytree_with_keys(frozen, flatten, unflatten)
  return frozen


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
  """Raises ValueError if a variant's name is not one of `choices`."""
  if value not in choices:
    raise ValueError(unknown(name, str(value), choices))


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
  """Raises ValueError if a value is concrete and anything but finite numbers from `low` to `high`."""
  if isinstance(value, jax.core.Tracer):
    return
  numbers = np.asarray(value)
  real = jnp.issubdtype(numbers.dtype, jnp.floating) or jnp.issubdtype(numbers.dtype, jnp.integer)
  if not real or not np.all(np.isfinite(numbers) & (numbers >= low) & (numbers <= high)):
    span = f"a number between {low:g} and {high:g}" if math.isfinite(high) else "a finite number"
    raise ValueError(f"{name} is {shown(value)}; expected {span}.")


class Leaf(NamedTuple):
  """One tensor of all models.

  Attributes:
    experts: K arrays of one shape; rules get them in float32, or float64 where an input is.
    base: the common ancestor's tensor, or None.
    keys: K random keys, one per (model, canonical name), or None.
    statistics: K trees with what was measured of this tensor (Fisher, Gram, …), or None.
  """

  experts: tuple[Array, ...]
  base: Array | None = None
  keys: tuple[Array, ...] | None = None
  statistics: tuple[PyTree, ...] | None = None


class Total(NamedTuple):
  """A statistic of a whole model that is a sum over its tensors, found in one pass.

  Attributes:
    measure: a tensor, as `Operator.observe` gives it, to what it adds: a pytree of numbers, counts as
      limbs (`counting.py`); sums over elements, so that shards and processes add up alike.
    finish: the total to the result.
  """

  measure: Callable[[Leaf], PyTree]
  finish: Callable[[PyTree], PyTree]

  @property
  def whole(self) -> bool:
    """Whether it is of all tensors: always."""
    return True


class Ranked(NamedTuple):
  """Order statistics: for each array of keys a `selection.Cut` between the k largest and the rest.

  Only what is wanted is said here; `selection.py` finds it by counting, eagerly or inside a program, and a
  stream in its own way.

  Attributes:
    keys: a tensor, as `Operator.observe` gives it, to arrays of uint32 below 2^31, for example one of
      magnitudes for each model.
    ranks: the number of elements and the number of models to k for each array of keys; numbers of
      elements are limbs `[3]`, so that one program serves all sizes.
    whole: the elements are those of all tensors, or else of one tensor at a time.
    exact: equal keys are told apart by their position, the first in row-major order first; for one
      tensor alone.
  """

  keys: Callable[[Leaf], tuple[Array, ...]]
  ranks: Callable[[Array, int], Sequence[Array]]
  whole: bool = True
  exact: bool = False


Survey = Total | Ranked


class Operator(abc.ABC):
  """A merge rule: subclasses are frozen dataclasses, registered as pytrees."""

  needs_base: ClassVar[bool] = False
  """Whether the rule works on differences to a base. Others refuse one."""
  needs_key: ClassVar[bool] = False
  """Whether the rule is random."""
  models: ClassVar[int | None] = None
  """The exact number of models the rule takes, or None for any."""
  weightless: ClassVar[bool] = False
  """Whether weights are refused (alone; inside a route they are not looked at)."""
  normalize: bool = False
  """Whether the rule divides by the sum of the weights, which then must not be 0."""
  by_rows: ClassVar[bool] = False
  """Whether the rule looks at rows, columns or whole matrices: tensors then come as `[out, in]`."""

  def default_weights(self, count: int) -> Array:
    """Weights where the caller gives none: one for each model."""
    return jnp.ones(count)

  def survey(self) -> tuple[Survey, ...]:
    """The statistics that `prepare` needs, in order; most rules need none."""
    return ()

  def observe(self, leaf: Leaf, surveyed: Surveyed) -> Leaf:
    """What the next survey sees of a tensor, after those whose results are `surveyed`."""
    return leaf

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """All that does not depend on the weights, and small: thresholds, norms, never more tensors."""
    return ()

  @abc.abstractmethod
  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    """The merged tensor from weights `[K]`, traced and differentiable; non-finite where an input is."""

  @property
  def parts(self) -> tuple["Operator", ...]:
    """The operators that this one consists of: itself, or the flattened entries of a route."""
    return (self,)

  def index(self, name: str) -> int:
    """Which of `parts` merges the tensor called `name`."""
    return 0


@pytree
class Weights:
  """Weights that differ between tensors: the first pattern that matches a name picks its row.

  Attributes:
    values: `[G, K]`, a row of weights for each pattern.
    patterns: G regular expressions, matched against the whole canonical name.

  Raises:
    ValueError: other than one row for each pattern.

  >>> weights = Weights(jnp.array([[1.0, 0.0], [0.5, 0.5]]), (r".*embed.*", r".*"))
  >>> weights.row("model.norm.weight").tolist()
  [0.5, 0.5]
  """

  values: Array
  patterns: tuple[str, ...] = dataclasses.field(metadata=STATIC)

  def __post_init__(self) -> None:
    shape = getattr(self.values, "shape", None)  # None: placeholders; [N, G, K]: to be mapped over N
    if shape is not None and (len(shape) < 2 or shape[-2] != len(self.patterns)):
      count = len(self.patterns)
      raise ValueError(f"Weights: got values of shape {shape} for {count} patterns; expected a row for each.")

  def index(self, name: str) -> int:
    """The row of one tensor; ValueError if no pattern matches."""
    return naming.require_match(name, self.patterns, "weights")

  def row(self, name: str) -> Array:
    """The weights `[K]` of one tensor; ValueError if no pattern matches."""
    return self.values[self.index(name)]


@pytree
class Route:
  """Different operators for different tensors; made by `route`, taken wherever an operator is."""

  operators: tuple["Operator | Route", ...]
  patterns: tuple[str, ...] = dataclasses.field(metadata=STATIC)
  weightless = False

  def __post_init__(self) -> None:
    naming.compiled(self.patterns)
    for pattern, operator in zip(self.patterns, self.operators, strict=True):
      if not isinstance(operator, Operator | Route):
        raise ValueError(f"route: the entry of {pattern!r} is {operator!r}; expected an operator.")

  @property
  def parts(self) -> tuple[Operator, ...]:
    return tuple(part for operator in self.operators for part in operator.parts)

  def index(self, name: str) -> int:
    entry = naming.require_match(name, self.patterns, "route")
    return sum(len(one.parts) for one in self.operators[:entry]) + self.operators[entry].index(name)


def route(*rules: tuple[str, Operator | Route]) -> Route:
  """Merges each tensor with the operator of the first pattern that matches its whole name.

  Every entry is an operator of its own, also where two entries are equal, share an object or lie in
  a route inside: a whole-model statistic (the threshold of `ties`) covers the tensors of one entry.

  Raises:
    ValueError: an entry that is no operator, a pattern that is no regular expression; when merging,
      a tensor that no pattern matches.

  >>> from merge_jax.operators import linear, slerp
  >>> operator = route((r".*norm.*", linear()), (r".*", slerp()))
  >>> type(operator.parts[operator.index("model.norm.weight")]).__name__
  'Linear'
  """
  return Route(tuple(operator for _, operator in rules), tuple(pattern for pattern, _ in rules))
