"""Another point of a finished search, by other wishes: what `launch.select` and the report's sliders pick."""

from collections.abc import Mapping, Sequence

import numpy as np

from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.loop import FINALS, SPLIT
from merge_jax.search.scores import best, signed

EQUAL = 1e-12
"""Fitnesses that differ by less, of the best one or of 1, are equal: no two programs round sums alike."""


def selectable(records: Sequence[Record]) -> list[Record]:
  """The points that can be asked for, by their numbers, of which each stands once.

  A finalist of no proposer that was scored before the budget grew has the number of the step that came then,
  and gives way to it.
  """
  found: dict[int, Record] = {}
  for record in records:
    if record.split == SPLIT and (record.kind not in FINALS or record.index not in found):
      found[record.index] = record
  return [found[number] for number in sorted(found)]


def foremost(values: np.ndarray) -> int | None:
  """Index of the first value that is the largest up to rounding, or None if none is finite.

  >>> foremost(np.array([np.nan, 0.2, 0.1 + 0.2, 0.3]))
  2
  >>> foremost(np.array([0.3, 0.1 + 0.2]))
  0
  """
  at = best(values)
  if at is None:
    return None
  least = values[at] - EQUAL * max(abs(values[at]), 1.0)
  return int(np.argmax(np.where(np.isfinite(values), values, -np.inf) >= least))


def wished(fitness: Fitness, records: Sequence[Record], floors: Mapping[str, float]) -> Record:
  """The fittest record among those with the scores that are asked for.

  Args:
    fitness: with the wished weights.
    records: from `selectable`.
    floors: by task the least score, or for a loss the most.

  Raises:
    ValueError: no record has them.
  """
  points = signed([record.scores for record in records], fitness.tasks, fitness.signs)
  fits = np.ones(len(records), bool)
  reached = []
  for name, floor in floors.items():
    at = fitness.tasks.index(name)
    fits &= points[:, at] >= fitness.signs[at] * floor
    top = best(points[:, at])
    if top is not None:
      score = fitness.signs[at] * points[top, at]
      reached.append(f"the best of {name} is {score:.4g} (candidate {records[top].index})")
  found = foremost(np.where(fits, fitness.of(records), np.nan))
  if found is None:
    reasons = "; ".join(reached) or "no score is finite"
    raise ValueError(f"No evaluated point has the scores that are asked for: {reasons}.")
  return records[found]
