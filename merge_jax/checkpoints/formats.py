"""The table of formats, and what asks it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from merge_jax.checkpoints import huggingface
from merge_jax.checkpoints.base import Checkpoint, Writer
from merge_jax.errors import unknown


class Format(NamedTuple):
  """A format: what it is called, and what is asked of it.

  Attributes:
    name: its key in `FORMATS`.
    detect: whether a folder has it.
    open: opens such a folder; no tensor is read.
    writer: `(folder, specs, like)`: writes such a folder, with the side files of `like`, a checkpoint of
      any format or None.
  """

  name: str
  detect: Callable[[Path], bool]
  open: Callable[[Path], Checkpoint]
  writer: Callable[[Path, Mapping[str, Any], Checkpoint | None], Writer]


def _orbax() -> ModuleType:
  from merge_jax.checkpoints import orbax  # slow to import, and most pools are safetensors

  return orbax


def _is_orbax(folder: Path) -> bool:
  return any(os.path.lexists(folder / name) for name in ("_CHECKPOINT_METADATA", "_METADATA"))


FORMATS = {
  row.name: row
  for row in (
    Format("safetensors", huggingface.detect, huggingface.open_folder, huggingface.FolderWriter),
    Format("orbax", _is_orbax, lambda f: _orbax().open_folder(f), lambda *a: _orbax().TreeWriter(*a)),
  )
}
"""All formats by name; the first whose `detect` says yes opens a folder."""


def open_checkpoint(path: str | Path) -> Checkpoint:
  """Opens a checkpoint folder; no tensor is read.

  Args:
    path: a Hugging Face folder with safetensors, or an Orbax directory; `~` is the user's home.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: an empty or remote path, damaged files, folders of no known format.
  """
  text = str(path)
  if not text:
    raise ValueError("The path of a checkpoint is empty; expected a folder.")
  if "://" in text:
    raise ValueError(f"{text}: remote paths are not supported yet; copy the folder to a local disk.")
  try:
    folder = Path(path).expanduser()
  except RuntimeError:
    raise ValueError(f"{text}: there is no such user, whose home `~` would be.") from None
  if not folder.is_dir():
    raise FileNotFoundError(f"{text}: there is no such folder.")
  for row in FORMATS.values():
    if row.detect(folder):
      return row.open(folder)
  have = sorted(file.name for file in folder.iterdir())[:5]
  pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in have)
  hint = " Convert .bin and .pt files first: no pickle is ever loaded." if pickled else ""
  raise ValueError(f"{text}: neither a safetensors folder nor an Orbax directory (holds {have}).{hint}")


def writer(
  folder: Path, specs: Mapping[str, Any], *, like: Checkpoint | None = None, format: str | None = None
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
  """
  if like is not None and format in (None, like.format):
    return like.writer(folder, specs)
  kind = format or "safetensors"
  if kind not in FORMATS:
    raise ValueError(unknown("checkpoint format", kind, FORMATS))
  return FORMATS[kind].writer(folder, specs, like)


def write(
  folder: Path,
  tensors: Mapping[str, Any],
  *,
  like: Checkpoint | None = None,
  format: str | None = None,
) -> None:
  """Writes arrays by canonical name, from hosts or devices, in their dtypes; see `writer`."""
  with writer(folder, tensors, like=like, format=format) as out:
    for name, value in tensors.items():
      out.write(name, value)
