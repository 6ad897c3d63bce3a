"""The analyses of the Recycle paper (arXiv 2412.04144), as pure functions of arrays and records."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from merge_jax.search import baselines
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.pareto import rows
from merge_jax.search.scores import nullable, signed

USED = 0.015
"""Weights above count as used; where the paper's figures still show a colour."""


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
  """Rank correlation of the pairs that are finite; None where it is not defined.

  >>> spearman([1, 2, 3], [10, 30, 20])
  0.5
  """
  from scipy import stats

  x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
  both = np.isfinite(x) & np.isfinite(y)
  x, y = x[both], y[both]
  if len(x) < 3 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
    return None
  return float(np.round(stats.spearmanr(x, y).statistic, 12))


def task_correlation(points: ArrayLike) -> list[list[float | None]]:
  """Rank correlation between tasks over models: negative where they trade off.

  Args:
    points: `[models, tasks]`, higher is better; pairs that are not finite do not count.

  Returns:
    `[tasks][tasks]`; None where it is not defined.

  Raises:
    ValueError: points of another shape.
  """
  columns = rows(points).T
  return [[1.0 if i == j else spearman(a, b) for j, b in enumerate(columns)]
          for i, a in enumerate(columns)]  # fmt: skip


def top(records: Sequence[Record], values: np.ndarray, count: int = 5) -> list[Record]:
  """The best records by fitness `values`, equal points counted once."""
  order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
  chosen: list[Record] = []
  for i in order[: np.isfinite(values).sum()]:
    if all(records[i].point != record.point for record in chosen):
      chosen.append(records[i])
    if len(chosen) == count:
      break
  return chosen


def nonzero_weights(best: Sequence[Record], parts: int = 1, threshold: float = USED) -> list[int]:
  """How many weights of each of the best solutions exceed the threshold in magnitude.

  Args:
    best: records.
    parts: of the model, for which one row of weights stands.
    threshold: of the magnitude.
  """

  def count(weights: np.ndarray) -> int:
    return int(np.sum(np.abs(np.broadcast_to(weights, (parts, weights.shape[-1]))) > threshold))

  return [count(np.atleast_2d(record.point.array)) for record in best]


def slope(values: np.ndarray) -> dict[str, float | None] | None:
  """Least-squares change of fitness per searched evaluation, with its standard error.

  None below three finite values; an error that is not defined (a constant fitness) is None.
  """
  from scipy import stats

  finite = np.isfinite(values)
  if finite.sum() < 3:
    return None
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    line = stats.linregress(np.arange(len(values))[finite], values[finite])
  return {"slope": nullable(line.slope), "stderr": nullable(line.stderr)}


def analyse(records: Sequence[Record], fitness: Fitness, parts: int = 1) -> dict[str, Any]:
  """All analyses of a search, as plain JSON; `parts` of the model have weights of their own."""
  singles = [record for record in records if record.kind == "single"]
  values = fitness.of(records)
  best = top(records, values)
  weights = np.mean([r.point.mean_weights for r in best], axis=0) if best else np.zeros(len(singles))
  return {
    "nonzero_weights": {"threshold": USED, "top": nonzero_weights(best, parts)},
    "top_points": [
      {"method": r.method, "weights": r.point.weights, "numbers": r.point.numbers} for r in best
    ],
    "weight_fitness_spearman": spearman(fitness.of(singles), weights[: len(singles)]),
    "task_spearman": task_correlation(signed([r.scores for r in singles], fitness.tasks, fitness.signs)),
    "fitness_by_evaluation": [nullable(value) for value in values],
    "fitness_slope": slope(values[baselines.searched(records)]),
  }
