"""The analyses of the Recycle paper (arXiv 2412.04144), as pure functions of arrays and records."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record


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
    points: `[models, tasks]`, higher is better.

  Returns:
    `[tasks][tasks]`; None where it is not defined.
  """
  columns = np.asarray(points, np.float64).T
  return [[1.0 if i == j else spearman(a, b) for j, b in enumerate(columns)]
          for i, a in enumerate(columns)]  # fmt: skip


def top(records: Sequence[Record], values: np.ndarray, count: int = 5) -> list[Record]:
  """The best records by fitness, equal weights counted once."""
  order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
  chosen: list[Record] = []
  for i in order:
    if np.isfinite(values[i]) and all(records[i].weights != r.weights for r in chosen):
      chosen.append(records[i])
    if len(chosen) == count:
      break
  return chosen


def nonzero_weights(best: Sequence[Record], threshold: float = 0.015) -> list[int]:
  """How many weights of each of the best solutions exceed the threshold in magnitude."""
  return [int(np.sum(np.abs(record.weights) > threshold)) for record in best]


def analyse(records: Sequence[Record], fitness: Fitness) -> dict[str, Any]:
  """All analyses of a search, as plain JSON."""
  values = fitness.of(records)
  singles = [r for r in records if r.kind == "single"]
  single_values = [float(values[r.index]) for r in singles]
  best = top(records, values)
  mean_weights = np.mean([r.weights for r in best], axis=0) if best else np.zeros(0)
  points = np.array(
    [[np.nan if r.scores[t] is None else r.scores[t] for t in fitness.tasks] for r in singles],
    np.float64,
  ).reshape(-1, len(fitness.tasks)) * np.array(fitness.signs)
  searched = [r for r in records if r.method == "search"]
  curve = values[[r.index for r in searched]] if searched else np.zeros(0)
  return {
    "nonzero_weights": {"threshold": 0.015, "top": nonzero_weights(best)},
    "top_weights": [list(r.weights) for r in best],
    "weight_fitness_spearman": spearman(single_values, mean_weights) if best else None,
    "task_spearman": task_correlation(points),
    "fitness_by_evaluation": [None if not np.isfinite(v) else float(v) for v in values],
    "fitness_slope": slope(curve),
  }


def slope(values: np.ndarray) -> dict[str, float] | None:
  """Least-squares change of fitness per searched evaluation, with its standard error."""
  from scipy import stats

  finite = np.isfinite(values)
  if finite.sum() < 3:
    return None
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)
    line = stats.linregress(np.arange(len(values))[finite], values[finite])
  return {"slope": float(line.slope), "stderr": float(line.stderr)}
