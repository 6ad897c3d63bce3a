"""What a run was made from, so that a resumed one is the same one or is refused."""

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import merge_jax
from merge_jax.checkpoints import Checkpoint
from merge_jax.recycle.pool import Inputs
from merge_jax.recycle.settings import Settings

BLOCK, BLOCKS = 1 << 16, 64
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "cma", "tokenizers")


def build(settings: Settings, inputs: Inputs) -> dict[str, Any]:
  """Config, versions, devices, and a digest of every input."""
  config = dataclasses.asdict(settings)
  for name in ("output_dir", "allow_version_change"):
    config.pop(name)
  versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
  digests = {c.path.as_posix(): digest(c) for c in inputs.pool}
  if inputs.base is not None:
    digests[inputs.base.path.as_posix()] = digest(inputs.base)
  if inputs.splits is not None:
    for spec in (*settings.tasks, *settings.heldout_tasks):
      path = Path(spec) if Path(spec).is_file() else Path(spec.rpartition(":")[0])
      digests[path.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
  return {
    "config": _plain(config),
    "versions": {
      "merge_jax": merge_jax.__version__,
      "python": platform.python_version(),
      **versions,
    },
    "devices": [device.device_kind for device in jax.devices()],
    "inputs": digests,
  }


def digest(checkpoint: Checkpoint) -> str:
  """A digest of names, sizes and up to 64 evenly spaced blocks of every file of a checkpoint.

  A pool of terabytes is told apart in seconds; a file below 4 MiB is read whole.
  """
  total = hashlib.sha256()
  for file in sorted(path for path in checkpoint.path.rglob("*") if path.is_file()):
    size = file.stat().st_size
    total.update(f"{file.relative_to(checkpoint.path)}\0{size}\0".encode())
    with file.open("rb") as stream:
      if size <= BLOCK * BLOCKS:
        total.update(stream.read())
        continue
      for i in range(BLOCKS):
        stream.seek(i * (size - BLOCK) // (BLOCKS - 1))
        total.update(stream.read(BLOCK))
  return total.hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
  """What differs between two manifests, one readable line each.

  >>> differences({"config": {"seed": 0}}, {"config": {"seed": 1}})
  ['config.seed: 0 -> 1']
  """
  lines = []
  for key in sorted(old.keys() | new.keys(), key=str):
    a, b = old.get(key, "absent"), new.get(key, "absent")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      lines += differences(a, b, f"{prefix}{key}.")
    elif a != b:
      if prefix == "inputs.":
        lines.append(f"{prefix}{key}: " + ("the files changed" if "absent" not in (a, b) else
                     "not used before" if a == "absent" else "not used any more"))  # fmt: skip
      else:
        lines.append(f"{prefix}{key}: {a} -> {b}")
  return lines


def _plain(value: Any) -> Any:
  """As JSON gives it back: lists for tuples."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
