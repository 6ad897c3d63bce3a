"""Folders of an object store that count as whole, or as nothing.

There is no renaming, so that a folder is filled in place: an object that says so is written first, one that
lists what belongs to it last. Between the two, what lies there is nobody's result; the next writer clears it,
or goes on with it.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator

import msgspec

from merge_jax import decoding
from merge_jax.storage import leases
from merge_jax.storage.leases import NAME as LOCK
from merge_jax.storage.remote import Remote

STARTED, COMMITTED = ".merge_jax_started.json", ".merge_jax_committed.json"


class Started(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """The object that is written first.

  Attributes:
    job: a digest of the text that tells jobs apart, "" for one that cannot be gone on with.
    keep: what lay there before and is not the job's.
  """

  job: str
  keep: tuple[str, ...] = ()


class Committed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """The object that is written last: sizes of all files, by relative name."""

  files: dict[str, int]


@contextlib.contextmanager
def filled(folder: Remote, owned: Collection[str] | None, resume: str | None) -> Iterator[Remote]:
  """Yields the folder itself to fill; it counts when the block ends well. See `storage.new_folder`.

  Unlike on a disk, what is replaced is gone when the new one begins, and other files in it stay where they
  are.
  """
  with leases.leased(folder) as mine:
    keep = _begin(folder, owned, resume)
    try:
      yield folder
    except BaseException:
      if resume is None:
        with contextlib.suppress(OSError, ValueError, leases.Locked):  # the next writer clears what is left
          leases.require(folder, mine)  # it may be another one's by now
          _clear(folder, keep)
          (folder / STARTED).unlink(missing_ok=True)
      raise
    leases.require(folder, mine)
    files = {name: size for name, size in folder.tree().items() if _counts(name, keep)}
    _write(folder / COMMITTED, Committed(files))
    (folder / STARTED).unlink()


def is_filled(folder: Remote) -> bool:
  """Whether there is anything that a new folder must not replace: more than what a kill left."""
  if folder.is_file():
    return True
  names = {child.name for child in folder.glob("*")}
  return COMMITTED in names or (STARTED not in names and bool(names - {LOCK}))


def names(folder: Remote) -> list[str]:
  """The files that belong to a folder which is being filled or is whole, the last object included."""
  there = folder.tree()
  if STARTED in there and COMMITTED not in there:
    keep = _started(folder).keep
    return [*(name for name in there if _counts(name, keep)), COMMITTED]
  return [*_committed(folder).files, COMMITTED] if COMMITTED in there else list(there)


def refuse_unfinished(folder: Remote) -> None:
  """Raises FileNotFoundError if the writer was killed or is at work, or if files are gone.

  A folder that others have put there has neither object, and is as it is.
  """
  there = folder.tree()
  if COMMITTED in there:
    gone = sorted(_committed(folder).files.keys() - there.keys())
    if gone:
      raise FileNotFoundError(
        f"{folder}: {gone[0]} is gone, which {COMMITTED} lists; write the folder again."
      )
  elif STARTED in there:
    raise FileNotFoundError(
      f"{folder} is not whole: its writer is at work, or was stopped; wait for it, or start it again."
    )


def _begin(folder: Remote, owned: Collection[str] | None, resume: str | None) -> tuple[str, ...]:
  """Clears what is replaced; gives what must stay."""
  job = "" if resume is None else hashlib.sha256(resume.encode()).hexdigest()
  there = folder.tree()
  if COMMITTED not in there and STARTED in there:
    old = _started(folder)
    if not job or old.job != job:
      _clear(folder, old.keep)  # before the object tells of this job, which would go on with it
      _write(folder / STARTED, Started(job, old.keep))
    return old.keep
  if owned is None and is_filled(folder):
    raise FileExistsError(f"{folder} exists and is not empty; choose another folder or remove it.")
  keep = tuple(name for name in there if _counts(name, owned or ()))
  if COMMITTED in there or any(_counts(name, keep) for name in there):
    _write(folder / STARTED, Started("", keep))  # of no job: one that is killed here clears the rest
    (folder / COMMITTED).unlink(missing_ok=True)
    _clear(folder, keep)
  _write(folder / STARTED, Started(job, keep))
  return keep


def _clear(folder: Remote, keep: Collection[str]) -> None:
  for name in folder.tree():
    if _counts(name, keep):
      (folder / name).unlink(missing_ok=True)


def _counts(name: str, others: Collection[str]) -> bool:
  return name not in (STARTED, COMMITTED, LOCK) and name not in others


def _started(folder: Remote) -> Started:
  return decoding.decode((folder / STARTED).read_bytes(), Started, str(folder / STARTED))


def _committed(folder: Remote) -> Committed:
  return decoding.decode((folder / COMMITTED).read_bytes(), Committed, str(folder / COMMITTED))


def _write(file: Remote, content: Started | Committed) -> None:
  file.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
