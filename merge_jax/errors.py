"""The one way to say that a name is not known."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, got: str, known: Iterable[str], where: str = "") -> str:
  """A sentence that names what was got, the nearest valid name and all of them.

  >>> unknown("metric", "acuracy", ["accuracy", "loss"], "tasks.jsonl")
  "tasks.jsonl: unknown metric 'acuracy'; did you mean 'accuracy'? Known: accuracy, loss."
  """
  names = sorted(known)
  near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
  hint = f" did you mean {near[0]!r}?" if near else ""
  prefix = f"{where}: " if where else ""
  return f"{prefix}unknown {kind} {got!r};{hint} Known: {', '.join(names)}."
