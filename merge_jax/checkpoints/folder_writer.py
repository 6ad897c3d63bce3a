"""Writing Hugging Face folders: safetensors, one file or shards with an index, resumable by the shard.

Several processes of a job can fill one folder: each writes its share of the tensors into their places, and
completes the files that it has for itself; the lead does all else.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np

from merge_jax import host, storage
from merge_jax.checkpoints import safetensors_file, sharing
from merge_jax.checkpoints.base import Checkpoint, Writer
from merge_jax.checkpoints.safetensors_file import nbytes, raw

INDEX = "model.safetensors.index.json"


@dataclasses.dataclass
class _Shard:
  """A file of the result, open from its first tensor to its last; `ours`: other processes write some."""

  file: Path
  header: bytes
  size: int
  left: set[str]
  open: storage.WriteBehind | None = None
  ours: bool = False


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
    together: all processes of the job write this folder, with the same arguments; `finish` waits for all.

  Attributes:
    others: tensors that this process does not answer for: another one writes or found them.

  Raises:
    ValueError: a dtype or name that the format does not have.
    OSError: the disk has no room, or does not take it; the lead's folder is not seen by another process.
  """

  def __init__(
    self,
    folder: Path,
    specs: Mapping[str, Any],
    like: Checkpoint | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
    resume: bool = False,
    together: bool = False,
  ):
    self._together, self._lead = together, not together or host.is_lead()
    if not self._lead and not folder.is_dir():  # what is written into one of its own would be missing
      raise FileNotFoundError(
        f"{folder} is not seen here; all processes must share the file system of the output."
      )
    with storage.writing(folder):
      super().__init__(folder, specs, like)
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
    kept: list[str] = []
    self._exit = contextlib.ExitStack()
    self._room = self._exit.enter_context(storage.workroom(folder))
    if self._lead:
      with storage.writing(folder):
        (folder / INDEX).unlink(missing_ok=True)  # that of older shards would hide the new file
        kept = self._kept(resume)
      sizes = [shard.size for shard in self._shards if not shard.left <= set(kept)]
      storage.require_space(self._room, sum(sizes) if self._room == folder else 2 * max(sizes, default=0))
    self._divide(groups, frozenset(host.broadcast(kept) if together else kept))
    for name in self._done:
      del self._left[name]

  def _divide(self, groups: Sequence[Sequence[str]], kept: frozenset[str]) -> None:
    """Leaves each shard what this process writes; on a store, where a file is one object, whole ones."""
    sizes = [{name: nbytes(self._specs[name]) for name in names if name not in kept} for names in groups]
    count, index = (host.count(), host.index()) if self._together else (1, 0)
    cut = self._room == self.folder
    owners = sharing.owners([shard for shard in sizes if shard], count, cut=cut)
    for shard, names in zip(self._shards, sizes, strict=True):
      shard.ours = len({owners[name] for name in names}) > 1
      shard.left = {name for name in names if owners[name] == index}
    self.others = frozenset(name for name, owner in owners.items() if owner != index)
    self._done = kept | self.others
    if not self._lead:
      self.others |= kept

  def _kept(self, resume: bool) -> list[str]:
    """Tensors of complete shards; removes what is in the way of the others."""
    kept: list[str] = []
    for shard in self._shards:
      if resume and _is_complete(shard):
        kept.extend(shard.left)
      else:
        shard.file.unlink(missing_ok=True)  # who has mapped an older file of this name keeps its bytes
    ours = {shard.file for shard in self._shards}
    for file in self.folder.glob("model*.safetensors") if resume else ():  # of another number of shards
      if file not in ours and re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", file.name):
        file.unlink()
    return kept

  def done(self) -> Set[str]:
    """Names of the tensors in shards that an interrupted writer completed, and those of other processes."""
    return self._done

  def _put(self, name: str, value: Any) -> None:
    self._put_parts(name, [np.asarray(value)])

  def _put_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
    shard, at = self._places[name]
    for part in parts:
      content = raw(part).data
      with storage.writing(shard.file):
        self._opened(shard).write(content, at)
      at += len(content)
    with storage.writing(shard.file):
      with self._lock:
        shard.left.remove(name)
        last = not shard.left and not shard.ours
      if last:
        self._close(shard)

  def _opened(self, shard: _Shard) -> storage.WriteBehind:
    with self._lock:
      if shard.open is None:
        shard.open = storage.WriteBehind(self._room / shard.file.name, shard.size, new=not shard.ours)
      return shard.open

  def _close(self, shard: _Shard) -> None:
    """The tensors reach the disk before the header that vouches for them."""
    file = self._opened(shard)
    file.sync()
    file.write(memoryview(shard.header), 0)
    file.sync()
    file.close()
    shard.open = None
    storage.deliver(self._room / shard.file.name, shard.file)

  def _complete(self) -> None:
    if self._together:
      for shard in self._shards:
        if shard.open is not None:
          with storage.writing(shard.file):
            shard.open.sync()
      host.barrier("all tensors")
    if not self._lead:
      self._let_go()
      self._exit.close()
      return
    with storage.writing(self.folder):
      for shard in self._shards:
        if shard.ours or not self._specs:
          self._close(shard)
      if len(self._shards) > 1:
        total = sum(map(nbytes, self._specs.values()))
        where = {name: shard.file.name for name, (shard, _) in self._places.items()}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    self._exit.close()

  def _accompany(self) -> None:
    if self._lead:
      super()._accompany()

  def abandon(self) -> None:
    """Removes the files that are not complete."""
    for shard in self._let_go():
      (self._room / shard.file.name).unlink(missing_ok=True)
    self._exit.close()

  def _let_go(self) -> list[_Shard]:
    """Closes the files that are open."""
    found = [shard for shard in self._shards if shard.open is not None]
    for shard in found:
      self._opened(shard).close()
      shard.open = None
    return found


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
