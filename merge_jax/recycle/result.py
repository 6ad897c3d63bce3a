"""From a finished search to `result.json`: rows, differences, front, analyses, cost."""

import json
from typing import Any

import numpy as np

from merge_jax.evals import uncertainty
from merge_jax.recycle.pool import Inputs, Pool
from merge_jax.recycle.settings import Settings
from merge_jax.search import analysis, final, pareto
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Candidate, Record
from merge_jax.search.loop import Evaluation, Result


def conclude(
  settings: Settings, inputs: Inputs, pool: Pool, found: Result
) -> tuple[dict[str, Any], Candidate]:
  """Scores the finalists, selects, measures on test examples once.

  Returns:
    The content of `result.json`, and the selected candidate.
  """
  fitness, records = inputs.fitness, found.records
  rows = final.rows(records, fitness, len(inputs.pool), found.mean)
  scores = _Cache(pool, inputs, records)
  validation = {name: scores.plain(rows[name], "validation") for name in final.finalists(rows)}
  chosen = final.select(
    {n: {"scores": _nulls(e.scores), "losses": _nulls(e.losses)} for n, e in validation.items()},
    fitness, records,
  )  # fmt: skip
  rows["selected"] = rows[chosen]
  validation["selected"] = validation[chosen]
  table = []
  for name, candidate in rows.items():
    row: dict[str, Any] = {
      "name": name,
      "method": "linear" if settings.search.space != "free" else candidate.method,
      "weights": list(candidate.weights),
      "search": _averaged(scores.plain(candidate, "search").scores, fitness),
    }
    if name in validation:
      row["validation"] = _averaged(validation[name].scores, fitness)
    row["test"] = _averaged(scores.plain(candidate, "test").scores, fitness)
    examples = scores.examples(candidate, "test")
    if examples is None:
      row["test_stderr"] = None
    else:
      row["test_stderr"] = _nulls(uncertainty.standard_errors(examples, settings.bootstrap))
    if "heldout" in inputs.batches and name in validation:
      heldout = scores.plain(candidate, "heldout").scores
      row["heldout"] = _nulls(heldout)
    table.append(row)
  points = points_of(records, fitness)
  lowest = np.where(np.isfinite(points), points, np.inf)[: len(inputs.pool)].min(axis=0)
  reference = np.where(np.isfinite(lowest), lowest, 0.0)
  result = {
    "checkpoints": inputs.labels,
    "tasks": [
      {"name": task, "metric": metric, "examples": _sizes(inputs, task)}
      for task, metric in zip(fitness.tasks, _metrics(inputs), strict=True)
    ],
    "selected_from": chosen,
    "rows": table,
    "differences": _differences(rows, scores, fitness, settings.bootstrap),
    "pareto": {
      "front": np.flatnonzero(pareto.front(points)).tolist(),
      "reference": reference.tolist(),
      "hypervolume": pareto.hypervolume(points, reference),
      "hypervolume_singles": pareto.hypervolume(points[: len(inputs.pool)], reference),
    },
    "analysis": analysis.analyse(records, fitness),
    "cost": _cost(settings, inputs, records),
    "notes": inputs.notes,
  }
  return result, rows[chosen]


def points_of(records: list[Record], fitness: Fitness) -> np.ndarray:
  """Scores of all evaluated candidates, higher is better: `[records, tasks]`."""
  raw = [[np.nan if r.scores[t] is None else r.scores[t] for t in fitness.tasks] for r in records]
  return np.array(raw, np.float64) * np.array(fitness.signs)


