"""Whole-or-nothing files and folders, the journal's lines, one writer a folder."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Locked(RuntimeError):
  """Another process writes into the folder."""


def sync(path: Path) -> None:
  """Flushes a file or folder to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_text(path: Path, text: str) -> None:
  """Writes a file that appears whole or not at all; clears what a killed writer of it left."""
  clear_partial(path)
  descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.partial-")
  try:
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    Path(name).chmod(0o644)
    Path(name).replace(path)
  except BaseException:
    Path(name).unlink(missing_ok=True)
    raise
  sync(path.parent)


def write_json(path: Path, value: Any) -> None:
  """Writes JSON, whole or not at all; NaN is an error, say null."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
  """Yields a folder beside `path` to fill; it becomes `path` when the block ends well.

  Args:
    path: must not exist, or be an empty folder, unless `replace`.
    replace: take the place of an existing folder.

  Raises:
    FileExistsError: there is something already.
  """
  if not replace:
    refuse_filled(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  clear_partial(path)
  partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
  partial.chmod(0o755)
  try:
    yield partial
    for file in partial.rglob("*"):
      sync(file)
    sync(partial)
    if path.exists():
      shutil.rmtree(path)
    partial.rename(path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  sync(path.parent)


def clear_partial(path: Path) -> None:
  """Removes what a killed writer of `path` left beside it; call it as the only writer."""
  for left in path.parent.glob(f".{path.name}.partial-*"):
    shutil.rmtree(left) if left.is_dir() else left.unlink()


def refuse_filled(path: Path) -> None:
  """Raises FileExistsError if `path` is a file or a folder with something in it."""
  if path.is_dir() and not any(path.iterdir()):
    return
  if path.exists():
    raise FileExistsError(f"{path} exists and is not empty; choose another folder or remove it.")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Holds a folder for this process; the kernel lets go of it when the process ends, however.

  Raises:
    Locked: another process holds it.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / ".lock").open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or "unknown"
      raise Locked(f"{folder} is in use by process {holder}; wait for it or stop it.") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def read_lines(path: Path) -> list[dict[str, Any]]:
  """The complete JSON lines of a journal; a line cut short by a kill is not one of them.

  Raises:
    ValueError: a complete line that is not JSON, with its number.
  """
  if not path.exists():
    return []
  lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was cut short
  records = []
  for number, line in enumerate(lines, 1):
    try:
      records.append(json.loads(line))
    except ValueError as error:
      raise ValueError(f"{path}:{number}: not valid JSON ({error}).") from None
  return records


def append_line(path: Path, record: dict[str, Any]) -> None:
  """Appends a JSON line; it is on the disk when this returns."""
  new = not path.exists()
  with path.open("ab") as file:
    file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
  if new:
    sync(path.parent)


def cut_incomplete(path: Path) -> None:
  """Cuts off a last line that a kill left without its end."""
  if path.exists():
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
      os.truncate(path, whole)
