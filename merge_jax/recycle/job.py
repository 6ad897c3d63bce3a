"""The recycle job: check, search, choose, measure, write. Everything but the journal is derived."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merge_jax import preflight, storage
from merge_jax.recycle import manifest as manifests
from merge_jax.recycle import pool as pools
from merge_jax.recycle import result as results
from merge_jax.recycle.pool import Inputs
from merge_jax.recycle.settings import Settings
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Journal, Record
from merge_jax.search.loop import Budget, search
from merge_jax.search.proposers import Setting, proposer
from merge_jax.search.space import space

OUTPUTS = ("manifest.json", "journal.jsonl", "result.json", "report.html", "figures", "merged")

Say = Callable[[str], None]


class Refused(ValueError):
  """The output folder holds something that this job must not continue or replace."""


class Stopped(RuntimeError):
  """The job was asked to stop; the journal holds all that was evaluated."""


def recycle(
  settings: Settings,
  *,
  overwrite: bool = False,
  say: Say = print,
  progress: Callable[[Record], None] | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Runs, resumes or recognises a recycle job.

  Args:
    settings: see `Settings`.
    overwrite: remove what an earlier run wrote into the folder.
    say: called with one line a step.
    progress: called after every evaluation.
    stop: asked after every evaluation; true ends the job with `Stopped`.

  Returns:
    The content of `result.json`.

  Raises:
    Refused: another run's folder, a changed config or input, files that are not ours.
    preflight.PreflightError, ValueError, OSError: input that cannot work; before anything long.
    storage.Locked: another process works in the folder.
    Stopped: see `stop`.
  """
  folder = Path(settings.output_dir)
  inputs = pools.read(settings)
  for note in inputs.notes:
    say(f"note: {note}")
  _refuse_foreign(folder, settings)
  with storage.locked(folder):
    manifest, done = manifests.build(settings, inputs), folder / "result.json"
    if not overwrite:
      _refuse_changed(folder, settings, manifest)
      if done.is_file():
        say(f"finished before: {done}")
        return json.loads(done.read_text())
    findings = list(preflight.check(inputs.pool, inputs.base))
    say(preflight.table(findings))
    preflight.require(findings)
    preflight.require_disk(folder, inputs.pool[0].nbytes)
    if overwrite:
      _clear(folder)  # only now: bad input must not lose what was done
    if not (folder / "manifest.json").is_file():
      storage.write_json(folder / "manifest.json", manifest)
    return _run(folder, settings, inputs, say, progress, stop)


def _run(
  folder: Path,
  settings: Settings,
  inputs: Inputs,
  say: Say,
  progress: Callable[[Record], None] | None,
  stop: Callable[[], bool],
) -> dict[str, Any]:
  journal = Journal(folder / "journal.jsonl")
  known = len(journal.stored)
  if known:
    say(f"resuming after {known} evaluations")
  say(known_points_cost(len(inputs.pool), settings.search.budget))
  pool = pools.place(inputs, settings)

  def after(record: Record) -> None:
    if progress is not None:
      progress(record)
    if stop() and record.index >= known:
      raise Stopped(f"Stopped after {record.index + 1} evaluations; the same command continues.")

  found = search(
    proposer(settings.search.proposer, setting_of(settings, inputs.fitness, len(inputs.pool))),
    lambda candidate: pool.objective.evaluate(candidate, "search"),
    journal,
    inputs.fitness,
    budget_of(settings),
    progress=after,
  )
  say("search done; scoring finalists on validation and test examples")
  result, chosen = results.conclude(settings, inputs, pool, found)
  provenance = {
    "created_by": "merge_jax recycle",
    "method": "task_arithmetic" if _added(chosen.method, settings) else "linear",
    "weights": dict(zip(inputs.labels, chosen.weights, strict=True)),
    "base": settings.base or ("mean of the pool" if _added(chosen.method, settings) else None),
    "manifest": json.loads((folder / "manifest.json").read_text()),
  }
  pools.write_merged(inputs, pool, chosen, folder / "merged", provenance)
  from merge_jax import reports

  reports.write(folder, result, found.records)
  storage.write_json(folder / "result.json", result)  # last: it says that the run is complete
  return result


def _added(method: str, settings: Settings) -> bool:
  return method == "search" and settings.search.space == "free"


