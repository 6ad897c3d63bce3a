"""Scores merges of one pool: combine and all tasks in one jitted program, nothing written."""

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from merge_jax.errors import unknown
from merge_jax.evals.answers import Outputs
from merge_jax.evals.examples import Examples
from merge_jax.evals.scoring import Scorer
from merge_jax.sharding import Layout

PyTree = Any
T = TypeVar("T")


class Evaluation(NamedTuple):
  """What one model scored.

  Attributes:
    scores: by task, NaN where it failed.
    losses: mean negative log-likelihood by task in nats, or None where the scorer gives scores alone.
    examples: every example's score, or None where the scorer gives scores alone.
    outputs: what a surrogate learns from (`Outputs`), where it was asked for.
  """

  scores: Mapping[str, float]
  losses: Mapping[str, float] | None = None
  examples: Examples | None = None
  outputs: Outputs | None = None


class Merge(NamedTuple):
  """How points of one method become models.

  Attributes:
    function: pure and traceable, `(source, weights, numbers) -> params`, with weights `[K]` or
      `[G, K]` and scalars by name, float32.
    source: what it reads; passed as an argument, since a closure would bake the pool in as constants.
  """

  function: Callable[[PyTree, ArrayLike, Mapping[str, ArrayLike]], PyTree]
  source: PyTree

  def at(self, point: "Point") -> PyTree:
    """The parameters at a point."""
    numbers = {name: np.float32(value) for name, value in point.numbers.items()}
    return self.function(self.source, np.asarray(point.array, np.float32), numbers)


class Point(Protocol):
  """What is merged; see `merge_jax.search.Point`."""

  @property
  def array(self) -> np.ndarray: ...
  @property
  def numbers(self) -> Mapping[str, float]: ...


class Candidate(Protocol):
  """A merge to evaluate; see `merge_jax.search.Candidate`."""

  @property
  def method(self) -> str: ...
  @property
  def point(self) -> Any: ...


class JittedObjective:
  """Merges and scores a batch of candidates in one compiled program.

  Args:
    merges: by method.
    scorers: by split.
    batch: candidates in one call; fewer are padded, so that nothing retraces.
    layout: the mesh, and where parameters lie; its axis `candidate` divides a batch. None: as they lie.
    in_turn: all merges of a batch are made in one pass over the pool, then scored one after the other, each
      by the whole mesh; without it all is side by side (`vmap`).

  A change of weights never compiles again; if it does, that is a RuntimeError, since it would
  silently cost seconds a candidate.

  Raises:
    ValueError: a batch that the mesh does not divide.
  """

  def __init__(
    self,
    merges: Mapping[str, Merge],
    scorers: Mapping[str, Scorer],
    batch: int = 1,
    layout: Layout | None = None,
    *,
    in_turn: bool = False,
  ):
    self._side = 1 if layout is None else layout.mesh.shape["candidate"]
    self.batch = batch if layout is None else batch_of(batch, layout.mesh)
    self._merges, self._scorers, self._layout, self._in_turn = merges, scorers, layout, in_turn
    self._programs: dict[tuple[str, str, int], Callable[..., PyTree]] = {}

  def _program(self, method: str, split: str, axes: int) -> Callable[..., PyTree]:
    """That of a method and split, for weights `[K]` or, with two axes, `[G, K]`."""
    key = method, split, axes
    if key not in self._programs:
      self._programs[key] = self._made(method, split)
    return self._programs[key]

  def _made(self, method: str, split: str) -> Callable[..., PyTree]:
    score, merge, traces = named("split", split, self._scorers).function, self._merge(method), [0]

    def run(source: PyTree, weights: Array, numbers: Mapping[str, Array], data: Any) -> PyTree:
      traces[0] += 1
      if traces[0] > 1:
        raise RuntimeError(
          f"The program of method {method!r} on split {split!r} was traced twice: candidates "
          "must not differ in shape, dtype or sharding."
        )

      def scored(params: PyTree) -> PyTree:
        with jax.named_scope("evaluate"):
          return score(params, data)

      def one(weights: Array, numbers: Mapping[str, Array]) -> PyTree:
        return scored(merge(source, weights, numbers))

      if self.batch == 1:
        found = one(weights[0], {name: value[0] for name, value in numbers.items()})
        return jax.tree.map(lambda x: x[None], found)
      if self._in_turn:
        return jax.lax.map(scored, jax.vmap(functools.partial(merge, source))(weights, numbers))
      return jax.vmap(one, spmd_axis_name="candidate" if self._side > 1 else None)(weights, numbers)

    whole = None if self._layout is None else self._layout.replicated
    return jax.jit(run, out_shardings=whole)

  def _merge(self, method: str) -> Callable[..., PyTree]:
    """The method's merge, laid out; "merge" in profiles."""
    function, layout = named("method", method, self._merges).function, self._layout

    def merge(source: PyTree, weights: Array, numbers: Mapping[str, Array]) -> PyTree:
      with jax.named_scope("merge"):
        params = jax.tree.map(_rounded, function(source, weights, numbers))
        return params if layout is None else layout.constrain(params)

    return merge

  def on(self, sources: Mapping[str, PyTree]) -> "JittedObjective":
    """The same compiled programs for other sources of the same shapes, by method."""
    other = copy.copy(self)
    other._merges = {m: merge._replace(source=sources[m]) for m, merge in self._merges.items()}
    return other

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> list[Evaluation]:
    """Scores, losses and examples of each candidate, in order."""
    results: dict[int, Evaluation] = {}
    alike = [(candidate.method, candidate.point.array.ndim) for candidate in candidates]
    for method, axes in dict.fromkeys(alike):
      places = [i for i, one in enumerate(alike) if one == (method, axes)]
      for start in range(0, len(places), self.batch):
        part = places[start : start + self.batch]
        found = self._call(method, split, [candidates[i].point for i in part])
        results |= dict(zip(part, found, strict=True))
    return [results[i] for i in range(len(candidates))]

  def arguments(self, method: str, split: str, points: Sequence[Point]) -> tuple[Any, ...]:
    """What the program of a method and split is called with."""
    padded = [*points, *[points[-1]] * (self.batch - len(points))]
    weights = np.stack([point.array for point in padded]).astype(np.float32)
    numbers = {name: np.array([p.numbers[name] for p in padded], np.float32) for name in points[0].numbers}
    return self._merges[method].source, weights, numbers, self._scorers[split].batches

  def _call(self, method: str, split: str, points: Sequence[Point]) -> list[Evaluation]:
    with using(self._layout):
      program = self._program(method, split, points[0].array.ndim)
      values = program(*self.arguments(method, split, points))
    values = jax.tree.map(np.asarray, values)
    scorer = self._scorers[split]
    return [evaluation(scorer, jax.tree.map(lambda x, i=i: x[i], values)) for i in range(len(points))]

  def lower(self, method: str, split: str, points: Sequence[Point]) -> Any:
    """The program of `evaluate` lowered, not run: sources and data may be abstract."""
    with using(self._layout):
      program: Any = self._program(method, split, points[0].array.ndim)
      return program.lower(*self.arguments(method, split, points))

  def merge_seconds(self, candidate: Candidate) -> float:
    """Seconds that the merge of one candidate of a batch takes alone, the best of three."""
    merge = self._merge(candidate.method)
    source, weights, numbers, _ = self.arguments(
      candidate.method, next(iter(self._scorers)), [candidate.point]
    )

    def run(source: PyTree, weights: Array, numbers: Mapping[str, Array]) -> PyTree:
      if self.batch == 1:
        return merge(source, weights[0], {name: value[0] for name, value in numbers.items()})
      axis = "candidate" if self._side > 1 and not self._in_turn else None
      return jax.vmap(functools.partial(merge, source), spmd_axis_name=axis)(weights, numbers)

    program = jax.jit(run)
    with using(self._layout):
      return quickest(lambda: program(source, weights, numbers)) / self.batch


