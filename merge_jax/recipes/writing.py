"""What is in the folder of a merge, written by all processes of the job, and read back."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import merge_jax
from merge_jax import checkpoints, host, storage, streaming
from merge_jax.checkpoints import huggingface, sidecars
from merge_jax.checkpoints.folder_writer import FolderWriter
from merge_jax.checkpoints.safetensors_file import raw
from merge_jax.recipes import card, manifest, vocabulary
from merge_jax.recipes.built import Built


def write(
  built: Built,
  folder: Path,
  name: str,
  record: manifest.Manifest,
  max_shard_gb: float,
  verify: bool,
  *,
  progress: Callable[[int], None],
  **options: Any,
) -> None:
  """Fills a folder with the result of a merge, from where an interrupted one was."""
  limit = int(max_shard_gb * 1e9)
  writer = FolderWriter(folder, built.specs, built.like, max_shard_bytes=limit, resume=True, together=True)
  digests: dict[str, str] = {}
  others = len(writer.others)
  # What `jax.random.key` makes, without its two programs, and whatever generator JAX is told to take.
  words = jax.device_put(np.array([0, record.seed], np.uint32))
  key = jax.random.wrap_key_data(words, impl="threefry2x32")
  scale = len(built.jobs) / max(len(built.jobs) - others, 1)
  with writer as out, host.reporting():
    sink: Any = _Digesting(out, digests) if verify else out
    streaming.stream(
      built.jobs, sink, key=key, progress=lambda done: progress(round((done - others) * scale)), **options
    )
  if host.is_lead():
    (folder / "training.json").unlink(missing_ok=True)  # it tells of one model alone
    if built.config is not None:
      dtypes = [spec.dtype for spec in built.specs.values()]
      sidecars.write_config(folder, built.config)
      sidecars.update_dtype(folder, dtypes)
    vocabulary.write(folder, built.vocabulary)
    text = card.text(built, name, record.seed, merge_jax.__version__)
    (folder / "README.md").write_bytes(text.encode(errors="replace"))  # paths may be any bytes
  if verify:
    host.barrier("all files")
    _verify(folder, {n: spec for n, spec in built.specs.items() if n not in writer.others}, digests)
  if host.is_lead():
    manifest.write(folder, record)


class _Digesting:
  """A writer that keeps a digest of each tensor that it passes on."""

  def __init__(self, writer: checkpoints.Writer, digests: dict[str, str]):
    self._writer, self._digests = writer, digests

  def write_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
    self._writer.write_parts(name, self._digested(name, parts))

  def _digested(self, name: str, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    digest = hashlib.sha256()
    for part in parts:
      digest.update(raw(part).data)
      yield part
    self._digests[name] = digest.hexdigest()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._writer, name)


def _verify(folder: Path, specs: Mapping[str, jax.ShapeDtypeStruct], digests: Mapping[str, str]) -> None:
  """Each process reads its tensors back; all raise if one of them is not what was written."""
  fault = None
  try:
    _read_back(folder, specs, digests)
  except ValueError as error:
    fault = str(error)
  if fault := next(filter(None, host.gather(fault)), None):
    if host.is_lead():
      for name in storage.names(folder):  # a resumed merge must not take them for good
        (folder / name).unlink(missing_ok=True)
    raise ValueError(fault)


def _read_back(folder: Path, specs: Mapping[str, jax.ShapeDtypeStruct], digests: Mapping[str, str]) -> None:
  """Reads tensors of a result back; ValueError if one is not what was written."""
  written = huggingface.open_folder(folder)  # one that is being filled
  for name, spec in specs.items():
    found = written.read(name)
    if (found.shape, found.dtype) != (spec.shape, np.dtype(spec.dtype)):
      raise ValueError(f"{folder}: tensor {name!r} reads back as {found.dtype}{list(found.shape)}.")
    if name in digests and hashlib.sha256(raw(found).data).hexdigest() != digests[name]:
      raise ValueError(f"{folder}: tensor {name!r} reads back other than it was written; is the disk sound?")
