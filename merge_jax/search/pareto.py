"""Pareto front and hypervolume of plain arrays `[points, tasks]`, higher is better."""

import numpy as np
from numpy.typing import ArrayLike


def front(points: ArrayLike) -> np.ndarray:
  """Marks the points that no other point dominates.

  Args:
    points: `[points, tasks]`, higher is better; rows with a NaN are never on the front.

  Returns:
    bool `[points]`. Of equal points all are marked.

  >>> front([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.4, 0.4]]).tolist()
  [True, True, True, False]
  """
  import moocore

  values = np.asarray(points, np.float64)
  if values.ndim != 2:
    raise ValueError(f"points has shape {values.shape}; expected [points, tasks].")
  finite = np.isfinite(values).all(axis=1)
  marked = np.zeros(len(values), bool)
  if finite.any():
    marked[finite] = moocore.is_nondominated(values[finite], maximise=True, keep_weakly=True)
  return marked


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
  """Volume of what the points dominate above a reference point.

  Args:
    points: `[points, tasks]`, higher is better; rows with a NaN do not count.
    reference: `[tasks]`; a point that does not exceed it everywhere adds nothing.

  >>> hypervolume([[1.0, 0.5], [0.5, 1.0]], [0.0, 0.0])
  0.75
  """
  import moocore

  values = np.asarray(points, np.float64)
  values = values[np.isfinite(values).all(axis=1)]
  at = np.asarray(reference, np.float64)
  values = values[(values > at).all(axis=1)]
  if not len(values):
    return 0.0
  if values.shape[1] == 1:
    return float(np.max(values) - at[0])
  return float(moocore.hypervolume(values, ref=at, maximise=True))
