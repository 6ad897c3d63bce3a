"""Another answer of a finished run: a point of its journal, by other wishes, without any evaluation."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merge_jax import storage
from merge_jax.decoding import by_task, nameable
from merge_jax.errors import sentence, unknown
from merge_jax.evals import uncertainty
from merge_jax.recycle import choice, folder, merged
from merge_jax.recycle.folder import Refused
from merge_jax.recycle.pool import Watch
from merge_jax.recycle.problem import Problem, build
from merge_jax.recycle.settings import from_earlier
from merge_jax.search import items, wishes
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Journal, Record
from merge_jax.search.loop import SPLIT, find
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import nullable, signed


def select(
  run: Path,
  *,
  candidate: int | None = None,
  task_weights: str = "",
  at_least: Sequence[str] = (),
  output: str = "",
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Writes the merge of another evaluated point, and says what it costs on each task.

  Args:
    run: output folder of a finished run.
    candidate: number of the evaluation, from 0 as in the journal; or
    task_weights: of the fitness by which the best point is taken, `task=weight,…`; tasks left out have 1.
    at_least: `task=score`, that the point must have on the search's examples; where lower is better, at most.
    output: folder to write; "": `selected-N` in the run's.
    say: called with each line.

  Returns:
    `candidate`, its number; `method`, `weights`, `numbers`; `output`; `tasks`, by name the score of the
    run's selected merge (`selected`), of this one (`score`), the gain (higher is better) and its paired
    error; `average` likewise.

  Raises:
    Refused: no finished run, or inputs that changed since.
    ValueError: wishes that are none, or that no evaluated point fulfils.
    FileExistsError: the output folder holds something.
  """
  if candidate is not None and (task_weights or at_least):
    raise ValueError("--candidate names a point; leave out --task_weights and --at_least, or leave it out.")
  if candidate is None and not task_weights and not at_least:
    raise ValueError("Give --candidate=57, --task_weights=code=2 or --at_least=math=.6.")
  where = storage.destination(output or run, "--output_dir")
  problem = _problem(run, where)
  records = wishes.selectable(Journal.read(run / folder.JOURNAL))
  if candidate is not None:
    chosen = _numbered(records, candidate)
  else:
    chosen = _wished(problem.fitness, records, task_weights, at_least)
  where = where if output else run / f"selected-{chosen.index}"
  folder.refuse_own(run, where, "--output_dir")
  storage.refuse_inside(where, problem.inputs, "--output_dir")
  storage.refuse_taken(where)
  if where.parent.is_dir():
    storage.refuse_unwritable(where)
  result = storage.read_json(run / folder.RESULT, dict[str, Any])
  (row,) = (row for row in result["rows"] if row["name"] == "selected")
  before = find(records, Candidate("", row["method"], Point.of(np.array(row["weights"]), row["numbers"])))
  made = {
    "candidate": chosen.index, "method": chosen.method, "weights": chosen.point.weights,
    "numbers": chosen.point.numbers, "output": str(where),
    **_compared(problem, chosen, before, dict(items.read(run / folder.ITEMS, SPLIT))),
  }  # fmt: skip
  for line in _told(made, chosen, problem):
    say(line)
  watch = Watch(problem.files)
  with storage.new_folder(where) as partial:
    merged.write(problem, chosen.candidate, partial)
    watch.check(copied=True)
  say(f"merged: {where}")
  return made


def _problem(path: Path, output: Path) -> Problem:
  """The problem of a finished run, from its manifest, whose merge can be written to that place.

  Raises:
    Refused: it is not finished or its inputs changed.
  """
  old = folder.completed(path)
  # From the disk: a tensor at a time is all that is read, and a batch of candidates would be of devices.
  disk = {"output_dir": str(output), "placement": {"pool_memory": "disk"}}
  search = dict(old.config.get("search", {})) | {"batch": 1, "in_turn": False}
  settings = from_earlier(old.config | disk | {"search": search})
  try:
    problem = build(settings)
  except FileNotFoundError as error:
    if not old.elsewhere:
      raise
    raise Refused(
      f"{sentence(error)} The run was started in {old.elsewhere}; start the command there."
    ) from None
  changed = [path for path, digest in old.inputs.items() if problem.manifest.inputs.get(path) != digest]
  if changed:
    raise Refused(f"{path}: {changed[0]} changed since the run, so that what it found may hold no more.")
  return problem


