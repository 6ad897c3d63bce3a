"""Which suite a job's settings ask for: the one place that knows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from merge_jax import checkpoints, evals, host, models, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import harness
from merge_jax.evals import tasks as task_files
from merge_jax.evals.external import Command
from merge_jax.evals.function_suite import CommandSuite
from merge_jax.evals.splits import units_of_prompts
from merge_jax.evals.suite import Suite
from merge_jax.evals.task_suite import TaskSuite
from merge_jax.models import Model
from merge_jax.recycle.folder import SCRATCH
from merge_jax.recycle.settings import Evals, Settings
from merge_jax.sharding import Layout


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
  return [task_files.path_of(spec) for spec in specs if not harness.is_named(spec)]


def refuse_missing(settings: Settings) -> None:
  """Raises FileNotFoundError if the program of a scorer command is not there; no candidate need be merged."""
  if settings.scorer.command:
    command(settings).refuse_missing()


def command(settings: Settings) -> Command:
  """The scorer command of a job."""
  s = settings.scorer
  return Command(s.command, settings.tasks, s.timeout, s.retries, s.nan)


def _external(settings: Settings, first: Checkpoint) -> Suite:
  if host.count() > 1:
    raise ValueError(
      "An external scorer runs in one process; leave --distributed out, or use built-in tasks."
    )
  if settings.heldout_tasks:
    raise ValueError("--heldout_tasks need built-in tasks; a scorer command has --tasks alone.")

  def write(folder: Path, params: Any) -> None:
    checkpoints.write(folder, params, like=first)

  return CommandSuite(command(settings), write, storage.scratch(settings.folder / SCRATCH))


def _builtin(settings: Settings, pool: Sequence[Checkpoint], mesh: Mesh) -> Suite:
  options, notes = settings.splits, []
  tasks, inputs = _load(settings, settings.tasks)
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
    heldout, more = _load(settings, settings.heldout_tasks)
    inputs |= more
    splits["heldout"] = _heldout(heldout, tasks, [*splits["search"], *splits["validation"]])
  return task_suite(splits, pool, settings.evals, files(settings), notes, mesh, inputs)


def _load(settings: Settings, specs: Sequence[str]) -> tuple[list[evals.Task], dict[str, str]]:
  """Tasks of files and of lm-eval, in order, and digests of what lm-eval asks."""
  made: list[evals.Task] = []
  inputs: dict[str, str] = {}
  for spec in specs:
    if not harness.is_named(spec):
      made.append(task_files.load(spec))
      continue
    from merge_jax.evals.harness import tasks as documents

    options = settings.harness
    found, more = documents.load([spec], include=options.include, shots=options.shots)
    made += found
    inputs |= more
  task_files.check_names([task.name for task in made], "--tasks")
  return made, inputs


def task_suite(
  splits: dict[str, list[evals.Task]],
  pool: Sequence[Checkpoint],
  options: Evals,
  files: Sequence[Path] = (),
  notes: Sequence[str] = (),
  mesh: Mesh | None = None,
  inputs: Mapping[str, str] | None = None,
) -> TaskSuite:
  """Built-in tasks for models with the config and tokenizer of the first of some checkpoints.

  Raises:
    ValueError: as `model_of`, or as `TaskSuite`.
  """
  model, tokens = model_of(pool, options), evals.Tokens.from_folder(pool[0].path)
  return TaskSuite(
    splits, model.apply, tokens,
    branches=model.branches, generate=model.generate, vocabulary=model.config.vocab_size,
    max_length=model.config.max_positions, append_eos=options.append_eos, max_shapes=options.max_shapes,
    batch_tokens=options.batch_tokens, dtype=jnp.dtype(options.dtype),
    files=files, inputs=inputs, notes=notes, mesh=mesh, stacks=model.stacks, axes=model.axes,
  )  # fmt: skip


def model_of(pool: Sequence[Checkpoint], options: Evals) -> Model:
  """The functions of models with the config of the first of some checkpoints.

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
  return model._replace(stacks=stacks, axes=model.axes if stacks else ())


def harness_model(first: Checkpoint, model: Model, options: Evals, layout: Layout) -> Any:
  """What lm-eval evaluates: an `evals.harness.model.Model` without parameters.

  Args:
    first: whose tokenizer is taken.
    model: of `model_of`.
    options, layout: of the job.
  """
  from merge_jax.evals.harness.model import Face, LanguageModel

  config = model.config
  face = Face(
    model.apply, model.generate, evals.Tokens.from_folder(first.path), config.vocab_size,
    config.max_positions, model.branches, options.max_shapes, options.batch_tokens, jnp.dtype(options.dtype),
  )  # fmt: skip
  return LanguageModel(face, layout)


def _heldout(
  heldout: list[evals.Task], tasks: Sequence[evals.Task], chosen: Sequence[evals.Task]
) -> list[evals.Task]:
  names = [task.name for task in tasks]
  for task in heldout:
    if task.name in names:
      raise ValueError(f"Held-out task {task.name!r} has the name of a task; rename one of the files.")
  prompts = [example.prompt.strip() for task in heldout for example in task.examples]
  seen = {example.prompt.strip() for task in chosen for example in task.examples}
  units = units_of_prompts([*tasks, *heldout])
  sources = {units[prompt] for prompt in seen}
  both = sum(prompt in seen for prompt in prompts)
  same = sum(units[prompt] in sources for prompt in prompts)
  if both or same:
    what = f"{both} prompts" if both else f"{same} groups or ids of examples"
    raise ValueError(
      f"{what} of the held-out tasks stand in the search or validation examples; held-out "
      "tasks must share none, and lines of other items need other ids."
    )
  return heldout
