"""A study from its settings to its files."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from jax.sharding import Mesh

from merge_jax import reports, sharding, storage
from merge_jax.study import grid, parts, results
from merge_jax.study.cells import Outcome, Result, Store, run
from merge_jax.study.data import sources
from merge_jax.study.planning import Plan, plan
from merge_jax.study.settings import Study

NAME = "study.json"
"""Marks the folder of a study; holds its settings."""
Progress = Callable[[str, int, int, str], None]


def study(
  settings: Study,
  *,
  mesh: Mesh | None = None,
  stop: Callable[[], bool] = lambda: False,
  say: Callable[[str], None] = print,
  progress: Progress = lambda what, done, total, name: None,
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
  folder = storage.destination(settings.output_dir, "--output_dir")
  if not (folder / NAME).is_file():
    storage.refuse_filled(folder)
  grid.check(settings.methods, settings.counts, len(settings.held_in))
  mesh, store = mesh or sharding.make_mesh(""), Store(folder / "cells")
  with contextlib.ExitStack() as stack:
    claimed = sources.generated(settings)  # else nothing is written before all is checked
    if claimed:
      _claim(stack, folder, settings)
    made = plan(settings, sources.find(settings, folder), folder, store, mesh, stop)
    if not claimed:
      _claim(stack, folder, settings)
    outcome, searches = _run(made, store, mesh, stop, progress)
    say("cells are done; resampling for intervals")
    found = results.analysed(made, outcome, searches, folder.name)
    _write(folder, made, outcome, found)
    return found


def _claim(stack: contextlib.ExitStack, folder: Path, settings: Study) -> None:
  stack.enter_context(storage.locked(folder))
  storage.write_json(folder / NAME, msgspec.to_builtins(settings))


def _run(
  made: Plan,
  store: Store,
  mesh: Mesh,
  stop: Callable[[], bool],
  progress: Callable[[str, int, int, str], None],
) -> tuple[Outcome, list[Result]]:
  """What all cells came to, and the results of those of searches."""
  total = len(made.cells)
  outcome = run(made.work, store, stop=stop, progress=lambda done, name: progress("cells", done, total, name))
  if made.settings.recycle is None or made.origin is None:
    return outcome, []
  missing = [name for name, member in made.pool.items() if not member.folder.exists()]
  if missing:
    outcome.failed["recycle"] = f"it needs the checkpoint {missing[0]!r}, whose training failed."
    return outcome, []
  cells = parts.searches(made.settings.recycle, made.pool, made.origin, made.tasks, mesh)
  further = run(
    cells, store, stop=stop, progress=lambda done, name: progress("searches", done, len(cells), name)
  )
  both = Outcome(outcome.results | further.results, outcome.failed | further.failed)
  return both, [further.results[cell.key] for cell in cells if cell.key in further.results]


def _write(folder: Path, made: Plan, outcome: Outcome, found: dict[str, Any]) -> None:
  storage.write_text(folder / "results.csv", results.table(made, results.rows(made, outcome)))
  reports.write_study(folder, found)
  storage.write_json(folder / "result.json", found)
