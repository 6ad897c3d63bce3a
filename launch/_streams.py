"""Output that costs no run: what cannot be printed is lost, what was computed is not."""

import errno
import io
import os
import select
import sys
from typing import Any

_failed: set[int] = set()
"""Numbers of the errors of what was lost."""


def spare() -> None:
  """Puts streams that cannot fail, nor on a terminal without ±, in the place of stdout and stderr."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    errors = "replace" if name == "stdout" else getattr(stream, "errors", None) or "replace"
    if not isinstance(stream, io.TextIOWrapper):
      continue
    try:
      raw = io.BufferedWriter(_Lossy(stream))
    except (OSError, ValueError):  # no file is behind it
      continue
    how = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, errors, None, **how))


def lost() -> str:
  """Why something could not be printed, or ""; a reader that has enough (a closed pipe) is no reason."""
  return ", ".join(map(os.strerror, sorted(_failed - {errno.EPIPE})))


class _Lossy(io.FileIO):
  """A stream's file, which loses what cannot be written."""

  def __init__(self, stream: io.TextIOWrapper) -> None:
    super().__init__(stream.fileno(), "w", closefd=False)
    self._stream = stream  # which would close it when nobody holds it any more

  def write(self, data: Any) -> int:
    try:
      while (written := super().write(data)) is None:  # of a pipe that does not wait
        select.select([], [self], [])
      return written
    except OSError as error:
      _failed.add(error.errno or 0)
      return len(data)
