"""The recycle job: build, check, search, choose, measure, write. Everything but the journal is derived."""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec

from merge_jax import errors, host, preflight, storage
from merge_jax.recycle import folder as folders
from merge_jax.recycle import manifest as manifests
from merge_jax.recycle import members, methods, suites
from merge_jax.recycle import result as results
from merge_jax.recycle.folder import RunFolder
from merge_jax.recycle.manifest import Manifest
from merge_jax.recycle.problem import Problem, build
from merge_jax.recycle.settings import Settings
from merge_jax.recycle.work import Work
from merge_jax.search import baselines
from merge_jax.search.final import FINALISTS
from merge_jax.search.items import Items
from merge_jax.search.journal import Journal, Record
from merge_jax.search.loop import SPLIT, search
from merge_jax.search.options import Evidence
from merge_jax.search.outputs import Outputs
from merge_jax.search.point import Candidate
from merge_jax.search.proposers import proposer

Say = Callable[[str], None]


class Stopped(errors.Stopped):
  """The job was asked to stop; the journal holds all that was evaluated."""


def recycle(
  settings: Settings,
  *,
  overwrite: bool = False,
  say: Say = print,
  progress: Callable[[Record], None] = lambda record: None,
  stop: Callable[[], bool] = lambda: False,
  profile: bool = False,
) -> dict[str, Any]:
  """Runs, resumes or recognises a recycle job.

  A job that is refused leaves the output folder as it was, so that the corrected one runs. Of several
  processes (`host.start`) all call this with the same settings; the lead alone says, decides and writes.

  Args:
    settings: see `Settings`.
    overwrite: remove what an earlier run wrote into the folder.
    say: called with one line a step.
    progress: called after every evaluation.
    stop: asked after every evaluation; true ends the job with `Stopped`.
    profile: write a trace of a few evaluations for TensorBoard or Perfetto into `profile/`.

  Returns:
    The content of `result.json`.

  Raises:
    Refused: another run's folder, a changed config or input, files that are not ours.
    preflight.PreflightError, ValueError, OSError: input that cannot work; before anything long.
    storage.Locked: another process works in the folder.
    InputsChanged: an input was rewritten while the job ran.
    Stopped: see `stop`.
  """
  problem = build(settings)
  _refuse_another(problem)
  if not host.is_lead():
    return Work(problem).follow()
  with host.leading() as send:
    work = Work(problem, send)
    begin = functools.partial(_run, problem, work, say, progress, stop, profile)
    return work.finish(_lead(problem, work, overwrite, say, begin))


def _refuse_another(problem: Problem) -> None:
  """Raises ValueError if this process would do its part of another job than the lead's."""
  placement = str(problem.settings.placement)
  lead, placed = host.broadcast([msgspec.to_builtins(problem.manifest), placement])
  found = manifests.changes(msgspec.convert(lead, Manifest), problem.manifest)
  if placed != placement:
    found.append(f"config.placement: {placed} -> {placement}")
  if found:
    raise ValueError(f"This process has another job than the lead: {'; '.join(found)}.")


def _lead(
  problem: Problem, work: Work, overwrite: bool, say: Say, begin: Callable[[RunFolder], dict[str, Any]]
) -> dict[str, Any]:
  for note in problem.notes:
    say(f"note: {note}")
  path = problem.settings.folder
  storage.refuse_locked(path)
  run = _claimable(path, problem, overwrite)
  if not overwrite and run.finished(problem.manifest):
    say(f"finished before: {path / folders.RESULT}")
    return storage.read_json(path / folders.RESULT, dict[str, Any])
  _refuse_unable(problem)
  findings = [*problem.findings, *work.read()]
  say(preflight.table(findings))
  preflight.require(findings)
  with storage.locked(path):
    run = _claimable(path, problem, overwrite)  # another process may have been faster
    if overwrite:
      run.clear()
    storage.remove_tree(path / folders.SCRATCH)
    run.claim(problem.manifest)
    try:
      return begin(run)
    finally:
      if not isinstance(path, storage.Remote):
        storage.remove_tree(path / folders.SCRATCH)


