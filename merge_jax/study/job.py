"""A study from its settings to its files."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from jax.sharding import Mesh

from merge_jax import reports, sharding, storage
from merge_jax.study import grid, parts, results, workers
from merge_jax.study.cells import Cell, Outcome, Result, Store, forget_what_is_gone, run
from merge_jax.study.data import sources
from merge_jax.study.planning import Plan, plan
from merge_jax.study.settings import Study

NAME = "study.json"
"""Marks the folder of a study; holds its settings."""
CLAIMS = "claims"
"""Folder in it: which cells workers are at."""
Progress = Callable[[str, int, int, str], None]


def _silent(what: str, done: int, total: int, name: str) -> None:
  pass


def study(
  settings: Study,
  *,
  mesh: Mesh | None = None,
  stop: Callable[[], bool] = lambda: False,
  say: Callable[[str], None] = print,
  progress: Progress = _silent,
) -> dict[str, Any]:
  """Does what is missing of a study, and writes what was found.

  A killed study goes on; one with other settings does what is not there yet.

  Args:
    settings: of the study.
    mesh: of the devices; None: all of them.
    stop: asked between cells, and between steps of a training.
    say: told what is going on.
    progress: told what is done, how many of how many, and the name of the last.

  Returns:
    The content of `result.json`; `failed` in it has a sentence for each cell that failed, by name.

  Raises:
    ValueError, OSError: what the user can mend, before anything long begins.
    errors.Stopped: `stop` said so; the same call continues.
  """
  folder = storage.disk_destination(settings.output_dir, "--output_dir")
  storage.refuse_inside(folder, map(storage.path, settings.folders()), "--output_dir")
  _refuse_another(folder)
  grid.check(settings.methods, settings.counts, len(settings.held_in))
  mesh, store = mesh or sharding.make_mesh(""), Store(folder / "cells")
  if settings.workers > 1 and (mesh.size > 1 or mesh.devices.flat[0].platform != "cpu"):
    raise ValueError(
      f"config: workers is {settings.workers}; several share the cores of one CPU device. Set it to 1 for "
      "other devices and meshes."
    )
  with contextlib.ExitStack() as stack:
    claimed = sources.generated(settings)  # else nothing is written before all is checked
    if claimed:
      _claim(stack, folder, settings)
    made = plan(settings, sources.find(settings, folder), folder, store, mesh, stop)
    if not claimed:
      _claim(stack, folder, settings)
    forget_what_is_gone(made.cells, store, [key for one in made.pool.values() for key in one.needs[-1:]])
    if settings.workers > 1:
      _share(made, folder, store, mesh, stop, progress)
      progress = _silent  # all but what failed is done
    outcome, searched = _run(made, store, mesh, stop, progress)
    say("cells are done; resampling for intervals")
    found = results.analysed(made, outcome, searched, folder.name)
    _write(folder, made, outcome, found)
    return found


def _refuse_another(folder: Path) -> None:
  """Raises OSError for a folder that has something in it and is no study's."""
  file = folder / NAME
  try:
    known = storage.read_json(file, dict[str, Any]) if file.is_file() else {}
  except ValueError:
    known = {}
  if not {field.name for field in msgspec.structs.fields(Study) if field.required} <= known.keys():
    storage.refuse_filled(folder)


def _claim(stack: contextlib.ExitStack, folder: Path, settings: Study) -> None:
  stack.enter_context(storage.locked(folder))
  storage.write_json(folder / NAME, msgspec.to_builtins(settings))


def searches(made: Plan, mesh: Mesh) -> tuple[list[Cell], str]:
  """The cells of searches over a pool that is there; or none, and why.

  The checkpoints that were trained are looked at first here; what is wrong with them does not cost the grid.
  """
  part, origin = made.settings.recycle, made.origin
  if part is None or origin is None:
    return [], ""
  missing = [name for name, one in made.pool.items() if not one.folder.exists()]
  if missing:
    return [], f"it needs the checkpoint {missing[0]!r}, whose training failed."
  try:
    return parts.searches(part, made.pool, origin, made.tasks, mesh), ""
  except ValueError as error:
    return [], str(error)


def _share(
  made: Plan, folder: Path, store: Store, mesh: Mesh, stop: Callable[[], bool], progress: Progress
) -> None:
  """Has workers do it all, but what fails: `_run` tries that again, and says why."""
  stages, seen = {"cells": {cell.key: cell.name for cell in made.cells}}, {"cells": -1, "searches": -1}

  def watch() -> None:
    for stage, names in list(stages.items()):
      done = [name for key, name in names.items() if store.has(key)]
      if names and len(done) > seen[stage]:
        seen[stage] = len(done)
        progress(stage, len(done), len(names), done[-1] if done else "")
    if seen["cells"] == len(stages["cells"]) and "searches" not in stages:
      stages["searches"] = {cell.key: cell.name for cell in searches(made, mesh)[0]}

  told = [json.dumps([str(folder), i]) for i in range(made.settings.workers)]
  workers.side_by_side(f"{__package__}.worker", told, len(told), folder, stop=stop, watch=watch)
  shutil.rmtree(folder / CLAIMS, ignore_errors=True)


def _run(
  made: Plan,
  store: Store,
  mesh: Mesh,
  stop: Callable[[], bool],
  progress: Progress,
) -> tuple[Outcome, list[Result]]:
  """What all cells came to, and the results of those of searches."""
  total = len(made.cells)
  outcome = run(made.work, store, stop=stop, progress=lambda done, name: progress("cells", done, total, name))
  cells, why = searches(made, mesh)
  if why:
    outcome.failed["recycle"] = why
  further = run(
    cells, store, stop=stop, progress=lambda done, name: progress("searches", done, len(cells), name)
  )
  both = Outcome(outcome.results | further.results, outcome.failed | further.failed)
  return both, [further.results[cell.key] for cell in cells if cell.key in further.results]


def _write(folder: Path, made: Plan, outcome: Outcome, found: dict[str, Any]) -> None:
  storage.write_text(folder / "results.csv", results.table(made, results.rows(made, outcome)))
  reports.write_study(folder, found)
  storage.write_json(folder / "result.json", found)
