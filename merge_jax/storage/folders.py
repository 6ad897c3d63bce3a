"""Whole-or-nothing files and folders."""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from merge_jax.errors import shown
from merge_jax.storage import commits, remote
from merge_jax.storage.inputs import refuse_special
from merge_jax.storage.locks import held, hold_file, is_held
from merge_jax.storage.remote import Remote
from merge_jax.storage.space import writing

PARTIAL = r"partial-[a-z0-9_]{8}"  # the end of hidden names, as `tempfile` makes them
_LONGEST = 230  # bytes of a name: those of the hidden folders beside it are 25 longer, and systems take 255


def sync(path: Path) -> None:
  """Flushes a file or folder to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sync_tree(folder: Path) -> None:
  """Flushes a folder with all that is in it to the disk; a store needs no such thing."""
  if isinstance(folder, Remote):
    return
  for path in (*folder.rglob("*"), folder):
    if path.is_file() or path.is_dir():
      sync(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
  """Yields a file beside `path`, on a disk, to fill; it becomes `path` when the block ends well.

  What a killed writer of `path` left is cleared before. A link to a file is followed, and stays.

  Raises:
    ValueError: there is something else than a file.
  """
  if path.exists():
    refuse_special(path)
  path = Path(os.path.realpath(path))
  with writing(path):
    _clear_partial(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.partial-")
    partial = Path(name)
    try:
      hold_file(descriptor)
      yield partial
      partial.chmod(0o644)
      sync(partial)
      partial.replace(path)
    except BaseException:
      partial.unlink(missing_ok=True)
      raise
    finally:
      os.close(descriptor)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
  """Writes a file that appears whole or not at all."""
  if isinstance(path, Remote):
    path.write_text(text)
  else:
    with new_file(path) as partial:
      partial.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
  """Writes JSON, whole or not at all; NaN is an error, say null."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(
  path: Path, *, owned: Collection[str] | None = None, resume: str | None = None
) -> Iterator[Path]:
  """Yields a folder beside `path` to fill; it becomes `path` when the block ends well.

  A folder that it replaces is first renamed to `<name>.before-1` (the next free number), then the
  new one takes its name, then the owned files of the old one are removed, and its empty folders. What is
  left of it stays there. A kill finds the old or the new folder whole under `path`, or the old one whole
  under its other name.

  On an object store it is `path` itself that is filled: `commits` says what counts there.

  Args:
    path: a link to a folder is followed, and stays.
    owned: None if `path` must not exist or be empty; else the relative names of the files that may be
      removed from a folder that is there.
    resume: None if an interrupted block leaves nothing. Else a text that tells one job from another, all
      that decides its bytes included: what an interrupted block left is yielded again to a block of the
      same text, and removed by any other one for this `path`.

  Raises:
    FileExistsError: there is something already.
    Locked: another process fills it.
    OSError: it cannot be made there.
  """
  if isinstance(path, Remote):
    with commits.filled(path, owned, resume) as there:
      yield there
    return
  path = Path(os.path.realpath(path))
  _refuse_place(path)
  if owned is None:
    refuse_filled(path)
  with writing(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_partial(path)
  with _partial(path, resume) as partial:
    before = None
    try:
      yield partial
      sync_tree(partial)
      if owned is None:
        refuse_filled(path)
      elif path.exists():
        before = path.rename(_before(path))
      partial.rename(path)
    except BaseException:
      if before is not None and not path.exists():
        before.rename(path)
      if resume is None:
        shutil.rmtree(partial, ignore_errors=True)
      elif partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()
      raise
    sync(path.parent)
  if before is not None:
    _remove(before, owned or ())


@contextlib.contextmanager
def _partial(path: Path, resume: str | None) -> Iterator[Path]:
  """A folder of its own, or that of a job, which only one process holds; those of other jobs are removed."""
  name = f".{path.name}.resume-{hashlib.sha256((resume or '').encode()).hexdigest()[:16]}"
  for left in interrupted(path):
    if resume is None or left.name != name:
      with held(left):
        shutil.rmtree(left)
  if resume is None:
    with writing(path.parent):
      partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
      partial.chmod(0o755)
  else:
    partial = path.with_name(name)
    with writing(path.parent):
      partial.mkdir(exist_ok=True)
  with held(partial):
    yield partial


def _before(path: Path) -> Path:
  number = 1
  while os.path.lexists(before := path.with_name(f"{path.name}.before-{number}")):
    number += 1
  return before


def _remove(folder: Path, names: Collection[str]) -> None:
  """Removes these files of a folder, then its folders that are empty, itself included."""
  for name in names:
    file = folder / name
    inside = Path(os.path.realpath(file.parent)).is_relative_to(folder)  # never through a user's link
    if inside and (file.is_file() or file.is_symlink()):
      file.unlink()
  if folder.is_dir():
    for parent, _, _ in os.walk(folder, topdown=False):
      if not any(Path(parent).iterdir()):
        Path(parent).rmdir()


def set_aside(path: Path | str) -> list[Path]:
  """What lay in folders that `new_folder` replaced and was not its own: `<name>.before-1` and so on."""
  place = Path(os.path.realpath(remote.path(path)))
  found = place.parent.glob(f"{glob.escape(place.name)}.before-*")
  return [one for one in found if re.fullmatch(r"[0-9]+", one.name.rpartition("-")[2])]


def interrupted(path: Path) -> list[Path]:
  """The hidden folders of interrupted jobs beside a path: `new_folder` goes on with one, or removes it."""
  found = _beside(Path(os.path.realpath(path)), r"resume-[0-9a-f]{16}")
  return [left for left in found if not left.is_symlink()]


def _beside(path: Path, ending: str) -> list[Path]:
  start = f".{path.name}."
  found = path.parent.glob(f"{glob.escape(start)}*")
  return [one for one in found if re.fullmatch(ending, one.name.removeprefix(start))]


def _clear_partial(path: Path) -> None:
  """Removes what a killed writer of `path` left beside it; Locked if one is at work on a folder.

  Of files each writer has its own, and who is last done has `path`.
  """
  for left in _beside(path, PARTIAL):
    if left.is_dir() and not left.is_symlink():
      with held(left):
        shutil.rmtree(left)
    elif not is_held(left):
      left.unlink(missing_ok=True)


def destination(text: str | Path, what: str) -> Path:
  """The path of an output that a user names; `~` is the home.

  Args:
    text: a path, there or not, or one on an object store.
    what: the flag or argument that names it, for the error.

  Raises:
    ValueError: nothing can be there: it is empty or too long, a link to itself, or below a file.
  """
  if not str(text).strip():
    raise ValueError(f"{what} is empty; name what to write.")
  try:
    path = remote.path(text)
    if isinstance(path, Remote):
      if len(path.parts) < 3:  # what is written beside it would be in another bucket
        raise ValueError("it names a bucket alone; expected a folder in it")
      return path
    with contextlib.suppress(FileNotFoundError):
      path.stat()
  except OSError as error:
    raise ValueError(
      f"{what}: {shown(str(text))} cannot be made ({os.strerror(error.errno or 0)})."
    ) from None
  except ValueError as error:  # no such user, a NUL
    raise ValueError(f"{what}: {shown(str(text))} is no path ({error}).") from None
  return path


def disk_destination(text: str | Path, what: str) -> Path:
  """As `destination`, of what is written to disks alone: ValueError for an object store."""
  path = destination(text, what)
  if isinstance(path, Remote):
    raise ValueError(f"{what}: {path} is on an object store; write to a disk, and copy from there.")
  return path


def is_filled(path: Path) -> bool:
  """Whether `path` is a file or a folder with something in it; on a store, more than what a kill left."""
  if isinstance(path, Remote):
    return commits.is_filled(path)
  return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def refuse_filled(path: Path) -> None:
  """Raises FileExistsError if `path` is a file or a folder with something in it."""
  if is_filled(path):
    raise FileExistsError(f"{path} exists and is not empty; choose another folder or remove it.")


def refuse_taken(path: Path) -> None:
  """As `refuse_filled`; also raises OSError for what no `new_folder` can become. Ask before the work."""
  _refuse_place(path)
  refuse_filled(path)


def _refuse_place(path: Path) -> None:
  if isinstance(path, Remote):
    return
  real = Path(os.path.realpath(path))
  if real.is_mount():
    raise OSError(f"{path}: a disk is mounted there, which no folder can replace; name a folder in it.")
  if len(os.fsencode(real.name)) > _LONGEST:
    raise OSError(f"{path}: the name is too long; expected at most {_LONGEST} bytes.")


def refuse_unwritable(path: Path) -> None:
  """Raises ValueError or OSError unless `new_file` can write at `path`."""
  if isinstance(path, Remote):
    return
  if path.exists():
    refuse_special(path)
  folder = Path(os.path.realpath(path)).parent
  if not folder.is_dir():
    raise FileNotFoundError(f"{path}: there is no folder {folder}; make it first.")
  if not os.access(folder, os.W_OK):
    raise PermissionError(f"{folder} cannot be written into; choose another place.")
