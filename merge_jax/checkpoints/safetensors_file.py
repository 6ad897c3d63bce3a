"""One safetensors file. The `safetensors` library checks it; what it accepts is mapped, not read.

Headers that we write are padded so that the data start at a multiple of 64 bytes, where XLA uses
host memory in place.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import safetensors

from merge_jax import storage

DTYPES: dict[str, Any] = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
  "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_, "C64": np.complex64,
  "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
  "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
ALIGNMENT = 64


class Entry(NamedTuple):
  """A tensor in a file: where its bytes are, and what they mean."""

  file: Path
  start: int
  spec: jax.ShapeDtypeStruct


def read_header(file: Path) -> dict[str, Entry]:
  """Tensors of a file, in the order of their bytes, which follow one another to its end.

  Raises:
    ValueError: the library does not accept the file, or numpy has no such dtype or shape.
  """
  storage.refuse_special(file)
  try:
    with safetensors.safe_open(file, "numpy") as opened:
      views = {name: opened.get_slice(name) for name in opened.offset_keys()}
      found = {name: (view.get_dtype(), tuple(view.get_shape())) for name, view in views.items()}
  except safetensors.SafetensorError as error:
    reason = " ".join(str(error).removeprefix("Error while deserializing header: ").split())
    raise ValueError(f"{file}: damaged, truncated or not safetensors ({reason}).") from None
  specs = {name: _spec(file, name, dtype, shape) for name, (dtype, shape) in found.items()}
  start = file.stat().st_size - sum(map(nbytes, specs.values()))
  entries = {}
  for name, spec in specs.items():
    entries[name] = Entry(file, start, spec)
    start += nbytes(spec)
  return entries


def _spec(file: Path, name: str, dtype: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
  if dtype not in DTYPES:
    raise ValueError(f"{file}: tensor {name!r} has dtype {dtype}, which is not supported.")
  try:
    np.broadcast_to(np.zeros((), DTYPES[dtype]), shape)
  except ValueError as error:  # more than 64 axes, or an absurd axis beside one of length 0
    raise ValueError(f"{file}: tensor {name!r} has a shape that numpy does not hold ({error}).") from None
  return jax.ShapeDtypeStruct(shape, np.dtype(DTYPES[dtype]))


def view(name: str, entry: Entry, maps: dict[Path, mmap.mmap]) -> np.ndarray:
  """A tensor as a view of its file; `maps` keeps the files that are mapped.

  Raises:
    ValueError: the file is shorter than it was.
  """
  file, start, spec = entry
  if spec.size == 0:
    return np.zeros(spec.shape, spec.dtype)
  if file not in maps:
    with file.open("rb") as stream:
      maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
  if start + nbytes(spec) > len(maps[file]):
    raise ValueError(f"{file}: tensor {name!r} lies behind its end; the file changed after it was opened.")
  return np.frombuffer(maps[file], spec.dtype, spec.size, start).reshape(spec.shape)


def release(entry: Entry, maps: Mapping[Path, mmap.mmap]) -> None:
  """Pages of a tensor that was used need not stay in this process: they are in the file's cache."""
  if entry.file in maps and hasattr(mmap, "MADV_DONTNEED"):
    start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (entry.start + nbytes(entry.spec) - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
      maps[entry.file].madvise(mmap.MADV_DONTNEED, start, length)


def header(specs: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
  """What a file of these tensors, one behind the other, starts with.

  Raises:
    ValueError: a dtype or name that the format does not have.
  """
  items: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, spec in specs.items():
    if spec.dtype not in _NAMES or name == "__metadata__":
      what = f"dtype {spec.dtype}" if spec.dtype not in _NAMES else "a reserved name"
      raise ValueError(f"Tensor {name!r} has {what}, which safetensors does not hold.")
    end = offset + nbytes(spec)
    items[name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [offset, end]}
    offset = end
  text = json.dumps(items, separators=(",", ":")).encode()
  text += b" " * (-(8 + len(text)) % ALIGNMENT)
  return len(text).to_bytes(8, "little") + text


def nbytes(spec: jax.ShapeDtypeStruct) -> int:
  """Bytes of a tensor."""
  return spec.size * np.dtype(spec.dtype).itemsize
