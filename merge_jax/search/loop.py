"""The search: ask a proposer, evaluate, write to the journal, until the budget is spent.

A proposer is a generator: it yields the candidates of a generation and is sent their records. A killed
search is resumed by sending it the stored ones; where it asks for something else than was stored, that
is an error. Nothing but the journal is state.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from merge_jax.errors import shown
from merge_jax.search.fitness import Fitness
from merge_jax.search.items import Examples, Items
from merge_jax.search.journal import Journal, Record
from merge_jax.search.outputs import Outputs
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import nullable, nullables

SPLIT = "search"
"""The split whose examples a search sees."""
MEAN = "search_mean"
"""Kind of the mean of a proposer's distribution."""
SURE = "search_sure"
"""Kind of the point whose gain is surest: that of `surrogate.surest`."""
FINALS = (MEAN, SURE)
"""Kinds of merges that no proposer asked for: finalists, scored on the search's examples as well."""
REPORTED = "test"
"""The split of which every example is kept, for the errors of what is reported."""
CHOOSING = "validation"
"""The split of which every example is kept with its loss, which a fitness may be of, for the choice."""


class Evaluation(Protocol):
  """What one model scored, NaN where it failed; see `merge_jax.evals.Evaluation`."""

  @property
  def scores(self) -> Mapping[str, float]: ...
  @property
  def losses(self) -> Mapping[str, float] | None: ...
  @property
  def examples(self) -> Examples | None: ...
  @property
  def outputs(self) -> Mapping[str, Any] | None: ...


class Objective(Protocol):
  """Scores merges of one pool, `batch` of them at a time; see `merge_jax.evals.objective`."""

  @property
  def batch(self) -> int: ...
  def evaluate(self, candidates: Sequence[Candidate], split: str) -> Sequence[Evaluation]: ...


class Proposal(NamedTuple):
  """A generation.

  Attributes:
    candidates: to evaluate, in order.
    mean: the middle of the proposer's distribution, if it has one.
  """

  candidates: list[Candidate]
  mean: Point | None = None


Generations = Generator[Proposal, list[Record], Any]
Proposer = Callable[[], Generations]
Progress = Callable[[Record], None]


class Budget(NamedTuple):
  """When to stop.

  Attributes:
    evaluations: in all, known points included.
    seconds: of evaluation, or None for no limit.
    least: evaluations that are made however long they take.
  """

  evaluations: int
  seconds: float | None = None
  least: int = 0

  def left(self, records: Sequence[Record]) -> int:
    """How many more may be evaluated."""
    used = 0.0 if self.seconds is None else sum(record.seconds for record in records)
    over = self.seconds is not None and len(records) >= self.least and used >= self.seconds
    return 0 if over else max(self.evaluations - len(records), 0)


class Result(NamedTuple):
  """What a search found.

  Attributes:
    records: in order.
    mean: the last one of the proposer's distribution.
    left: what a proposer that ended by itself still foresaw to gain; None for others.
  """

  records: list[Record]
  mean: Point | None
  left: float | None = None


def search(
  propose: Proposer,
  objective: Objective,
  journal: Journal,
  fitness: Fitness,
  budget: Budget,
  *,
  outputs: Outputs | None = None,
  items: Items | None = None,
  progress: Progress = lambda record: None,
) -> Result:
  """Runs or resumes a search.

  Args:
    propose: starts a generator of generations, see `Proposal`; its end ends the search.
    objective: scores candidates.
    journal: what it holds is replayed, not evaluated again.
    fitness: written beside the scores, for the reader.
    budget: when to stop; with a larger one a journal continues as if it had been so from the start.
    outputs: keeps what evaluations give beside scores, if the proposer learns from it; what it lacks of
      replayed records is evaluated again.
    items: where what every example scored is kept, too.
    progress: called after each record, replayed ones included.

  Raises:
    ValueError: the journal does not belong to this search.
  """
  records: list[Record] = []
  stored = [record for record in journal.of(SPLIT) if record.kind not in FINALS]
  mean: Point | None = None
  proposals, told, generation = propose(), None, 0

  def fitness_of(candidate: Candidate, evaluation: Evaluation) -> float | None:
    if fitness.relative and candidate.kind == "single":
      return None
    values = fitness.values([evaluation.scores], [evaluation.losses])
    return nullable(fitness.aggregated(values, fitness.singles(records))[0])

  while True:
    try:
      proposal = next(proposals) if told is None else proposals.send(told)
    except StopIteration as end:
      return Result(records, mean, end.value)
    mean = proposal.mean if proposal.mean is not None else mean
    told = []
    for chunk in _chunks(proposal.candidates, objective.batch):
      chunk = chunk[: budget.left(records)]
      here = stored[len(records) : len(records) + len(chunk)]
      for record, candidate in zip(here, chunk, strict=False):
        _compare(record, candidate)
      known = [*here, *[None] * (len(chunk) - len(here))]
      index = len(records) + len(here)
      made = _scored(objective, journal, items, SPLIT, chunk, known, index, generation, fitness_of, outputs)
      records += made
      told += made
      for record in made:
        progress(record)
    if len(told) < len(proposal.candidates):
      return Result(records, mean)
    generation += 1


