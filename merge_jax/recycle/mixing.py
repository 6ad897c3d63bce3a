"""Ratios to train with, from a finished run whose checkpoints are experts of data domains."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merge_jax import storage
from merge_jax.decoding import by_task, shares
from merge_jax.errors import unknown
from merge_jax.recycle import folder
from merge_jax.recycle.settings import Search, from_earlier
from merge_jax.search import mixture as mixtures
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Journal
from merge_jax.search.loop import SPLIT

SPREAD = {"method": "linear", "space": "simplex", "proposer": "random", "granularity": "model"}
"""How merges are searched that mixtures are predicted from."""


def spread(search: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
  """Settings of the search for such merges.

  Args:
    search: the other settings.
    given: names of overrides, as `search.method`.

  Raises:
    ValueError: something else was chosen, in the settings or by an override.
  """
  for name, value in SPREAD.items():
    default = getattr(Search(), name)
    chosen = search.get(name, default)
    if chosen != value and (chosen != default or f"search.{name}" in given):
      raise ValueError(
        f"config: search.{name} is {chosen!r}, but --mixture searches with {value!r}; leave one of them out."
      )
  return {**search, **SPREAD}


def mixture(
  run: Path,
  *,
  task_weights: str = "",
  ratios: Sequence[str] = (),
  output: str = "",
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Predicts what models trained on mixtures of the experts' data would score, and the best mixture.

  Args:
    run: output folder of a finished run, best made by `launch.recycle --mixture`.
    task_weights: of the fitness, `task=weight,…`; tasks left out have 1.
    ratios: mixtures to predict, too: `checkpoint=share,…`; shares are divided by their sum, others are 0.
    output: JSON file to write; "": none.
    say: called with each line.

  Returns:
    `mixtures`, by name (`best`, `equal`, those that were asked for) the `ratios` by checkpoint, and by task
    the predicted `scores` and their `deviations`; `evaluations`, that they were learned from.

  Raises:
    Refused: no finished run.
    ValueError: wishes that are none, too few merges to learn from, an output among the run's files.
    OSError: an output that cannot be written.
  """
  from merge_jax.reports import text

  old = folder.completed(run)
  target = storage.path(output) if output else None
  if target is not None:
    folder.refuse_own(run, target, "--output")
    inputs = [storage.path(name) for name in old.inputs]
    there = [path if isinstance(path, storage.Remote) else Path(old.folder) / path for path in inputs]
    storage.refuse_inside(target, there)
    storage.refuse_unwritable(target)
  result = storage.read_json(run / folder.RESULT, dict[str, Any])
  labels, search = result["checkpoints"], from_earlier(old.config | {"output_dir": str(run)}).search
  tasks = {task["name"]: task for task in result["tasks"]}
  weights = tuple(sorted(by_task(task_weights or search.task_weights, "--task_weights").items()))
  fitness = Fitness(
    tuple(tasks), tuple(task["sign"] for task in tasks.values()), search.fitness, "metric", weights
  )
  records = [one for one in Journal.read(run / folder.JOURNAL) if one.split == SPLIT]
  learned = mixtures.learn(records, fitness, len(labels))
  asked = {"best": learned.best(), "equal": np.full(len(labels), 1 / len(labels))}
  asked |= {one: _ratios(one, labels) for one in ratios}
  made: dict[str, Any] = {}
  table = [["predicted", *labels, *tasks]]
  for name, point in asked.items():
    mean, deviation = (values[0] for values in learned.at(point))
    scores = dict(zip(tasks, (mean * np.array(fitness.signs)).tolist(), strict=True))
    errors = dict(zip(tasks, deviation.tolist(), strict=True))
    made[name] = {
      "ratios": dict(zip(labels, point.tolist(), strict=True)), "scores": scores, "deviations": errors
    }  # fmt: skip
    told = [f"{text.number(scores[task], one['format'])} ± {errors[task]:.3f}" for task, one in tasks.items()]
    table.append([name, *(f"{ratio:.0%}" for ratio in point), *told])
  for line in text.aligned(table).splitlines():
    say(line)
  predicted = {"mixtures": made, "evaluations": len(learned.fits[0].points)}
  if target is not None:
    storage.write_json(target, predicted)
  return predicted


def _ratios(given: str, labels: Sequence[str]) -> np.ndarray:
  """Shares by checkpoint, of sum 1."""
  chosen = shares(given, "--ratios", "checkpoint=share")
  for name in chosen:
    if name not in labels:
      raise ValueError(unknown("checkpoint", name, labels, "--ratios"))
  values = np.array([chosen.get(label, 0.0) for label in labels])
  if not values.sum() > 0:
    raise ValueError(f"--ratios={given}: expected shares of which one is above 0.")
  return values / values.sum()
