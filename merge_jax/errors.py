"""The one way to say that a name is not known, to show a value in a sentence, and to make one of an error."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any


class Stopped(RuntimeError):
  """A job ended early because it was asked to, or had to; the same command continues.

  Attributes:
    status: that a job exits with, "temporary failure" in sysexits.h.
  """

  status = 75


def unknown(kind: str, got: str, known: Iterable[str], where: str = "") -> str:
  """A sentence that names what was got, the nearest valid name and all of them.

  >>> unknown("metric", "acuracy", ["accuracy", "loss"], "tasks.jsonl")
  "tasks.jsonl: unknown metric 'acuracy'; did you mean 'accuracy'? Known: accuracy, loss."
  >>> unknown("module", "decoder", [])
  "unknown module 'decoder'; Known: none."
  """
  names = sorted(known)
  near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
  hint = f" did you mean {near[0]!r}?" if near else ""
  prefix = f"{where}: " if where else ""
  return f"{prefix}unknown {kind} {shown(got)};{hint} Known: {', '.join(names) or 'none'}."


def shown(value: Any, limit: int = 80) -> str:
  """A value in a sentence: one line, not longer than `limit`.

  >>> shown("a" * 100, 10)
  "'aaaaaa..."
  """
  text = " ".join(repr(value).split())
  return text if len(text) <= limit else text[: limit - 3] + "..."


def sentence(error: BaseException) -> str:
  """One line; of what the system says the file and the reason, without its number.

  >>> sentence(FileNotFoundError(2, "No such file or directory", "a.yml"))
  'a.yml: No such file or directory.'
  """
  if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
    return f"{error.filename}: {error.strerror}."
  if isinstance(error, MemoryError):
    return f"not enough memory: {error or 'none is left'}."
  return " ".join(str(error).split("\n"))


@contextlib.contextmanager
def in_library(where: str) -> Iterator[None]:
  """Around calls of `tokenizers`, which raises bare Exception, and whose panics are not even that."""
  try:
    yield
  except BaseException as error:
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise ValueError(f"{where}: {shown(str(error), 200)}") from None
    raise
