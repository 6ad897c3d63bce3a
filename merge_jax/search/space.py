"""Spaces: from a vector that an optimiser moves to the weights of a merge, and back."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from merge_jax.errors import unknown

SPACES = ("simplex", "softmax", "free")


class Space(NamedTuple):
  """A parameterisation of K weights.

  Attributes:
    name: one of `SPACES`.
    weights: vector `[K]` to weights `[K]`.
    point: weights to a vector that gives them, where there is one.
    bounds: of each coordinate, or None.
    sigma: a first step width that suits the space.
  """

  name: str
  weights: Callable[[np.ndarray], np.ndarray]
  point: Callable[[np.ndarray], np.ndarray]
  bounds: tuple[float, float] | None
  sigma: float


def space(name: str) -> Space:
  """A space by name.

      simplex   clip at 0, divide by the sum (the paper's)
      softmax   exp(x) / Σ exp(x)
      free      the vector itself: task arithmetic; negative and above 1 allowed

  >>> space("simplex").weights(np.array([1.0, 3.0, -1.0])).tolist()
  [0.25, 0.75, 0.0]
  """
  if name == "simplex":
    return Space(name, _simplex, np.asarray, (0.0, 1.0), 0.1)
  if name == "softmax":
    return Space(name, _softmax, _log, None, 0.5)
  if name == "free":
    return Space(name, np.asarray, np.asarray, None, 0.1)
  raise ValueError(unknown("search space", name, SPACES))


def _simplex(x: np.ndarray) -> np.ndarray:
  x = np.maximum(np.asarray(x, np.float64), 0.0)
  total = x.sum()
  return x / total if total > 1e-12 else np.full(len(x), 1.0 / len(x))


def _softmax(x: np.ndarray) -> np.ndarray:
  e = np.exp(np.asarray(x, np.float64) - np.max(x))
  return e / e.sum()


def _log(weights: np.ndarray) -> np.ndarray:
  logs = np.log(np.maximum(weights, 1e-3))  # 0 has no logarithm: a hundredth of a typical weight
  return logs - logs.mean()
