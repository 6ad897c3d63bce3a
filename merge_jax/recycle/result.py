"""From a finished search to `result.json`: rows, differences, front, analyses, cost."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from merge_jax import storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import uncertainty
from merge_jax.recycle import choice as choices
from merge_jax.recycle import members
from merge_jax.recycle.problem import Problem
from merge_jax.search import analysis, baselines, final, pareto
from merge_jax.search.fitness import Fitness
from merge_jax.search.items import Items
from merge_jax.search.journal import Journal, Record
from merge_jax.search.loop import REPORTED, Objective, Progress, Result, measure
from merge_jax.search.options import Options
from merge_jax.search.point import Candidate
from merge_jax.search.scores import nullable, nullables, signed
from merge_jax.search.surrogate.surest import surest

T = TypeVar("T")


class _Tokens(msgspec.Struct, frozen=True):
  tokens: int


def conclude(
  problem: Problem,
  options: Options,
  objective: Objective,
  journal: Journal,
  items: Items | None,
  found: Result,
  progress: Progress,
) -> tuple[dict[str, Any], Candidate]:
  """Scores the finalists, selects, measures on test examples.

  Of a row that was chosen by the scores that are reported, those are told again as `search_corrected` or
  `validation_corrected`: on examples that did not choose it (see `evals.crossfit`).

  Args:
    problem: what was searched.
    options: what its proposer was made from.
    objective, journal, items, progress: as for `measure`.
    found: from `search`.

  Returns:
    The content of `result.json`, and the selected candidate.
  """
  fitness, records, suite = problem.fitness, found.records, problem.suite
  rows = final.rows(records, fitness, len(problem.pool), problem.method, found.mean, surest(records, options))

  def measured(candidates: Sequence[Candidate], split: str = REPORTED) -> list[Record]:
    return measure(candidates, split, objective, journal, items=items, progress=progress)

  def scored(split: str, chosen: Iterable[str]) -> dict[str, Record]:
    found = measured([rows[name] for name in chosen], split)
    return dict(zip(chosen, found, strict=True))

  validation = scored("validation", final.finalists(rows))
  choice = choices.select(problem, validation, records)
  selected = choice.name
  by_choice = choices.corrected_validation(problem, validation, records)
  by_search, unknown = choices.corrected_search(problem, records, items)
  rows["selected"], validation["selected"] = rows[selected], validation[selected]
  if selected in by_search:
    by_search["selected"] = by_search[selected]
  corrected = {"search": by_search, "validation": {} if by_choice is None else {"selected": by_choice}}
  search, test = scored("search", rows), scored("test", rows)
  heldout = scored("heldout", validation) if "heldout" in suite.splits else {}
  tables = {"search": search, "validation": validation, "test": test, "heldout": heldout}
  sizes = {split: suite.sizes(split) for split in suite.splits}
  groups = {split: suite.groups(split) for split in suite.splits}
  result = {
    "checkpoints": problem.labels,
    "parts": problem.parts,
    "proposer": problem.proposer,
    "tasks": [
      task._asdict() | {"examples": {s: n[task.name] for s, n in sizes.items() if task.name in n}}
      for task in suite.tasks
    ],
    "units": {split: len(np.unique(some)) for split, some in groups.items() if some is not None},
    "selected_from": selected,
    "choice": choice._asdict() | {"caution": problem.settings.search.caution},
    "not_corrected": unknown,
    "rows": [_row(name, candidate, tables, corrected, problem) for name, candidate in rows.items()],
    "differences": [
      {"row": name, **_difference(test["selected"], test[name], problem)}
      for name in rows if name != "selected"
    ],
    "gained": None if choice.incumbent is None else _gained(choice.incumbent, test, problem),
    "retention": _retention(test, problem),
    "members": members.effects(problem, options, records, test["selected"], measured),
    "pareto": _pareto(problem, records),
    "analysis": analysis.analyse(records, fitness, max(len(problem.parts), 1)),
    "left": nullable(found.left),
    "cost": _cost(problem, records, journal.records),
    "notes": problem.notes,
  }  # fmt: skip
  return json.loads(json.dumps(result, allow_nan=False)), rows[selected]


def _row(
  name: str,
  candidate: Candidate,
  records: Mapping[str, Mapping[str, Record]],
  corrected: Mapping[str, Mapping[str, choices.Scores]],
  problem: Problem,
) -> dict[str, Any]:
  """A merge with its scores by split; `records` and `corrected` are by split and name."""
  point, found = candidate.point, dict[str, Any]()
  for split in ("search", "validation", "test"):
    if name in records[split]:
      found[split] = _averaged(records[split][name], problem.fitness)
    if name in corrected.get(split, {}):
      found[f"{split}_corrected"] = corrected[split][name]
  found["test_stderr"] = _errors(records["test"][name], problem)
  if name in records["heldout"]:
    found["heldout"] = records["heldout"][name].scores
  return {
    "name": name, "method": candidate.method, "weights": point.weights, "numbers": point.numbers, **found
  }  # fmt: skip


def _averaged(record: Record, fitness: Fitness) -> choices.Scores:
  """Scores by task and their mean; what is better low enters the mean with a minus."""
  mean = signed([record.scores], fitness.tasks, fitness.signs).mean()
  return {task: record.scores[task] for task in fitness.tasks} | {"average": nullable(mean)}


def _pareto(problem: Problem, records: Sequence[Record]) -> dict[str, Any]:
  """The front of all that was evaluated, and volumes above the lowest scores of single checkpoints."""
  points = signed([r.scores for r in records], problem.fitness.tasks, problem.fitness.signs)
  singles = points[: len(problem.pool)]
  lowest = np.where(np.isfinite(singles), singles, np.inf).min(axis=0)
  reference = np.where(np.isfinite(lowest), lowest, 0.0)
  return {
    "front": np.flatnonzero(pareto.front(points)).tolist(),
    "reference": reference.tolist(),
    "hypervolume": pareto.hypervolume(points, reference),
    "hypervolume_known": pareto.hypervolume(points[~baselines.searched(records)], reference),
    "hypervolume_singles": pareto.hypervolume(singles, reference),
  }


def _errors(record: Record, problem: Problem) -> dict[str, float | None] | None:
  """Errors by task, where every example's score is known."""
  examples = choices.of_record(record, problem)
  return None if examples is None else nullables(uncertainty.standard_errors(examples))


