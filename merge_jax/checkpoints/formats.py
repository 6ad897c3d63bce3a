"""The table of formats, and what asks it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from merge_jax import storage
from merge_jax.checkpoints import float8, huggingface, pickles
from merge_jax.checkpoints.base import Checkpoint, Writer
from merge_jax.errors import unknown


class Format(NamedTuple):
  """A format: what it is called, and what is asked of it.

  Attributes:
    name: its key in `FORMATS`.
    detect: whether a folder has it.
    open: opens such a folder; no tensor is read.
    writer: `(folder, specs, like, **options)`: writes such a folder, with the side files of `like`, a
      checkpoint of any format or None.
  """

  name: str
  detect: Callable[[Path], bool]
  open: Callable[[Path], Checkpoint]
  writer: Callable[..., Writer]


def _orbax() -> ModuleType:
  from merge_jax.checkpoints import orbax  # slow to import, and most pools are safetensors

  return orbax


def _is_orbax(folder: Path) -> bool:
  return any(storage.lexists(folder / name) for name in ("_CHECKPOINT_METADATA", "_METADATA"))


FORMATS = {
  row.name: row
  for row in (
    Format("safetensors", huggingface.detect, huggingface.open_folder, huggingface.FolderWriter),
    Format(
      "orbax", _is_orbax, lambda f: _orbax().open_folder(f), lambda *a, **o: _orbax().TreeWriter(*a, **o)
    ),
  )
}
"""All formats by name; the first whose `detect` says yes opens a folder."""


def open(path: str | Path) -> Checkpoint:
  """Opens a checkpoint; no tensor is read.

  Args:
    path: a Hugging Face folder with safetensors, one file of it, or an Orbax directory; on a disk (`~` is the
      user's home) or an object store (`gs://bucket/folder`, `s3://bucket/folder`), where tensors and slices
      are read by ranges of bytes. Any architecture will do: names and shapes are all that is looked at.
      Block-scaled float8 is opened as the float32 numbers that it stands for.

  Raises:
    FileNotFoundError: no such folder or file.
    ValueError: an empty path, a scheme that is not known or not installed, damaged files, pickles, adapters
      without their base, packed or otherwise quantised weights, folders of no known format.
  """
  if not str(path):
    raise ValueError("The path of a checkpoint is empty; expected a folder or a safetensors file.")
  there = storage.path(path)
  return float8.dequantised(_open_folder(there) if there.is_dir() else _open_file(there))


def _open_file(file: Path) -> Checkpoint:
  if not storage.lexists(file):
    raise FileNotFoundError(f"{file}: there is no such folder or file.")
  if file.suffix in pickles.SUFFIXES:
    raise ValueError(pickles.refusal(file, [file]))
  if file.suffix != ".safetensors":
    raise ValueError(f"{file}: is a file; expected a folder, or a file named *.safetensors.")
  return huggingface.open_file(file)


def _open_folder(folder: Path) -> Checkpoint:
  storage.refuse_unfinished(folder)
  for row in FORMATS.values():
    if row.detect(folder):
      return row.open(folder)
  if pickled := pickles.found(folder):
    raise ValueError(pickles.refusal(folder, pickled))
  have = sorted(file.name for file in folder.iterdir())[:5]
  raise ValueError(f"{folder}: neither a safetensors folder nor an Orbax directory (holds {have}).")


def writer(
  folder: Path | str,
  specs: Mapping[str, Any],
  *,
  like: Checkpoint | None = None,
  format: str | None = None,
  **options: Any,
) -> Writer:
  """A writer of one tensor at a time, with the config, tokenizer and chat template of another checkpoint.

  with checkpoints.writer(folder, pool[0].specs, like=pool[0]) as out:
    for name in pool[0].specs:
      out.write(name, merged(name))

  Args:
    folder: made if need be, else empty; `storage.new_folder` makes it appear whole or not at all.
    specs: shape and dtype by canonical name, tied tensors once; arrays will do.
    like: whose format, structure and side files are taken.
    format: a name in `FORMATS`; None for `like`'s, or "safetensors".
    options: of the format's writer: `max_shard_bytes` and `resume` of safetensors, see `FolderWriter`.
  """
  folder = storage.path(folder)
  if like is not None and format in (None, like.format):
    return like.writer(folder, specs, **options)
  kind = format or "safetensors"
  if kind not in FORMATS:
    raise ValueError(unknown("checkpoint format", kind, FORMATS))
  return FORMATS[kind].writer(folder, specs, like, **options)


def write(
  folder: Path | str,
  tensors: Mapping[str, Any],
  *,
  like: Checkpoint | None = None,
  format: str | None = None,
) -> None:
  """Writes arrays by canonical name, from hosts or devices, in their dtypes; see `writer`."""
  with writer(folder, tensors, like=like, format=format) as out:
    for name, value in tensors.items():
      out.write(name, value)
