"""What is known before a search: single checkpoints, uniform soup, merge-best, trajectories, greedy soup.

All are linear merges, evaluated once, in the journal and in the budget like every candidate.
"""

from collections.abc import Generator, Sequence

import numpy as np

from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.loop import Proposal
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import best, signed

METHOD = "linear"
KINDS = ("single", "uniform", "merge_best", "trajectory", "greedy", "base")
"""Kinds of the known points; every other kind is a proposer's."""


def searched(records: Sequence[Record]) -> np.ndarray:
  """Marks the records that a proposer asked for after the known points: bool `[records]`."""
  return np.array([record.kind not in KINDS for record in records], bool)


def one_hot(index: int, count: int) -> Point:
  """All weight on one checkpoint."""
  return Point(tuple(float(i == index) for i in range(count)))


def soup(members: Sequence[int], count: int) -> Point:
  """Equal weights on some checkpoints.

  >>> soup([0, 2], 3).weights
  (0.5, 0.0, 0.5)
  """
  return Point(tuple(1.0 / len(members) if i in members else 0.0 for i in range(count)))


def known_points(
  fitness: Fitness, count: int, trajectory: Sequence[Point] = ()
) -> Generator[Proposal, list[Record], list[Record]]:
  """Proposes the known points of a pool of `count` checkpoints, at most 2 `count` + 1; returns their records.

  Those of a `trajectory` come beside them: merges along the run that all checkpoints are of.

  A soup that was evaluated already (merge-best of one checkpoint, the first greedy step of two) is
  not evaluated again. Greedy soup follows the authors (arXiv 2203.05482): checkpoints in order of
  fitness, each kept if the mean of the kept ones gets better.
  """
  records = list((yield Proposal([Candidate("single", METHOD, one_hot(i, count)) for i in range(count)])))
  soups = [("uniform", soup(range(count), count)), ("merge_best", merge_best(records, fitness, count))]
  new: list[Candidate] = []
  for kind, point in (*soups, *(("trajectory", point) for point in trajectory)):
    if point is None or find(records, point) is not None:
      continue
    if not any(point.near(candidate.point, 1e-12) for candidate in new):
      new.append(Candidate(kind, METHOD, point))
  records += yield Proposal(new)
  while (candidate := _greedy(records, fitness, count)[1]) is not None:
    records += yield Proposal([Candidate("greedy", METHOD, candidate)])
  return records


def refuse_unscored(singles: Sequence[Record], tasks: Sequence[str]) -> None:
  """Raises ValueError if there is a task on which no single checkpoint has a finite score."""
  if lost := unscored(singles, tasks):
    raise ValueError(
      f"{told(lost)}: all {len(singles)} single checkpoints have scores on the search examples that are null "
      "or not finite, so that no merge can be compared with them; mend the scorer and begin anew with "
      "--overwrite, and with --config.scorer.nan=worst if the search shall go on nevertheless."
    )


def unscored(records: Sequence[Record], tasks: Sequence[str]) -> list[str]:
  """The tasks on which no record has a finite score."""
  return [task for task in tasks if all(record.scores[task] is None for record in records)]


def told(tasks: Sequence[str]) -> str:
  """Tasks in a sentence.

  >>> told(["code"]), told(["code", "math"])
  ("Task 'code'", "Tasks 'code', 'math'")
  """
  return f"Task{'s' if len(tasks) > 1 else ''} {', '.join(map(repr, tasks))}"


def merge_best(records: Sequence[Record], fitness: Fitness, count: int) -> Point | None:
  """Mean of the best checkpoint of each task (arXiv 2412.04144), each counted once.

  None if no checkpoint has a finite score on some task.
  """
  found = [best_on(records, fitness, task) for task in fitness.tasks]
  members = {record.point.weights.index(1.0) for record in found if record is not None}
  return soup(sorted(members), count) if all(found) else None


def best_on(records: Sequence[Record], fitness: Fitness, task: str) -> Record | None:
  """The single checkpoint that is best on a task, by the task's metric."""
  singles = [r for r in records if r.kind == "single"]
  sign = fitness.signs[fitness.tasks.index(task)]
  at = best(signed([r.scores for r in singles], [task], [sign])[:, 0])
  return None if at is None else singles[at]


def greedy(records: Sequence[Record], fitness: Fitness, count: int) -> Point | None:
  """The greedy soup as far as the records tell."""
  members, _ = _greedy(records, fitness, count)
  return soup(members, count) if members else None


def _greedy(records: Sequence[Record], fitness: Fitness, count: int) -> tuple[list[int], Point | None]:
  """The members so far, and the soup that has to be evaluated next, if any."""
  values = fitness.of(records)
  singles = values[:count]
  order = [int(i) for i in np.argsort(-singles, kind="stable") if np.isfinite(singles[i])]
  if not order:
    return [], None
  members, highest = [order[0]], singles[order[0]]
  for i in order[1:]:
    point = soup([*members, i], count)
    at = find(records, point)
    if at is None:
      return members, point
    if values[at] > highest:
      members, highest = [*members, i], values[at]
  return members, None


def find(records: Sequence[Record], point: Point) -> int | None:
  """Position of the linear merge at a point, if it was evaluated."""
  for i, record in enumerate(records):
    if record.method == METHOD and record.point.near(point, 1e-12):
      return i
  return None