def _rounded(x: Array) -> Array:
  """A tensor as it would be written: XLA leaves conversions to 16 bits and back out on GPUs."""
  return jax.lax.optimization_barrier(x) if x.dtype.itemsize < 4 else x


def named(kind: str, name: str, known: Mapping[str, T]) -> T:
  """What an objective has of that name; ValueError if it has none."""
  if name not in known:
    raise ValueError(unknown(kind, name, known, "objective"))
  return known[name]


def batch_of(batch: int, mesh: Mesh) -> int:
  """Candidates of one program call: 1 is as many as the mesh evaluates side by side.

  Raises:
    ValueError: a number that the mesh does not divide.
  """
  side = mesh.shape["candidate"]
  if batch > 1 and batch % side:
    raise ValueError(
      f"A batch of {batch} candidates is not a multiple of the {side} that the mesh evaluates side by side; "
      "change config.search.batch or the axis candidate of the mesh."
    )
  return side if batch == 1 else batch


def quickest(call: Callable[[], PyTree], times: int = 3) -> float:
  """Seconds of the quickest call, after one that may compile."""
  jax.block_until_ready(call())
  taken = []
  for _ in range(times):
    start = time.perf_counter()
    jax.block_until_ready(call())
    taken.append(time.perf_counter() - start)
  return min(taken)


def using(layout: Layout | None) -> Any:
  """The context of a layout's mesh."""
  return contextlib.nullcontext() if layout is None else jax.set_mesh(layout.mesh)


def evaluation(scorer: Scorer, found: Any) -> Evaluation:
  """Of what a scorer's function gave."""
  outputs = None
  if scorer.answers is not None:
    found, details = found
    outputs = scorer.answers.read(details)
  examples = scorer.read(found)
  return Evaluation(examples.scores(), examples.scores(loss=True), examples, outputs)


class FunctionObjective:
  """Merges, then calls a function `(params, split) -> Evaluation` on the host, one candidate at a time.

  Args:
    merges: by method.
    score: any function of parameters and the split's name; an exception ends the search, and the journal
      stays.
  """

  batch = 1

  def __init__(self, merges: Mapping[str, Merge], score: Callable[[PyTree, str], Evaluation]):
    self._merges, self._score = merges, score

  def evaluate(self, candidates: Sequence[Candidate], split: str) -> list[Evaluation]:
    """Scores of each candidate, in order."""
    merged = (named("method", one.method, self._merges).at(one.point) for one in candidates)
    return [self._score(params, split) for params in merged]

  def merge_seconds(self, candidate: Candidate) -> float:
    """Seconds that a merge takes alone, the best of three."""
    return quickest(lambda: self._merges[candidate.method].at(candidate.point))