def _claimable(path: Path, problem: Problem, overwrite: bool) -> RunFolder:
  """The output folder, if this job may write there."""
  run = RunFolder(path)
  run.refuse_foreign(problem.inputs)
  if not overwrite:
    own = problem.settings
    run.refuse_changed(
      problem.manifest, versions=not own.allow_version_change, topology=not own.allow_topology_change
    )
    Journal.read(path / folders.JOURNAL)
  return run


def _run(
  problem: Problem,
  work: Work,
  say: Say,
  progress: Callable[[Record], None],
  stop: Callable[[], bool],
  profile: bool,
  run: RunFolder,
) -> dict[str, Any]:
  journal, items = Journal(run.path / folders.JOURNAL), None
  if problem.items:
    run.add([folders.ITEMS])
    ids = {split: problem.suite.ids(split) for split in problem.suite.splits}
    items = Items(run.path / folders.ITEMS, journal.records, ids)
  known = len(journal.records)
  if known:
    say(f"resuming after {known} evaluations")
  say(_known_points(problem))
  work.place()

  def after(record: Record) -> None:
    progress(record)
    if record.kind == "single" and record.split == SPLIT and problem.settings.scorer.nan == "fail":
      singles = [one for one in journal.of(SPLIT) if one.kind == "single"]
      if len(singles) == len(problem.pool):
        baselines.refuse_unscored(singles, problem.fitness.tasks)
    if stop() and len(journal.records) > known:
      raise Stopped(f"Stopped after {len(journal.records)} evaluations; the same command continues.")

  outputs, options = None, problem.options
  if problem.measures:
    options = dataclasses.replace(options, metric=work.gram())
  if problem.foresees:
    kept = None if isinstance(run.path, storage.Remote) else run.path / folders.ANSWERS
    outputs = Outputs(kept)  # in memory alone for a run on a store: evaluated again when it is resumed
    evidence = Evidence(problem.suite.answers, outputs.of)
    options = dataclasses.replace(options, evidence=evidence)
  found = search(
    proposer(problem.proposer, options),
    work,
    journal,
    problem.fitness,
    problem.budget,
    outputs=outputs,
    items=items,
    progress=after,
  )
  if found.left is not None:
    foreseen = None if options.pareto else found.left
    say(f"nothing more to find here: {left(foreseen, len(found.records), problem.budget.evaluations)}")
  say("search done; scoring finalists on validation and test examples")
  say(_times(work, found.records))
  result, chosen = results.conclude(problem, options, work, journal, items, found, after)
  if profile:
    _profile(run, work, chosen, say)
  with run.new_folder(folders.MERGED) as partial:
    work.write(chosen, partial)
  write_report(run, result)
  run.conclude(json.dumps(result, indent=2, allow_nan=False) + "\n")
  storage.remove_tree(run.path / folders.ANSWERS)
  return result


def left(foreseen: float | None, evaluations: int, budget: int) -> str:
  """Why a search ended before its budget; nothing is foreseen along a front that no step gains on.

  >>> left(0.00021, 22, 50)
  'after 22 of 50 evaluations no more than +0.0002 of fitness is foreseen'
  """
  what = (
    "no step that gains along the front" if foreseen is None else f"no more than {foreseen:+.4f} of fitness"
  )
  return f"after {evaluations} of {budget} evaluations {what} is foreseen"


def _times(work: Work, records: Sequence[Record]) -> str:
  """What a candidate takes, in the median, which the first one, compiled, does not move; its merge apart."""
  one = statistics.median(record.seconds for record in records)
  merge = min(work.merge_seconds(records[-1].candidate), one)
  return f"a candidate takes {one:.3g} s: its merge {merge:.3g} s, its evaluation {one - merge:.3g} s"


def _profile(run: RunFolder, work: Work, candidate: Candidate, say: Say) -> None:
  """A trace of three evaluations; scopes "merge" and "evaluate" tell their operations apart."""
  with run.new_folder(folders.PROFILE) as partial, storage.workroom(partial) as room:
    with jax.profiler.trace(str(room)):
      for _ in range(3):
        work.evaluate([candidate], SPLIT)
    for name in storage.names(room):
      storage.deliver(room / name, partial / name)
  say(f"trace for TensorBoard or Perfetto: {run.path / folders.PROFILE}")


