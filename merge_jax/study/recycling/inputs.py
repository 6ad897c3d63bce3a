"""What searches over a pool found, as the claims of the paper "Recycle" take it."""

from collections.abc import Iterable
from typing import Any

from merge_jax.study.analysis import searches
from merge_jax.study.analysis.recycle_claims import Cost, Inputs
from merge_jax.study.recycling.cost import cost
from merge_jax.study.recycling.found import Setting, proposed, row, settings
from merge_jax.study.recycling.settings import PAPER
from merge_jax.study.recycling.summary import BASELINES

Plain = dict[str, Any]


def inputs(results: Iterable[Plain]) -> Inputs:
  """The claims' inputs, from the results of the cells; nothing where the checkpoints alone are missing.

  Searches are the paper's, at its budget.

  Args:
    results: of the cells of `recycling.cells`.
  """
  found = settings(results)
  if not found:
    return Inputs()
  alone = found[0].singles
  return Inputs(
    settings=[_setting(one) for one in found if one.of(PAPER)],
    sweep=[point for one in found for point, _ in one.sweep()],
    costs=[
      Cost(f"{line['setting']}, {line['counted']}", line["evaluations"], line["evaluation"], line["training"])
      for line in cost(found)["rows"]
    ],
    singles=[found[0].examples(model) for model in alone["models"]],
    stages=tuple(stage or "" for stage in alone["stages"]),
  )


def _setting(one: Setting) -> searches.Setting:
  papers = one.of(PAPER)
  made = [
    (answer["evaluations"], i, search) for search in papers for i, answer in enumerate(search["answers"])
  ]
  fewest = min(evaluations for evaluations, *_ in made)
  names = (*BASELINES, *(f"best_on_{task}" for task in one.tasks))
  known = papers[0]["answers"][0]["rows"]
  return searches.Setting(
    one.name, one.tasks,
    {name: one.examples(row(papers[0], name)) for name in names if name in known},
    [_search(one, search, i) for evaluations, i, search in made if evaluations == fewest],
    [one.examples(model) for model in one.singles["models"]],
    [one.single_fitness()[i] for i in papers[0]["members"]],
  )  # fmt: skip


def _search(one: Setting, search: Plain, budget: int) -> searches.Search:
  answer, fittest = search["answers"][budget], row(search, "search_best", budget)
  members = search["members"]  # the others weigh nothing, whatever the search says
  return searches.Search(
    one.examples(fittest), [[weights[i] for i in members] for weights in answer["top"]],
    proposed(search, search["fitness"])[: answer["evaluations"]],
    one.average(fittest["search"], one.tasks),
  )  # fmt: skip
