"""Points: what is searched, decoded from the vector that an optimiser moves."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

Row = tuple[float, ...]


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
  """Weights of a merge, and numbers of its operator.

  Attributes:
    weights: `[K]`, or `[G, K]` where groups of tensors have rows of their own.
    numbers: the operator's by name (density, scaling, t), where they are searched.

  >>> Point((0.5, 0.5)) == Point.of(np.array([0.5, 0.5]))
  True
  >>> len({Point((1.0,), {"t": 0.5, "scaling": 2.0}), Point((1.0,), {"scaling": 2.0, "t": 0.5})})
  1
  """

  weights: Annotated[tuple[float | Row, ...], msgspec.Meta(min_length=1)]
  numbers: dict[str, float] = {}

  def __hash__(self) -> int:
    return hash((self.weights, frozenset(self.numbers.items())))

  def __post_init__(self) -> None:
    lengths = {len(row) if isinstance(row, tuple) else 0 for row in self.weights}
    if len(lengths) > 1:
      raise ValueError("The weights of a point have rows of different lengths.")

  @classmethod
  def of(cls, weights: np.ndarray, numbers: dict[str, float] | None = None) -> "Point":
    """The point with weights `[K]` or `[G, K]`."""
    plain = np.asarray(weights, np.float64).tolist()
    rows = tuple(tuple(row) if isinstance(row, list) else row for row in plain)
    return cls(rows, dict(numbers or {}))

  @property
  def array(self) -> np.ndarray:
    """The weights, float64."""
    return np.array(self.weights, np.float64)

  @property
  def mean_weights(self) -> np.ndarray:
    """One weight for each model, `[K]`: the mean over groups where there are some."""
    return np.atleast_2d(self.array).mean(axis=0)

  def near(self, other: "Point", atol: float) -> bool:
    """Whether weights and numbers are the same up to `atol`."""
    return (
      self.array.shape == other.array.shape
      and self.numbers.keys() == other.numbers.keys()
      and np.allclose(self.array, other.array, rtol=0, atol=atol)
      and all(abs(value - other.numbers[name]) <= atol for name, value in self.numbers.items())
    )


def mean_of(points: Sequence[Point]) -> Point:
  """The mean of points of one shape."""
  numbers = {name: float(np.mean([p.numbers[name] for p in points])) for name in points[0].numbers}
  return Point.of(np.mean([point.array for point in points], axis=0), numbers)


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """A merge to evaluate.

  Attributes:
    kind: one of `baselines.KINDS`, or the proposer's name.
    method: the merge rule's name, such as "linear" or "task_arithmetic".
    point: what that method is given.
  """

  kind: str
  method: str
  point: Point

  def same_model(self, other: "Candidate") -> bool:
    """Whether both are the same merge, whoever proposed it."""
    return self.method == other.method and self.point == other.point