def write_report(run: RunFolder, result: dict[str, Any]) -> None:
  """Figures and page, from result, journal and manifest; a figure that fails is left out, and said there."""
  from merge_jax import reports

  records = storage.read_lines(run.path / folders.JOURNAL)
  manifest = storage.read_json(run.path / manifests.NAME, dict[str, Any])
  report = reports.make(result, manifest, records)
  with run.new_folder(folders.FIGURES) as partial:
    for name, image in report.figures.items():
      (partial / f"{name}.png").write_bytes(image)
  run.write(folders.REPORT, report.page)


def _known_points(problem: Problem) -> str:
  """How much of the budget the known points take at most."""
  count, along = len(problem.pool), len(problem.options.trajectory)
  points, budget = 2 * count + 1 + along, problem.settings.search.budget
  what = f"{count} single checkpoints and soups" + (f", {along} along the run" if along else "")
  return f"known points ({what}) take up to {points} of {budget} evaluations"


def plan(settings: Settings, *, overwrite: bool = False) -> str:
  """What `recycle` would do, see `describe`; what it would refuse before it reads tensors is refused here."""
  problem = build(settings)
  _claimable(settings.folder, problem, overwrite)
  _refuse_unable(problem)
  return describe(problem)


def _refuse_unable(problem: Problem) -> None:
  """Raises ValueError or OSError for what a search cannot do, though `select` can with its files."""
  suites.refuse_missing(problem.settings)
  methods.refuse_memory(problem.method, problem.memory)


def describe(problem: Problem) -> str:
  """What a job would do, with sizes and an estimate, from headers and task files alone."""
  pool, suite, s = problem.pool, problem.suite, problem.settings.search
  first, tasks, parts = pool[0], len(suite.tasks), ", ".join(problem.parts)
  lines = [
    ("pool", f"{len(pool)} checkpoints of {first.parameters:,} parameters "
             f"({storage.gib(sum(c.nbytes for c in pool))}): {', '.join(problem.labels)}"),
    *suite.describe(),
  ]  # fmt: skip
  most = FINALISTS + bool(s.steps)
  items = problem.items and suite.losses  # a scorer may tell of examples, or not
  written = [name for name in folders.OUTPUTS if items or name != folders.ITEMS]
  rows = most + tasks  # the most that a result has, specialists of each task among them
  foresees = problem.foresees  # then there is a surest merge, and merges without a checkpoint are scored
  finals = {"search": 1 + foresees, "validation": most, "test": rows + foresees * members.CHECKED}
  finals |= {"heldout": most} if "heldout" in suite.splits else {}
  count = ", ".join(f"{number} on {split}" for split, number in finals.items())
  lines.append(("finalists", f"up to {count} examples, beside the search's budget"))
  if suite.tokens("search"):
    merge = 2 * len(pool) * first.parameters
    one = 2 * first.parameters * suite.tokens("search") + merge
    final = sum(n * (2 * first.parameters * suite.tokens(split) + merge) for split, n in finals.items())
    total = s.budget * one + final
    lines += [
      ("candidate", f"{one:.2e} FLOPs, {merge / one:.1%} of them for the merge"),
      ("in all", f"{s.budget} candidates and the finalists, {total:.2e} FLOPs: about {total / 3e10:.0f} s at "
                 f"30 GFLOP/s (2 CPU cores), {total / 1e14:.1f} s at 100 TFLOP/s"),
    ]  # fmt: skip
  lines += [
    ("method", f"{s.method} by {problem.proposer} in space {s.space!r}, "
               f"fitness {s.fitness} of {s.fitness_source}; {_known_points(problem)}"),
    ("weights", "one for each checkpoint" + (f" in each of {parts}" if parts else "")),
    ("writes", f"{problem.settings.output_dir}: {', '.join(written)} "
               f"(merged: {storage.gib(first.nbytes)})"),
    *(("note", note) for note in problem.notes),
  ]  # fmt: skip
  shown = [f"{word:<10} {text}" for word, text in lines]
  return "\n".join([preflight.table(problem.findings), "", *shown])
