"""The answer of a search: finalists, the one that is selected, and what it is worth.

Scores for choosing and scores for reporting come from different examples: the search chose on its
own, the finalists compete on validation examples, and test examples are touched once, at the end.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from merge_jax.search import baselines
from merge_jax.search.analysis import top
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.loop import MEAN
from merge_jax.search.point import Candidate, Point, mean_of
from merge_jax.search.scores import best, signed

SPECIALIST = "best_on_"
FINALISTS = 6
"""Rows beside the specialists, trajectories apart: those of `rows` that compete on validation."""


def rows(
  records: Sequence[Record], fitness: Fitness, count: int, method: str, mean: Point | None
) -> dict[str, Candidate]:
  """The named rows of a result, as far as the budget let them be evaluated.

  best_single (by the mean of the task scores), best_on_<task>, uniform, merge_best, trajectory (the
  fittest one along the run), greedy, search_best (highest fitness of all evaluated), search_mean (the mean
  of the proposer's distribution; of the five best points where it has none).

  Args:
    records: of the search.
    fitness: the search's own.
    count: number of checkpoints.
    method: the merge rule that was searched.
    mean: from `search`.
  """
  singles = [r for r in records if r.kind == "single"]
  values = fitness.of(records)
  found: dict[str, Record | None] = {}
  at = best(signed([r.scores for r in singles], fitness.tasks, fitness.signs).mean(axis=1))
  found["best_single"] = None if at is None else singles[at]
  for task in fitness.tasks:
    found[f"{SPECIALIST}{task}"] = baselines.best_on(records, fitness, task)
  soups: dict[str, Point | None] = {"uniform": baselines.soup(range(count), count)}
  if len(singles) == count:
    soups["merge_best"] = baselines.merge_best(records, fitness, count)
    soups["greedy"] = baselines.greedy(records, fitness, count)
  for name, point in soups.items():
    at = None if point is None else baselines.find(records, point)
    found[name] = None if at is None else records[at]
  along = np.array([record.kind == "trajectory" for record in records], bool)
  at = best(np.where(along, values, np.nan))
  found["trajectory"] = None if at is None else records[at]
  at = best(values)
  found["search_best"] = None if at is None else records[at]
  result = {name: record.candidate for name, record in found.items() if record is not None}
  if mean is None:
    points = [record.point for record in top(records, np.where(baselines.searched(records), values, np.nan))]
    mean = mean_of(points) if points else None
  if mean is not None:
    result[MEAN] = Candidate(MEAN, method, mean)
  return result


def finalists(found: Mapping[str, Candidate]) -> list[str]:
  """The rows that compete on validation: all but the specialists of one task."""
  return [name for name in found if not name.startswith(SPECIALIST)]


def select(validation: Mapping[str, Record], fitness: Fitness, records: Sequence[Record]) -> str:
  """The finalist with the highest fitness on validation examples.

  Args:
    validation: each finalist's record there.
    fitness: the search's own.
    records: of the search, for the single checkpoints that normalized scores refer to.

  Raises:
    ValueError: if no finalist has a finite fitness.
  """
  scored = list(validation.values())
  values = fitness.values([r.scores for r in scored], [r.losses for r in scored])
  at = best(fitness.aggregated(values, fitness.singles(records)))
  if at is None:
    raise ValueError("No finalist has finite scores on the validation examples.")
  return list(validation)[at]
