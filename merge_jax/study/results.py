"""What a study found, from its cells: scored models, a tidy table, and what the report is made from."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.evals.examples import Examples
from merge_jax.evals.metrics import METRICS
from merge_jax.evals.tasks import units
from merge_jax.search.scores import nullable
from merge_jax.study import lineages, recycling
from merge_jax.study.analysis.recycle_claims import claims as recycle_claims
from merge_jax.study.analysis.scores import Categories, Model, Scored
from merge_jax.study.analysis.summary import summarise
from merge_jax.study.cells import Outcome, Result
from merge_jax.study.planning import Plan
from merge_jax.study.tasks import TEST, VALIDATION

COLUMNS = (
  "role", "size", "kind", "seed", "method", "count", "subset", "members", "tuned", "numbers", "task",
  "category", "held", "metric", "examples", "score", "loss", "seconds",
)  # fmt: skip


class Row(NamedTuple):
  """A model that was scored on test examples.

  Attributes:
    scored: the model and its examples.
    losses: by task.
    numbers: of a merge.
    seconds: that its cell took, the trials of a merge included.
  """

  scored: Scored
  losses: Mapping[str, float | None]
  numbers: Mapping[str, float]
  seconds: float


def rows(plan: Plan, outcome: Outcome) -> list[Row]:
  """All models of the cells that are done; a method's untuned merge where it is another one."""
  tasks = plan.tasks.splits[TEST]
  signs, groups = {task.name: METRICS[task.metric].sign for task in tasks}, units(tasks)

  def row(model: Model, made: Result, seconds: float, numbers: Mapping[str, float] | None = None) -> Row:
    examples = Examples.from_plain(made["examples"], signs, str(model), groups)
    return Row(Scored(model, examples), made["losses"], numbers or {}, seconds)

  found = []
  for lineage in plan.lineages:
    family = (lineage.size, lineage.kind, lineage.seed)
    for role, key in plan.scores[lineage.name].items():
      if (one := outcome.results.get(key)) is not None:
        name, _, category = role.partition(":")
        found.append(row(Model(name, *family, (category,) if category else ()), one["test"], one["seconds"]))
    for merge, key in plan.merges[lineage.name].items():
      if (one := outcome.results.get(key)) is None:
        continue
      about = ("merge", *family, merge.members, merge.method, merge.subset)
      trials, chosen = one["trials"], one["chosen"]
      found.append(row(Model(*about, True), one["tuned"], one["seconds"], trials[chosen]["numbers"]))
      found.append(row(Model(*about, False), one["untuned"], one["seconds"], trials[0]["numbers"]))
  return found


def table(plan: Plan, found: Sequence[Row]) -> str:
  """`results.csv`: a line a model and task."""
  metric = {task.name: task.metric for task in plan.tasks.splits[TEST]}
  category, out = plan.tasks.category, io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(COLUMNS)
  for row in found:
    model, examples = row.scored
    scores = examples.scores()
    for task, size in zip(examples.tasks, examples.counts, strict=True):
      held = "in" if category[task] in plan.tasks.held_in else "out"
      writer.writerow([
        model.role, model.size, model.kind, model.seed, model.method, len(model.members), model.subset,
        "+".join(model.members), int(model.tuned), json.dumps(row.numbers, sort_keys=True), task,
        category[task], held, metric[task], size, nullable(scores[task]), row.losses[task], row.seconds,
      ])  # fmt: skip
  return out.getvalue()


