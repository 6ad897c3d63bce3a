"""Frozen dataclasses that are pytrees, and checks of what a user gives them."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from merge_jax.errors import shown, unknown

T = TypeVar("T")

STATIC = {"static": True}
"""Metadata of a dataclass field that is part of a pytree's structure, not one of its numbers."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: type[T]) -> type[T]:
  """Makes a frozen dataclass that is a pytree, all fields but `STATIC` ones its children.

  Lists of numbers are read as arrays, and switches must be booleans. Equal are trees of equal numbers and
  static fields; a hash is of the latter.

  JAX builds pytrees again from tracers, gradients and placeholders; unlike
  `jax.tree_util.register_dataclass` this does not run `__post_init__` then, which checks what a user gives.
  """
  frozen: Any = dataclasses.dataclass(frozen=True, eq=False)(_reading(cls))
  static = [field.name for field in dataclasses.fields(frozen) if field.metadata == STATIC]
  numbers = [field.name for field in dataclasses.fields(frozen) if field.metadata != STATIC]

  def equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
      return NotImplemented
    leaves, forms = zip(*map(jax.tree.flatten, (one, other)), strict=True)
    return one is other or (forms[0] == forms[1] and all(map(same, *leaves)))

  def flatten(tree: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    children = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in numbers]
    return children, tuple(getattr(tree, name) for name in static)

  def unflatten(structure: tuple[Any, ...], children: Iterable[Any]) -> Any:
    tree = object.__new__(frozen)
    vars(tree).update(zip((*static, *numbers), (*structure, *children), strict=True))
    return tree

  frozen.__eq__ = equal
  frozen.__hash__ = lambda tree: hash((frozen, *(getattr(tree, name) for name in static)))
  jax.tree_util.register_pytree_with_keys(frozen, flatten, unflatten)
  return frozen


def _reading(cls: Any) -> Any:
  """The class, which reads lists of numbers as arrays and checks switches before its own checks."""
  check = getattr(cls, "__post_init__", lambda self: None)

  def read(self: Any) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (bool, "bool") and not isinstance(value, bool | np.bool_):
        raise ValueError(f"{field.name} is {shown(value)}; expected True or False.")
      listed = field.metadata != STATIC and isinstance(value, list | tuple) and value
      if listed and all(_is_number(x) for x in value):
        traced = any(isinstance(x, jax.Array) for x in value)
        vars(self)[field.name] = jnp.stack([*map(jnp.asarray, value)]) if traced else np.asarray(value)
    check(self)

  cls.__post_init__ = read
  return cls


def same(*values: Any) -> bool:
  """Whether concrete arrays, numbers or random keys are equal.

  >>> same(jax.random.key(0), jax.random.key(0)), same(jax.random.key(0), jax.random.key(1))
  (True, False)
  """
  keys = isinstance(values[0], jax.Array) and jnp.issubdtype(values[0].dtype, jax.dtypes.prng_key)
  first, *others = map(jax.random.key_data, values) if keys else values
  return all(np.array_equal(first, other) for other in others)


def _is_number(x: Any) -> bool:
  return isinstance(x, int | float | np.number) or (isinstance(x, jax.Array) and x.ndim == 0)


def _shapes(tree: Any) -> Iterator[tuple[Any, str, tuple[int, ...]]]:
  """Of each number of an operator: whose it is, its name and shape."""
  for field in dataclasses.fields(tree):
    value = getattr(tree, field.name)
    if field.metadata == STATIC or value is None:
      continue
    for part in value if isinstance(value, tuple) else (value,):
      if dataclasses.is_dataclass(part):
        yield from _shapes(part)
      else:
        yield tree, field.name, np.shape(part)


def require_one(tree: Any, count: int) -> None:
  """Raises ValueError if a number of an operator is neither one nor, where it may be, one for each model."""
  for owner, name, shape in _shapes(tree):
    each = name in getattr(owner, "per_model", ())
    if shape != () and not (each and shape == (count,)):
      more = f", or one for each of {count} models" if each else ""
      raise ValueError(f"{type(owner).__name__}: {name} has shape {shape}; expected one number{more}.")


def has_one_per_model(tree: Any) -> bool:
  """Whether a number of an operator is one for each model, in order."""
  return any(shape for _, _, shape in _shapes(tree))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
  """Raises ValueError if a variant's name is not one of `choices`."""
  if value not in choices:
    raise ValueError(unknown(name, str(value), choices))


def check_whole(name: str, value: Any, low: int) -> None:
  """Raises ValueError if a value is not a whole number from `low` on."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
    raise ValueError(f"{name} is {shown(value)}; expected a whole number from {low} on.")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
  """Raises ValueError if a value is concrete and anything but finite numbers from `low` to `high`."""
  if isinstance(value, jax.core.Tracer):
    return
  numbers = np.asarray(value)
  real = jnp.issubdtype(numbers.dtype, jnp.floating) or jnp.issubdtype(numbers.dtype, jnp.integer)
  if not real or not np.all(np.isfinite(numbers) & (numbers >= low) & (numbers <= high)):
    span = "a finite number" if math.isinf(low) else f"a number from {low:g} on"
    span = f"a number between {low:g} and {high:g}" if math.isfinite(high) else span
    raise ValueError(f"{name} is {shown(value)}; expected {span}.")
