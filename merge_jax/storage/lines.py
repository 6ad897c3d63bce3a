"""A journal's lines: JSON objects, each with a checksum that chains it to those before it.

A line ends with `"check"`: the first 16 hex digits of the SHA-256 of the check of the line before it
("" for the first) and of the line's own JSON without the check. A line that was changed, removed,
inserted or moved breaks the chain; lines missing at the end do not: that is what a kill leaves.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from merge_jax.storage.folders import sync
from merge_jax.storage.inputs import read_bytes


class Lines:
  """The lines of a file, open to append.

  Opening verifies them, and cuts off a last line that a kill left without its end.

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
    if path.exists() and whole < path.stat().st_size:
      os.truncate(path, whole)

  def append(self, record: dict[str, Any]) -> None:
    """Appends a record without a field `check`; it is on the disk when this returns.

    Raises:
      ValueError: NaN or infinity, which JSON does not hold.
    """
    line, check = _line(record, self._check)
    new = not self._path.exists()
    with self._path.open("ab") as file:
      file.write(line + b"\n")
      file.flush()
      os.fsync(file.fileno())
    if new:
      sync(self._path.parent)
    self.records.append(record)
    self._check = check


def read_lines(path: Path) -> list[dict[str, Any]]:
  """What the complete lines of a file say, without their checks; [] if there is no file.

  A last line that a kill cut short is not one of them.

  Raises:
    ValueError: a line that is not JSON, has no check, or breaks the chain, with its number; not a file.
  """
  return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], str, int]:
  """The records, the last one's check, and the bytes of all complete lines."""
  if not path.exists():
    return [], "", 0
  lines = read_bytes(path).split(b"\n")[:-1]  # what follows the last line end was cut short
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
