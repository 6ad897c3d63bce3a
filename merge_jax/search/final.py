"""The answer of a search: finalists, the one that is selected, and what it is worth.

Scores for choosing and scores for reporting come from different examples: the search chose on its
own, the finalists compete on validation examples, and test examples are touched once, at the end.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merge_jax.search import baselines
from merge_jax.search import fitness as fitnesses
from merge_jax.search.analysis import top
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Candidate, Record


def rows(
  records: Sequence[Record],
  fitness: Fitness,
  count: int,
  mean: tuple[float, ...] | None,
) -> dict[str, Candidate]:
  """The named rows of a result, as far as the budget let them be evaluated.

  best_single (by the mean of the task scores), best_on_<task>, uniform, merge_best, greedy,
  search_best (highest fitness of all evaluated), search_mean (the mean of the proposer's
  distribution; of the five best points where it has none).
  """
  found: dict[str, Candidate] = {}
  singles = [r for r in records if r.kind == "single"]
  averages = np.array([fitnesses.metric_average(r, fitness.signs) for r in singles])
  at = fitnesses.best(averages)
  if at is not None:
    found["best_single"] = singles[at].candidate
  for task in fitness.tasks:
    index = baselines.best_on(records, fitness, task)
    if index is not None:
      found[f"best_on_{task}"] = records[index].candidate
  soups: dict[str, tuple[float, ...] | None] = {
    "uniform": baselines.mean_of(range(count), count),
    "merge_best": None,
    "greedy": None,
  }
  if len(singles) == count:
    soups["merge_best"] = baselines.merge_best(records, fitness, count)
    members = baselines.greedy_members(records, fitness, count)
    soups["greedy"] = baselines.mean_of(members, count) if members else None
  for name, weights in soups.items():
    index = None if weights is None else baselines.find(records, weights)
    if index is not None:
      found[name] = records[index].candidate
  values = fitness.of(records)
  best = fitnesses.best(values)
  if best is not None:
    found["search_best"] = records[best].candidate
  if mean is None:
    searched = [record for record in records if record.method == "search"]
    points = top(searched, values[[record.index for record in searched]]) if searched else []
    if points:
      centre = np.mean([r.weights for r in points], axis=0)
      mean = tuple(float(w) for w in centre)
  if mean is not None:
    found["search_mean"] = Candidate("search_mean", mean)
  return found


def finalists(found: Mapping[str, Candidate]) -> list[str]:
  """The rows that compete on validation: all but the specialists of one task."""
  return [name for name in found if not name.startswith("best_on_")]


def select(validation: Mapping[str, Mapping[str, Any]], fitness: Fitness, records: Sequence[Record]) -> str:
  """The finalist with the highest fitness on validation examples.

  Args:
    validation: for each finalist `{"scores": {task: …}, "losses": {task: …} or None}`.
    fitness: the search's own.
    records: for the single checkpoints that normalized scores refer to.

  Raises:
    ValueError: if no finalist has a finite fitness.
  """
  names = list(validation)
  points = np.stack([fitness.values(v["scores"], v["losses"]) for v in validation.values()])
  at = fitnesses.best(fitness.aggregated(points, fitness.singles(records)))
  if at is None:
    raise ValueError("No finalist has finite scores on the validation examples.")
  return names[at]
