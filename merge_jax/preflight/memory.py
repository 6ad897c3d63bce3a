"""Whether a job fits: memory of each device."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from merge_jax.host import neighbours
from merge_jax.preflight.findings import Finding
from merge_jax.storage import available_memory, gib

Specs = Mapping[str, jax.ShapeDtypeStruct]


class Needs(NamedTuple):
  """What is held on the devices at once.

  Attributes:
    models: shapes and dtypes of every model that is held, the base and a mean of the pool included.
    merged: those of a merge.
    batch: merges that are evaluated side by side, each in float32 and with as much again for its
      activations.
    shardings: of every tensor, by name; None places whole tensors on the default device.
  """

  models: Sequence[Specs]
  merged: Specs
  batch: int = 1
  shardings: Mapping[str, Sharding] | None = None


def verdict(needs: Needs) -> Iterator[Finding]:
  """Whether every device has room for its part."""
  used: Counter[jax.Device] = Counter()
  for specs in needs.models:
    used.update(per_device(specs, needs.shardings))
  wide = {n: jax.ShapeDtypeStruct(s.shape, np.float32) for n, s in needs.merged.items()}
  for device, nbytes in per_device(wide, needs.shardings).items():
    used[device] += 2 * needs.batch * nbytes
  for device, need, have in _rooms(used):
    detail = (
      f"{gib(need)} on {device} for {len(needs.models)} models and {needs.batch} candidate"
      f"{'s' if needs.batch > 1 else ''}, {gib(have)} free there"
    )
    yield Finding("ok" if need <= have else "error", "memory", detail)


def per_device(specs: Specs, shardings: Mapping[str, Sharding] | None = None) -> dict[jax.Device, int]:
  """Bytes of each device when tensors lie as their shardings say.

  >>> specs = {"w": jax.ShapeDtypeStruct((8, 4), np.float32)}
  >>> list(per_device(specs).values())
  [128]
  """
  total: Counter[jax.Device] = Counter()
  whole = SingleDeviceSharding(jax.local_devices()[0])
  for name, spec in specs.items():
    sharding = whole if shardings is None else shardings[name]
    part = math.prod(sharding.shard_shape(spec.shape)) * np.dtype(spec.dtype).itemsize
    total.update(dict.fromkeys(sharding.device_set, part))
  return dict(total)


def _rooms(used: Mapping[jax.Device, int]) -> Iterator[tuple[str, int, int]]:
  """Name, bytes needed and bytes free of the fullest device; CPUs share the host's memory."""
  rooms = []
  host = 0
  for device, nbytes in used.items():
    if device.process_index != jax.process_index():
      continue  # its own process looks after it
    statistics = device.memory_stats()
    if device.platform == "cpu" or not statistics:
      host += nbytes
    else:
      rooms.append((str(device), nbytes, int(statistics["bytes_limit"]) - int(statistics["bytes_in_use"])))
  if host:
    rooms.append(("the host", host, available_memory() // neighbours()))
  yield from sorted(rooms, key=lambda room: room[2] - room[1])[:1]
