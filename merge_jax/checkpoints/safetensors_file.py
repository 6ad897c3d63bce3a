"""One safetensors file. The `safetensors` library checks it; what it accepts is mapped, not read.

Of a file on an object store the header alone is read, then ranges of bytes as tensors are asked for.

Headers that we write are padded so that the data start at a multiple of 64 bytes, where XLA uses
host memory in place.
"""

import contextlib
import itertools
import json
import math
import mmap
import operator
import tempfile
from collections.abc import Iterator, Mapping
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
GAP = 1 << 18  # bytes that cost less to read than another request to a store
LONGEST_HEADER = 100_000_000  # that the library reads


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
    with _local(file) as local, safetensors.safe_open(local, "numpy") as opened:
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


@contextlib.contextmanager
def _local(file: Path) -> Iterator[Path]:
  """The file; of one on a store its header in a sparse file of its size, for the library to check."""
  if not isinstance(file, storage.Remote):
    yield file
    return
  size = file.stat().st_size
  with tempfile.NamedTemporaryFile(prefix="merge_jax-") as sparse:
    length = b"".join(file.chunks([(0, min(8, size))]))
    end = min(8 + min(int.from_bytes(length, "little"), LONGEST_HEADER), size)
    sparse.writelines([length, *file.chunks([(8, end)])])
    sparse.truncate(size)
    sparse.flush()
    yield Path(sparse.name)


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


def fetch(entry: Entry, index: tuple[slice, ...]) -> np.ndarray:
  """A slice of a tensor, read by as few ranges of bytes as pay, where a file cannot be mapped.

  Rows that lie together are one range. Where later axes are cut, what lies between the parts that are asked
  for is read, too, as long as it is short.

  Args:
    entry: the tensor.
    index: slices of its first axes.

  Raises:
    ValueError: the file is shorter than it was.
  """
  file, start, spec = entry
  shape, item = spec.shape or (1,), np.dtype(spec.dtype).itemsize
  index = (*index, *[slice(None)] * (len(shape) - len(index)))
  read = [_span(part, length) for part, length in zip(index, shape, strict=True)]
  strides = [item * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  run = len(shape) - 1  # a range runs along this axis, and over all of those behind it
  while run > 0 and (shape[run] - len(read[run])) * strides[run] <= GAP:
    read[run] = range(shape[run])
    run -= 1
  value = np.empty(tuple(map(len, read)), spec.dtype)
  if value.size:
    first, end = read[run].start * strides[run], read[run].stop * strides[run]
    outer = (start + sum(map(operator.mul, place, strides)) for place in itertools.product(*read[:run]))
    flat, at = value.reshape(-1).view(np.uint8), 0
    for content in storage.read_ranges(file, ((origin + first, origin + end) for origin in outer)):
      flat[at : at + len(content)] = np.frombuffer(content, np.uint8)
      at += len(content)
  cut = (part if len(r) == n else slice(None) for part, r, n in zip(index, read, shape, strict=True))
  return value[tuple(cut)] if spec.shape else value[0]


def _span(part: slice, length: int) -> range:
  """The places of an axis to read for a slice: its own, or all if they do not lie side by side."""
  start, end, step = part.indices(length)
  return range(start, max(start, end)) if step == 1 else range(length)


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


def raw(value: np.ndarray) -> np.ndarray:
  """The bytes of a tensor in row-major order: uint8, flat; a view where it can be one."""
  return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def nbytes(spec: jax.ShapeDtypeStruct) -> int:
  """Bytes of a tensor."""
  return spec.size * np.dtype(spec.dtype).itemsize
