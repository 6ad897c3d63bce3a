"""Equal layers as one array for each of their tensors, so that a program holds one layer, not all of them.

A stack has the name of its slices without the layer's index, as `merge_jax.Axes` has it: the slices of
`model.layers.mlp.up_proj.weight` are `model.layers.0.mlp.up_proj.weight`, `model.layers.1.…`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.operators.naming import Axes, AxesRules

LAYERS = "model.layers"
FEWEST = 8
"""Fewer layers are not stacked: they compile as fast one by one."""
AXES: AxesRules = ((r"(model\.layers)\.(?!\d).*", Axes(stack=0, out=(1,))),)
"""Which leaves are stacks, for operators and sharding rules; no tensor of a single layer matches."""

Stacks = Mapping[str, tuple[str, ...]]
"""The names of the slices, in their order, by the name of the stack."""


def find(specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[str, ...]]:
  """The stacks of a model; none if its layers are few, or differ in a tensor's name or shape.

  >>> spec = jax.ShapeDtypeStruct((2,), "float32")
  >>> found = find({f"model.layers.{i}.norm.weight": spec for i in range(9)})
  >>> found["model.layers.norm.weight"][-1]
  'model.layers.8.norm.weight'
  """
  layers: dict[int, dict[str, jax.ShapeDtypeStruct]] = {}
  for name, spec in specs.items():
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
      layers.setdefault(int(match[1]), {})[match[2]] = spec
  if len(layers) < FEWEST or set(layers) != set(range(len(layers))):
    return {}
  if any(layer != layers[0] for layer in layers.values()):
    return {}
  return {f"{LAYERS}.{rest}": tuple(f"{LAYERS}.{i}.{rest}" for i in range(len(layers))) for rest in layers[0]}


def stack(params: Mapping[str, Any], stacks: Stacks) -> dict[str, Any]:
  """Puts the slices of each stack into one array, along its first axis.

  >>> stack({"model.layers.0.w": jnp.ones(2), "model.layers.1.w": jnp.ones(2)},
  ...       {"model.layers.w": ("model.layers.0.w", "model.layers.1.w")})["model.layers.w"].shape
  (2, 2)
  """
  return _joined(params, stacks, lambda slices: jnp.stack([jnp.asarray(x) for x in slices]))


def stack_specs(specs: Mapping[str, jax.ShapeDtypeStruct], stacks: Stacks) -> dict[str, jax.ShapeDtypeStruct]:
  """What `stack` makes of arrays of these shapes."""
  return _joined(
    specs, stacks, lambda slices: jax.ShapeDtypeStruct((len(slices), *slices[0].shape), slices[0].dtype)
  )


def unstack(params: Mapping[str, Array], stacks: Stacks) -> dict[str, Array]:
  """Undoes `stack`."""
  result = {name: value for name, value in params.items() if name not in stacks}
  for name, slices in stacks.items():
    result |= zip(slices, params[name], strict=True)
  return result


def _joined(values: Mapping[str, Any], stacks: Stacks, join: Callable[[list[Any]], Any]) -> dict[str, Any]:
  sliced = {one for slices in stacks.values() for one in slices}
  return {name: value for name, value in values.items() if name not in sliced} | {
    name: join([values[one] for one in slices]) for name, slices in stacks.items()
  }
