"""From files to devices: every process reads the bytes of its own shards, and can prove it."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding

from merge_jax.checkpoints.base import Checkpoint, narrowed
from merge_jax.checkpoints.safetensors_file import raw

Stacks = Mapping[str, tuple[str, ...]]
"""Names of leaves that are stacks of layers, and the names of their slices along the first axis."""
NONE: Stacks = MappingProxyType({})


def place(
  checkpoint: Checkpoint,
  shardings: Mapping[str, Sharding],
  stacks: Stacks = NONE,
  *,
  verify: bool = False,
) -> dict[str, Any]:
  """Reads a checkpoint onto the devices, every shard from its own part of the files.

  Args:
    checkpoint: open.
    shardings: of every leaf of the result, by name; memory kinds are kept, so that it may lie on the host.
    stacks: tensors that become one leaf `[layers, …]`, in order; their shapes and dtypes are equal.
    verify: read what was placed back, and compare its bytes with those of the files.

  Returns:
    The leaves by name; what JAX would narrow (64 bits) stays on the host whole, a numpy array.

  Raises:
    ValueError: a tensor whose bytes on a device are not those of the file, or cannot be read.
  """
  placed = dict(_leaves(checkpoint, shardings, stacks))
  if verify:
    for name, value in placed.items():
      if isinstance(value, jax.Array):
        _compare(checkpoint, name, value, stacks.get(name))
  return placed


def _leaves(
  checkpoint: Checkpoint, shardings: Mapping[str, Sharding], stacks: Stacks = NONE
) -> Iterator[tuple[str, Any]]:
  """The leaves of `place`, one after the other."""
  stacked = {name for names in stacks.values() for name in names}
  alone = [name for name in checkpoint.specs if name not in stacked]
  wide = {name: narrowed(checkpoint.specs[name].dtype) for name in alone}
  yield from checkpoint.load_some({name: None if wide[name] else shardings[name] for name in alone}).items()
  for name, parts in stacks.items():
    if narrowed(checkpoint.specs[parts[0]].dtype):
      yield name, np.stack([checkpoint.read(part) for part in parts])
    else:
      yield name, checkpoint.load_stack(parts, shardings[name])


def _compare(checkpoint: Checkpoint, name: str, value: Array, parts: tuple[str, ...] | None) -> None:
  for shard in value.addressable_shards:
    names, index = ([name], shard.index) if parts is None else (parts[shard.index[0]], shard.index[1:])
    slices = [np.asarray(shard.data)] if parts is None else np.asarray(shard.data)
    for one, part in zip(names, slices, strict=True):
      if np.array_equal(raw(part), raw(checkpoint.read(one, index))):
        continue
      raise ValueError(
        f"{checkpoint.path}: tensor {one!r} lies on {shard.device} with other bytes than its file has; start "
        "the job again, and check the disk and the device's memory if it happens twice."
      )
