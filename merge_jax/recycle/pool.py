"""A pool in memory, ready to be searched: checkpoints, model, tasks, prepared merges."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from merge_jax import checkpoints, evals, preflight, storage
from merge_jax import operators as mj
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import tasks as task_files
from merge_jax.evals.external import Command
from merge_jax.recycle.settings import Settings
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Candidate
from merge_jax.search.objective import FunctionObjective, JittedObjective, Objective


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Everything that is read before tensors are: cheap, and complete enough to refuse bad input.

  Attributes:
    pool, base: open checkpoints.
    labels: names of the pool's checkpoints.
    fitness: of the tasks.
    splits: tasks by split, held-out tasks under "heldout"; None with an external scorer.
    batches: the same examples, encoded and packed, by split.
    command: the external scorer, or None.
    notes: what the user should know.
  """

  pool: list[Checkpoint]
  base: Checkpoint | None
  labels: list[str]
  fitness: Fitness
  splits: dict[str, list[evals.Task]] | None
  batches: dict[str, evals.Batches]
  command: Command | None
  notes: list[str]

  @property
  def tokens(self) -> int:
    """Tokens of one evaluation on the search examples; 0 if unknown."""
    return self.batches["search"].tokens if self.batches else 0


def read(settings: Settings) -> Inputs:
  """Opens checkpoints and task files, splits and packs; raises ValueError for what cannot work."""
  pool, base = preflight.open_pool(settings.checkpoints, settings.base or None)
  labels = preflight.labels(pool)
  if settings.scorer.command:
    command, notes = _command(settings)
    fitness = _fitness(settings.tasks, (1.0,) * len(settings.tasks), settings.search)
    return Inputs(pool, base, labels, fitness, None, {}, command, notes)
  tasks = task_files.load_all(settings.tasks)
  splits, notes = _split(tasks, settings)
  signs = [task_files.sign(task.metric) for task in tasks]
  fitness = _fitness([task.name for task in tasks], signs, settings.search)
  batches = _batches(pool[0], splits, settings)
  return Inputs(pool, base, labels, fitness, splits, batches, None, notes)


def _command(settings: Settings) -> tuple[Command, list[str]]:
  """The external scorer, checked, and what the user should know about it."""
  s = settings.scorer
  command = Command(s.command, settings.tasks, s.timeout, s.retries, s.nan)
  command.check()
  if settings.heldout_tasks:
    raise ValueError("--heldout_tasks need built-in tasks; a scorer command has --tasks alone.")
  if command.splits:
    return command, []
  note = (
    "The scorer command has no {split}: search, validation and test are the same examples, so the "
    "reported scores are optimistic."
  )
  return command, [note]


def _split(tasks: Sequence[evals.Task], settings: Settings) -> tuple[dict[str, list[evals.Task]], list[str]]:
  """Tasks by split, held-out ones under "heldout", and what was found on the way."""
  options, notes = settings.splits, []
  limits = tuple(limit or None for limit in options.limits)
  made = evals.split(tasks, options.fractions, seed=options.seed, limits=limits)
  splits = dict(made.tasks)
  if made.duplicates:
    notes.append(f"{made.duplicates} examples stand twice in their file; each is used once.")
  if made.shared:
    notes.append(f"{made.shared} prompts stand in several tasks; each is in one split in all of them.")
  if not settings.heldout_tasks:
    return splits, notes
  heldout = task_files.load_all(settings.heldout_tasks)
  names = [task.name for task in tasks]
  for task in heldout:
    if task.name in names:
      raise ValueError(f"Held-out task {task.name!r} has the name of a task; rename one of the files.")
  chosen = [task for name in ("search", "validation") for task in splits[name]]
  seen = {example.prompt.strip() for task in chosen for example in task.examples}
  both = sum(example.prompt.strip() in seen for task in heldout for example in task.examples)
  if both:
    raise ValueError(
      f"{both} prompts of the held-out tasks stand in the search or validation examples; held-out "
      "tasks must share none."
    )
  return splits | {"heldout": heldout}, notes


