"""The further parts of a study: merges along a run, and searches over a pool of checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from merge_jax import checkpoints, evals, models
from merge_jax.errors import unknown
from merge_jax.study import recycling
from merge_jax.study.cells import Cell, Result
from merge_jax.study.judge import Judge
from merge_jax.study.lineages import Lineage, Member, in_turn, opened
from merge_jax.study.settings import Recycled, Run
from merge_jax.study.tasks import TEST, VALIDATION, Tasks
from merge_jax.study.trainer import Trainer, placed
from merge_jax.study.trajectory.compare import along
from merge_jax.study.trajectory.run import read as read_along
from merge_jax.training.recipe import shares

SEARCH_SHARE = 0.6
"""Of the validation examples: what a search sees; the others choose among its answers."""


def base_of(part: Run | Recycled, lineages: Sequence[Lineage], where: str) -> Lineage:
  """The lineage whose base a part starts from.

  Raises:
    ValueError: there is none.
  """
  wanted = f"{part.size}/{part.kind}/{part.seed}"
  known = {lineage.name: lineage for lineage in lineages}
  if wanted not in known:
    raise ValueError(unknown("lineage (size/kind/seed)", wanted, known, f"config: {where}"))
  return known[wanted]


def run_cell(
  part: Run,
  trainer: Trainer,
  lineage: Lineage,
  tasks: Tasks,
  folder: Path,
  mesh: Mesh,
  stop: Callable[[], bool],
) -> Cell:
  """The cell of a run with its decays and merges, trained on all held-in tasks."""
  held_in = [task for names in tasks.held_in.values() for task in names]
  recipe = {"mixture": dict.fromkeys(held_in, 1.0), **part.options.get("recipe", {})}
  options = read_along({**part.options, "recipe": recipe})
  data = trainer.data_of_tasks()
  shares(options.constant().mixture, data.names, "config: along.options.recipe.mixture")
  spec = {
    "base": lineage.base.identity, "tasks": tasks.digest, "options": part.options, "data": data.digest(),
  }  # fmt: skip

  def run() -> Result:
    first = checkpoints.open(lineage.base.folder)
    model = models.build(first.config or {}, str(first.path))
    judge = Judge([first.path], tasks.splits, tasks.evals, mesh)
    params = placed(model, first, mesh)
    return along(model.apply, params, data, judge, options, held_in, folder, stop=stop)

  return Cell("along", f"{lineage.name}/along", spec, run, lineage.base.needs[-1:])


def read_searches(part: Recycled, tasks: Tasks) -> recycling.Recycling:
  """The options of the searches; ValueError if they cannot be, or name a task that is not held in."""
  options, known = recycling.read(part.options), [task.name for task in tasks.splits[VALIDATION]]
  for name, chosen in options.settings.items():
    for task in chosen:
      if task not in known:
        raise ValueError(unknown("held-in task", task, known, f"config: recycle.options.settings.{name}"))
  return options


def check_searches(part: Recycled, tasks: Tasks) -> None:
  """Raises ValueError for options that cannot be, and tasks without examples for the searches."""
  _splits(read_searches(part, tasks), tasks)


def pool_of(part: Recycled, lineage: Lineage, trainer: Trainer | None) -> dict[str, Member]:
  """The checkpoints of a pool, in order; those to train become cells of the trainer.

  Raises:
    ValueError: as of `in_turn`; a checkpoint that is neither in a folder nor can be trained, or is said to
      be both.
  """
  found: dict[str, Member] = {}
  starts = {name: "" if one.folder else one.start for name, one in part.pool.items()}
  for name in in_turn(starts, "config: recycle.pool"):
    one, where = part.pool[name], f"config: recycle.pool.{name}"
    if one.folder and (one.start or one.recipe):
      raise ValueError(
        f"{where}: a folder that is there has no start and recipe; leave them or the folder out."
      )
    if one.folder:
      found[name] = opened(one.folder)
    elif trainer is None or not one.recipe:
      raise ValueError(f"{where}: give a folder, or a recipe where the study trains its models.")
    else:
      start = found[one.start] if one.start else lineage.base
      (found[name],) = trainer.further(name, lineage, one.recipe, start, f"{where}.recipe")
  return {name: found[name] for name in part.pool}


def searches(
  part: Recycled, found: Mapping[str, Member], lineage: Lineage, tasks: Tasks, mesh: Mesh
) -> list[Cell]:
  """The cells of the searches over a pool that is there."""
  options, folders = read_searches(part, tasks), {name: one.folder for name, one in found.items()}
  judge = Judge(folders.values(), _splits(options, tasks), tasks.evals, mesh)
  pool = recycling.Pool(folders, lineage.base.folder, {name: one.stage for name, one in part.pool.items()})
  return recycling.cells(pool, judge, options, f"{lineage.name}/recycle")


def _splits(options: recycling.Recycling, tasks: Tasks) -> dict[str, list[evals.Task]]:
  """The tasks of the searches, and the held-out ones, which they score as well.

  Test examples are those of the study; its validation examples are divided, and those of held-out tasks.
  """
  wanted = {task for some in options.settings.values() for task in some}
  validation = [task for task in tasks.splits[VALIDATION] if task.name in wanted]
  test = {task.name: task for task in tasks.splits[TEST]}
  outside = [test[name] for names in tasks.held_out.values() for name in names]
  # Seeds of their own: these examples were chosen by the places that seed 0 gives them.
  try:
    inner = evals.split(validation, (SEARCH_SHARE, 1 - SEARCH_SHARE, 0.0), seed=1).tasks
    outer = evals.split(outside, (0.3, 0.1, 0.6), seed=1).tasks
  except ValueError as error:
    raise ValueError(
      f"config: recycle divides validation examples, and test examples of held-out tasks: {error}"
    ) from None
  return {
    "search": [*inner["search"], *outer["search"]],
    "validation": [*inner["validation"], *outer["validation"]],
    "test": [*(test[task.name] for task in validation), *outer["test"]],
  }
