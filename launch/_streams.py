"""Output that costs no run: what cannot be printed is lost, what was computed is not."""

import io
import sys
from typing import Any


def spare() -> None:
  """Puts streams that cannot fail, nor on a terminal without ±, in the place of stdout and stderr."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if isinstance(stream, io.TextIOWrapper):
      raw = io.BufferedWriter(_Lossy(stream.fileno(), "w", closefd=False))
      errors = "replace" if name == "stdout" else stream.errors or "replace"
      same = io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=stream.line_buffering)
      setattr(sys, name, same)


class _Lossy(io.FileIO):
  """A file that loses what cannot be written, for a reader that is gone or a full disk."""

  def write(self, data: Any) -> int:
    try:
      return super().write(data) or len(data)  # None: it would have to wait
    except OSError:
      return len(data)
