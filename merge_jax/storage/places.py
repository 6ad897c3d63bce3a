"""Folders on a disk or on an object store, where both need something else."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from merge_jax.storage import commits
from merge_jax.storage.remote import Remote


def refuse_unfinished(folder: Path) -> None:
  """Raises FileNotFoundError if a folder on a store is not whole: see `commits`. On a disk it always is."""
  if isinstance(folder, Remote):
    commits.refuse_unfinished(folder)


def names(folder: Path) -> list[str]:
  """Relative names of the files of a folder that is being filled, or was."""
  if isinstance(folder, Remote):
    return commits.names(folder)
  return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def remove_tree(folder: Path) -> None:
  """Removes a folder with all that is in it, as far as that can be."""
  if isinstance(folder, Remote):
    for name in folder.tree():
      (folder / name).unlink(missing_ok=True)
  else:
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def workroom(folder: Path) -> Iterator[Path]:
  """A folder on a disk to write files of `folder` in: itself, or one that is removed at the end."""
  if not isinstance(folder, Remote):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="merge_jax-") as name:
    yield Path(name)


def scratch(folder: Path) -> Path:
  """Where to put what is soon removed: that folder, or the system's place for it if that is on a store."""
  return Path(tempfile.gettempdir()) if isinstance(folder, Remote) else folder


def deliver(file: Path, target: Path) -> None:
  """Moves a finished file from its workroom to where it belongs; nothing to do where that is the same."""
  if isinstance(target, Remote):
    target.upload(file)
    file.unlink()
