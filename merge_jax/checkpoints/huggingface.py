"""Hugging Face folders: safetensors, one file or sharded with an index.

Files are mapped, not read: a tensor is a view until it is used. Headers that we write are padded so
that the data start at a multiple of 64 bytes, where XLA uses host memory in place.
"""

import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from merge_jax.checkpoints import base
from merge_jax.checkpoints.base import Checkpoint

DTYPES: dict[str, Any] = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
  "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
  "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALIGNMENT = 64
INDEX = "model.safetensors.index.json"


class Entry(NamedTuple):
  """A tensor in a file: where its bytes are, and what they mean."""

  file: Path
  start: int
  spec: jax.ShapeDtypeStruct


def is_ours(folder: Path) -> bool:
  """Whether the folder holds safetensors."""
  return (folder / INDEX).is_file() or any(folder.glob("*.safetensors"))


def open_folder(folder: Path) -> Checkpoint:
  """Opens a folder; reads headers alone.

  Raises:
    ValueError: a damaged or truncated file, an index that does not fit, a tensor in two files.
  """
  entries: dict[str, Entry] = {}
  listed = _listed(folder)
  for file in _files(folder, listed):
    for name, entry in read_header(file).items():
      if name in entries:
        raise ValueError(f"{folder}: tensor {name!r} is in {entries[name].file.name} and {file.name}.")
      entries[name] = entry
  if listed is not None:
    for name, file_name in listed.items():
      if name not in entries or entries[name].file.name != file_name:
        raise ValueError(f"{folder / INDEX}: tensor {name!r} is not in {file_name}.")
    entries = {name: entries[name] for name in entries if name in listed}
  config = base.read_config(folder)
  aliases = base.tied(config, entries)
  maps: dict[Path, mmap.mmap] = {}

  def reader(names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: _view(entries[aliases.get(name, name)], maps) for name in names}

  specs = {name: entries[name].spec for name in sorted(entries) if name not in aliases}
  raw = {name: entries[name] for name in aliases}
  return Checkpoint(folder, "safetensors", specs, aliases, config, raw, reader)


def read_alias(checkpoint: Checkpoint, alias: str) -> np.ndarray:
  """The tied tensor as it lies in the file, to compare with its canonical one."""
  return _view(checkpoint.structure[alias], {})


def _listed(folder: Path) -> dict[str, str] | None:
  path = folder / INDEX
  if not path.is_file():
    return None
  try:
    listed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: not an index of safetensors ({error!r}).") from None
  return dict(listed)


def _files(folder: Path, listed: Mapping[str, str] | None) -> list[Path]:
  if listed is None:
    one = folder / "model.safetensors"
    return [one] if one.is_file() else sorted(folder.glob("*.safetensors"))
  files = [folder / name for name in sorted(set(listed.values()))]
  for file in files:
    if not file.is_file():
      raise ValueError(f"{folder / INDEX} names {file.name}, which is not there.")
  return files


def read_header(file: Path) -> dict[str, Entry]:
  """Tensors of a safetensors file; ValueError if the file is damaged or truncated."""
  size = file.stat().st_size
  with file.open("rb") as stream:
    head = stream.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
      raise ValueError(f"{file}: truncated or not safetensors (header of {length} bytes in {size}).")
    try:
      header = json.loads(stream.read(length))
    except ValueError as error:
      raise ValueError(f"{file}: its safetensors header is damaged ({error}).") from None
  header.pop("__metadata__", None)
  data, entries, end = 8 + length, {}, 0
  for name, item in header.items():
    if item["dtype"] not in DTYPES:
      raise ValueError(f"{file}: tensor {name!r} has dtype {item['dtype']}, which is not supported.")
    spec = jax.ShapeDtypeStruct(tuple(item["shape"]), np.dtype(DTYPES[item["dtype"]]))
    first, last = item["data_offsets"]
    if last - first != spec.size * spec.dtype.itemsize:
      raise ValueError(f"{file}: tensor {name!r} has {last - first} bytes, not what {spec} takes.")
    entries[name] = Entry(file, data + first, spec)
    end = max(end, last)
  if data + end != size:
    raise ValueError(f"{file}: truncated: {size} bytes, its header says {data + end}.")
  return entries


def _view(entry: Entry, maps: dict[Path, mmap.mmap]) -> np.ndarray:
  spec = entry.spec
  if spec.size == 0:
    return np.zeros(spec.shape, spec.dtype)
  if entry.file not in maps:
    with entry.file.open("rb") as stream:
      maps[entry.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
  flat = np.frombuffer(maps[entry.file], spec.dtype, spec.size, entry.start)
  return flat.reshape(spec.shape)


def write_folder(folder: Path, tensors: Mapping[str, Any], *, max_shard_bytes: int = 5_000_000_000) -> None:
  """Writes tensors into one safetensors file, or shards with an index.

  Args:
    folder: exists.
    tensors: arrays by name, on hosts or devices; one is brought to the host at a time.
    max_shard_bytes: of one file; a larger tensor gets a file of its own.
  """
  shards: list[list[str]] = [[]]
  filled = 0
  for name, value in tensors.items():
    nbytes = value.size * np.dtype(value.dtype).itemsize
    if shards[-1] and filled + nbytes > max_shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += nbytes
  if len(shards) == 1:
    _write_file(folder / "model.safetensors", tensors, shards[0])
    return
  where: dict[str, str] = {}
  total = 0
  for i, names in enumerate(shards, 1):
    file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
    total += _write_file(folder / file, tensors, names)
    where |= dict.fromkeys(names, file)
  index = {"metadata": {"total_size": total}, "weight_map": where}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_file(path: Path, tensors: Mapping[str, Any], names: list[str]) -> int:
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name in names:
    dtype = np.dtype(tensors[name].dtype)
    if dtype not in _NAMES:
      raise ValueError(f"Tensor {name!r} has dtype {dtype}, which safetensors does not hold.")
    nbytes = tensors[name].size * dtype.itemsize
    header[name] = {
      "dtype": _NAMES[dtype],
      "shape": list(tensors[name].shape),
      "data_offsets": [offset, offset + nbytes],
    }
    offset += nbytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-(8 + len(text)) % ALIGNMENT)
  with path.open("wb") as stream:
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in names:
      value = np.ascontiguousarray(np.asarray(tensors[name]))
      stream.write(value.reshape(-1).view(np.uint8).data)
  return offset
