"""What searches over a pool found, as the claims of the paper "Recycle" take it."""

from collections.abc import Mapping, Sequence
from typing import Any

from merge_jax.evals.examples import Examples
from merge_jax.study.analysis.recycle_claims import Cost, Inputs
from merge_jax.study.analysis.searches import Search, Setting
from merge_jax.study.recycling.evidence import evidence

Plain = Mapping[str, Any]


def inputs(results: Sequence[dict[str, Any]]) -> Inputs:
  """The claims' inputs, from the results of the cells; searches are the paper's, at its budget.

  Args:
    results: of the cells of `recycling.cells`.
  """
  found = evidence(results)
  if not found:
    return Inputs()
  signs = found["signs"]

  def examples(model: Plain) -> Examples:
    return Examples.from_plain(model["examples"], signs)

  def setting(one: Plain) -> Setting:
    made = one["searches"].get("search", [])
    fewest = min((search["evaluations"] for search in made), default=0)
    answers = [
      Search(
        examples(search["fittest"]), search["top"], search["fitness"],
        average([search["fittest"]["search"][task] for task in one["tasks"]]),
      )
      for search in made if search["evaluations"] == fewest
    ]  # fmt: skip
    return Setting(
      one["name"], one["tasks"], {name: examples(model) for name, model in one["baselines"].items()}, answers,
      singles, one["single_fitness"],
    )  # fmt: skip

  singles = [examples(model) for model in found["singles"]]
  costs = [
    Cost(f"{row['setting']}, {row['counted']}", row["evaluations"], row["evaluation"], row["training"])
    for row in found["cost"]["rows"]
  ]
  settings = [setting(one) for one in found["settings"]]
  stages = tuple(stage or "" for stage in found["stages"])
  return Inputs([one for one in settings if one.searches], found["sweep"], costs, singles, stages)


def average(scores: Sequence[float | None]) -> float | None:
  """Mean of scores that are all there."""
  known = [score for score in scores if score is not None]
  return sum(known) / len(known) if known and len(known) == len(scores) else None
