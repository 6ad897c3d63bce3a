"""What each checkpoint adds to the selected merge: foreseen for all, measured for the largest effects."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from merge_jax.evals import uncertainty
from merge_jax.recycle import choice as choices
from merge_jax.recycle.problem import Problem
from merge_jax.search.journal import Record
from merge_jax.search.options import Options
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import nullable
from merge_jax.search.surrogate import leave_one_out

KIND = "without"
CHECKED = 3
"""Checkpoints whose effects are measured, too."""


def effects(
  problem: Problem,
  options: Options,
  records: Sequence[Record],
  selected: Record,
  measure: Callable[[Sequence[Candidate]], Sequence[Record]],
) -> dict[str, Any] | None:
  """Scores of the selected merge less those of the merge without one of its checkpoints; above 0 it helps.

  Args:
    problem: what was searched.
    options: the search's, with what the surrogate learns from.
    records: of the search.
    selected: of the test examples.
    measure: scores merges on the test examples.

  Returns:
    `foreseen`: by checkpoint and task, smoothed scores on the search's examples; `measured`: of the
    checkpoints with the largest foreseen effects, on test examples, with their paired errors. None where
    nothing was kept to learn from, or where the merge is a single checkpoint.
  """
  point = selected.point
  if options.rows > 1:  # known points have one row; the searched method takes one for each group
    point = Point.of(options.weights(point).reshape(options.rows, options.count))
  foreseen = None if options.evidence is None else leave_one_out.foreseen(records, options, point)
  if foreseen is None or np.isnan(foreseen).all():
    return None
  largest = np.nan_to_num(np.abs(foreseen), nan=-np.inf).max(axis=1)
  chosen = [int(i) for i in np.argsort(-largest, kind="stable")[:CHECKED] if np.isfinite(largest[i])]
  parts = [leave_one_out.without(point, i, based=options.based, linear=options.linear) for i in chosen]
  made = measure([Candidate(KIND, options.method, part) for part in parts if part is not None])
  tasks, labels = problem.fitness.tasks, problem.labels
  return {
    "foreseen": {
      labels[i]: {task: nullable(value) for task, value in zip(tasks, row, strict=True)}
      for i, row in enumerate(foreseen)
      if not np.isnan(row).all()
    },
    "measured": {
      labels[i]: _measured(problem, selected, record) for i, record in zip(chosen, made, strict=True)
    },
  }


def _measured(problem: Problem, selected: Record, other: Record) -> dict[str, dict[str, float | None]]:
  """By task the gain of having the checkpoint, and its paired error."""
  whole, part = choices.of_record(selected, problem), choices.of_record(other, problem)
  tasks, found = problem.fitness.tasks, {}
  for task, sign, slopes in zip(tasks, problem.fitness.signs, np.eye(len(tasks)), strict=True):
    mine, its, error = selected.scores[task], other.scores[task], None
    if whole is not None and part is not None:
      error = nullable(uncertainty.paired_error(whole, part, slopes))
    gain = None if mine is None or its is None else sign * (mine - its)
    found[task] = {"gain": gain, "stderr": error}
  return found