class _Cache:
  """Evaluates each candidate once a split; the journal has the search scores already."""

  def __init__(self, pool: Pool, inputs: Inputs, records: list[Record]):
    self._pool, self._inputs = pool, inputs
    self._examples: dict[tuple[str, tuple[float, ...], str], Any] = {}
    self._plain: dict[tuple[str, tuple[float, ...], str], Evaluation] = {}
    for record in records:
      known = {t: np.nan if v is None else v for t, v in record.scores.items()}
      self._plain[record.method, record.weights, "search"] = Evaluation(known)

  def examples(self, candidate: Candidate, split: str) -> Any:
    key = (candidate.method, candidate.weights, split)
    if key not in self._examples:
      self._examples[key] = self._pool.objective.examples(candidate, split)
    return self._examples[key]

  def plain(self, candidate: Candidate, split: str) -> Evaluation:
    key = (candidate.method, candidate.weights, split)
    if key not in self._plain:
      examples = self.examples(candidate, split)
      if examples is None:
        self._plain[key] = self._pool.objective.evaluate(candidate, split)
      else:
        self._plain[key] = Evaluation(examples.scores(), examples.scores(loss=True))
    return self._plain[key]


def _nulls(values: Any) -> Any:
  if values is None:
    return None
  return {name: float(v) if np.isfinite(v) else None for name, v in values.items()}


def _averaged(scores: dict[str, float], fitness: Fitness) -> dict[str, float | None]:
  """Scores by task and their mean; a loss enters the mean with a minus."""
  values = np.array([scores[task] for task in fitness.tasks]) * np.array(fitness.signs)
  return _nulls({task: scores[task] for task in fitness.tasks} | {"average": values.mean()})


def _differences(
  rows: dict[str, Candidate], scores: _Cache, fitness: Fitness, draws: int
) -> list[dict[str, Any]]:
  """Test gain of the selected model over every other row, mean over tasks, with paired errors."""
  lines = []
  for name, candidate in rows.items():
    if name == "selected":
      continue
    mine, other = (scores.examples(rows[n], "test") for n in ("selected", name))
    if mine is not None:
      gain, error = uncertainty.paired_difference(mine, other, draws)
      lines.append({"row": name, **_nulls({"gain": gain, "stderr": error})})
      continue
    averages = [_averaged(scores.plain(c, "test").scores, fitness)["average"]
                for c in (rows["selected"], candidate)]  # fmt: skip
    known = averages[0] is not None and averages[1] is not None
    gain = float(averages[0] or 0) - float(averages[1] or 0)
    lines.append({"row": name, "gain": gain if known else None, "stderr": None})
  return lines


def _metrics(inputs: Inputs) -> list[str]:
  if inputs.splits is None:
    return ["score"] * len(inputs.fitness.tasks)
  return [task.metric for task in inputs.splits["search"]]


def _sizes(inputs: Inputs, name: str) -> dict[str, int] | None:
  if inputs.splits is None:
    return None
  return {
    split: len(task.examples)
    for split, tasks in inputs.splits.items() for task in tasks if task.name == name
  }  # fmt: skip


def _cost(settings: Settings, inputs: Inputs, records: list[Record]) -> dict[str, Any]:
  """Evaluations, seconds and FLOPs: 2 per parameter and token to evaluate, 6 to train."""
  parameters = inputs.pool[0].parameters
  merging = 2 * parameters * len(inputs.pool) * len(records)
  evaluating = 2 * parameters * inputs.tokens * len(records)
  tokens = read_training_tokens(inputs)
  training = 6 * parameters * tokens if tokens else None
  search = merging + evaluating if inputs.tokens else None
  return {
    "evaluations": len(records),
    "budget": settings.search.budget,
    "seconds": round(sum(record.seconds for record in records), 3),
    "tokens_per_evaluation": inputs.tokens or None,
    "search_flops": search,
    "training_flops": training,
    "share_of_training": search / training if search and training else None,
  }


def read_training_tokens(inputs: Inputs) -> int | None:
  """Tokens that training read, from the `training.json` of all checkpoints and the base."""
  total = 0
  for checkpoint in (*inputs.pool, *([inputs.base] if inputs.base else [])):
    path = checkpoint.path / "training.json"
    if not path.is_file():
      return None
    total += int(json.loads(path.read_text())["tokens"])
  return total
