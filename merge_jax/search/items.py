"""What every example scored in every evaluation: a line a record beside the journal, for later questions.

A line is written before the journal's, so that a kill leaves lines too many, which are cut off, and never
too few. The journal alone is state: lines that were lost or damaged cost what is computed from them, and
nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from merge_jax import storage
from merge_jax.search.journal import Record

Ids = Mapping[str, Mapping[str, Sequence[str]]]
"""Names of the examples by split and task, where there are some."""


class Examples(Protocol):
  """What every example scored; see `merge_jax.evals.Examples`."""

  def to_plain(self, *, losses: bool = False) -> dict[str, Any]: ...


class Items:
  """The lines of a run, open to append.

  Opening cuts off what follows a damaged line, and lines of records that the journal does not have.

  Args:
    path: `items.jsonl`, or where the first record makes it.
    records: of the journal.
    ids: see `Ids`.
  """

  def __init__(self, path: Path, records: Sequence[Record], ids: Ids | None = None):
    self.path, self._ids = path, ids or {}
    self._lines = storage.Lines(path, mend=True, keep=_place)
    known = {(record.split, record.index) for record in records}
    new = (number for number, place in enumerate(self._lines.records) if place not in known)
    self._lines.cut(next(new, len(self._lines.records)))

  def append(self, records: Sequence[Record], examples: Sequence[Examples | None]) -> None:
    """Adds what the examples of new records scored; they are on the disk when this returns."""
    lines = []
    for record, one in zip(records, examples, strict=True):
      if one is not None:
        line = {"split": record.split, "index": record.index, "tasks": one.to_plain(losses=True)}
        ids = self._ids.get(record.split)
        lines.append(line | ({"ids": {task: list(names) for task, names in ids.items()}} if ids else {}))
    if lines:
      self._lines.append(*lines)


def read(path: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Index, and what `to_plain` gave, of each record of a split, as far as the file is whole."""
  for line in storage.each_line(path, mend=True):
    if line.record["split"] == split:
      yield line.record["index"], line.record["tasks"]


def _place(line: Mapping[str, Any]) -> tuple[str, int]:
  """Which record a line is of: split, and number within it."""
  return line["split"], line["index"]