def setting_of(settings: Settings, fitness: Fitness, count: int) -> Setting:
  """The proposer's setting."""
  s = settings.search
  return Setting(space(s.space), fitness, count, s.seed, s.sigma or None, s.population or None, s.start)


def budget_of(settings: Settings) -> Budget:
  """The search's budget."""
  return Budget(settings.search.budget, settings.search.seconds or None)


def known_points_cost(count: int, budget: int) -> str:
  """How much of the budget the known points take at most.

  >>> known_points_cost(16, 50)
  'known points (16 single checkpoints and soups) take up to 33 of 50 evaluations'
  """
  points = count + 2 + max(count - 1, 0)
  what = f"known points ({count} single checkpoints and soups)"
  return f"{what} take up to {points} of {budget} evaluations"


def plan(settings: Settings) -> str:
  """What a job would do, with sizes and an estimate; reads headers and task files alone."""
  inputs = pools.read(settings)
  findings = list(preflight.check(inputs.pool, inputs.base, values=False))
  first, s = inputs.pool[0], settings.search
  size = preflight.gib(sum(checkpoint.nbytes for checkpoint in inputs.pool))
  lines = [
    preflight.table(findings),
    "",
    f"pool       {len(inputs.pool)} checkpoints of {first.parameters:,} parameters ({size}): "
    + ", ".join(inputs.labels),
  ]
  for name, tasks in (inputs.splits or {}).items():
    sizes = ", ".join(f"{task.name} {len(task.examples)} ({task.metric})" for task in tasks)
    tokens = inputs.batches[name].tokens if name in inputs.batches else 0
    lines.append(f"{name:<10} {sizes}; {tokens:,} tokens")
  if inputs.command is not None:
    lines.append(f"scorer     {settings.scorer.command}")
  else:
    merge = 2 * len(inputs.pool) * first.parameters
    one = 2 * first.parameters * inputs.tokens + merge
    lines += [
      f"candidate  {one:.2e} FLOPs, {merge / one:.1%} of them for the merge",
      f"search     {s.budget} candidates, {s.budget * one:.2e} FLOPs: about {s.budget * one / 3e10:.0f} s at "
      f"30 GFLOP/s (2 CPU cores), {s.budget * one / 1e14:.1f} s at 100 TFLOP/s",
    ]
  lines += [
    f"method     {s.proposer} in space {s.space!r}, fitness {s.fitness} of {s.fitness_source}; "
    + known_points_cost(len(inputs.pool), s.budget),
    f"writes     {settings.output_dir}: {', '.join(OUTPUTS)} (merged: {preflight.gib(first.nbytes)})",
  ]
  return "\n".join([*lines, *(f"note       {note}" for note in inputs.notes)])


def _refuse_foreign(folder: Path, settings: Settings) -> None:
  """The folder may hold an earlier run and the inputs themselves, nothing else."""
  if folder.exists() and not folder.is_dir():
    raise Refused(f"{folder} is a file; --output_dir must be a folder.")
  if not folder.is_dir() or (folder / "manifest.json").is_file():
    return
  specs = (*settings.checkpoints, settings.base, *settings.tasks, *settings.heldout_tasks)
  inputs = [Path(spec).resolve() for spec in specs if spec]
  for entry in sorted(folder.iterdir()):
    ours = entry.name.startswith(".") or any(path.is_relative_to(entry.resolve()) for path in inputs)
    file_spec = any(str(path).startswith(str(entry.resolve()) + ":") for path in inputs)
    if not ours and not file_spec:
      raise Refused(f"{folder} is not empty (holds {entry.name!r}) and not of this job; choose another "
                    "--output_dir.")  # fmt: skip


def _clear(folder: Path) -> None:
  for name in reversed(OUTPUTS):  # the manifest last: until then the folder is known as ours
    path = folder / name
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)


def _refuse_changed(folder: Path, settings: Settings, new: dict[str, Any]) -> None:
  """The stored manifest, if there is one, must be the same."""
  path = folder / "manifest.json"
  if not path.is_file():
    return
  old = json.loads(path.read_text())
  if settings.allow_version_change:
    old = old | {name: new[name] for name in ("versions", "devices")}
  changed = manifests.differences(old, new)
  if changed:
    raise Refused(
      f"{folder} holds a run that was started otherwise:\n  " + "\n  ".join(changed) + "\nStart it the "
      "same way to resume, use --overwrite to begin anew, or choose another --output_dir. A change of "
      "versions or devices alone is allowed by --config.allow_version_change."
    )
