"""What the claims of the paper "Recycle" are judged by: single scores, not summaries, by setting."""

from collections.abc import Iterable
from typing import Any

from merge_jax.study.recycling.cost import cost
from merge_jax.study.recycling.found import Setting, proposed, row, settings
from merge_jax.study.recycling.settings import MAIN, PAPER
from merge_jax.study.recycling.summary import BASELINES

Plain = dict[str, Any]


def evidence(results: Iterable[Plain]) -> Plain:
  """Inputs of the claims R1 to R13, plain; empty where the checkpoints alone are missing.

  A model has `method`, `weights` of all checkpoints, scores by task on "search", "validation" and "test"
  (as its metric gives them, null where not finite), and test `examples` as `Examples.from_plain` reads them.

  Returns:
    `checkpoints`: names; `stages`: "sft", "po" or null of each; `signs`: of all tasks by name, -1 where a
      lower score is better; `singles`: the checkpoints' models, without weights.
    `settings`: of each `name`, `tasks`, `heldout` tasks, and
      `single_fitness`: of every checkpoint on the search's examples;
      `baselines`: models by name, those of `BASELINES`, and `best_on_TASK` for each task;
      `searches`: by name, those of `MAIN`: for each seed and budget `seed`, `evaluations`, the models
        `fittest` (of the points proposed), `mean` (of the distribution) and `selected` (on validation,
        baselines included), `top`, the weights of the five fittest, and of the points proposed, in order,
        `fitness` and `scores` by task, columns on the search's examples;
    `sweep`: see `Setting.sweep`.
    `cost`: see `cost.cost`.
  """
  found = settings(results)
  if not found:
    return {}
  alone = found[0].singles
  return {
    "checkpoints": alone["checkpoints"], "stages": alone["stages"], "signs": alone["signs"],
    "singles": alone["models"], "settings": [_setting(one) for one in found],
    "sweep": [point for one in found for point, _ in one.sweep()], "cost": cost(found),
  }  # fmt: skip


def _setting(one: Setting) -> Plain:
  names = (*BASELINES, *(f"best_on_{task}" for task in one.tasks))
  first = next(iter(one.of(PAPER)), None)
  rows = {} if first is None else first["answers"][0]["rows"]
  return {
    "name": one.name,
    "tasks": list(one.tasks),
    "heldout": list(one.heldout),
    "single_fitness": one.single_fitness(),
    "baselines": {name: row(first, name) for name in names if first is not None and name in rows},
    "searches": {
      name: [_found(search, i) for search in one.of(arm) for i in range(len(search["answers"]))]
      for name, arm in MAIN.items()
    },
  }


def _found(search: Plain, budget: int) -> Plain:
  answer = search["answers"][budget]
  made = answer["evaluations"]
  return {
    "seed": search["seed"],
    "evaluations": made,
    "fittest": row(search, "search_best", budget),
    "mean": row(search, "search_mean", budget),
    "selected": row(search, "selected", budget),
    "top": answer["top"],
    "fitness": proposed(search, search["fitness"])[:made],
    "scores": {task: proposed(search, values)[:made] for task, values in search["scores"].items()},
  }
