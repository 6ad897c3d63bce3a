"""A search on the surrogate: trust-region steps to its highest point, until it promises no more.

Each round learns from the answers of all evaluated merges, proposes the point of the region around the best
one where the smoothed fitness is foreseen to be highest, and widens or narrows the region by what came true.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.search import baselines
from merge_jax.search.journal import Record
from merge_jax.search.loop import Generations, Proposal
from merge_jax.search.options import Options
from merge_jax.search.point import Candidate, Point
from merge_jax.search.surrogate import process
from merge_jax.search.surrogate.directions import Direction, importances
from merge_jax.search.surrogate.model import Model, learn
from merge_jax.search.surrogate.region import Metric, highest

RADIUS = 0.5
"""Of the first region, in lengths of a task vector."""
PROMISE, STEP = 3e-4, 0.01
"""A round that is foreseen to gain less, or that moves less, is idle."""
IDLE = 2
"""Idle rounds that end a search."""
STUCK = 20
"""Utilities in turn that lead nowhere and end a search along the front."""
WIDE = 3.0
"""Of the region that an idle round looks at, hopefully and from every evaluated point."""


def surrogate(known: Sequence[Record], options: Options) -> Generations:
  """Steps to the highest point of the surrogate; ends when it promises nothing, and returns what it does.

  Raises:
    ValueError: evaluations without outputs.
  """
  if options.evidence is None:
    raise ValueError(
      "The surrogate needs what models answer at target positions; this scorer gives scores alone."
    )
  records = list(known)
  if options.based:
    zero = Point.of(np.zeros((options.rows, options.count) if options.rows > 1 else options.count))
    records += yield Proposal([Candidate("base", options.method, zero)])
  return (yield from (_front if options.pareto else _summit)(records, options))


def _summit(records: list[Record], options: Options) -> Generations:
  """To the highest point."""
  here = View.of(records, options)
  radius, idle, promise = RADIUS, 0, None
  while here is not None and idle < IDLE:
    z, promise = _step(here, radius, options)
    length = float(np.linalg.norm(z))
    if wide := promise < PROMISE or length < STEP:
      z, promise = _step(here, WIDE, options, hopeful=True)
    made = yield Proposal([_candidate(here, z, options)], here.best.point)
    records += made
    there = View.of(records, options, here.model.process.theta)
    if there is None:
      return None
    gain = there.height(made[-1]) - there.height(here.best)
    idle = idle + 1 if wide and gain < PROMISE else 0
    if wide:
      radius = RADIUS
    elif gain < 0.2 * promise:
      radius /= 2
    elif length > 0.9 * radius:
      radius *= 1.6
    here = there
  return promise


def _front(records: list[Record], options: Options) -> Generations:
  """Along the front: a step to the highest point of one utility after the other, until none leads further."""
  stuck = 0
  for importance in importances(len(options.fitness.tasks), options.seed):
    toward = Direction.toward(options.fitness, importance, records)
    here = View.of(records, dataclasses.replace(options, fitness=toward))
    if here is None:
      return None
    z, promise = _step(here, RADIUS, options)
    if promise < PROMISE or np.linalg.norm(z) < STEP:
      z, _ = _step(here, WIDE, options, hopeful=True)
    if np.linalg.norm(z) < STEP:
      stuck += 1
      if stuck == STUCK:
        return 0.0
      continue
    stuck = 0
    records += yield Proposal([_candidate(here, z, options)])
  return None


def _candidate(view: "View", z: np.ndarray, options: Options) -> Candidate:
  weights = view.metric.weights(z).reshape(-1, options.count)
  if not options.space.scaled:  # what the optimiser keeps to its tolerance only
    weights = np.maximum(weights, 0.0) / np.maximum(weights, 0.0).sum(axis=1, keepdims=True)
  point = Point.of(weights if options.rows > 1 else weights[0])
  return Candidate("surrogate", options.method, point)


class View(NamedTuple):
  """The surrogate of all records so far, around the best of them.

  Attributes:
    records: those it has learned from.
    heights: float64 `[records]`, their smoothed fitness, from their own answers.
    model: of their answers.
    metric: of its points; the best record lies at 0.
  """

  records: list[Record]
  heights: np.ndarray
  model: Model
  metric: Metric

  @classmethod
  def of(
    cls, records: Sequence[Record], options: Options, start: np.ndarray = process.START
  ) -> "View | None":
    """None with fewer than two records to learn from."""
    usable = _usable(records, options)
    if len(usable) < 2 or options.evidence is None:
      return None
    fitness, evidence = options.fitness, options.evidence
    table = evidence.answers.table([evidence.outputs(record) for record in usable], fitness.uses_losses)
    signs = -np.ones(len(fitness.tasks)) if fitness.uses_losses else np.array(fitness.signs)
    singles = fitness.singles(records)
    none = np.zeros(len(signs))
    scores = [table.smoothed(row, none).scores * signs for row in table.values]
    heights = fitness.aggregated(np.array(scores), singles)
    weights = np.array([options.weights(record.point) for record in usable])
    gram = np.eye(weights.shape[1]) if options.metric is None else options.metric
    metric = Metric.of(gram, weights[np.argmax(heights)])
    model = learn(metric.z(weights), table, fitness, signs, singles, start)
    return cls(usable, heights, model, metric)

  @property
  def best(self) -> Record:
    """The record that is highest."""
    return self.records[int(np.argmax(self.heights))]

  def height(self, record: Record) -> float:
    """That of an evaluated merge; -inf if it failed."""
    return next(
      (float(h) for one, h in zip(self.records, self.heights, strict=True) if one is record), -np.inf
    )


def _step(view: View, radius: float, options: Options, *, hopeful: bool = False) -> tuple[np.ndarray, float]:
  """The point of the region that is foreseen to be best, and its gain over the best so far.

  A hopeful step starts from all evaluated points of the region and takes predictions as they are.
  """

  def value(z: np.ndarray) -> tuple[float, np.ndarray]:
    return view.model.at(z, hopeful=hopeful)

  zero = np.zeros(options.space.weights)
  starts = [zero]
  if hopeful:
    starts += [z for z in view.model.process.points if STEP < np.linalg.norm(z) < radius]
  z, top = highest(value, view.metric, radius, starts, sums=0 if options.space.scaled else options.rows)
  return z, top - value(zero)[0]


def _usable(records: Sequence[Record], options: Options) -> list[Record]:
  """The records of merges that depend on their weights as the searched method's do, and did not fail."""
  methods = {options.method, baselines.METHOD} if options.linear else {options.method}
  values = options.fitness.of(records)
  return [
    record for record, value in zip(records, values, strict=True)
    if record.method in methods and np.isfinite(value)
  ]  # fmt: skip
