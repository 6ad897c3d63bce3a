"""Hugging Face folders: safetensors, one file or sharded with an index."""

import dataclasses
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np

from merge_jax import decoding, storage
from merge_jax.checkpoints import safetensors_file, sidecars
from merge_jax.checkpoints.base import Checkpoint, Index, Writer
from merge_jax.checkpoints.safetensors_file import Entry, nbytes

INDEX = "model.safetensors.index.json"


class _Index(msgspec.Struct):
  weight_map: msgspec.Raw


@dataclasses.dataclass(frozen=True)
class Folder(Checkpoint):
  """A folder of safetensors files; `read` gives views of the mapped files."""

  format = "safetensors"
  entries: Mapping[str, Entry]
  tensor_files: tuple[Path, ...]
  _maps: dict[Path, mmap.mmap] = dataclasses.field(default_factory=dict, repr=False, compare=False)

  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    return safetensors_file.view(name, self.entries[name], self._maps)[index or ()]

  def files(self) -> tuple[Path, ...]:
    """Tensor files, the index and the side files."""
    index = (self.path / INDEX,) if (self.path / INDEX).is_file() else ()
    return (*index, *self.tensor_files, *sidecars.sidecars(self.path))

  def writer(self, folder: Path, specs: Mapping[str, Any]) -> Writer:
    """A writer of safetensors with this one's side files."""
    return FolderWriter(folder, specs, self)


def detect(folder: Path) -> bool:
  """Whether the folder holds safetensors."""
  return os.path.lexists(folder / INDEX) or any(folder.glob("*.safetensors"))


def open_folder(folder: Path) -> Folder:
  """Opens a folder; reads headers alone.

  A shard that an index names is a file of the folder, or a link that stays in it. The cache of the
  Hugging Face hub alone is allowed more: there `snapshots/<revision>/x` links to `blobs/<hash>`.

  Raises:
    ValueError: a damaged or truncated file, an index that does not fit, a tensor in two files.
  """
  entries: dict[str, Entry] = {}
  listed = _listed(folder)
  files = _files(folder, listed)
  for file in files:
    for name, entry in safetensors_file.read_header(file).items():
      if name in entries:
        raise ValueError(f"{folder}: tensor {name!r} is in {entries[name].file.name} and {file.name}.")
      entries[name] = entry
  if listed is not None:
    for name, file_name in listed.items():
      if name not in entries or entries[name].file.name != file_name:
        raise ValueError(f"{folder / INDEX}: tensor {name!r} is not in {file_name}.")
    entries = {name: entries[name] for name in listed}
  config = sidecars.read_config(folder)
  aliases = sidecars.tied(config, entries, folder)
  sidecars.sidecars(folder)
  specs = {name: entries[name].spec for name in sorted(entries) if name not in aliases}
  return Folder(folder, specs, aliases, config, entries, files)


def _listed(folder: Path) -> dict[str, str] | None:
  path = folder / INDEX
  if not os.path.lexists(path):
    return None
  raw = bytes(decoding.decode(storage.read_bytes(path), _Index, str(path)).weight_map)
  listed = decoding.decode(raw, dict[str, str], f"{path}: weight_map")
  names = [name for name, _ in json.loads(raw, object_pairs_hook=list)]
  if len(names) > len(listed):
    twice = next(name for i, name in enumerate(names) if name in names[:i])
    raise ValueError(f"{path}: tensor {twice!r} is listed twice; expected one file for each.")
  return listed


def _files(folder: Path, listed: Mapping[str, str] | None) -> tuple[Path, ...]:
  if listed is None:
    one = folder / "model.safetensors"
    return (one,) if os.path.lexists(one) else tuple(sorted(folder.glob("*.safetensors")))
  return tuple(_shard(folder, name) for name in sorted(set(listed.values())))


def _shard(folder: Path, name: str) -> Path:
  file, home, where = folder / name, folder.resolve(), f"{folder / INDEX} names {name!r}"
  if Path(name).name != name or name in ("", ".."):
    raise ValueError(f"{where}; expected the plain name of a file beside it.")
  if not os.path.lexists(file):
    raise ValueError(f"{where}, which is not there.")
  target = file.resolve()
  cached = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
  if not target.is_relative_to(home) and not cached:
    raise ValueError(f"{where}, a link out of the folder to {target}; copy the file to where the link is.")
  return file


class FolderWriter(Writer):
  """Writes one safetensors file, or shards with an index, and holds one tensor at a time.

  The files have their full size from the start, but their headers come last: an unfinished one is no
  safetensors file.

  Args:
    folder, specs, like: see `Writer`.
    max_shard_bytes: of one file; a larger tensor gets a file of its own.
  """

  def __init__(
    self,
    folder: Path,
    specs: Mapping[str, Any],
    like: Checkpoint | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
  ):
    super().__init__(folder, specs, like)
    shards = _shards(self._specs, max_shard_bytes)
    (folder / INDEX).unlink(missing_ok=True)  # that of older shards would hide the new file
    self._headers: dict[Path, bytes] = {}
    self._places: dict[str, tuple[Path, int]] = {}
    for i, names in enumerate(shards, 1):
      several = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
      file = folder / (several if len(shards) > 1 else "model.safetensors")
      self._headers[file] = safetensors_file.header({name: self._specs[name] for name in names})
      start = len(self._headers[file])
      for name in names:
        self._places[name] = (file, start)
        start += nbytes(self._specs[name])
      file.unlink(missing_ok=True)  # who has mapped an older file of this name keeps its bytes
      with file.open("xb") as stream:
        stream.truncate(start)

  def _put(self, name: str, value: Any) -> None:
    file, start = self._places[name]
    content = np.ascontiguousarray(np.asarray(value)).reshape(-1).view(np.uint8).data
    with file.open("r+b") as stream:
      stream.seek(start)
      stream.write(content)

  def _complete(self) -> None:
    for file, header in self._headers.items():
      with file.open("r+b") as stream:
        stream.write(header)
    if len(self._headers) > 1:
      total = sum(map(nbytes, self._specs.values()))
      where = {name: file.name for name, (file, _) in self._places.items()}
      index = {"metadata": {"total_size": total}, "weight_map": where}
      (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(specs: Mapping[str, jax.ShapeDtypeStruct], limit: int) -> list[list[str]]:
  """Names in order, a new file where the next tensor would pass the limit."""
  shards: list[list[str]] = [[]]
  filled = 0
  for name, spec in specs.items():
    if shards[-1] and filled + nbytes(spec) > limit:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += nbytes(spec)
  return shards