def _numbered(records: Sequence[Record], number: int) -> Record:
  for record in records:
    if record.index == number:
      return record
  raise ValueError(
    f"--candidate is {number}; there is no evaluation of this number, the last is {records[-1].index}."
  )


def _wished(fitness: Fitness, records: Sequence[Record], weights: str, at_least: Sequence[str]) -> Record:
  """The fittest record, by other weights and among those with the scores that are asked for."""
  if weights:
    fitness = _weighted(fitness, weights)
  return wishes.wished(fitness, records, _floors(at_least, fitness.tasks))


def _weighted(fitness: Fitness, weights: str) -> Fitness:
  """The fitness with other weights."""
  try:
    new = tuple(sorted(by_task(weights, "--task_weights").items()))
    return dataclasses.replace(fitness, weights=new)
  except ValueError as error:
    if all(map(nameable, fitness.tasks)):
      raise
    held = next(task for task in fitness.tasks if not nameable(task))
    raise ValueError(
      f"{error} The task {held!r} cannot be named there, as its name holds what the list is split at; give "
      "--candidate=N, as report.html does."
    ) from None


def _floors(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
  """Scores by task from `task=score`."""
  result: dict[str, float] = {}
  for text in texts:
    parts = text.rpartition("=") if "=" in text else (text, "", "")  # a task's name may hold one
    name, _, value = (part.strip() for part in parts)
    if name not in tasks:
      raise ValueError(unknown("task", name, tasks, "--at_least"))
    try:
      number = float(value)
    except ValueError:
      number = np.nan
    if not np.isfinite(number):
      raise ValueError(f"--at_least={text}: expected task=score, for example {name}=.6.")
    if name in result:
      raise ValueError(f"--at_least: task {name!r} stands twice; give it one score.")
    result[name] = number
  return result


def _compared(
  problem: Problem, chosen: Record, before: Record | None, lines: Mapping[int, Any]
) -> dict[str, Any]:
  """What is gained on each task against the selected merge, with paired errors where examples are kept."""
  fitness, tasks = problem.fitness, len(problem.fitness.tasks)
  if before is None:  # its record is of another split alone
    return {"tasks": {name: {"selected": None, "score": chosen.scores[name], "gain": None, "stderr": None}
                      for name in fitness.tasks}, "average": {"gain": None, "stderr": None}}  # fmt: skip
  points = signed([chosen.scores, before.scores], fitness.tasks, fitness.signs)
  gains, slopes = points[0] - points[1], [*np.eye(tasks), np.full(tasks, 1 / tasks)]
  errors: list[float | None] = [None] * len(slopes)
  if chosen.index in lines and before.index in lines:
    a, b = (choice.read(lines[record.index], problem, SPLIT) for record in (chosen, before))
    errors = [nullable(uncertainty.paired_error(a, b, one)) for one in slopes]
  return {
    "tasks": {
      name: {"selected": before.scores[name], "score": chosen.scores[name], "gain": nullable(gains[i]),
             "stderr": errors[i]}
      for i, name in enumerate(fitness.tasks)
    },
    "average": {"gain": nullable(gains.mean()), "stderr": errors[-1]},
  }  # fmt: skip


def _told(made: Mapping[str, Any], chosen: Record, problem: Problem) -> list[str]:
  """The comparison in lines."""
  from merge_jax.reports import text

  formats = {task.name: task.format for task in problem.suite.tasks}
  table = [["on the search examples", "selected", "this", "gain"]]
  for name, row in made["tasks"].items():
    scores = [text.number(row[key], formats[name]) for key in ("selected", "score")]
    table.append([name, *scores, text.gain(row["gain"], row["stderr"])])
  table.append(["average", "", "", text.gain(made["average"]["gain"], made["average"]["stderr"])])
  lines = [f"candidate {chosen.index}: {chosen.method}, {chosen.kind}", text.aligned(table)]
  if made["average"]["stderr"] is None:
    lines.append("Without errors: items.jsonl does not have what each example scored.")
  return [
    *lines,
    "These examples led the search, so that the scores are too good; test examples were not asked.",
  ]
