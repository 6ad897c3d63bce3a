"""What all searches of a study found, by setting: the one place that reads their results.

Results are plain: those of `search.singles` and `search.run`, the latter with `setting`, `tasks`, `count`,
`arm`, `seed` and `budgets`. A search that is missing leaves its rows out. Averages are means over the tasks
of a setting, a score that is better low with a minus; "held out" are all other tasks.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from merge_jax.errors import unknown
from merge_jax.evals import Examples, uncertainty
from merge_jax.search.scores import floats, nullable, signed
from merge_jax.study.analysis.intervals import resampled_units
from merge_jax.study.recycling.settings import PAPER, Arm

Plain = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What was found by one fitness.

  Attributes:
    name, tasks: of it.
    signs: of all tasks, by name.
    searches: results.
    singles: result of the checkpoints alone.
  """

  name: str
  tasks: tuple[str, ...]
  signs: Mapping[str, float]
  searches: tuple[Plain, ...]
  singles: Plain
  _drawn: dict[Any, Any] = dataclasses.field(default_factory=dict)

  @property
  def heldout(self) -> tuple[str, ...]:
    """The other tasks."""
    return tuple(task for task in self.signs if task not in self.tasks)

  @property
  def most(self) -> int:
    """The largest number of checkpoints that was searched over."""
    return max((one["count"] for one in self.searches), default=0)

  def of(self, arm: Arm, count: int | None = None) -> list[Plain]:
    """The searches of one way over so many checkpoints, or the most; by seed."""
    wanted, plain = self.most if count is None else count, msgspec.to_builtins(arm)
    found = [one for one in self.searches if one["count"] == wanted and one["arm"] == plain]
    return sorted(found, key=lambda one: one["seed"])

  def of_most(self) -> list[Plain]:
    """All searches over the most checkpoints."""
    return [one for one in self.searches if one["count"] == self.most]

  def sweep(self) -> list[tuple[Plain, Plain]]:
    """The paper's searches over the N best checkpoints at the smallest budget.

    Returns:
      `setting`, `n`, `seed`, `best` and mean (`centroid`) fitness of the points proposed, on the search's
      examples; and the search.
    """
    found = []
    for count in sorted({one["count"] for one in self.searches}):
      for search in self.of(PAPER, count):
        values = floats(proposed(search, search["fitness"])[: search["answers"][0]["evaluations"]])
        values = values[np.isfinite(values)]
        best, mean = (float(values.max()), float(values.mean())) if len(values) else (None, None)
        about = {"setting": self.name, "n": count, "seed": search["seed"], "best": best, "centroid": mean}
        found.append((about, search))
    return found

  def examples(self, model: Plain) -> Examples:
    """A model's test examples."""
    units = self.singles["units"]
    groups = None if units is None else np.array(units, np.int64)
    return Examples.from_plain(model["examples"], self.signs, groups=groups)

  def single_fitness(self) -> list[float | None]:
    """Of every checkpoint."""
    return [self.average(model["search"], self.tasks) for model in self.singles["models"]]

  def average(self, scores: Mapping[str, float | None], tasks: Sequence[str]) -> float | None:
    """Mean of the tasks that were scored; None if one failed, or there is none."""
    scored = [task for task in tasks if task in scores]
    return nullable(signed([scores], scored, [self.signs[t] for t in scored]).mean()) if scored else None

  def interval(
    self, models: Sequence[Plain], tasks: Sequence[str], draws: int, over: Plain | None = None
  ) -> Plain:
    """Mean of models over seeds on test examples, less another's; 95 % interval and standard error.

    Examples are drawn anew within each task, the same for all models, and so are the seeds.
    """
    points, columns = zip(*(self._resampled(model, tuple(tasks), draws) for model in models), strict=True)
    least, base = (0.0, np.zeros(draws)) if over is None else self._resampled(over, tuple(tasks), draws)
    weights = resampled_units(len(models), draws, 1)[1:]
    drawn = np.average(np.stack(columns, axis=1), axis=1, weights=weights) - base
    low, high = np.quantile(drawn, (0.025, 0.975))
    value = float(np.mean(points)) - least
    return {"value": nullable(value), "low": nullable(low), "high": nullable(high),
            "stderr": nullable(drawn.std(ddof=1))}  # fmt: skip

  def _resampled(self, model: Plain, tasks: tuple[str, ...], draws: int) -> tuple[float, np.ndarray]:
    """Average on test examples, and those of draws; kept, since many models are compared with the same."""
    key = (id(model), tasks, draws)
    if key not in self._drawn:
      examples = self.examples(model).of_tasks(tasks)
      self._drawn[key] = examples.average(), uncertainty.resampled(examples, draws).mean(axis=1)
    return self._drawn[key]


def settings(results: Iterable[Plain]) -> list[Setting]:
  """Results by setting; none where the checkpoints alone are missing."""
  every = list(results)
  alone = next((one for one in every if one["kind"] == "singles"), None)
  searches = [one for one in every if one["kind"] == "search"]
  if alone is None:
    return []
  names = dict.fromkeys(one["setting"] for one in searches)
  groups = {name: tuple(one for one in searches if one["setting"] == name) for name in names}
  return [
    Setting(name, tuple(group[0]["tasks"]), alone["signs"], group, alone) for name, group in groups.items()
  ]


def row(search: Plain, name: str, budget: int = 0) -> Plain:
  """The model of a row of a search, at the smallest budget or another one.

  Raises:
    ValueError: the search has no such row.
  """
  rows = search["answers"][budget]["rows"]
  if name not in rows:
    raise ValueError(unknown("row", name, rows))
  return search["models"][rows[name]]


def proposed(search: Plain, values: Sequence[Any]) -> list[Any]:
  """Of a column of a search, the part after the known points."""
  return list(values[search["known"] :])


def columns(one: Setting, search: Plain, tasks: Sequence[str]) -> np.ndarray:
  """Scores of the points of a search, higher is better: `[points, tasks]`, NaN where there is none."""
  return np.stack([one.signs[task] * floats(search["scores"][task]) for task in tasks], axis=1)
