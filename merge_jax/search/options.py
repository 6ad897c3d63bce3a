"""What a proposer is made from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.errors import unknown
from merge_jax.search import baselines
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import best
from merge_jax.search.space import Space

STARTS = ("best", "uniform")
LINEAR = ("linear", "task_arithmetic")
"""Methods that are the same function of weights that sum to one."""


class Evidence(NamedTuple):
  """What a surrogate learns from.

  Attributes:
    answers: reads outputs as scores; see `merge_jax.search.surrogate.model.Answers`.
    outputs: of a record's merge.
  """

  answers: Any
  outputs: Callable[[Record], Any]


@dataclasses.dataclass(frozen=True)
class Options:
  """What every proposer is made from.

  Attributes:
    method: name of the merge rule that is searched.
    space: from vectors to its points.
    fitness: of the records.
    count: number of checkpoints.
    seed: of everything random.
    sigma: first step width; None takes the space's.
    population: candidates in a generation; None: 4 + 3 ln(size of the space).
    start: "best" starts from the best known point, "uniform" from 1/count.
    trajectory: known points beside the others, see `known_points`.
    metric: Gram matrix of the task vectors, `[K, K]`, or of those of all rows, for proposers that measure
      distances between merged models; None where it is not known.
    extra: further arguments of the proposer, by name.
    based: whether weights of zero give a base that is no mean of the pool.
    pareto: whether the front is searched, not the highest fitness.
    evidence: of evaluations; None where the scorer gives scores alone.
    batch: how many candidates are evaluated at once.

  Raises:
    ValueError: an unknown start.
  """

  method: str
  space: Space
  fitness: Fitness
  count: int
  seed: int = 0
  sigma: float | None = None
  population: int | None = None
  start: str = "best"
  trajectory: tuple[Point, ...] = ()
  metric: np.ndarray | None = None
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  based: bool = False
  pareto: bool = False
  evidence: Evidence | None = None
  batch: int = 1

  def __post_init__(self) -> None:
    if self.start not in STARTS:
      raise ValueError(unknown("start", self.start, STARTS))

  @property
  def linear(self) -> bool:
    """Whether known points tell how merges by the searched method score."""
    return self.method in LINEAR

  def usable(self, records: Sequence[Record]) -> np.ndarray:
    """Marks merges that did not fail, and depend on weights as the searched rule's do: bool `[records]`."""
    methods = {self.method, baselines.METHOD} if self.linear else {self.method}
    same = np.array([record.method in methods for record in records], bool)
    return same & np.isfinite(self.fitness.of(records))

  def first(self, known: Sequence[Record]) -> tuple[np.ndarray, float]:
    """The vector to start from and its fitness (-inf where that is not known)."""
    values = self.fitness.of(known)
    uniform = Point.of(np.full(self.count, 1.0 / self.count))
    at = best(values) if self.start == "best" else baselines.find(known, uniform)
    point = uniform if at is None else known[at].point
    x = self.space.encode(point)
    # A known point is a linear merge: it tells of the start only where that is about the same model.
    same = self.linear and np.allclose(self.space.decode(x).array, point.array, atol=0.05)
    value = float(np.nan_to_num(values[at], nan=-np.inf)) if same and at is not None else -np.inf
    return x, value

  @property
  def rows(self) -> int:
    """How many groups of tensors have weights of their own."""
    return max(self.space.weights // self.count, 1)

  @property
  def sums(self) -> int:
    """In how many rows the weights must be 0 or more and sum to one; 0: none."""
    return 0 if self.space.scaled else self.rows

  def weights(self, point: Point) -> np.ndarray:
    """The weights of a point for every group, in one row `[rows · count]`."""
    return np.broadcast_to(np.atleast_2d(point.array), (self.rows, self.count)).reshape(-1)

  def candidate(self, kind: str, x: np.ndarray) -> Candidate:
    """The candidate at a vector."""
    return Candidate(kind, self.method, self.space.decode(x))
