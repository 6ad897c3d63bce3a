"""What is known before a search: single checkpoints, uniform soup, merge-best, greedy soup.

All are linear merges, evaluated once, in the journal and in the budget like every candidate.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from merge_jax.search import fitness as fitnesses
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Candidate, Record
from merge_jax.search.loop import Proposal


def one_hot(index: int, count: int) -> tuple[float, ...]:
  """All weight on one checkpoint."""
  return tuple(float(i == index) for i in range(count))


def mean_of(members: Sequence[int], count: int) -> tuple[float, ...]:
  """Equal weights on some checkpoints.

  >>> mean_of([0, 2], 3)
  (0.5, 0.0, 0.5)
  """
  return tuple(1.0 / len(members) if i in members else 0.0 for i in range(count))


def known_points(records: Sequence[Record], fitness: Fitness, count: int) -> Iterator[Proposal]:
  """Proposes the known points of a pool of `count` checkpoints: at most 2 `count` + 1.

  A soup that was evaluated already (merge-best of one checkpoint, the first greedy step of two) is
  not evaluated again. Greedy soup follows the authors (arXiv 2203.05482): checkpoints in order of
  fitness, each kept if the mean of the kept ones gets better.
  """
  yield Proposal([Candidate("single", one_hot(i, count), "linear") for i in range(count)])
  soups = {"uniform": mean_of(range(count), count)}
  best = merge_best(records, fitness, count)
  if best is not None:
    soups["merge_best"] = best
  new: list[Candidate] = []
  for kind, weights in soups.items():
    if find(records, weights) is None and weights not in [c.weights for c in new]:
      new.append(Candidate(kind, weights, "linear"))
  yield Proposal(new)
  yield from _greedy(records, fitness, count)


def merge_best(records: Sequence[Record], fitness: Fitness, count: int) -> tuple[float, ...] | None:
  """Mean of the best checkpoint of each task (arXiv 2412.04144), each counted once.

  None if no checkpoint has a finite score on some task.
  """
  members = []
  for task in fitness.tasks:
    at = best_on(records, fitness, task)
    if at is None:
      return None
    members.append(records[at].weights.index(1.0))
  return mean_of(sorted(set(members)), count)


def best_on(records: Sequence[Record], fitness: Fitness, task: str) -> int | None:
  """Index of the single checkpoint that is best on a task, by the task's metric."""
  singles = [r for r in records if r.kind == "single"]
  sign = dict(zip(fitness.tasks, fitness.signs, strict=True))[task]
  values = [np.nan if r.scores[task] is None else sign * float(r.scores[task] or 0) for r in singles]
  at = fitnesses.best(np.array(values))
  return None if at is None else singles[at].index


def greedy_members(records: Sequence[Record], fitness: Fitness, count: int) -> list[int]:
  """Members of the greedy soup as far as the records tell."""
  members, _ = _greedy_state(records, fitness, count)
  return members


def _greedy(records: Sequence[Record], fitness: Fitness, count: int) -> Iterator[Proposal]:
  while True:
    _, candidate = _greedy_state(records, fitness, count)
    if candidate is None:
      return
    yield Proposal([Candidate("greedy", candidate, "linear")])


def _greedy_state(
  records: Sequence[Record], fitness: Fitness, count: int
) -> tuple[list[int], tuple[float, ...] | None]:
  """The members so far, and the soup that has to be evaluated next, if any."""
  values = fitness.of(records)
  singles = values[:count]
  order = [int(i) for i in np.argsort(-singles, kind="stable") if np.isfinite(singles[i])]
  if not order:
    return [], None
  members, best = [order[0]], singles[order[0]]
  for i in order[1:]:
    soup = mean_of([*members, i], count)
    at = find(records, soup)
    if at is None:
      return members, soup
    if values[at] > best:
      members, best = [*members, i], values[at]
  return members, None


def find(records: Sequence[Record], weights: tuple[float, ...]) -> int | None:
  """Index of the linear merge with these weights, if it was evaluated."""
  for record in records:
    if record.method == "linear" and np.allclose(record.weights, weights, rtol=0, atol=1e-12):
      return record.index
  return None
