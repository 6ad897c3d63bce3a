"""The journal: every evaluated candidate, one JSON line each. Nothing else is state."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merge_jax import storage


class Candidate(NamedTuple):
  """Weights to evaluate.

  Attributes:
    kind: "single", "uniform", "merge_best", "greedy", or the proposer's name.
    weights: K floats.
    method: "linear" for the known points, "search" for the operator that is searched.
  """

  kind: str
  weights: tuple[float, ...]
  method: str = "search"


@dataclasses.dataclass(frozen=True)
class Record:
  """An evaluated candidate.

  Attributes:
    index, generation: position in the journal, and which proposal it came with.
    kind, method, weights: the candidate's.
    scores: each task's score by its metric; None where it was not finite.
    losses: each task's mean negative log-likelihood in nats, or None if the scorer has none.
    fitness: higher is better; None if not finite, or not yet defined.
    seconds: wall time of the evaluation.
  """

  index: int
  generation: int
  kind: str
  method: str
  weights: tuple[float, ...]
  scores: dict[str, float | None]
  losses: dict[str, float | None] | None
  fitness: float | None
  seconds: float

  @property
  def candidate(self) -> Candidate:
    """What was evaluated."""
    return Candidate(self.kind, self.weights, self.method)


class Journal:
  """The records of a search in a file, or in memory alone.

  >>> journal = Journal()
  >>> journal.append(Record(0, 0, "single", "linear", (1.0,), {"qa": 0.5}, None, 0.5, 0.1))
  >>> len(journal.stored)
  1
  """

  def __init__(self, path: Path | None = None):
    self._path = path
    self.stored: list[Record] = []
    if path is not None:
      storage.cut_incomplete(path)
      self.stored = [parse(line) for line in storage.read_lines(path)]

  def append(self, record: Record) -> None:
    """Adds a record; it is on the disk when this returns."""
    if self._path is not None:
      storage.append_line(self._path, dataclasses.asdict(record))
    self.stored.append(record)


def parse(line: dict[str, Any]) -> Record:
  """A record from its JSON object."""
  return Record(**line | {"weights": tuple(line["weights"])})


def weights_of(records: list[Record]) -> np.ndarray:
  """All weights, float64 `[records, K]`."""
  return np.array([record.weights for record in records], np.float64)
