"""The merge whose gain is surest: what is foreseen of it is furthest beyond what chance gives.

The highest point of a surrogate is the one that the search's examples flatter most. Others near it gain
almost as much by what more of the examples agree on: their paired errors are smaller, so that validation
examples can see their gains (variance regularization: Maurer and Pontil, arXiv:0907.3740; Duchi and Namkoong,
arXiv:1610.02581).
"""

from collections.abc import Sequence

import numpy as np

from merge_jax.search import baselines
from merge_jax.search.journal import Record
from merge_jax.search.options import Options
from merge_jax.search.point import Point
from merge_jax.search.surrogate.model import Foreseen
from merge_jax.search.surrogate.region import highest
from merge_jax.search.surrogate.steps import How
from merge_jax.search.surrogate.view import View

ERRORS = 1.5
"""Paired errors that are taken off what is foreseen, times √rows: in more directions chance finds more."""
RADIUS = 0.5
"""Of the region around the best point, in lengths of a task vector (of a part's, where there are parts)."""


def surest(records: Sequence[Record], options: Options) -> Point | None:
  """The point whose foreseen fitness is highest, less `ERRORS` √rows paired errors of its gain.

  The gain is over the known point, the base among them, that is highest on the search's examples.

  Args:
    records: of the search, with their outputs (`Options.evidence`).
    options: of the search.

  Returns:
    The point; None where answers were not kept, or no known point was evaluated.
  """
  view = View.of(records, options)
  if view is None:
    return None
  heights = np.where(baselines.searched(view.records), -np.inf, view.heights)
  if not np.isfinite(heights).any():
    return None
  known = view.metric.z(options.weights(view.records[int(np.argmax(heights))].point))
  errors = ERRORS * np.sqrt(options.rows)

  def value(z: np.ndarray) -> Foreseen:
    fitness, error = view.model.at(z, caution=How().caution), view.model.error(z, known)
    if not np.isfinite(error.value):  # as of a task of one unit
      return fitness
    return Foreseen(fitness.value - errors * error.value, fitness.slope - errors * error.slope)

  z, _ = highest(value, view.metric, RADIUS, [np.zeros(len(known))], sums=options.sums)
  return view.candidate(z).point
