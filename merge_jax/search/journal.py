"""The journal: every evaluated candidate, one JSON line each. Nothing else is state."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from merge_jax import decoding, storage
from merge_jax.search.point import Candidate, Point

Count = Annotated[int, Meta(ge=0)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """An evaluated candidate.

  Attributes:
    split: whose examples were scored: "search", "validation", "test" or "heldout".
    index: number of the record among those of its split.
    generation: which proposal of the search it came with; 0 in other splits.
    kind, method, point: the candidate's.
    scores: each task's score by its metric; None where it is not finite.
    losses: each task's mean negative log-likelihood in nats, or None if the scorer has none.
    fitness: higher is better; None if not finite, outside the search's split, and of single checkpoints where
      it is relative to theirs (`Fitness.relative`).
    seconds: wall time of the evaluation.
    examples: what each validation or test example scored, by task (see `merge_jax.evals.Examples`), or None.
  """

  split: str
  index: Count
  generation: Count
  kind: str
  method: str
  point: Point
  scores: dict[str, float | None]
  losses: dict[str, float | None] | None
  fitness: float | None
  seconds: Annotated[float, Meta(ge=0)]
  examples: dict[str, dict[str, list[float | None]]] | None = None

  @property
  def candidate(self) -> Candidate:
    """What was evaluated."""
    return Candidate(self.kind, self.method, self.point)


class Journal:
  """The records of a run in a file, or in memory alone.

  Raises:
    ValueError: a line that is not a record, or was changed after it was written; with its number.

  >>> journal = Journal()
  >>> scores = {"qa": 0.5}
  >>> journal.append(Record("search", 0, 0, "single", "linear", Point((1.0,)), scores, None, 0.5, 0.1))
  >>> len(journal.of("search"))
  1
  """

  def __init__(self, path: str | Path | None = None):
    self._lines = None if path is None else storage.Lines(storage.path(path))
    self.records = _parsed([] if self._lines is None else self._lines.records, path)

  @staticmethod
  def read(path: str | Path) -> list[Record]:
    """The records of a file, which is left as it is; [] if there is none. Errors as above."""
    return _parsed(storage.read_lines(storage.path(path)), path)

  def of(self, split: str) -> list[Record]:
    """The records of a split, in order."""
    return [record for record in self.records if record.split == split]

  def append(self, *records: Record) -> None:
    """Adds records; they are on the disk when this returns."""
    if self._lines is not None:
      self._lines.append(*map(msgspec.to_builtins, records))
    self.records.extend(records)


def _parsed(lines: Iterable[Any], path: str | Path | None) -> list[Record]:
  return [parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def parse(line: Any, where: str) -> Record:
  """A record from its JSON object."""
  return decoding.convert(line, Record, where)
