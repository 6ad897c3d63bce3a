"""The one interface of every merge rule.

An operator works on one tensor of all models at a time: `prepare` finds what does not depend on the
weights and is small, `combine` makes the merged tensor. It is a pytree: its numbers are traced,
vmapped and differentiated like any array, its variants are static. `leafwise.py` takes it from a
plain tensor to any layout and dtype, `lifting.py` to whole models, in memory or under `jit`.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jax import Array

from merge_jax.errors import shown
from merge_jax.operators import naming
from merge_jax.operators.pytrees import STATIC, pytree

PyTree = Any
Surveyed = tuple[PyTree, ...]  # the results of surveys, in order


class Leaf(NamedTuple):
  """One tensor of all models.

  Attributes:
    experts: K arrays of one shape; rules get them in float32, or float64 where an input is.
    base: the common ancestor's tensor, or None.
    keys: K random keys, one per (model, canonical name), or None.
    statistics: K trees with what was measured of this tensor (Fisher, Gram, …), or None.
    start: where the arrays are a flat block of a tensor, the position of its first element in it: two words
      (uint32), the high one first; None for a whole tensor.
  """

  experts: tuple[Array, ...]
  base: Array | None = None
  keys: tuple[Any, ...] | None = None
  statistics: tuple[PyTree, ...] | None = None
  start: Array | None = None


class Total(NamedTuple):
  """A statistic that is a sum over elements, or the largest of them, found in one pass.

  Attributes:
    measure: a tensor, or a block of one, and the results of the surveys before this one, to what it adds: a
      pytree of numbers. Blocks, shards and processes add up alike; an element that is 0 in all models adds
      nothing.
    finish: the total and the number of elements (float32) to the result; None: the total is the result.
      Where they are concrete they are NumPy's, and what NumPy can compute needs no compilation.
    whole: of all tensors of the model, or else of one tensor at a time.
    kind: numbers that are added, counts as limbs (`counting.py`), or numbers from 0 on of which the largest
      is wanted.
    usual: `(guess, holds)`, of one tensor at a time: a result that serves nearly every tensor, and a test of
      all results that were found with it. Streams take the guess and measure only where the test fails: that
      saves a pass.
  """

  measure: Callable[[Leaf, Surveyed], PyTree]
  finish: Callable[[PyTree, Array], PyTree] | None = None
  whole: bool = True
  kind: Literal["sum", "count", "largest"] = "sum"
  usual: tuple[PyTree, Callable[[Surveyed], bool]] | None = None


class Ranked(NamedTuple):
  """Order statistics: for each array of keys a `selection.Cut` between the k largest and the rest.

  Only what is wanted is said here; `selection.py` finds it by counting, eagerly or inside a program, and a
  stream in its own way.

  Attributes:
    keys: a tensor, or a block of one, and the results of the surveys before this one, to arrays of uint32
      below 2^31, for example one of magnitudes for each model.
    ranks: the number of elements, the number of models and the results of the surveys before (None for each
      where the elements are those of all tensors) to `each` k for every array of keys, in order; numbers of
      elements are limbs `[3]`: one program serves all sizes; concrete ones are NumPy's, as of `Total.finish`.
    whole: the elements are those of all tensors, or else of one tensor at a time.
    exact: equal keys are told apart by their position, the first in row-major order first; for one
      tensor alone.
    each: how many ranks are asked of every array of keys.
  """

  keys: Callable[[Leaf, Surveyed], tuple[Array, ...]]
  ranks: Callable[[Any, int, Surveyed], Sequence[Any]]
  whole: bool = True
  exact: bool = False
  each: int = 1


class Ranks(NamedTuple):
  """Ranks of keys within rows of `[out, in]`, float32 from 0; equal ones share the mean of theirs.

  As large as the tensors, so that only those who merge once find them, and others give None: the rule then
  ranks where it needs to. (Streams sort on the host: XLA takes several times as long on a CPU.)

  Attributes:
    keys: as of `Ranked`.
  """

  keys: Callable[[Leaf, Surveyed], tuple[Array, ...]]
  whole: bool = False


Survey = Total | Ranked | Ranks


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
  elementwise: ClassVar[bool] = False
  """Whether, after the surveys, each element is merged by itself: streams then go by blocks."""
  rowwise: ClassVar[bool] = False
  """Whether each row of `[out, in]` is: streams then go by blocks of rows."""
  per_model: ClassVar[tuple[str, ...]] = ()
  """The numbers that may be one for each model."""

  def default_weights(self, count: int) -> np.ndarray:
    """Weights where the caller gives none: one for each model."""
    return np.ones(count)

  def survey(self) -> tuple[Survey, ...]:
    """The statistics that `prepare` needs, in order; most rules need none."""
    return ()

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

  >>> weights = Weights(np.array([[1.0, 0.0], [0.5, 0.5]]), (r".*embed.*", r".*"))
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
  for rule in rules:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
      raise ValueError(f"route: got {shown(rule)}; expected pairs, as route((r'.*norm.*', linear()), …).")
  return Route(tuple(operator for _, operator in rules), tuple(pattern for pattern, _ in rules))
