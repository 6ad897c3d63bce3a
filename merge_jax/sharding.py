"""Meshes and sharding rules: the only file that knows them. Operators follow what arrays have."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from merge_jax.operators import naming

Rules = Sequence[tuple[str, P | str]]
"""Pairs of a regular expression and what matching tensors get; the first full match wins.

A `PartitionSpec` is taken as it is; "fsdp" cuts the largest axis that the whole mesh divides, and
leaves a tensor that none divides on every device.
"""

DEFAULT: Rules = ((r".*", "fsdp"),)


def make_mesh(shape: Mapping[str, int]) -> Mesh:
  """A mesh of all or some devices, in Auto mode.

  Raises:
    ValueError: more devices than there are.

  >>> make_mesh({"fsdp": 1}).axis_names
  ('fsdp',)
  """
  count, have = math.prod(shape.values()), len(jax.devices())
  if count > have:
    raise ValueError(f"A mesh of {dict(shape)} needs {count} devices; there are {have}.")
  axes = tuple(shape)
  return jax.make_mesh(
    tuple(shape.values()),
    axes,
    axis_types=(AxisType.Auto,) * len(axes),
    devices=jax.devices()[:count],
  )


def shardings(
  specs: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, rules: Rules = DEFAULT
) -> dict[str, NamedSharding]:
  """A sharding for every tensor, from names and shapes alone.

  Raises:
    ValueError: no rule matches a tensor, or its rule does not fit its shape.
  """
  return {name: _one(name, spec.shape, mesh, rules) for name, spec in specs.items()}


def _one(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> NamedSharding:
  patterns = [pattern for pattern, _ in rules]
  index = naming.first_match(name, patterns)
  if index is None:
    raise ValueError(f"{name}: no sharding rule matches; have {patterns}.")
  rule = rules[index][1]
  if isinstance(rule, str):
    if rule != "fsdp":
      raise ValueError(f"{name}: sharding rule {rule!r} is not known; expected 'fsdp'.")
    rule = _fsdp(shape, mesh)
  if len(rule) > len(shape):
    raise ValueError(f"{name}: {rule} has more axes than shape {shape}.")
  sharding = NamedSharding(mesh, rule)
  sharding.shard_shape(shape)  # a ValueError if a dimension does not divide
  return sharding


def _fsdp(shape: tuple[int, ...], mesh: Mesh) -> P:
  fitting = [axis for axis, size in enumerate(shape) if size and size % mesh.size == 0]
  if not fitting:
    return P()
  largest = max(fitting, key=lambda axis: shape[axis])
  return P(*(mesh.axis_names if axis == largest else None for axis in range(len(shape))))
