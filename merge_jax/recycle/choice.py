"""Which finalist is selected, by how much of an error, and what the choices are worth on other examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from merge_jax.evals import Examples, crossfit, uncertainty
from merge_jax.recycle.problem import Problem
from merge_jax.search import final, items
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.loop import MEAN, SPLIT, find
from merge_jax.search.scores import nullable, nullables, signed

Scores = dict[str, float | None]


def of_record(record: Record, problem: Problem) -> Examples | None:
  """What every example scored, where the journal keeps it."""
  return None if record.examples is None else read(record.examples, problem, record.split)


def read(plain: Any, problem: Problem, split: str) -> Examples:
  """Examples of a split from a line."""
  signs = dict(zip(problem.suite.names, problem.suite.signs, strict=True))
  examples = Examples.from_plain(plain, signs, f"Examples of {split}", problem.suite.groups(split))
  problem.suite.expect(split, examples.counts)
  return examples


def paired_errors(
  records: Mapping[str, Record],
  examples: Mapping[str, Examples | None],
  fitness: Fitness,
  singles: np.ndarray,
) -> final.Error:
  """Paired errors of differences in fitness.

  Args:
    records, examples: by name, of the same split.
    fitness: the search's own.
    singles: what normalized scores refer to, see `Fitness.singles`.
  """
  values = fitness.values([r.scores for r in records.values()], [r.losses for r in records.values()])
  slopes = dict(zip(records, fitness.slopes(values, singles), strict=True))
  loss = fitness.uses_losses and any(record.losses is not None for record in records.values())
  found = {
    name: uncertainty.influences(one, slopes[name], loss=loss)
    for name, one in examples.items()
    if one is not None
  }

  def error(one: str, other: str) -> float | None:
    known = one in found and other in found
    return nullable(uncertainty.size(found[one] - found[other])) if known else None

  return error


def select(problem: Problem, validation: Mapping[str, Record], records: Sequence[Record]) -> final.Choice:
  """The finalist that `final.select` takes.

  Args:
    problem: of the job.
    validation: each finalist's record.
    records: of the search.
  """
  examples = {name: of_record(record, problem) for name, record in validation.items()}
  return choose(validation, examples, problem.fitness, records, problem.settings.search.caution)


def choose(
  validation: Mapping[str, Record],
  examples: Mapping[str, Examples | None],
  fitness: Fitness,
  records: Sequence[Record],
  caution: float,
) -> final.Choice:
  """What `final.select` takes, by smoothed scores where all finalists have them.

  Models that differ little decide alike on most examples; the chances of their decisions differ on all. So
  the paired error of a smoothed gain is about .6 of the metric's, at nearly the same gain.

  Args:
    validation, examples: of each finalist, by name.
    fitness, records, caution: see `final.select`.
  """
  smooth = {
    name: one.smoothed() for name, one in examples.items() if one is not None and one.smooth is not None
  }
  # Smoothed scores are lower, each task's by another amount: they do not tell which task is worst.
  fits = not fitness.uses_losses and fitness.aggregate != "worst"
  smoothed = fits and len(smooth) == len(validation)
  if smoothed:
    examples = smooth
    validation = {name: _rescored(record, smooth[name]) for name, record in validation.items()}
  error = paired_errors(validation, examples, fitness, fitness.singles(records))
  return final.select(validation, fitness, records, caution=caution, error=error, smoothed=smoothed)


def corrected_validation(
  problem: Problem, validation: Mapping[str, Record], records: Sequence[Record]
) -> Scores | None:
  """Validation scores of the choice, on examples that did not choose; None where examples are not known."""
  found = {name: of_record(record, problem) for name, record in validation.items()}
  examples = {name: one for name, one in found.items() if one is not None}
  if len(examples) < len(validation):
    return None

  def choose_again(some: Sequence[Examples]) -> dict[str, int]:
    again = dict(zip(validation, map(_rescored, validation.values(), some), strict=True))
    try:
      caution = problem.settings.search.caution
      choice = choose(again, dict(zip(validation, some, strict=True)), problem.fitness, records, caution)
    except ValueError:  # on these examples no finalist is finite
      return {}
    return {"selected": list(validation).index(choice.name)}

  made = crossfit.crossfit(list(examples.values()), choose_again)
  return _averaged(made["selected"], problem.fitness) if "selected" in made else None


def corrected_search(
  problem: Problem, records: Sequence[Record], kept: items.Items | None
) -> tuple[dict[str, Scores], str | None]:
  """Search scores of the rows of a result, on examples that did not choose them, by name.

  The choice among what was evaluated is made again; that the search went where all examples led stays.

  Args:
    problem: of the job.
    records: of the search.
    kept: what every example scored.

  Returns:
    The scores, and why there are none.
  """
  if kept is None:
    return {}, "what every example scored was not kept"
  lines = dict(items.read(kept.path, SPLIT))
  if not lines and not problem.suite.losses:
    return {}, "the scorer gives scores alone"
  missing = [record.index for record in records if record.index not in lines]
  if missing:
    return {}, f"{kept.path.name} lacks {len(missing)} of {len(records)} evaluations of the search"
  examples = [read(lines[record.index], problem, SPLIT) for record in records]
  count = len(problem.pool)

  def choose_again(some: Sequence[Examples]) -> dict[str, int]:
    again = [_rescored(*pair) for pair in zip(records, some, strict=True)]
    rows = final.rows(again, problem.fitness, count, problem.method, again[0].point)
    places = {name: find(again, candidate) for name, candidate in rows.items() if name != MEAN}
    return {name: again.index(record) for name, record in places.items() if record is not None}

  made = crossfit.crossfit(examples, choose_again)
  return {name: _averaged(some, problem.fitness) for name, some in made.items()}, None


def _rescored(record: Record, examples: Examples) -> Record:
  """A record with the scores of some of its examples."""
  losses = None if record.losses is None else nullables(examples.scores(loss=True))
  return msgspec.structs.replace(record, scores=nullables(examples.scores()), losses=losses)


def _averaged(some: Sequence[Examples], fitness: Fitness) -> Scores:
  """Scores by task, and their mean with what is better low counted with a minus; means over divisions."""
  scores = [nullables(one.scores()) for one in some]
  points = signed(scores, fitness.tasks, fitness.signs)
  means = dict(zip(fitness.tasks, (points * np.array(fitness.signs)).mean(axis=0), strict=True))
  return nullables(means | {"average": points.mean()})
