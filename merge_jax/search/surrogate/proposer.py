"""A search on the surrogate: trust-region steps to its highest point, until it promises no more.

Each round learns from the answers of all evaluated merges, proposes the point of the region around the best
one where the smoothed fitness is foreseen to be highest, and widens or narrows the region by what came true.
Where it first promises no more, it looks at the directions it knows least: a step measures one of them, and a
slope that was never measured is foreseen as none.
"""

from collections.abc import Sequence

import numpy as np

from merge_jax.search import baselines
from merge_jax.search.journal import Record
from merge_jax.search.loop import Generations, Proposal
from merge_jax.search.options import Options
from merge_jax.search.point import Candidate, Point
from merge_jax.search.surrogate import steps
from merge_jax.search.surrogate.directions import importances
from merge_jax.search.surrogate.steps import SHORT, How
from merge_jax.search.surrogate.view import View

RADIUS = 0.5
"""Of the first region, in lengths of a task vector (of a part's, where there are parts)."""
IDLE = 2
"""Idle rounds that end a search."""
STUCK = 20
"""Utilities in turn that lead nowhere and end a search along the front."""


def surrogate(
  known: Sequence[Record],
  options: Options,
  *,
  caution: float = How().caution,
  least: float = How().least,
) -> Generations:
  """Steps to the highest point of the surrogate; ends when it promises nothing, and returns what it does.

  Without known points it opens with the checkpoints and their mean: a surrogate foresees the other soups.

  Args:
    known, options: of every proposer.
    caution, least: see `How`.

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
  soup is near. Vectors of length 0 do not count.

  Args:
    gram: `[weights, weights]`, inner products of the task vectors.

  >>> whole(np.eye(4)), whole(np.ones((4, 4))), whole(np.diag([1.0, 0.0]))
  (1.0, 0.25, 1.0)
  """
  squares = np.diag(gram)
  along = np.maximum(gram.sum(axis=1), squares)  # vectors that point apart do not ask for more than 1
  live = squares > 0
  return float(np.mean(squares[live] / along[live])) if live.any() else 1.0


def _summit(records: list[Record], options: Options, how: How) -> Generations:
  """To the highest point."""
  here = View.of(records, options)
  radius, idle, probed = RADIUS, 0, False
  while here is not None and idle < IDLE:
    found = steps.batch(here, radius, how)
    if not found[0].promises(how.least):
      if probed or not (probes := steps.around(here)):
        return found[0].gain
      records += yield Proposal(probes, here.best.point)
      here, radius, probed = View.of(records, options, here.model.process.theta), RADIUS, True
      continue
    made = yield Proposal([here.candidate(step.z) for step in found], here.best.point)
    records += made
    there = View.of(records, options, here.model.process.theta)
    if there is None:
      return None
    heights = [there.height(record) for record in made]
    step = found[int(np.argmax(heights))]
    gain = max(heights) - there.height(here.best)
    idle = idle + 1 if step.hopeful and gain <= 0 else 0
    radius = RADIUS if step.hopeful else step.radius
    if not step.hopeful and gain < 0.2 * step.gain:
      radius /= 2
    elif not step.hopeful and np.linalg.norm(step.z) > 0.9 * radius:
      radius *= 1.6
    here = there
  return None if here is None else steps.cautious(here, radius, how.caution).gain


def _front(records: list[Record], options: Options, how: How) -> Generations:
  """Along the front: steps to the highest points of utilities, a batch at once, until none leads further.

  It looks around first: what a look tells of all tasks serves every utility.
  """
  first, stuck, batch = View.of(records, options), 0, list[Candidate]()
  if first is not None and (probes := steps.around(first)):
    records += yield Proposal(probes)
  for importance in importances(len(options.fitness.tasks), options.seed):
    here = View.of(records, options, importance=importance)
    if here is None:
      return None
    step = steps.cautious(here, RADIUS, how.caution)
    if not step.promises():
      step = steps.wide(here)
    found = here.candidate(step.z)
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
