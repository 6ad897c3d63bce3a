"""One writer a folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from merge_jax.storage import leases
from merge_jax.storage.leases import NAME, Locked
from merge_jax.storage.remote import Remote


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Holds a folder, made if need be; the kernel lets go of it when the process ends, however.

  On an object store it is a lease, which ends some time after its holder does: see `leases`.

  Raises:
    Locked: another process holds it.
  """
  if isinstance(folder, Remote):
    with leases.leased(folder):
      yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / NAME).open("a+") as file:
    _lock(file, fcntl.LOCK_EX, folder)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
  """Holds a folder that is there without a file in it, for one that is renamed when it is full.

  Raises:
    Locked: another process, or another block of this one, holds it.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    if not _flock(descriptor, fcntl.LOCK_EX, folder):
      raise Locked(f"{folder} is being filled by another process; wait for it or stop it.")
    yield
  finally:
    os.close(descriptor)


def hold_file(descriptor: int) -> None:
  """Holds an open file until it is closed, where files can be locked; see `is_held`."""
  with contextlib.suppress(OSError):
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(file: Path) -> bool:
  """Whether a process holds a file; false where that cannot be known."""
  with contextlib.suppress(OSError):
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
      return not _flock(descriptor, fcntl.LOCK_SH, file)
    finally:
      os.close(descriptor)
  return False


def refuse_locked(folder: Path) -> None:
  """Raises Locked if a folder is held; only looks: makes, changes and holds nothing."""
  if isinstance(folder, Remote):
    leases.refuse(folder)
  elif (folder / NAME).is_file():
    with (folder / NAME).open("r") as file:
      _lock(file, fcntl.LOCK_SH, folder)


def _lock(file: IO[str], kind: int, folder: Path) -> None:
  if not _flock(file.fileno(), kind, folder):
    file.seek(0)
    holder = file.read().strip() or "unknown"
    raise Locked(f"{folder} is in use by process {holder}; wait for it or stop it.")


def _flock(descriptor: int, kind: int, folder: Path) -> bool:
  """Whether the lock could be had; OSError if there are none."""
  try:
    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:  # Lustre and NFS, as some mount them
    raise OSError(
      f"{folder}: its file system does not lock files ({os.strerror(error.errno or 0)}); mount it so that it "
      "does (of Lustre: -o flock), or choose another place."
    ) from None
  return True
