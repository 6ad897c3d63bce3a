"""What each checkpoint adds to a merge, task by task, as the surrogate of answers foresees it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from merge_jax.search.journal import Record
from merge_jax.search.options import Options
from merge_jax.search.point import Point
from merge_jax.search.surrogate.view import View

NOTHING = 1e-12
"""A weight of no more is none."""
LEAST = 0.1
"""The share of a sum that must be left: less is blown up to a merge that has little to do with the first."""


def without(point: Point, index: int, *, based: bool, linear: bool = True) -> Point | None:
  """A merge's point without one checkpoint; None if that has no weight, or if nothing is left.

  On a base the weights of the others stay; without one they grow, so that their sum stays. Where the mean of
  the pool stands for a base, a linear merge stays when all weights move alike: first they come to sum to 1.

  >>> without(Point((0.5, 0.25, 0.25)), 0, based=False).weights
  (0.0, 0.5, 0.5)
  >>> without(Point((1.0, 0.5)), 1, based=True).weights
  (1.0, 0.0)
  >>> without(Point((1.0, 0.0)), 0, based=False)
  """
  weights = point.array
  if linear and not based:
    weights += (1.0 - weights.sum(axis=-1, keepdims=True)) / weights.shape[-1]
  if np.all(np.abs(weights[..., index]) < NOTHING):
    return None
  before = weights.sum(axis=-1, keepdims=True)
  weights[..., index] = 0.0
  if based:
    return Point.of(weights) if np.any(weights) else None
  left = weights.sum(axis=-1, keepdims=True)
  return Point.of(weights * (before / left)) if np.all(left > LEAST * before) else None


def foreseen(records: Sequence[Record], options: Options, point: Point) -> np.ndarray | None:
  """Smoothed scores of a merge, higher is better, less those of the merge without each checkpoint.

  What is below zero is a collision: the task would be better without this checkpoint.

  Args:
    records: of the search, with their outputs (`Options.evidence`).
    options: of the search.
    point: whose checkpoints are left out one by one.

  Returns:
    float64 `[K, tasks]`; NaN for a checkpoint that cannot be left out. None with nothing to learn from.
  """
  options = dataclasses.replace(options, fitness=dataclasses.replace(options.fitness, source="metric"))
  view = View.of(records, options)
  if view is None:
    return None

  def scores(one: Point) -> np.ndarray:
    return view.model.scores(view.metric.z(options.weights(one)))

  whole = scores(point)
  parts = [without(point, i, based=options.based) for i in range(options.count)]
  none = np.full(len(whole), np.nan)
  return np.array([none if part is None else whole - scores(part) for part in parts])
