"""What a study consists of: its cells, and which of them say what."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from merge_jax import checkpoints
from merge_jax.study import grid, lineages, parts
from merge_jax.study.cells import Cell, Group, Store
from merge_jax.study.data import Data
from merge_jax.study.grid import Bench, Merge
from merge_jax.study.judge import Judge
from merge_jax.study.lineages import Lineage, Member
from merge_jax.study.settings import Study
from merge_jax.study.tasks import Tasks, read
from merge_jax.study.trainer import Trainer


class Plan(NamedTuple):
  """A study's cells.

  Attributes:
    settings: of the study.
    tasks: it scores.
    lineages: of models.
    work: all cells but those of searches, each after those that it needs.
    scores: keys of the cells that score the models of each lineage, by role.
    merges: keys of the cells of each lineage's merges.
    parameters: of a model, by size.
    along: key of the cell of the run, if there is one.
    pool, origin: checkpoints that are recycled, and the lineage of their base, if there are some.
  """

  settings: Study
  tasks: Tasks
  lineages: list[Lineage]
  work: list[Cell | Group]
  scores: dict[str, dict[str, str]]
  merges: dict[str, dict[Merge, str]]
  parameters: dict[str, int]
  along: str | None
  pool: dict[str, Member]
  origin: Lineage | None

  @property
  def cells(self) -> list[Cell]:
    """All cells."""
    return [cell for item in self.work for cell in (item.cells if isinstance(item, Group) else (item,))]


def plan(
  settings: Study, data: Data, folder: Path, store: Store, mesh: Mesh, stop: Callable[[], bool]
) -> Plan:
  """All cells of a study; checks everything that can be checked before they are done.

  Args:
    settings, data: of the study.
    folder: for the models.
    store: of results; cells of merges look up the scores of their experts.
    mesh: of the devices.
    stop: asked between the steps of a training.

  Raises:
    ValueError, OSError: what the user can mend.
  """
  tasks = read(settings, data.tasks)
  categories = list(tasks.held_in)

  def judge(lineage: Lineage) -> Judge:
    return Judge([lineage.base.folder], tasks.splits, tasks.evals, mesh, settings.batch)

  bench = Bench(judge)
  found, work, trainer = lineages.given(settings.families, categories), list[Cell | Group](), None
  parameters = {one.size: _size(one) for one in found}
  for one in found:
    bench.judge(one)
  if settings.training is not None:
    trainer = Trainer(settings.training, data, tasks.held_in, folder / "models", mesh, stop, tasks.asked)
    found, parameters = [*found, *trainer.lineages], parameters | trainer.parameters
  if not found:
    raise ValueError("config: there are no models; give families that are trained, or training.")
  names = [lineage.name for lineage in found]
  if twice := [name for i, name in enumerate(names) if name in names[:i]]:
    raise ValueError(
      f"config: there are two lineages {twice[0]} (size/kind/seed); name each once in families and training."
    )
  pool, origin = dict[str, Member](), None
  if settings.recycle is not None:
    parts.check_searches(settings.recycle, tasks)
    origin = parts.base_of(settings.recycle, found, "recycle")
    pool = parts.pool_of(settings.recycle, origin, trainer)
    folders = (one.folder for one in pool.values())
    lineages.require_alike([origin.base.folder, *folders], "config: recycle.pool")
  work += trainer.cells if trainer is not None else []
  scores, merges = dict[str, dict[str, str]](), dict[str, dict[Merge, str]]()
  for lineage in found:
    group = grid.scored(lineage, tasks, bench)
    work.append(group)
    scores[lineage.name] = dict(zip(lineage.members, (cell.key for cell in group.cells), strict=True))
    experts = {c: scores[lineage.name][f"{lineages.EXPERT}:{c}"] for c in categories}
    some = grid.merges(settings.methods, categories, settings.counts, settings.subsets)
    merges[lineage.name] = {}
    for _, alike in itertools.groupby(some, lambda merge: (merge.method, len(merge.members))):
      part = list(alike)
      group = grid.merged(lineage, part, settings.methods, tasks, bench, store, experts)
      work.append(group)
      merges[lineage.name] |= dict(zip(part, (cell.key for cell in group.cells), strict=True))
  key = None
  if settings.along is not None:
    if trainer is None:
      raise ValueError("config: along needs training, whose examples it reads.")
    start = parts.base_of(settings.along, found, "along")
    cell = parts.run_cell(settings.along, trainer, start, tasks, folder / "along", mesh, stop)
    work.append(cell)
    key = cell.key
  return Plan(settings, tasks, found, work, scores, merges, parameters, key, pool, origin)


def _size(lineage: Lineage) -> int:
  return sum(math.prod(spec.shape) for spec in checkpoints.open(lineage.base.folder).specs.values())