def _fitness(names: Sequence[str], signs: Sequence[float], search: Any) -> Fitness:
  weights = tuple(sorted(task_files.shares(search.task_weights).items()))
  return Fitness(tuple(names), tuple(signs), search.fitness, search.fitness_source, weights)


def _batches(
  first: Checkpoint, splits: Mapping[str, Sequence[evals.Task]], settings: Settings
) -> dict[str, evals.Batches]:
  tokens = evals.Tokens.from_folder(first.path)
  options = settings.evals
  config = first.config or {}
  longest = config.get("max_position_embeddings")
  return {
    name: evals.pack(
      evals.encode(tasks, tokens, append_eos=options.append_eos, max_length=longest),
      max_shapes=options.max_shapes, batch_tokens=options.batch_tokens,
      vocabulary=config.get("vocab_size", 1),
    )
    for name, tasks in splits.items() if any(task.examples for task in tasks)
  }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pool:
  """The pool on the devices, and what scores its merges."""

  prepared: Mapping[str, mj.Prepared]
  objective: Objective


def place(inputs: Inputs, settings: Settings) -> Pool:
  """Reads the tensors, prepares the merges and makes the objective."""
  experts = [checkpoint.load() for checkpoint in inputs.pool]
  linear = mj.prepare(mj.linear(normalize=False), experts)
  prepared = {"linear": linear, "search": linear}
  if settings.search.space == "free":
    base = inputs.base.load() if inputs.base is not None else mj.merge(mj.uniform(), experts)
    prepared["search"] = mj.prepare(mj.task_arithmetic(), experts, base=base)
  if inputs.command is not None:
    command = inputs.command

    def score(params: Any, split: str) -> dict[str, float]:
      with tempfile.TemporaryDirectory(prefix="merge_jax_candidate_") as folder:
        model_dir = Path(folder) / "model"
        model_dir.mkdir()
        checkpoints.write(model_dir, params, like=inputs.pool[0])
        return command(model_dir, split)

    return Pool(prepared, FunctionObjective(prepared, score))
  from merge_jax import models

  first = inputs.pool[0]
  if first.config is None:
    raise ValueError(
      f"{first.path} has no config.json, so there is no model to score: give --scorer_command, or "
      "search from Python with your own function."
    )
  model = models.build(first.config, str(first.path / "config.json"))
  _check_model(first, model.specs)
  dtype = jnp.dtype(settings.evals.dtype)
  assert inputs.splits is not None
  scorers = {
    name: evals.make_scorer(model.apply, inputs.splits[name], batches, dtype=dtype)
    for name, batches in inputs.batches.items()
  }
  return Pool(prepared, JittedObjective(prepared, scorers))


def _check_model(checkpoint: Checkpoint, specs: Mapping[str, Any]) -> None:
  for name, spec in specs.items():
    have = checkpoint.specs.get(name)
    if have is None or have.shape != spec.shape:
      what = "is missing" if have is None else f"has shape {have.shape}, its config says {spec.shape}"
      raise ValueError(f"{checkpoint.path}: tensor {name!r} {what}.")


def write_merged(
  inputs: Inputs, pool: Pool, candidate: Candidate, folder: Path, provenance: Mapping[str, Any]
) -> None:
  """Writes the merge of a candidate in the pool's own format, whole or not at all."""
  weights = np.asarray(candidate.weights, np.float32)
  params = mj.combine(pool.prepared[candidate.method], weights)
  with storage.new_folder(folder, replace=True) as partial:
    checkpoints.write(partial, params, like=inputs.pool[0])
    (partial / "training.json").unlink(missing_ok=True)  # it tells of the first checkpoint alone
    (partial / "merge_jax.json").write_text(json.dumps(provenance, indent=2) + "\n")
