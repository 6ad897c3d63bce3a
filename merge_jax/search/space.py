"""Spaces: from a vector that an optimiser moves to a point, and back. Optimisers know vectors alone."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from merge_jax.errors import unknown
from merge_jax.search.point import Point

Decode = Callable[[np.ndarray], Point]
Encode = Callable[[Point], np.ndarray]
Along = Callable[[int, float], np.ndarray]
Draw = Callable[[np.random.Generator], Point]


class Number(NamedTuple):
  """A number of a merge rule that can be searched; its coordinate runs from 0 to 1.

  Attributes:
    low, high: its range.
    start: where a search begins.
    log: equal steps are equal ratios, not equal differences.
  """

  low: float
  high: float
  start: float
  log: bool = False

  def at(self, x: float) -> float:
    """The number at a coordinate, kept within its range.

    >>> round(Number(0.01, 1.0, 0.2, log=True).at(0.5), 6)
    0.1
    """
    x = min(max(float(x), 0.0), 1.0)
    if self.log:
      return float(np.float32(self.low * (self.high / self.low) ** x))
    return float(np.float32(self.low + (self.high - self.low) * x))

  def coordinate(self, value: float) -> float:
    """The coordinate of a number."""
    if self.log:
      return math.log(value / self.low) / math.log(self.high / self.low)
    return (value - self.low) / (self.high - self.low)


NO_NUMBERS: Mapping[str, Number] = MappingProxyType({})


class Space(NamedTuple):
  """A parameterisation of what is searched.

  Attributes:
    size: length of the vector.
    decode: vector `[size]` to the point.
    encode: a point to a vector that gives it, where there is one; a row of weights stands for all rows, and
      a number that the point lacks is at its start.
    draw: a point at random.
    bounds: lowest and highest coordinate, for all or one by one; None.
    step: a first step width that suits the space.
    scaled: whether the length of the weights matters, not their direction alone.
    weights: how many coordinates are weights, one for each model and row; they come first.
  """

  size: int
  decode: Decode
  encode: Encode
  draw: Draw
  bounds: tuple[ArrayLike, ArrayLike] | None
  step: float
  scaled: bool
  weights: int


def space(
  name: str,
  count: int,
  *,
  rows: int = 0,
  numbers: Mapping[str, Number] = NO_NUMBERS,
  along: Along | None = None,
) -> Space:
  """A space of one weight for each of `count` models, by name.

      simplex     clip at 0, divide by the sum (the paper's)
      softmax     exp(x) / Σ exp(x)
      free        the vector itself; negative and above 1 allowed
      trajectory  window and schedule of a merge along a run: two numbers, whatever the count

  Args:
    name: of the space.
    count: of models.
    rows: of weights, one for each group of tensors; 0: one for the model, as `[K]`.
    numbers: of the merge rule, searched beside the weights.
    along: for `trajectory`: weights `[count]` from a window, 1 to `count`, and p of a decay by 1 - xᵖ.

  Raises:
    ValueError: an unknown name; `trajectory` without `along`, or with rows.

  >>> space("simplex", 3).decode(np.array([1.0, 3.0, -1.0])).weights
  (0.25, 0.75, 0.0)
  >>> space("free", 2, numbers={"density": Number(0.0, 1.0, 0.2)}).decode(np.array([1.0, 2.0, 0.5]))
  Point(weights=(1.0, 2.0), numbers={'density': 0.5})
  """
  if name not in SPACES:
    raise ValueError(unknown("search space", name, SPACES))
  if name == "trajectory" and (along is None or rows):
    raise ValueError(
      "Space 'trajectory' needs the steps of all checkpoints along their run, and one row of weights."
    )
  own = SPACES[name](count, along)
  own = _with_rows(own, rows) if rows else own
  return _with_numbers(own, numbers) if numbers else own


def _with_rows(own: Space, rows: int) -> Space:
  def decode(x: np.ndarray) -> Point:
    return Point.of(np.stack([own.decode(row).array for row in np.reshape(x, (rows, own.size))]))

  def encode(point: Point) -> np.ndarray:
    weights = np.broadcast_to(np.atleast_2d(point.array), (rows, own.size))
    return np.concatenate([own.encode(Point.of(row)) for row in weights])

  def draw(generator: np.random.Generator) -> Point:
    return Point.of(np.stack([own.draw(generator).array for _ in range(rows)]))

  return own._replace(
    size=rows * own.size, decode=decode, encode=encode, draw=draw, weights=rows * own.weights
  )


def _with_numbers(own: Space, numbers: Mapping[str, Number]) -> Space:
  def with_numbers(point: Point, coordinates: np.ndarray) -> Point:
    pairs = zip(numbers.items(), coordinates, strict=True)
    return Point(point.weights, {name: number.at(x) for (name, number), x in pairs})

  def decode(x: np.ndarray) -> Point:
    return with_numbers(own.decode(np.asarray(x)[: own.size]), np.asarray(x)[own.size :])

  def encode(point: Point) -> np.ndarray:
    further = [number.coordinate(point.numbers.get(name, number.start)) for name, number in numbers.items()]
    return np.concatenate([own.encode(Point(point.weights)), further])

  def draw(generator: np.random.Generator) -> Point:
    return with_numbers(own.draw(generator), generator.random(len(numbers)))

  low, high = (-np.inf, np.inf) if own.bounds is None else own.bounds
  count = len(numbers)
  bounds = (
    np.concatenate([np.full(own.size, low), np.zeros(count)]),
    np.concatenate([np.full(own.size, high), np.ones(count)]),
  )
  return own._replace(size=own.size + count, decode=decode, encode=encode, draw=draw, bounds=bounds)


def _trajectory(count: int, along: Along | None) -> Space:
  """Window and p: 1 stands for a linear decay, the mean of the window, 1/2 for `minus_sqrt`."""
  power = Number(0.25, 4.0, 1.0, log=True)

  def decode(x: np.ndarray) -> Point:
    assert along is not None
    window = 1 + round(min(max(float(x[0]), 0.0), 1.0) * (count - 1))
    return Point.of(along(window, power.at(x[1])))

  def encode(point: Point) -> np.ndarray:
    grid = [np.array([i / max(count - 1, 1), j / 16]) for i in range(count) for j in range(17)]
    return min(grid, key=lambda x: float(np.abs(decode(x).array - point.array).sum()))

  def draw(generator: np.random.Generator) -> Point:
    return decode(generator.random(2))

  return Space(2, decode, encode, draw, (0.0, 1.0), 0.2, False, 0)


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


def _plain(
  count: int, decode: Decode, encode: Encode, bounds: tuple[float, float] | None, step: float, scaled: bool
) -> Space:
  def draw(generator: np.random.Generator) -> Point:
    return Point.of(generator.dirichlet(np.ones(count)))

  return Space(count, decode, encode, draw, bounds, step, scaled, count)


SPACES: dict[str, Callable[[int, Along | None], Space]] = {
  "simplex": lambda count, along: _plain(count, _simplex, _weights, (0.0, 1.0), 0.1, False),
  "softmax": lambda count, along: _plain(count, _softmax, _log, None, 0.5, False),
  "free": lambda count, along: _plain(count, Point.of, _weights, None, 0.1, True),
  "trajectory": _trajectory,
}
