"""A journal's lines: JSON objects, each with a checksum that chains it to those before it.

A line ends with `"check"`: the first 16 hex digits of the SHA-256 of the check of the line before it
("" for the first) and of the line's own JSON without the check. A line that was changed, removed,
inserted or moved breaks the chain; lines missing at the end do not: that is what a kill leaves.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from merge_jax.storage.folders import sync
from merge_jax.storage.inputs import read_bytes
from merge_jax.storage.leases import Locked
from merge_jax.storage.remote import Remote, side_by_side
from merge_jax.storage.space import writing


class Line(NamedTuple):
  """A complete line: what it says without its check, the check, and where it ends in all lines' bytes."""

  record: dict[str, Any]
  check: str
  end: int


class Lines:
  """The lines of a file, open to append.

  Opening verifies them, and cuts off a last line that a kill left without its end.

  On an object store, which does not append, the lines of `journal.jsonl` are those of the objects of the
  folder `journal`, in the order of their names: every call makes one, and none is ever replaced.

  Args:
    path: a file, or where the first record makes one.
    mend: cut off what follows a damaged line, instead of an error.
    keep: what is kept of each line's record in `records`.

  Attributes:
    records: what the lines said when they were opened, in order, without their checks.

  Raises:
    ValueError: see `read_lines`; the file is then left as it is.
  """

  def __init__(self, path: Path, *, mend: bool = False, keep: Callable[[dict[str, Any]], Any] = lambda r: r):
    self._path = path
    self.records: list[Any] = []
    self._checks, self._ends, self._sizes = [""], [0], dict[int, int]()
    for line in each_line(path, mend=mend, sizes=self._sizes):
      self.records.append(keep(line.record))
      self._checks.append(line.check)
      self._ends.append(line.end)
    if mend or not isinstance(path, Remote):
      self.cut(len(self.records))

  def cut(self, count: int) -> None:
    """Leaves the first lines alone; on a store, the objects that hold nothing else."""
    if isinstance(self._path, Remote):
      whole = 0
      for start, size in self._sizes.items():
        if start != whole or not size or whole + size > count:  # after a gap, or with what does not count
          break
        whole += size
      later = [start for start in self._sizes if start >= whole]
      for start in reversed(later):
        _part(self._path, start).unlink(missing_ok=True)
        del self._sizes[start]
      count = whole
    elif self._path.exists() and self._ends[count] < self._path.stat().st_size:
      os.truncate(self._path, self._ends[count])
    del self.records[count:], self._checks[count + 1 :], self._ends[count + 1 :]

  def append(self, *records: dict[str, Any]) -> None:
    """Appends records without a field `check`; they are on the disk when this returns.

    Raises:
      ValueError: NaN or infinity, which JSON does not hold.
      Locked: another job has written lines to the store since these were read.
    """
    content, checks, ends = b"", [self._checks[-1]], []
    for record in records:
      line, check = _line(record, checks[-1])
      content += line + b"\n"
      checks.append(check)
      ends.append(self._ends[-1] + len(content))
    if isinstance(self._path, Remote):
      start = len(self._ends) - 1
      _create(_part(self._path, start), content)
      self._sizes[start] = len(records)
    else:
      self._append(content)
    self._checks += checks[1:]
    self._ends += ends

  def _append(self, content: bytes) -> None:
    new = not self._path.exists()
    with writing(self._path), self._path.open("ab") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    if new:
      sync(self._path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
  """What the complete lines of a file say, without their checks; [] if there is no file.

  A last line that a kill cut short is not one of them.

  Raises:
    ValueError: a line that is not JSON, has no check, or breaks the chain, with its number; not a file.
  """
  return [line.record for line in each_line(path)]


def has_lines(path: Path) -> bool:
  """Whether there is a file of lines, or the first object of them."""
  return bool(_parts(path)) if isinstance(path, Remote) else path.exists()


def remove_lines(path: Path) -> None:
  """Removes the file, or its objects, the last one first, so that what a kill leaves is whole lines."""
  for file in reversed(_parts(path)) if isinstance(path, Remote) else [path]:
    file.unlink(missing_ok=True)


def _parts_folder(path: Remote) -> Remote:
  return path.with_suffix("")


def _part(path: Remote, start: int) -> Remote:
  """The object whose first line has this number."""
  return _parts_folder(path) / f"{start:08d}.jsonl"


def _parts(path: Remote) -> list[Remote]:
  """The objects that hold the lines, in order."""
  found = _parts_folder(path).glob("*.jsonl")
  return sorted(file for file in found if re.fullmatch(r"\d{8}\.jsonl", file.name))


def _joined(parts: list[Remote], mend: bool, sizes: dict[int, int]) -> bytes:
  """The lines of all objects; where one lost its end, which no kill can do, those before it or ValueError."""
  contents = side_by_side(read_bytes, parts)
  sizes |= {int(file.stem): content.count(b"\n") for file, content in zip(parts, contents, strict=True)}
  for i, (file, content) in enumerate(zip(parts, contents, strict=True)):
    if not content.endswith(b"\n"):
      if mend:
        return b"".join(contents[:i])
      raise ValueError(f"{file}: its end is missing; restore the object, or begin anew with --overwrite.")
  return b"".join(contents)


def _create(file: Remote, content: bytes) -> None:
  """Makes an object; that it is there is no error if a request was sent twice and came through twice."""
  try:
    file.create(content)
  except FileExistsError:
    if file.read_bytes() != content:
      raise Locked(
        f"{file} was written by another job that works in the same folder; see which one should go on."
      ) from None


def each_line(path: Path, *, mend: bool = False, sizes: dict[int, int] | None = None) -> Iterator[Line]:
  """The complete lines of a file, one after the other; with `mend`, those before the first damaged one.

  Args:
    path: of the file.
    mend: whether a damaged line is no error.
    sizes: gets the number of lines in each object of a store, by the number of its first.

  Raises:
    ValueError: see `read_lines`.
  """
  if not has_lines(path):
    return
  if isinstance(path, Remote):
    content = _joined(_parts(path), mend, {} if sizes is None else sizes)
  else:
    content = read_bytes(path)
  lines = content.split(b"\n")[:-1]  # what follows the last line end was cut short
  del content
  check, end = "", 0
  for number, line in enumerate(lines, 1):
    try:
      record, check = _checked(line, check, f"{path}:{number}")
    except ValueError:
      if mend:
        return
      raise
    end += len(line) + 1
    yield Line(record, check, end)


def _checked(line: bytes, previous: str, where: str) -> tuple[dict[str, Any], str]:
  """What a line says, and its check; ValueError if it is not what was written."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: not valid JSON ({error}).") from None
  if not isinstance(record, dict) or "check" not in record:
    raise ValueError(
      f"{where}: has no checksum, as lines written by an older merge_jax; --overwrite begins anew."
    )
  del record["check"]
  try:
    expected, check = _line(record, previous)
  except ValueError:  # infinity
    expected, check = b"", ""
  if line != expected:
    raise ValueError(
      f"{where}: does not fit its checksum: it was changed, or lines before it were removed, added "
      "or moved; restore the file, or begin anew with --overwrite."
    )
  return record, check


def _line(record: dict[str, Any], previous: str) -> tuple[bytes, str]:
  """A record as a line, and its check."""
  text = json.dumps(record, allow_nan=False)
  check = hashlib.sha256((previous + text).encode()).hexdigest()[:16]
  return json.dumps(record | {"check": check}).encode(), check
