"""Spaces: from a vector that an optimiser moves to a point, and back. Optimisers know vectors alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from merge_jax.errors import unknown
from merge_jax.search.point import Point


class Space(NamedTuple):
  """A parameterisation of what is searched.

  Attributes:
    size: length of the vector.
    decode: vector `[size]` to the point.
    encode: a point to a vector that gives it, where there is one.
    bounds: lowest and highest coordinate, or None.
    step: a first step width that suits the space.
    scaled: whether the length of the vector matters, not its direction alone.
  """

  size: int
  decode: Callable[[np.ndarray], Point]
  encode: Callable[[Point], np.ndarray]
  bounds: tuple[float, float] | None
  step: float
  scaled: bool


def space(name: str, count: int) -> Space:
  """A space of one weight for each of `count` models, by name.

      simplex   clip at 0, divide by the sum (the paper's)
      softmax   exp(x) / Σ exp(x)
      free      the vector itself; negative and above 1 allowed

  >>> space("simplex", 3).decode(np.array([1.0, 3.0, -1.0])).weights
  (0.25, 0.75, 0.0)
  """
  if name not in SPACES:
    raise ValueError(unknown("search space", name, SPACES))
  return SPACES[name](count)


def _weights(point: Point) -> np.ndarray:
  return point.array


def _simplex(x: np.ndarray) -> Point:
  x = np.maximum(np.asarray(x, np.float64), 0.0)
  total = x.sum()
  return Point.of(x / total if total > 1e-12 else np.full(len(x), 1.0 / len(x)))


def _softmax(x: np.ndarray) -> Point:
  e = np.exp(np.asarray(x, np.float64) - np.max(x))
  return Point.of(e / e.sum())


def _log(point: Point) -> np.ndarray:
  logs = np.log(np.maximum(point.array, 1e-3))  # 0 has no logarithm: a hundredth of a typical weight
  return logs - logs.mean()


SPACES: dict[str, Callable[[int], Space]] = {
  "simplex": lambda count: Space(count, _simplex, _weights, (0.0, 1.0), 0.1, False),
  "softmax": lambda count: Space(count, _softmax, _log, None, 0.5, False),
  "free": lambda count: Space(count, Point.of, _weights, None, 0.1, True),
}
