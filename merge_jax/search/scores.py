"""Scores as arrays and as JSON: the one place that knows that what is undefined is NaN here, null there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Scores = Mapping[str, float | None]


def signed(scores: Iterable[Scores], tasks: Sequence[str], signs: Sequence[float]) -> np.ndarray:
  """Scores with higher better: float64 `[models, tasks]`, NaN where there is none.

  >>> signed([{"qa": 0.5, "nll": 2.0}, {"qa": None, "nll": 1.0}], ["qa", "nll"], [1.0, -1.0]).tolist()
  [[0.5, -2.0], [nan, -1.0]]
  """
  rows = [[one[task] for task in tasks] for one in scores]
  return floats(rows).reshape(-1, len(tasks)) * np.asarray(signs, np.float64)


def floats(values: Sequence[Any]) -> np.ndarray:
  """Numbers from JSON, or rows of them: float64, NaN for None.

  >>> floats([0.5, None]).tolist()
  [0.5, nan]
  """
  return np.array(values, np.float64)


def nullable(value: float | None) -> float | None:
  """The number for JSON: None where it is not finite."""
  return None if value is None or not np.isfinite(value) else float(value)


def nullables(values: Scores) -> dict[str, float | None]:
  """The numbers for JSON by name."""
  return {name: nullable(value) for name, value in values.items()}


def best(values: np.ndarray) -> int | None:
  """Index of the largest finite value (the first among equals), or None.

  >>> best(np.array([np.nan, 1.0, 2.0, 2.0]))
  2
  """
  finite = np.where(np.isfinite(values), values, -np.inf)
  return int(np.argmax(finite)) if len(values) and np.isfinite(finite).any() else None
