"""A journal's lines: JSON objects, each with a checksum that chains it to those before it.

A line ends with `"check"`: the first 16 hex digits of the SHA-256 of the check of the line before it
("" for the first) and of the line's own JSON without the check. A line that was changed, removed,
inserted or moved breaks the chain; lines missing at the end do not: that is what a kill leaves.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from merge_jax.storage.folders import sync
from merge_jax.storage.inputs import read_bytes
from merge_jax.storage.leases import Locked
from merge_jax.storage.remote import Remote, side_by_side
from merge_jax.storage.space import writing


class Lines:
  """The lines of a file, open to append.

  Opening verifies them, and cuts off a last line that a kill left without its end.

  On an object store, which does not append, the lines of `journal.jsonl` are those of the objects of the
  folder `journal`, in the order of their names: every call makes one, and none is ever replaced.

  Args:
    path: a file, or where the first record makes one.

  Attributes:
    records: what the lines say, in order, without their checks.

  Raises:
    ValueError: see `read_lines`; the file is then left as it is.
  """

  def __init__(self, path: Path):
    self._path = path
    self.records, self._check, whole = _read(path)
    if not isinstance(path, Remote) and path.exists() and whole < path.stat().st_size:
      os.truncate(path, whole)

  def append(self, *records: dict[str, Any]) -> None:
    """Appends records without a field `check`; they are on the disk when this returns.

    Raises:
      ValueError: NaN or infinity, which JSON does not hold.
      Locked: another job has written lines to the store since these were read.
    """
    content, check = b"", self._check
    for record in records:
      line, check = _line(record, check)
      content += line + b"\n"
    if isinstance(self._path, Remote):
      _create(_parts_folder(self._path) / f"{len(self.records):08d}.jsonl", content)
    else:
      self._append(content)
    self.records.extend(records)
    self._check = check

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
  return _read(path)[0]


def has_lines(path: Path) -> bool:
  """Whether there is a file of lines, or the first object of them."""
  return bool(_parts(path)) if isinstance(path, Remote) else path.exists()


def remove_lines(path: Path) -> None:
  """Removes the file, or its objects, the last one first, so that what a kill leaves is whole lines."""
  for file in reversed(_parts(path)) if isinstance(path, Remote) else [path]:
    file.unlink(missing_ok=True)


def _parts_folder(path: Remote) -> Remote:
  return path.with_suffix("")


def _parts(path: Remote) -> list[Remote]:
  """The objects that hold the lines, in order."""
  found = _parts_folder(path).glob("*.jsonl")
  return sorted(file for file in found if re.fullmatch(r"\d{8}\.jsonl", file.name))


def _joined(parts: list[Remote]) -> bytes:
  """The lines of all objects; ValueError if one has lost its end, which no kill can do."""
  contents = side_by_side(read_bytes, parts)
  for file, content in zip(parts, contents, strict=True):
    if not content.endswith(b"\n"):
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


def _read(path: Path) -> tuple[list[dict[str, Any]], str, int]:
  """The records, the last one's check, and the bytes of all complete lines."""
  if not has_lines(path):
    return [], "", 0
  content = _joined(_parts(path)) if isinstance(path, Remote) else read_bytes(path)
  lines = content.split(b"\n")[:-1]  # what follows the last line end was cut short
  records: list[dict[str, Any]] = []
  previous = ""
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{path}:{number}: not valid JSON ({error}).") from None
    if not isinstance(record, dict) or "check" not in record:
      raise ValueError(
        f"{path}:{number}: has no checksum, as lines written by an older merge_jax; --overwrite begins anew."
      )
    del record["check"]
    try:
      expected, previous = _line(record, previous)
    except ValueError:  # infinity
      expected = b""
    if line != expected:
      raise ValueError(
        f"{path}:{number}: does not fit its checksum: it was changed, or lines before it were removed, added "
        "or moved; restore the file, or begin anew with --overwrite."
      )
    records.append(record)
  return records, previous, sum(len(line) + 1 for line in lines)


def _line(record: dict[str, Any], previous: str) -> tuple[bytes, str]:
  """A record as a line, and its check."""
  text = json.dumps(record, allow_nan=False)
  check = hashlib.sha256((previous + text).encode()).hexdigest()[:16]
  return json.dumps(record | {"check": check}).encode(), check
