"""What the interactive part of a report knows of every point; `explore.js` shows it and picks among them."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from merge_jax.decoding import by_task, nameable
from merge_jax.reports.text import label, number
from merge_jax.search.baselines import KINDS
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record, parse
from merge_jax.search.loop import FINALS
from merge_jax.search.scores import nullable
from merge_jax.search.wishes import EQUAL, selectable

DIGITS = 5
"""Of what is drawn or read; what the rule compares has all."""


def data(
  result: Mapping[str, Any], manifest: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Tasks, checkpoints and points as plain JSON.

  Args:
    result, manifest: content of the files of these names.
    lines: of the journal.

  Returns:
    `tasks` with the importance that the search gave them; `checkpoints`; `weight`, what theirs are called;
    `points`, each with its number for `launch.select`, its scores as numbers and as texts, and `parts`, what
    the fitness averages (None where not finite); `selected`, the place of the selected merge, or None if it
    was not evaluated on these examples; `worst`, whether the fitness is the worst part instead; `named`,
    whether `--task_weights` can name the tasks; `equal`, up to where fitnesses are;
    `axes`, the two tasks that trade off most.
  """
  tasks, config = result["tasks"], manifest["config"]["search"]
  names = [task["name"] for task in tasks]
  importance = by_task(config.get("task_weights", ""))
  fitness = Fitness(
    tuple(names), tuple(task["sign"] for task in tasks), config["fitness"], config["fitness_source"]
  )
  records = selectable([parse(line, "journal.jsonl") for line in lines])
  front, parts = set(result["pareto"]["front"]), fitness.parts(records)
  rows = [[row["name"] for row in result["rows"] if _is(record, row)] for record in records]
  pairs = combinations(range(len(names)), 2)
  together = result["analysis"]["task_spearman"]
  return {
    "tasks": [
      {"name": task["name"], "lower": task["sign"] < 0, "importance": importance.get(task["name"], 1.0)}
      for task in tasks
    ],
    "checkpoints": result["checkpoints"],
    "weight": "mean weight" if result["parts"] else "weight",
    "points": [
      {
        "number": record.index,
        "label": _label(record, result["checkpoints"]),
        "family": "single" if record.kind == "single" else "known" if record.kind in KINDS else "search",
        "method": label(record.method),
        "rows": [label(name) for name in rows[i] if name != "selected"],
        "front": record.kind not in FINALS and record.index in front,
        "scores": [_short(record.scores[name]) for name in names],
        "texts": [number(record.scores[task["name"]], task["format"]) for task in tasks],
        "parts": [nullable(part) for part in parts[i]],
        "weights": [_short(weight) for weight in record.point.mean_weights],
        "numbers": [f"{name} {value:.4g}" for name, value in record.point.numbers.items()],
      }
      for i, record in enumerate(records)
    ],
    "selected": next((i for i, found in enumerate(rows) if "selected" in found), None),
    "worst": fitness.aggregate == "worst",
    "named": all(map(nameable, names)),
    "equal": EQUAL,
    "axes": min(pairs, key=lambda pair: _or_one(together[pair[0]][pair[1]]), default=(0, 0)),
  }  # fmt: skip


def _or_one(correlation: float | None) -> float:
  return 1.0 if correlation is None else correlation


def _is(record: Record, row: Mapping[str, Any]) -> bool:
  """Whether a row of the result is the merge of a record."""
  point = record.point
  same = record.method == row["method"] and np.array_equal(point.array, np.array(row["weights"]))
  return same and point.numbers == row["numbers"]


def _label(record: Record, checkpoints: Sequence[str]) -> str:
  if record.kind == "single":
    return checkpoints[int(np.argmax(record.point.mean_weights))]
  return label(record.kind)


def _short(value: float | None) -> float | None:
  finite = nullable(value)
  return None if finite is None else float(f"{finite:.{DIGITS}g}")
