"""The search: ask a proposer, evaluate, write to the journal, until the budget is spent.

A proposer is a function of the journal: it yields the candidates of a generation, and when it is
resumed the journal holds their records. A killed search is resumed by running the proposer again
over the stored records; where it asks for something else than was stored, that is an error.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Candidate, Journal, Record


class Evaluation(NamedTuple):
  """Scores of one candidate by task, and losses if the scorer has them; NaN where it failed."""

  scores: dict[str, float]
  losses: dict[str, float] | None = None


class Proposal(NamedTuple):
  """A generation.

  Attributes:
    candidates: to evaluate, in order.
    mean: weights in the middle of the proposer's distribution, if it has one.
  """

  candidates: list[Candidate]
  mean: tuple[float, ...] | None = None


Proposer = Callable[[Sequence[Record]], Iterator[Proposal]]
Evaluate = Callable[[Candidate], Evaluation]


class Budget(NamedTuple):
  """When to stop: evaluations in all, known points included, or seconds of evaluation."""

  evaluations: int
  seconds: float | None = None

  def spent(self, records: Sequence[Record]) -> bool:
    """Whether nothing more may be evaluated."""
    used = 0.0 if self.seconds is None else sum(record.seconds for record in records)
    over = self.seconds is not None and used >= self.seconds
    return over or len(records) >= self.evaluations


class Result(NamedTuple):
  """The records, in order, and the last mean of the proposer's distribution."""

  records: list[Record]
  mean: tuple[float, ...] | None


def search(
  propose: Proposer,
  evaluate: Evaluate,
  journal: Journal,
  fitness: Fitness,
  budget: Budget,
  *,
  progress: Callable[[Record], None] | None = None,
) -> Result:
  """Runs or resumes a search.

  Args:
    propose: yields generations, see `Proposal`; its end ends the search.
    evaluate: scores a candidate.
    journal: what it holds is replayed, not evaluated again.
    fitness: written beside the scores, for the reader.
    budget: when to stop.
    progress: called after each record, replayed ones included.

  Raises:
    ValueError: the journal does not belong to this search.
  """
  records: list[Record] = []
  mean = None
  proposals = propose(records)
  for generation, proposal in enumerate(proposals):
    mean = proposal.mean if proposal.mean is not None else mean
    for candidate in proposal.candidates:
      if budget.spent(records):
        return Result(records, mean)
      index = len(records)
      if index < len(journal.stored):
        record = journal.stored[index]
        _compare(record, candidate, index)
      else:
        start = time.perf_counter()
        evaluation = evaluate(candidate)
        seconds = time.perf_counter() - start
        record = _record(index, generation, candidate, evaluation, records, fitness, seconds)
        journal.append(record)
      records.append(record)
      if progress is not None:
        progress(record)
  return Result(records, mean)


def _record(
  index: int,
  generation: int,
  candidate: Candidate,
  evaluation: Evaluation,
  records: list[Record],
  fitness: Fitness,
  seconds: float,
) -> Record:
  def finite(values: dict[str, float]) -> dict[str, float | None]:
    return {task: float(v) if np.isfinite(v) else None for task, v in values.items()}

  scores = finite(evaluation.scores)
  losses = None if evaluation.losses is None else finite(evaluation.losses)
  values = fitness.values(scores, losses)
  value = float(fitness.aggregated(values[None], fitness.singles(records))[0])
  return Record(
    index,
    generation,
    candidate.kind,
    candidate.method,
    candidate.weights,
    scores,
    losses,
    value if np.isfinite(value) else None,
    round(seconds, 6),
  )


def _compare(record: Record, candidate: Candidate, index: int) -> None:
  if record.candidate == candidate:
    return
  near = len(record.weights) == len(candidate.weights) and np.allclose(
    record.weights, candidate.weights, rtol=0, atol=1e-9
  )
  why = (
    "the weights differ in their last digits, as after a change of machine or numpy build"
    if near and record.kind == candidate.kind
    else f"it holds {record.kind} {record.weights}, the search asks for {candidate.kind} {candidate.weights}"
  )
  raise ValueError(f"The journal cannot be continued at evaluation {index}: {why}.")
