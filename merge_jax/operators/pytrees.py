"""Frozen dataclasses that are pytrees, and checks of what a user gives them."""

import dataclasses
import math
from collections.abc import Iterable
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
