"""The one interface of every merge rule.

An operator works on one tensor of all models at a time, in two phases: `prepare` finds what does
not depend on the weights and is small, `combine` makes the merged tensor. It is a pytree: its
numbers are traced, vmapped and differentiated like any array, its variants are static.

A new rule is a subclass of `Operator` with a `combine`; `lifting.py` takes it from one tensor to
whole models, in memory or under `jit`, stacked or not, on any mesh.
"""

import abc
import dataclasses
import re
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


STATIC = {"static": True}
"""Metadata of a dataclass field that is part of a pytree's structure, not one of its numbers."""


class Leaf(NamedTuple):
  """One tensor of all models.

  Attributes:
    experts: K arrays of one shape, in their stored dtype.
    base: the common ancestor's tensor, or None.
    keys: K random keys, one per (model, canonical name), or None.
    statistics: K trees with what was measured of this tensor (Fisher, Gram, …), or None.
  """

  experts: tuple[Array, ...]
  base: Array | None = None
  keys: tuple[Array, ...] | None = None
  statistics: tuple[PyTree, ...] | None = None


class Survey(Protocol):
  """A fold over all tensors of a model, repeated until `done`: whole-model statistics.

  `measure` is summed with `+` over tensors and shards, so the same survey runs in memory, streamed
  from disk and over processes.
  """

  def init(self, size: int, count: int) -> PyTree:
    """The first carry, for `count` models of `size` elements each."""
    ...

  def measure(self, carry: PyTree, leaf: Leaf, surveyed: tuple[PyTree, ...]) -> PyTree:
    """What one tensor adds to the total; `surveyed` are the results of the surveys before."""
    ...

  def update(self, carry: PyTree, total: PyTree) -> PyTree:
    """The next carry, from the total over all tensors."""
    ...

  def done(self, carry: PyTree) -> Array:
    """Whether the carry is the result (a boolean scalar)."""
    ...


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
  by_rows: ClassVar[bool] = False
  """Whether the rule looks at rows, columns or whole matrices: tensors then come as `[out, in]`."""

  def default_weights(self, count: int) -> Array:
    """Weights where the caller gives none: one for each model."""
    return jnp.ones(count)

  def validate(self, weights: Array) -> None:
    """Raises ValueError for concrete weights `[..., K]` that cannot be meant."""
    del weights

  def survey(self) -> tuple[Survey, ...]:
    """The whole-model statistics that `prepare` needs, in order; most rules need none."""
    return ()

  def prepare(self, leaf: Leaf, surveyed: tuple[PyTree, ...]) -> PyTree:
    """All that does not depend on the weights, and small: thresholds, norms, never more tensors."""
    del leaf, surveyed
    return ()

  @abc.abstractmethod
  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    """The merged tensor in float32, from weights `[K]`; cheap, traced and differentiable."""

  def route(self, name: str) -> "Operator":
    """The operator that merges the tensor called `name`."""
    del name
    return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that differ between tensors: the first pattern that matches a name picks its row.

  Attributes:
    values: `[G, K]`, a row of weights for each pattern.
    patterns: G regular expressions, matched against the whole canonical name.

  >>> weights = Weights(jnp.array([[1.0, 0.0], [0.5, 0.5]]), (r".*embed.*", r".*"))
  >>> weights.row("model.norm.weight").tolist()
  [0.5, 0.5]
  """

  values: Array
  patterns: tuple[str, ...] = dataclasses.field(metadata=STATIC)

  def row(self, name: str) -> Array:
    """The weights `[K]` of one tensor; ValueError if no pattern matches."""
    for i, pattern in enumerate(self.patterns):
      if re.fullmatch(pattern, name):
        return self.values[i]
    raise ValueError(f"No pattern of the weights matches {name!r}; have {list(self.patterns)}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Route:
  """Different operators for different tensors; made by `route`, taken wherever an operator is."""

  operators: tuple["Operator | Route", ...]
  patterns: tuple[str, ...] = dataclasses.field(metadata=STATIC)
  weightless = False

  @property
  def needs_base(self) -> bool:
    return any(operator.needs_base for operator in self.operators)

  @property
  def needs_key(self) -> bool:
    return any(operator.needs_key for operator in self.operators)

  def validate(self, weights: Array) -> None:
    for operator in self.operators:
      if not operator.weightless:
        operator.validate(weights)

  def route(self, name: str) -> Operator:
    for pattern, operator in zip(self.patterns, self.operators, strict=True):
      if re.fullmatch(pattern, name):
        return operator.route(name)
    raise ValueError(f"No pattern of the route matches {name!r}; have {list(self.patterns)}.")


def route(*rules: tuple[str, Operator | Route]) -> Route:
  """Merges each tensor with the operator of the first pattern that matches its whole name.

  A whole-model statistic (the threshold of `ties`) then covers the tensors routed to its operator.

  >>> from merge_jax.operators import linear, slerp
  >>> operator = route((r".*norm.*", linear()), (r".*", slerp()))
  >>> type(operator.route("model.norm.weight")).__name__
  'Linear'
  """
  return Route(tuple(operator for _, operator in rules), tuple(pattern for pattern, _ in rules))
