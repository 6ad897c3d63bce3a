"""Soup of category experts (SoCE, arXiv 2511.13254): experts of weakly correlated tasks on a grid."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from merge_jax.search import baselines
from merge_jax.search.journal import Record
from merge_jax.search.loop import Generations, Proposal
from merge_jax.search.options import Options
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import signed

WEAK, MOST = 0.5, 6
GRID = 10
"""Weights are multiples of one over it."""


def soce(known: Sequence[Record], options: Options, *, weak: float = WEAK, most: int = MOST) -> Generations:
  """Preselects by correlation, then tries the grid in an order by chance until it ends.

  Checkpoints that are not known yet are evaluated first. Of tasks that are all strongly correlated the two
  least correlated ones are taken.

  Args:
    known, options: of every proposer.
    weak: tasks are weakly correlated where |Pearson's r| over the checkpoints is below.
    most: experts, those of the least correlated tasks: the grid grows with their number.
  """
  singles = [record for record in known if record.kind == "single"]
  if not singles:
    alone = [baselines.one_hot(i, options.count) for i in range(options.count)]
    singles = yield Proposal([Candidate("single", baselines.METHOD, point) for point in alone])
  members = experts(
    signed([r.scores for r in singles], options.fitness.tasks, options.fitness.signs), weak, most
  )
  points = list(grid(len(members)))
  for i in np.random.default_rng(options.seed).permutation(len(points)):
    weights = np.zeros(options.count)
    weights[list(members)] = points[i]
    yield Proposal([Candidate("soce", options.method, Point.of(weights))])


def experts(scores: np.ndarray, below: float = WEAK, most: int = MOST) -> tuple[int, ...]:
  """Checkpoints that are best on a task which is weakly correlated with another one.

  Args:
    scores: `[checkpoints, tasks]`, higher is better.
    below, most: `weak` and `most` of `soce`.

  >>> experts(np.array([[3.0, 1.0, 1.1], [2.0, 2.0, 2.1], [2.5, 3.0, 2.9]]))
  (0, 2)
  """
  scores = np.where(np.isfinite(scores), scores, -1e9)
  tasks = scores.shape[1]
  if tasks < 2 or len(scores) < 3:
    return tuple(sorted({int(np.argmax(column)) for column in scores.T})) or (0,)
  centred = scores - scores.mean(axis=0)
  lengths = np.sqrt((centred**2).sum(axis=0))
  both = np.outer(lengths, lengths)
  related = np.abs(np.divide(centred.T @ centred, both, out=np.ones_like(both), where=both > 0))
  least = np.where(np.eye(tasks, dtype=bool), np.inf, related).min(axis=1)
  order = np.argsort(least, kind="stable")
  weak = [int(task) for task in order if least[task] < below] or [int(task) for task in order[:2]]
  found = dict.fromkeys(int(np.argmax(scores[:, task])) for task in weak)
  return tuple(sorted(list(found)[:most]))


def grid(count: int) -> Iterator[tuple[float, ...]]:
  """All positive multiples of a tenth that sum to one.

  >>> len(list(grid(2))), len(list(grid(3)))
  (9, 36)
  """
  for cuts in itertools.combinations(range(1, GRID), count - 1):
    ends = (0, *cuts, GRID)
    yield tuple((b - a) / GRID for a, b in itertools.pairwise(ends))
