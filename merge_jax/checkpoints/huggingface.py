"""Hugging Face folders: safetensors, one file or sharded with an index; and one plain file."""

import dataclasses
import itertools
import json
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from merge_jax import decoding, storage
from merge_jax.checkpoints import safetensors_file, sidecars
from merge_jax.checkpoints.base import Checkpoint, Index, Writer
from merge_jax.checkpoints.folder_writer import INDEX, FolderWriter
from merge_jax.checkpoints.safetensors_file import Entry

ONE = "model.safetensors"
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


class _Index(msgspec.Struct):
  weight_map: msgspec.Raw


@dataclasses.dataclass(frozen=True)
class Folder(Checkpoint):
  """A folder of safetensors files; `read` gives views of the mapped files, of those on a store copies."""

  format = "safetensors"
  entries: Mapping[str, Entry]
  tensor_files: tuple[Path, ...]
  _maps: dict[Path, mmap.mmap] = dataclasses.field(default_factory=dict, repr=False, compare=False)

  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    if isinstance(self.entries[name].file, storage.Remote):
      return safetensors_file.fetch(self.entries[name], index or ())
    return safetensors_file.view(name, self.entries[name], self._maps)[index or ()]

  def release(self, name: str) -> None:
    """Pages of a file that were merged need not stay in this process."""
    entry = self.entries.get(self.aliases.get(name, name))
    if entry is not None:
      safetensors_file.release(entry, self._maps)

  def files(self) -> tuple[Path, ...]:
    """Tensor files, the index and the side files."""
    index = (self.path / INDEX,) if (self.path / INDEX).is_file() else ()
    return (*index, *self.tensor_files, *sidecars.sidecars(self.path))

  def writer(self, folder: Path, specs: Mapping[str, Any], **options: Any) -> Writer:
    """A writer of safetensors with this one's side files."""
    return FolderWriter(folder, specs, self, **options)


class File(Folder):
  """One safetensors file, with nothing beside it."""

  def files(self) -> tuple[Path, ...]:
    """The file."""
    return self.tensor_files

  def copy_sidecars(self, folder: Path) -> None:
    """There are none."""


def detect(folder: Path) -> bool:
  """Whether the folder holds safetensors."""
  return storage.lexists(folder / INDEX) or any(folder.glob("*.safetensors"))


def open_folder(folder: Path) -> Folder:
  """Opens a folder; reads headers alone.

  An index counts unless there is a `model.safetensors` that it does not name: transformers reads that first,
  and leaves the index of earlier shards beside it. A shard that an index names is a file of the folder, or a
  link that stays in it. The cache of the Hugging Face hub alone is allowed more: there
  `snapshots/<revision>/x` links to `blobs/<hash>`.

  Raises:
    ValueError: a damaged or truncated file, an index that does not fit, a tensor in two files.
  """
  entries: dict[str, Entry] = {}
  listed = _listed(folder)
  files = _files(folder, listed)
  for file, found in zip(files, storage.side_by_side(safetensors_file.read_header, files), strict=True):
    for name, entry in found.items():
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


def open_file(file: Path) -> File:
  """Opens one safetensors file of any name; reads its header alone.

  Raises:
    ValueError: a damaged or truncated file.
  """
  entries = safetensors_file.read_header(file)
  return File(file, {name: entries[name].spec for name in sorted(entries)}, {}, None, entries, (file,))


def _listed(folder: Path) -> dict[str, str] | None:
  path = folder / INDEX
  if not storage.lexists(path):
    return None
  raw = bytes(storage.read_json(path, _Index).weight_map)
  listed = decoding.decode(raw, dict[str, str], f"{path}: weight_map")
  names = [name for name, _ in json.loads(raw, object_pairs_hook=list)]
  if len(names) > len(listed):
    twice = next(name for i, name in enumerate(names) if name in names[:i])
    raise ValueError(f"{path}: tensor {twice!r} is listed twice; expected one file for each.")
  if not listed:
    raise ValueError(f"{path}: weight_map names no tensor; remove the file, or write it again.")
  return None if storage.lexists(folder / ONE) and ONE not in listed.values() else listed


def _files(folder: Path, listed: Mapping[str, str] | None) -> tuple[Path, ...]:
  if listed is not None:
    return tuple(_shard(folder, name) for name in sorted(set(listed.values())))
  one = folder / ONE
  return (one,) if storage.lexists(one) else _unlisted(folder)


def _unlisted(folder: Path) -> tuple[Path, ...]:
  """Without an index: the shards named as a model's, or else the only file or numbered set of files."""
  sets: dict[str, list[Path]] = {}
  for file in sorted(folder.glob("*.safetensors")):
    sets.setdefault(_NUMBERED.sub(r"\1 of \3", file.name), []).append(file)
  if sets.pop("adapter_model.safetensors", None) and not sets:
    raise ValueError(
      f"{folder}: is a PEFT adapter and no model; name it with the base that it was trained on: base+adapter "
      "in a recipe, checkpoints.with_adapter in Python."
    )
  chosen = [files for key, files in sets.items() if key.startswith("model of ")] or list(sets.values())
  if len(chosen) != 1:
    names = ", ".join(files[0].name for files in chosen[:4])
    raise ValueError(
      f"{folder}: holds {names} and no {INDEX}: which of them are the model is not known; name one file, or "
      "keep one model in the folder."
    )
  files = chosen[0]
  if numbered := _NUMBERED.fullmatch(files[0].name):
    total = int(numbered[3])
    have = {int(_NUMBERED.sub(r"\2", file.name)) for file in files}
    further = [number for number in sorted(have) if not 1 <= number <= total]
    if further:
      raise ValueError(
        f"{folder}: {files[0].name} is of {total} files from 1 on; number {further[0]} is none."
      )
    if len(have) < total:
      missing = next(number for number in itertools.count(1) if number not in have)
      raise ValueError(f"{folder}: of the {total} files like {files[0].name}, number {missing} is missing.")
  return tuple(files)


def _shard(folder: Path, name: str) -> Path:
  file, home, where = folder / name, folder.resolve(), f"{folder / INDEX} names {name!r}"
  if Path(name).name != name or name in ("", ".."):
    raise ValueError(f"{where}; expected the plain name of a file beside it.")
  if not storage.lexists(file):
    raise ValueError(f"{where}, which is not there.")
  target = file.resolve()
  cached = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
  if not target.is_relative_to(home) and not cached:
    raise ValueError(f"{where}, a link out of the folder to {target}; copy the file to where the link is.")
  return file
