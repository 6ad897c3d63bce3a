"""Which suite a job's settings ask for: the one place that knows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from merge_jax import checkpoints, evals, host, models, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import tasks as task_files
from merge_jax.evals.external import Command
from merge_jax.evals.function_suite import CommandSuite
from merge_jax.evals.suite import Suite
from merge_jax.evals.task_suite import TaskSuite
from merge_jax.recycle.folder import SCRATCH
from merge_jax.recycle.settings import Evals, Settings


def build(settings: Settings, pool: Sequence[Checkpoint], mesh: Mesh) -> Suite:
  """The suite of a job, from its settings, the files of its first checkpoint, and its mesh.

  Args:
    settings: of the job.
    pool: its checkpoints, and its base.
    mesh: see `TaskSuite`.

  Raises:
    ValueError, OSError: tasks, tokenizers, configs or commands that cannot work.
  """
  return _external(settings, pool[0]) if settings.scorer.command else _builtin(settings, pool, mesh)


def files(settings: Settings) -> list[Path]:
  """The task files of a job."""
  specs = () if settings.scorer.command else (*settings.tasks, *settings.heldout_tasks)
  return [task_files.path_of(spec) for spec in specs]


def _external(settings: Settings, first: Checkpoint) -> Suite:
  if host.count() > 1:
    raise ValueError(
      "An external scorer runs in one process; leave --distributed out, or use built-in tasks."
    )
  if settings.heldout_tasks:
    raise ValueError("--heldout_tasks need built-in tasks; a scorer command has --tasks alone.")

  def write(folder: Path, params: Any) -> None:
    checkpoints.write(folder, params, like=first)

  s = settings.scorer
  command = Command(s.command, settings.tasks, s.timeout, s.retries, s.nan)
  return CommandSuite(command, write, storage.scratch(settings.folder / SCRATCH))


def _builtin(settings: Settings, pool: Sequence[Checkpoint], mesh: Mesh) -> Suite:
  tasks, options, notes = task_files.load_all(settings.tasks), settings.splits, []
  limits = tuple(limit or None for limit in options.limits)
  made = evals.split(tasks, options.fractions, seed=options.seed, limits=limits)
  splits = dict(made.tasks)
  if made.duplicates:
    notes.append(f"{made.duplicates} examples stand twice in their file; each is used once.")
  if made.shared:
    notes.append(f"{made.shared} prompts stand in several tasks; each is in one split in all of them.")
  if made.groups:
    notes.append(
      f"{made.groups} groups or ids have several prompts; each is in one split, and one unit of errors."
    )
  if made.repeated:
    notes.append(
      f"{made.repeated} ids stand in one task with several prompts; these count as forms of one item. If "
      "they are not, give the lines ids of their own, or none."
    )
  if settings.heldout_tasks:
    splits["heldout"] = _heldout(settings.heldout_tasks, tasks, [*splits["search"], *splits["validation"]])
  return task_suite(splits, pool, settings.evals, files(settings), notes, mesh)


def task_suite(
  splits: dict[str, list[evals.Task]],
  pool: Sequence[Checkpoint],
  options: Evals,
  files: Sequence[Path] = (),
  notes: Sequence[str] = (),
  mesh: Mesh | None = None,
) -> TaskSuite:
  """Built-in tasks for models with the config and tokenizer of the first of some checkpoints.

  Layers are stacked where all of the checkpoints can be stacked alike.

  Raises:
    ValueError: no config, one that is not supported, or that its tensors do not fit.
  """
  checkpoint = pool[0]
  where = str(checkpoint.path / "config.json")
  if checkpoint.config is None:
    raise ValueError(
      f"{checkpoint.path} has no config.json, so there is no model to score: give --scorer_command, or "
      "search from Python with your own function."
    )
  models.check(checkpoint.config, checkpoint.specs, where)
  model = models.build(checkpoint.config, where, options.attention)
  stacks = models.stacking.find(checkpoint.specs) if model.stacks else {}
  if any(models.stacking.find(other.specs) != stacks for other in pool):
    stacks = {}
  return TaskSuite(
    splits, model.apply, evals.Tokens.from_folder(checkpoint.path),
    branches=model.branches, generate=model.generate, vocabulary=model.config.vocab_size,
    max_length=model.config.max_positions, append_eos=options.append_eos, max_shapes=options.max_shapes,
    batch_tokens=options.batch_tokens, dtype=jnp.dtype(options.dtype),
    files=files, notes=notes, mesh=mesh, stacks=stacks, axes=model.axes if stacks else (),
  )  # fmt: skip


def _heldout(
  specs: Sequence[str], tasks: Sequence[evals.Task], chosen: Sequence[evals.Task]
) -> list[evals.Task]:
  heldout = task_files.load_all(specs)
  names = [task.name for task in tasks]
  for task in heldout:
    if task.name in names:
      raise ValueError(f"Held-out task {task.name!r} has the name of a task; rename one of the files.")
  examples = [example for task in heldout for example in task.examples]
  seen = {example.prompt.strip() for task in chosen for example in task.examples}
  sources = {example.group for task in chosen for example in task.examples}
  both = sum(e.prompt.strip() in seen for e in examples)
  same = sum(e.group in sources for e in examples if e.group)
  if both or same:
    what = f"{both} prompts" if both else f"{same} groups of examples"
    raise ValueError(
      f"{what} of the held-out tasks stand in the search or validation examples; held-out "
      "tasks must share none."
    )
  return heldout