def describe(plan: Plan, outcome: Outcome, found: Sequence[Row]) -> dict[str, Any]:
  """The parts of `result.json` that say what was done; the analysis comes beside them."""
  settings, tasks = plan.settings, plan.tasks
  sizes = {split: {task.name: len(task.examples) for task in some} for split, some in tasks.splits.items()}
  return {
    "sizes": [{"name": name, "parameters": plan.parameters[name]} for name in sizes_of(plan)],
    "kinds": list(dict.fromkeys(lineage.kind for lineage in plan.lineages)),
    "methods": list(settings.methods),
    "counts": list(settings.counts),
    "held_in": {category: list(names) for category, names in tasks.held_in.items()},
    "held_out": {category: list(names) for category, names in tasks.held_out.items()},
    "tasks": [
      {"name": task.name, "metric": task.metric, "sign": METRICS[task.metric].sign,
       "examples": {VALIDATION: sizes[VALIDATION].get(task.name, 0), TEST: sizes[TEST][task.name]}}
      for task in tasks.splits[TEST]
    ],
    "hyperparameters": list(_trials(plan, outcome)),
    "learning": list(_curves(plan, outcome)),
    "scores": [
      {"size": m.size, "kind": m.kind, "seed": m.seed, "model": _label(m), "scores":
       {task: nullable(value) for task, value in row.scored.examples.scores().items()}}
      for row in found if (m := row.scored.model).tuned
    ],
    "notes": [f"{name} failed: {why}" for name, why in outcome.failed.items()],
    "failed": outcome.failed,
    "cost": {
      "seconds": round(sum(result.get("seconds", 0.0) for result in outcome.results.values()), 1),
      "trainings": sum(cell.kind == "train" for cell in plan.cells),
      "merges": sum(cell.kind == "merge" for cell in plan.cells),
      "evaluations": sum(
        len(result.get("trials", (None,))) + len({0, result.get("chosen", 0)})  # on validation, on test
        for cell in plan.cells
        if cell.kind in ("score", "merge") and (result := outcome.results.get(cell.key))
      ),
    },
  }  # fmt: skip


def analysed(plan: Plan, outcome: Outcome, searches: Sequence[Result], title: str) -> dict[str, Any]:
  """The content of `result.json`: what was done, what came out, and which claims hold.

  Args:
    plan, outcome: of the study.
    searches: results of the cells of searches.
    title: of the report.
  """
  found, draws = rows(plan, outcome), plan.settings.bootstrap
  result = {"title": title} | describe(plan, outcome, found)
  result |= {key: [] for key in ("curves", "multitask", "spread", "experts", "gate", "claims", "dropped")}
  if found:
    scored = [row.scored for row in found]
    both = Categories(plan.tasks.held_in, plan.tasks.held_out)
    result |= summarise(scored, both, sizes_of(plan), draws, floors=chances(plan))
  result["along"] = outcome.results.get(plan.along) if plan.along else None
  result["recycle"] = recycling.summary(searches, draws) if searches else None
  if searches:
    result["claims"] = [
      *result["claims"],
      *(one.plain() for one in recycle_claims(recycling.inputs(searches), draws)),
    ]
  return result


def chances(plan: Plan) -> dict[str, float]:
  """Scores by task at or below which a model knows nothing: those of a guess among the choices."""
  return {
    task.name: float(np.mean([1 / len(example.targets) for example in task.examples]))
    for task in plan.tasks.splits[TEST]
    if METRICS[task.metric].needs == "choices"
  }


def sizes_of(plan: Plan) -> list[str]:
  """Names of the sizes, the smallest first."""
  return sorted({lineage.size for lineage in plan.lineages}, key=lambda name: (plan.parameters[name], name))


def _label(model: Model) -> str:
  if model.role == "merge":
    return f"merge:{model.method}:{len(model.members)}:{model.subset}"
  return f"{model.role}:{model.members[0]}" if model.role == lineages.EXPERT else model.role


def _trials(plan: Plan, outcome: Outcome) -> Iterator[dict[str, Any]]:
  for lineage in plan.lineages:
    for merge, key in plan.merges[lineage.name].items():
      if (result := outcome.results.get(key)) is None:
        continue
      for i, trial in enumerate(result["trials"]):
        yield {
          "size": lineage.size, "kind": lineage.kind, "seed": lineage.seed, "method": merge.method,
          "count": len(merge.members), "subset": merge.subset, "trial": i, "numbers": trial["numbers"],
          "validation": trial["validation"], "chosen": i == result["chosen"],
        }  # fmt: skip


def _curves(plan: Plan, outcome: Outcome) -> Iterator[dict[str, Any]]:
  for cell in plan.cells:
    if cell.kind == "train" and (result := outcome.results.get(cell.key)):
      size, kind, seed, stage, *category = cell.name.split("/")
      steps, losses = np.array(result["curve"], np.float64).T.tolist()
      yield {
        "size": size, "kind": kind, "seed": int(seed), "stage": ":".join([stage, *category]),
        "steps": [int(step) for step in steps], "loss": losses,
      }  # fmt: skip