def _difference(mine: Record, other: Record, problem: Problem) -> dict[str, float | None]:
  """Test gain of one merge over another, mean over tasks, with its paired error and what can be detected.

  `detectable` is the gain that would be seen with a power of 80 %; None where the two are the same model.
  """
  fitness = problem.fitness
  a, b = choices.of_record(mine, problem), choices.of_record(other, problem)
  if a is None or b is None:
    means = signed([mine.scores, other.scores], fitness.tasks, fitness.signs).mean(axis=1)
    return {"gain": nullable(means[0] - means[1]), "stderr": None, "detectable": None}
  gain, error = uncertainty.paired_difference(a, b)
  least = nullable(uncertainty.POWER * error) or None
  return {"gain": nullable(gain), "stderr": nullable(error), "detectable": least}


def _gained(incumbent: str, test: Mapping[str, Record], problem: Problem) -> dict[str, Any]:
  """What the selected merge gains over the best known point, and whether it is shown: None if unknown."""
  found = _difference(test["selected"], test[incumbent], problem)
  gain, error = found["gain"], found["stderr"]
  told = None if gain is None or error is None else uncertainty.shown(gain, error)
  return {"over": incumbent, **found, "shown": told}


def _retention(test: Mapping[str, Record], problem: Problem) -> list[dict[str, Any]]:
  """What the selected merge keeps of each task's best checkpoint, on test examples, with its paired error."""
  mine, kept = choices.of_record(test["selected"], problem), []
  for task in problem.fitness.tasks:
    single = test.get(f"{final.SPECIALIST}{task}")
    other = None if single is None else choices.of_record(single, problem)
    if single is None or mine is None or other is None:
      continue
    label = problem.labels[single.point.weights.index(1.0)]
    value, error = uncertainty.paired_ratio(mine, other, task)
    kept.append({"task": task, "single": label, "kept": nullable(value), "stderr": nullable(error)})
  return kept


def _cost(problem: Problem, searched: Sequence[Record], everything: Sequence[Record]) -> dict[str, Any]:
  """Evaluations, seconds and FLOPs: 2 per parameter and token to evaluate, 6 to train."""
  parameters, tokens = problem.pool[0].parameters, problem.suite.tokens("search")
  one = 2 * parameters * (len(problem.pool) + tokens)
  flops = one * len(searched) if tokens else None
  trained = training_tokens(problem.checkpoints)
  training = 6 * parameters * trained if trained else None
  seconds = sum(record.seconds for record in searched)
  return {
    "evaluations": len(searched),
    "budget": problem.settings.search.budget,
    "seconds": round(seconds, 3),
    "final_seconds": round(sum(record.seconds for record in everything) - seconds, 3),
    "tokens_per_evaluation": tokens or None,
    "search_flops": flops,
    "training_flops": training,
    "share_of_training": flops / training if flops and training else None,
  }


def training_tokens(checkpoints: Sequence[Checkpoint]) -> int | None:
  """Tokens that training read, from the `training.json` of all checkpoints; None where one does not say."""
  found = [training(checkpoint, _Tokens) for checkpoint in checkpoints]
  known = [one.tokens for one in found if one is not None]
  return sum(known) if len(known) == len(found) else None


def training(checkpoint: Checkpoint, kind: type[T]) -> T | None:
  """What `training.json` of a checkpoint says; None where there is none, or somebody else's."""
  try:
    return storage.read_json(checkpoint.path / "training.json", kind)
  except (ValueError, OSError):
    return None