def measure(
  candidates: Sequence[Candidate],
  split: str,
  objective: Objective,
  journal: Journal,
  *,
  items: Items | None = None,
  progress: Progress = lambda record: None,
) -> list[Record]:
  """Scores candidates on the examples of another split; what the journal holds is not scored again.

  Args:
    candidates: in order; equal merges are scored once.
    split: "validation", "test" or "heldout".
    objective, journal, items: as for `search`.
    progress: called after each new record.

  Returns:
    A record for each candidate.
  """
  records = journal.of(split)
  different: list[Candidate] = []
  for candidate in candidates:
    if not any(candidate.same_model(other) for other in different):
      different.append(candidate)
  made: list[Record] = []
  for chunk in _chunks(different, objective.batch):
    known = [find(records, candidate) for candidate in chunk]
    index = len(journal.of(split))
    scored = _scored(objective, journal, items, split, chunk, known, index, 0, lambda *_: None)
    made += scored
    for record, old in zip(scored, known, strict=True):
      if old is None:
        progress(record)
  return [one for candidate in candidates if (one := find(made, candidate))]


def find(records: Sequence[Record], candidate: Candidate) -> Record | None:
  """The record of the same merge, if there is one."""
  return next((record for record in records if record.candidate.same_model(candidate)), None)


def _chunks(candidates: Sequence[Candidate], size: int) -> Iterator[list[Candidate]]:
  for start in range(0, len(candidates), size):
    yield list(candidates[start : start + size])


def _scored(
  objective: Objective,
  journal: Journal,
  items: Items | None,
  split: str,
  candidates: Sequence[Candidate],
  known: Sequence[Record | None],
  index: int,
  generation: int,
  fitness_of: Callable[[Candidate, Evaluation], float | None],
  outputs: Outputs | None = None,
) -> list[Record]:
  """Records of one batch; those that are not known are evaluated and written, numbered from `index`.

  A batch of which a part is known is evaluated whole, so that a resumed one is the same program call.
  """
  complete = [record for record in known if record is not None]
  lacking = outputs is not None and not all(outputs.has(one.index, one.candidate) for one in complete)
  if len(complete) == len(known) and not lacking:
    return complete
  start = time.perf_counter()
  evaluations = objective.evaluate(candidates, split)
  seconds = round((time.perf_counter() - start) / len(candidates), 6)
  records: list[Record] = []
  new: list[Record] = []
  examples = []
  for candidate, old, evaluation in zip(candidates, known, evaluations, strict=True):
    at = index if old is None else old.index
    if outputs is not None and evaluation.outputs is not None:
      outputs.put(at, candidate, evaluation.outputs)
    if old is not None:
      records.append(old)
      continue
    losses = None if evaluation.losses is None else nullables(evaluation.losses)
    kept = evaluation.examples if split in (REPORTED, CHOOSING) else None
    record = Record(
      split, index, generation, candidate.kind, candidate.method, candidate.point,
      nullables(evaluation.scores), losses, fitness_of(candidate, evaluation), seconds,
      None if kept is None else kept.to_plain(losses=split == CHOOSING),
    )  # fmt: skip
    records.append(record)
    new.append(record)
    examples.append(evaluation.examples)
    index += 1
  if new:
    if items is not None:
      items.append(new, examples)
    journal.append(*new)
  return records


def _compare(record: Record, candidate: Candidate) -> None:
  if record.candidate == candidate:
    return
  same = (record.kind, record.method) == (candidate.kind, candidate.method)
  why = (
    "the weights differ in their last digits, as after a change of machine or numpy build"
    if same and record.point.near(candidate.point, 1e-9)
    else f"it holds {shown(record.candidate)}, the search asks for {shown(candidate)}"
  )
  raise ValueError(f"The journal cannot be continued at evaluation {record.index}: {why}.")
