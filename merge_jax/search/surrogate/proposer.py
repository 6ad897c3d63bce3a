"""A search on the surrogate: trust-region steps to its highest point, until it promises no more.

Each round learns from the answers of all evaluated merges, proposes the point of the region around the best
one where the smoothed fitness is foreseen to be highest, and widens or narrows the region by what came true.
Where it first promises no more, it looks at the directions it knows least: a step measures one of them, and a
slope that was never measured is foreseen as none.
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

CAUTION = 0.3
"""How much of the variance that it thinks its predictions have a surrogate takes off what it foresees."""
LEAST = 0.3
"""Paired errors over the examples, less than which is no promise."""
RADIUS = 0.5
"""Of the first region, in lengths of a task vector."""
WIDE = 3.0
"""Of the region that an idle round looks at, hopefully and from every evaluated point."""
SHORT = 0.01
"""A step that is shorter leads nowhere."""
PROBES = 8
"""Directions that are looked at before it is believed that there is nothing more, at most."""
PROBE = 0.25
"""Length of these looks, in lengths of a task vector."""
UNSURE = 0.05
"""Variance of the slopes of outputs of unit variance, below which a direction is known."""
IDLE = 2
"""Idle rounds that end a search."""
STUCK = 20
"""Utilities in turn that lead nowhere and end a search along the front."""


def surrogate(
  known: Sequence[Record],
  options: Options,
  *,
  caution: float = CAUTION,
  least: float = LEAST,
) -> Generations:
  """Steps to the highest point of the surrogate; ends when it promises nothing, and returns what it does.

  Without known points it opens with the checkpoints and their mean: a surrogate foresees the other soups.

  Args:
    known, options: of every proposer.
    caution, least: see `CAUTION` and `LEAST`.

  Raises:
    ValueError: evaluations without outputs.
  """
  if options.evidence is None:
    raise ValueError(
      "The surrogate needs what models answer at target positions; this scorer gives scores alone."
    )
  records = list(known)
  if opening := _opening(known, options):
    records += yield Proposal(opening)
  how = How(caution, least)
  return (yield from (_front if options.pareto else _summit)(records, options, how))


def _opening(known: Sequence[Record], options: Options) -> list[Candidate]:
  """What is evaluated before anything is foreseen."""
  count, found = options.count, list[Candidate]()
  if not known:
    found += [Candidate("single", baselines.METHOD, baselines.one_hot(i, count)) for i in range(count)]
    if count > 1:
      found.append(Candidate("uniform", baselines.METHOD, baselines.soup(range(count), count)))
  if options.based:
    shape = (options.rows, count) if options.rows > 1 else (count,)
    found.append(Candidate("base", options.method, Point.of(np.zeros(shape))))
    if options.metric is not None and count > 1:
      found.append(Candidate("surrogate", options.method, Point.of(np.full(shape, whole(options.metric)))))
  return found


def whole(gram: np.ndarray) -> float:
  """The equal weight at which a sum of task vectors holds the whole of each, in the mean.

      λ = mean of |τᵢ|² / (τᵢ · Σⱼ τⱼ)

  1 for vectors at right angles, 1/K for equal ones: where specialists need all of their weights at once, no
  soup is near.

  Args:
    gram: `[d, d]`, inner products of the task vectors.

  >>> whole(np.eye(4)), whole(np.ones((4, 4)))
  (1.0, 0.25)
  """
  along = np.maximum(gram.sum(axis=1), np.diag(gram))  # vectors that point apart do not ask for more than 1
  return float(np.mean(np.diag(gram) / np.maximum(along, 1e-30)))


class How(NamedTuple):
  """The arguments of `surrogate` that say what it believes."""

  caution: float
  least: float


def _summit(records: list[Record], options: Options, how: How) -> Generations:
  """To the highest point."""
  here = View.of(records, options)
  radius, idle, probed, promise = RADIUS, 0, False, None
  while here is not None and idle < IDLE:
    steps = _steps(here, radius, options, how)
    promise = steps[0].gain
    if not here.promises(steps[0], how.least):
      if probed or not (probes := _probes(here, options)):
        return promise
      records += yield Proposal(probes, here.best.point)
      here, radius, probed = View.of(records, options, here.model.process.theta), RADIUS, True
      continue
    made = yield Proposal([_candidate(here, step.z, options) for step in steps], here.best.point)
    records += made
    there = View.of(records, options, here.model.process.theta)
    if there is None:
      return None
    heights = [there.height(record) for record in made]
    step = steps[int(np.argmax(heights))]
    gain = max(heights) - there.height(here.best)
    idle = idle + 1 if step.hopeful and gain <= 0 else 0
    radius = RADIUS if step.hopeful else step.radius
    if not step.hopeful and gain < 0.2 * step.gain:
      radius /= 2
    elif not step.hopeful and np.linalg.norm(step.z) > 0.9 * radius:
      radius *= 1.6
    here = there
  return promise


def _front(records: list[Record], options: Options, how: How) -> Generations:
  """Along the front: steps to the highest points of utilities, a batch at once, until none leads further."""
  stuck, batch = 0, list[Candidate]()
  for importance in importances(len(options.fitness.tasks), options.seed):
    toward = Direction.toward(options.fitness, importance, records)
    here = View.of(records, dataclasses.replace(options, fitness=toward))
    if here is None:
      return None
    step = _step(here, RADIUS, options, how.caution)
    if not here.promises(step, 0.0):
      step = _step(here, WIDE, options, 0.0)
    found = _candidate(here, step.z, options)
    if np.linalg.norm(step.z) < SHORT or any(found.point.near(one.point, SHORT) for one in batch):
      stuck += 1
      if stuck == STUCK and not batch:
        return 0.0
    else:
      stuck = 0
      batch.append(found)
    if len(batch) == options.batch or (batch and stuck == STUCK):
      records += yield Proposal(batch)
      stuck, batch = 0, []
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

  def promises(self, step: "Step", least: float) -> bool:
    """Whether a step leads anywhere, and what it is foreseen to gain exceeds `least` of its paired errors."""
    if np.linalg.norm(step.z) < SHORT:
      return False
    return step.gain > least * np.nan_to_num(self.model.error(step.z, np.zeros_like(step.z)))

  def height(self, record: Record) -> float:
    """That of an evaluated merge; -inf if it failed."""
    return next(
      (float(h) for one, h in zip(self.records, self.heights, strict=True) if one is record), -np.inf
    )


class Step(NamedTuple):
  """A step away from the best point so far.

  Attributes:
    z: where it leads.
    gain: that is foreseen.
    radius: of its region.
    hopeful: whether predictions were taken as they are.
  """

  z: np.ndarray
  gain: float
  radius: float
  hopeful: bool


def _steps(view: View, radius: float, options: Options, how: How) -> list[Step]:
  """What to evaluate next: a batch of steps of larger and smaller regions beside the first."""
  first = _step(view, radius, options, how.caution)
  if not view.promises(first, how.least):
    first = _step(view, WIDE, options, 0.0)
  steps = [first]
  for i in range(options.batch - 1):
    other = _step(view, radius * 2.0 ** ((i // 2 + 1) * (-1) ** i), options, how.caution)
    if min(np.linalg.norm(other.z - z) for z in (np.zeros_like(other.z), *(one.z for one in steps))) > SHORT:
      steps.append(other)
  return steps


def _probes(view: View, options: Options) -> list[Candidate]:
  """Short looks along the directions whose slopes are least known, to the side that is foreseen higher."""
  covariance, metric = view.model.process.slope_covariance(), view.metric
  if not options.space.scaled:  # weights of a part must still sum to one
    sums = np.kron(np.eye(options.rows), np.ones(options.count)) @ metric.to_weights
    within = np.eye(len(covariance)) - np.linalg.pinv(sums) @ sums
    covariance = within @ covariance @ within
  variances, directions = np.linalg.eigh((covariance + covariance.T) / 2)
  found = list[Candidate]()
  for i in np.argsort(-variances, kind="stable")[:PROBES]:
    if variances[i] < UNSURE:
      break
    direction, ends = directions[:, i], dict[float, Candidate]()
    for sign in (1, -1):
      side = _candidate(view, sign * PROBE * direction, options)
      z = metric.z(options.weights(side.point))
      if sign * z @ direction > PROBE / 2:  # a simplex cuts some off
        ends[view.model.at(z, caution=0.0).value] = side
    if ends:
      found.append(ends[max(ends)])
  return found


def _step(view: View, radius: float, options: Options, caution: float) -> Step:
  """The point of the region that is foreseen to be best; without caution, from all evaluated ones."""

  def value(z: np.ndarray) -> tuple[float, np.ndarray]:
    return view.model.at(z, caution=caution)

  zero = np.zeros(options.space.weights)
  starts = [zero]
  if not caution:
    starts += [z for z in view.model.process.points if SHORT < np.linalg.norm(z) < radius]
  z, top = highest(value, view.metric, radius, starts, sums=0 if options.space.scaled else options.rows)
  return Step(z, top - value(zero)[0], radius, not caution)


def _usable(records: Sequence[Record], options: Options) -> list[Record]:
  """The records of merges that depend on their weights as the searched method's do, and did not fail."""
  methods = {options.method, baselines.METHOD} if options.linear else {options.method}
  values = options.fitness.of(records)
  return [
    record for record, value in zip(records, values, strict=True)
    if record.method in methods and np.isfinite(value)
  ]  # fmt: skip
