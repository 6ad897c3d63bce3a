"""Writing Hugging Face folders: safetensors, one file or shards with an index, resumable by the shard."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np

from merge_jax import storage
from merge_jax.checkpoints import safetensors_file
from merge_jax.checkpoints.base import Checkpoint, Writer
from merge_jax.checkpoints.safetensors_file import nbytes

INDEX = "model.safetensors.index.json"


@dataclasses.dataclass
class _Shard:
  """A file of the result, open from its first tensor to its last."""

  file: Path
  header: bytes
  size: int
  left: set[str]
  descriptor: int | None = None


class FolderWriter(Writer):
  """Writes one safetensors file, or shards with an index, and holds no tensor.

  A file has its full size from the start, but its header comes last, when all of its tensors are on the
  disk: an unfinished one is no safetensors file. On an object store a file comes when it is complete; until
  then it lies in a folder for temporary files.

  Args:
    folder, specs, like: see `Writer`. Tensors lie in the order of `specs`; written in that order, one
      shard is open at a time.
    max_shard_bytes: of one file; a larger tensor gets a file of its own.
    resume: keep the shards that an interrupted writer of the same tensors completed in this folder; see
      `done`, and `storage.new_folder` for a folder that outlives an interruption.

  Raises:
    ValueError: a dtype or name that the format does not have.
    OSError: the disk has no room, or does not take it.
  """

  def __init__(
    self,
    folder: Path,
    specs: Mapping[str, Any],
    like: Checkpoint | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
    resume: bool = False,
  ):
    with storage.writing(folder):
      super().__init__(folder, specs, like)
      (folder / INDEX).unlink(missing_ok=True)  # that of older shards would hide the new file
    self._shards: list[_Shard] = []
    self._places: dict[str, tuple[_Shard, int]] = {}
    groups = _groups(self._specs, max_shard_bytes)
    for i, names in enumerate(groups, 1):
      several = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
      header = safetensors_file.header({name: self._specs[name] for name in names})
      shard = _Shard(folder / (several if len(groups) > 1 else "model.safetensors"), header, 0, set(names))
      shard.size = len(header)
      for name in names:
        self._places[name] = (shard, shard.size)
        shard.size += nbytes(self._specs[name])
      self._shards.append(shard)
    with storage.writing(folder):
      self._done = frozenset(self._kept(resume))
    for name in self._done:
      del self._left[name]
    self._exit = contextlib.ExitStack()
    self._room = self._exit.enter_context(storage.workroom(folder))
    sizes = [shard.size for shard in self._shards if shard.left]
    storage.require_space(self._room, sum(sizes) if self._room == folder else 2 * max(sizes, default=0))

  def _kept(self, resume: bool) -> list[str]:
    """Tensors of complete shards; removes what is in the way of the others."""
    kept: list[str] = []
    for shard in self._shards:
      if resume and _is_complete(shard):
        kept.extend(shard.left)
        shard.left = set()
      else:
        shard.file.unlink(missing_ok=True)  # who has mapped an older file of this name keeps its bytes
    ours = {shard.file for shard in self._shards}
    for file in self.folder.glob("model*.safetensors") if resume else ():  # of another number of shards
      if file not in ours and re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", file.name):
        file.unlink()
    return kept

  def done(self) -> Set[str]:
    """Names of the tensors in shards that an interrupted writer completed."""
    return self._done

  def _put(self, name: str, value: Any) -> None:
    self._put_parts(name, [np.asarray(value)])

  def _put_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
    shard, start = self._places[name]
    at = start
    for part in parts:
      content = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
      with storage.writing(shard.file):
        _write(self._descriptor(shard), content, at)
      at += len(content)
    storage.begin_writing_back(self._descriptor(shard), start, at - start)
    with storage.writing(shard.file):
      with self._lock:
        shard.left.remove(name)
        last = not shard.left
      if last:
        self._close(shard)

  def _descriptor(self, shard: _Shard) -> int:
    with self._lock:
      if shard.descriptor is None:
        shard.descriptor = os.open(self._room / shard.file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.truncate(shard.descriptor, shard.size)
      return shard.descriptor

  def _close(self, shard: _Shard) -> None:
    """The tensors reach the disk before the header that vouches for them."""
    descriptor = self._descriptor(shard)
    os.fsync(descriptor)
    _write(descriptor, memoryview(shard.header), 0)
    os.fsync(descriptor)
    os.close(descriptor)
    shard.descriptor = None
    storage.deliver(self._room / shard.file.name, shard.file)

  def _complete(self) -> None:
    with storage.writing(self.folder):
      for shard in self._shards if not self._specs else ():
        self._close(shard)
      if len(self._shards) > 1:
        total = sum(map(nbytes, self._specs.values()))
        where = {name: shard.file.name for name, (shard, _) in self._places.items()}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    self._exit.close()

  def abandon(self) -> None:
    """Removes the files that are not complete."""
    for shard in self._shards:
      if shard.descriptor is not None:
        os.close(shard.descriptor)
        shard.descriptor = None
        (self._room / shard.file.name).unlink(missing_ok=True)
    self._exit.close()


def _groups(specs: Mapping[str, jax.ShapeDtypeStruct], limit: int) -> list[list[str]]:
  """Names in order, a new file where the next tensor would pass the limit."""
  groups: list[list[str]] = [[]]
  filled = 0
  for name, spec in specs.items():
    if groups[-1] and filled + nbytes(spec) > limit:
      groups.append([])
      filled = 0
    groups[-1].append(name)
    filled += nbytes(spec)
  return groups


def _is_complete(shard: _Shard) -> bool:
  if shard.file.is_symlink() or not shard.file.is_file() or shard.file.stat().st_size != shard.size:
    return False
  return b"".join(storage.read_ranges(shard.file, [(0, len(shard.header))])) == shard.header


def _write(descriptor: int, content: memoryview, at: int) -> None:
  while len(content):  # one call takes at most 2 GiB
    count = os.pwrite(descriptor, content, at)
    content, at = content[count:], at + count
