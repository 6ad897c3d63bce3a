"""What a run was made from, so that a resumed one is the same one or is refused."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
from jax.sharding import Mesh

import merge_jax
from merge_jax import storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.recycle.settings import Settings, to_mapping

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "cma", "tokenizers")
NAME = "manifest.json"
FREE = ("output_dir", "placement", "allow_version_change", "allow_topology_change")
"""Settings that may differ when a run is resumed."""
GROWING = ("budget", "seconds")
"""Settings of the search that may grow."""


class Topology(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """What a run was spread over; with another one, scores agree but for their last digits.

  Attributes:
    processes: of the job.
    mesh: sizes of its axes.
  """

  processes: int
  mesh: dict[str, int]

  def __str__(self) -> str:
    sizes = ",".join(f"{axis}:{size}" for axis, size in self.mesh.items())
    return f"{self.processes} process{'es' if self.processes > 1 else ''}, {sizes}"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """The content of `manifest.json`.

  Attributes:
    config: the settings, but for those of this machine.
    versions: of libraries and Python, by name.
    devices: kinds of the mesh's devices, each once.
    inputs: a digest of every checkpoint and task file, by path.
    topologies: that of the start, and those of later commands where they had another one.
    folder: the working directory of the start, which relative paths refer to.
  """

  config: dict[str, Any]
  versions: dict[str, str]
  devices: list[str]
  inputs: dict[str, str]
  topologies: list[Topology] = []
  folder: str = ""

  @property
  def elsewhere(self) -> str:
    """Where the run was started, if that was in another working directory; else ""."""
    return self.folder if self.folder != Path.cwd().as_posix() else ""


def make(
  settings: Settings, checkpoints: Sequence[Checkpoint], tasks: Mapping[str, str], mesh: Mesh
) -> Manifest:
  """Config, versions, devices, and a digest of every input.

  Args:
    settings: of the job.
    checkpoints: the pool, and its base if it has one.
    tasks: digests of the task files, by path.
    mesh: of the job.
  """
  config = {name: value for name, value in to_mapping(settings).items() if name not in FREE}
  versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
  digests = {c.path.as_posix(): c.digest() for c in checkpoints}
  own = {"merge_jax": merge_jax.__version__, "python": platform.python_version()}
  kinds = sorted({device.device_kind for device in mesh.devices.flat})
  topology = Topology(jax.process_count(), dict(mesh.shape))
  return Manifest(config, own | versions, kinds, digests | dict(tasks), [topology], Path.cwd().as_posix())


def text(manifest: Manifest) -> str:
  """The file's content."""
  return json.dumps(msgspec.to_builtins(manifest), indent=2) + "\n"


def read(folder: Path) -> Manifest | None:
  """The manifest of a folder, or None if there is none.

  Raises:
    ValueError: it is not what a job writes.
  """
  path = folder / NAME
  if not path.exists():
    return None
  return storage.read_json(path, Manifest)


def continued(old: Manifest | None, new: Manifest) -> Manifest:
  """The manifest of a resumed run: it keeps where it started, and adds a topology that is new."""
  if old is None:
    return new
  added = [one for one in new.topologies if not old.topologies or one != old.topologies[-1]]
  return msgspec.structs.replace(
    new,
    versions=old.versions,
    devices=old.devices,
    topologies=[*old.topologies, *added],
    folder=old.folder,
  )


def changes(old: Manifest, new: Manifest, *, versions: bool = True, topology: bool = True) -> list[str]:
  """What a resumed run has otherwise, one readable line each; a larger budget is not among it.

  Args:
    old, new: as stored, and as started now.
    versions: whether versions and kinds of devices count.
    topology: whether processes and mesh count.
  """
  found = _differences(old.config, new.config, "config.")
  if versions:
    found += _differences(old.versions, new.versions, "versions.")
    found += [f"devices: {old.devices} -> {new.devices}"] * (old.devices != new.devices)
  if topology and old.topologies and old.topologies[-1] != new.topologies[-1]:
    found.append(f"topology: {old.topologies[-1]} -> {new.topologies[-1]}")
  for path in sorted(old.inputs.keys() | new.inputs.keys()):
    if path not in old.inputs or path not in new.inputs:
      found.append(f"inputs.{path}: " + ("not used before" if path in new.inputs else "not used any more"))
    elif old.inputs[path] != new.inputs[path]:
      found.append(f"inputs.{path}: the files changed")
  return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
  lines = []
  for key in sorted(old.keys() | new.keys()):
    a, b = old.get(key, "absent"), new.get(key, "absent")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      lines += _differences(a, b, f"{prefix}{key}.")
    elif a != b and not (prefix == "config.search." and key in GROWING and _grows(a, b)):
      lines.append(f"{prefix}{key}: {a} -> {b}")
  return lines


def _grows(old: Any, new: Any) -> bool:
  """Whether a limit grew; 0 is none."""
  return isinstance(old, int | float) and old > 0 and (new == 0 or new > old)
