"""Pareto front and hypervolume of plain arrays `[points, tasks]`, higher is better."""

import numpy as np
from numpy.typing import ArrayLike

from merge_jax.errors import shown

EXACT = 1 << 16
"""Most points times 2 to the number of tasks whose volume is computed; seconds grow as both."""
SAMPLES = 1 << 16
"""Of an estimate, whose relative error is at most the root of points over samples, and mostly far less."""


def rows(points: ArrayLike) -> np.ndarray:
  """The points, float64; ValueError if they are not `[points, tasks]`."""
  values = np.asarray(points, np.float64)
  if values.ndim != 2:
    raise ValueError(f"points has shape {values.shape}; expected [points, tasks].")
  return values


def front(points: ArrayLike) -> np.ndarray:
  """Marks the points that no other point dominates.

  Args:
    points: `[points, tasks]`, higher is better; rows that are not finite are never on the front.

  Returns:
    bool `[points]`. Of equal points all are marked.

  >>> front([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.4, 0.4]]).tolist()
  [True, True, True, False]
  """
  import moocore

  values = rows(points)
  finite = np.isfinite(values).all(axis=1)
  marked = np.zeros(len(values), bool)
  if finite.any():
    marked[finite] = moocore.is_nondominated(values[finite], maximise=True, keep_weakly=True)
  return marked


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
  """Volume of what the points dominate above a reference point.

  Exact for few tasks; of many points in more than about ten, where that would take hours, an estimate to
  about 1 % by samples that are the same in every call (Karp and Luby 1983, of a union of boxes).

  Args:
    points: `[points, tasks]`, higher is better; rows that are not finite do not count.
    reference: `[tasks]`, or one number for all; a point that does not exceed it everywhere adds nothing.

  Raises:
    ValueError: points, or a reference, of another shape; a reference that is not finite.

  >>> hypervolume([[1.0, 0.5], [0.5, 1.0]], [0.0, 0.0])
  0.75
  """
  import moocore

  values, at = rows(points), np.asarray(reference, np.float64)
  if at.shape not in ((), values.shape[1:]) or not np.isfinite(at).all():
    raise ValueError(
      f"reference is {shown(at.tolist())}; expected a finite number, or one for each of "
      f"{values.shape[1]} tasks."
    )
  at = np.broadcast_to(at, values.shape[1:])
  values = values[np.isfinite(values).all(axis=1)]
  values = values[(values > at).all(axis=1)]
  if not len(values):
    return 0.0
  if values.shape[1] == 1:
    return float(np.max(values) - at[0])
  values = np.unique(values[front(values)], axis=0)
  if len(values) * 2.0 ** values.shape[1] > EXACT:
    return _estimated(values - at)
  return float(moocore.hypervolume(values, ref=at, maximise=True))


def _estimated(boxes: np.ndarray) -> float:
  """Volume of a union of boxes from 0 to `[points, tasks]`: a place in several counts in each of them."""
  generator = np.random.default_rng(0)
  volumes = boxes.prod(axis=1)
  total = volumes.sum()
  drawn = generator.choice(len(boxes), SAMPLES, p=volumes / total) if total > 0 else np.zeros(SAMPLES, int)
  places = generator.random((SAMPLES, boxes.shape[1])) * boxes[drawn]
  times = sum((places <= box).all(axis=1).astype(int) for box in boxes)
  return float(total * (1 / times).mean())
