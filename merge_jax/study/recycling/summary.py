"""From the results of all searches to a report's section "recycle"."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from merge_jax.search import analysis, pareto
from merge_jax.search.scores import floats, nullable
from merge_jax.study.recycling.cost import cost
from merge_jax.study.recycling.found import Setting, columns, proposed, row, settings
from merge_jax.study.recycling.settings import FACTORS, MAIN, PAPER, Arm, levels

Plain = dict[str, Any]
BASELINES = ("best_single", "uniform", "merge_best", "greedy")


def summary(results: Iterable[Plain], draws: int = 1000) -> Plain:
  """The report's section "recycle"; empty where the checkpoints alone are missing.

  Returns:
    `settings`: of each `name`, `tasks`, `heldout`; `rows` (see `_rows`); `searches`, the fitness of the
      points that the paper's search proposed, by seed; `front`, the scores of the points that no other
      dominates, of all that was evaluated on the search's examples by the first of them; `gains` (see
      `_gains`); `density`, how many of the weights of the five fittest points exceed `threshold`;
      `weight_fitness`, the rank correlation of the fitness of the checkpoints that were searched over with
      the mean of these five; `slope`
      of fitness by evaluation;
      `heldout_correlation`, the rank correlation of fitness and held-out average over the points proposed;
      each a list by seed.
    `weights`: of the five fittest points of the first seed, null for checkpoints that were not searched
      over; `checkpoints`; `single_fitness` by setting.
    `sweep`: see `Setting.sweep`, with the `test` average of the best, and its `stderr`.
    `ablations`: test average of the fittest point proposed, mean over `n` seeds, with its interval.
    `cost`: see `cost`.
  """
  found = settings(results)
  if not found:
    return {}
  return {
    "settings": [_setting(one, draws) for one in found],
    "weights": [weights for one in found for weights in _weights(one)],
    "checkpoints": found[0].singles["checkpoints"],
    "single_fitness": [{"setting": one.name, "values": one.single_fitness()} for one in found],
    "sweep": [point for one in found for point in _sweep(one, draws)],
    "ablations": [level for one in found for level in _ablations(one, draws)],
    "cost": cost(found),
  }


def _setting(one: Setting, draws: int) -> Plain:
  searches = one.of(PAPER)
  single = one.single_fitness()
  tops = [search["answers"][0]["top"] for search in searches]
  first = searches[0] if searches else None
  points = np.zeros((0, len(one.tasks))) if first is None else columns(one, first, one.tasks)
  return {
    "name": one.name,
    "tasks": list(one.tasks),
    "heldout": list(one.heldout),
    "rows": _rows(one),
    "searches": [{"seed": s["seed"], "fitness": proposed(s, s["fitness"])} for s in searches],
    "front": (points[pareto.front(points)] * [one.signs[task] for task in one.tasks]).tolist(),
    "gains": _gains(one, draws),
    "threshold": analysis.USED,
    "density": [[int(np.sum(np.abs(weights) > analysis.USED)) for weights in top] for top in tops],
    "weight_fitness": [
      analysis.spearman(floats(single)[s["members"]], np.mean(top, axis=0)[s["members"]])
      for s, top in zip(searches, tops, strict=True)
      if top
    ],
    "slope": [analysis.slope(floats(proposed(s, s["fitness"]))) for s in searches],
    "heldout_correlation": [_correlation(one, search) for search in searches],
  }


def _correlation(one: Setting, search: Plain) -> float | None:
  tasks = [task for task in one.heldout if task in search["scores"]]
  if not tasks:
    return None
  means = columns(one, search, tasks).mean(axis=1)
  return analysis.spearman(floats(proposed(search, search["fitness"])), proposed(search, means))


def _rows(one: Setting) -> list[Plain]:
  """Scores of the baselines, of the paper's search (fittest point, mean of the distribution, selected on
  validation) and of the others, beyond the smallest budget with it in the name; means over `n` seeds.
  """
  found = []
  if paper := one.of(PAPER):
    found = [_row(one, name, [row(search, name) for search in paper if name in search["answers"][0]["rows"]])
             for name in BASELINES]  # fmt: skip
  for name, arm in MAIN.items():
    searches = one.of(arm)
    for i, budget in enumerate(searches[0]["budgets"] if searches else ()):
      title = name if not i else f"{name} {budget}"
      found.append(_row(one, title, [row(search, "search_best", i) for search in searches]))
      if arm in (PAPER, MAIN["ours"]):
        found.append(_row(one, f"{title} selected", [row(search, "selected", i) for search in searches]))
      if arm == PAPER and not i:
        found.append(_row(one, "search mean", [row(search, "search_mean", i) for search in searches]))
  return [line for line in found if line["n"]]


def _row(one: Setting, name: str, models: Sequence[Plain]) -> Plain:
  def mean(split: str, tasks: Sequence[str]) -> Plain:
    scored = [task for task in tasks if all(task in model[split] for model in models)]
    table = {task: nullable(np.mean(floats([m[split][task] for m in models]))) for task in scored}
    return table | {"average": one.average(table, scored)}

  if not models:
    return {"name": name, "n": 0}
  return {
    "name": name, "n": len(models), "search": mean("search", one.tasks), "test": mean("test", one.tasks),
    "heldout": mean("test", one.heldout),
  }  # fmt: skip


def _gains(one: Setting, draws: int) -> list[Plain]:
  """Test gain of each search's fittest point over each baseline, on the setting's and on the held-out tasks.

  `noise` is the standard error of the baseline's own average: what a gain that is not paired is up against.
  """
  found = []
  for name, arm in MAIN.items():
    searches = one.of(arm)
    for i, budget in enumerate(searches[0]["budgets"] if searches else ()):
      models = [row(search, "search_best", i) for search in searches]
      for over in BASELINES:
        if over not in searches[0]["answers"][0]["rows"]:
          continue
        base = row(searches[0], over)
        for held, tasks in (("in", one.tasks), ("out", one.heldout)):
          if tasks:
            gain = one.interval(models, tasks, draws, base)
            noise = one.interval([base], tasks, draws)["stderr"]
            found.append({"search": name, "evaluations": budget, "over": over, "held": held} | gain
                         | {"noise": noise, "n": len(models)})  # fmt: skip
  return found


def _weights(one: Setting) -> list[Plain]:
  searches = one.of(PAPER)
  if not searches:
    return []
  top, members = searches[0]["answers"][0]["top"], set(searches[0]["members"])
  searched = [[w if i in members else None for i, w in enumerate(weights)] for weights in top]
  return [{"setting": one.name, "name": f"best {i}", "values": w} for i, w in enumerate(searched, 1)]


def _sweep(one: Setting, draws: int) -> list[Plain]:
  found = []
  for point, search in one.sweep():
    test = one.interval([row(search, "search_best")], one.tasks, draws)
    found.append(point | {"test": test["value"], "stderr": test["stderr"]})
  return found


def _ablations(one: Setting, draws: int) -> list[Plain]:
  found = []
  for factor in FACTORS:
    by_level: dict[str, list[Plain]] = {}
    for arm in dict.fromkeys(msgspec.convert(search["arm"], Arm) for search in one.of_most()):
      for own, level in levels(arm):
        if own == factor:
          by_level[level] = one.of(arm)
    if len(by_level) < 2:
      continue
    for level, searches in sorted(by_level.items()):
      for i, budget in enumerate(searches[0]["budgets"]):
        models = [row(search, "search_best", i) for search in searches]
        about = {"setting": one.name, "factor": factor, "level": level, "evaluations": budget}
        found.append(about | one.interval(models, one.tasks, draws) | {"n": len(models)})
  return found
