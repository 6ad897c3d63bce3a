"""The answer of a search: finalists, the one that is selected, and why.

Scores for choosing and scores for reporting come from different examples: the search chose on its
own, the finalists compete on validation examples, and test examples are touched once, at the end.

The rule is fixed in advance. Finalists stand in order of simplicity: one checkpoint, equal weights on all or
some, weights along a run, then what was searched. The incumbent is the known point that is fittest on the
search's examples; another finalist replaces it only where its gain on validation exceeds `caution` paired
errors. That gain may be of smoothed scores, whose errors are smaller; what is reported is the metric's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.search import baselines
from merge_jax.search.analysis import top
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.loop import MEAN, SURE, find
from merge_jax.search.point import Candidate, Point, mean_of
from merge_jax.search.scores import best, nullable, signed

SPECIALIST = "best_on_"
FINALISTS = 7
"""Rows beside the specialists, trajectories apart: those of `rows` that compete on validation."""
KNOWN = ("best_single", "uniform", "merge_best", "greedy", "trajectory")
"""Rows that were not searched, the simplest first, as `rows` has them."""


class Choice(NamedTuple):
  """The finalist that is selected.

  Attributes:
    name: its row.
    incumbent: the row that it had to beat; None if there is no known point with finite scores.
    best: of the other rows the fittest on validation, among those that may replace it if some may, else among
      those that are other models if some are.
    gain: of `best` over the incumbent on validation, in fitness; None where it is not defined.
    stderr: its paired error; None where examples are not known.
    why: a sentence.
  """

  name: str
  incumbent: str | None
  best: str | None
  gain: float | None
  stderr: float | None
  why: str


Error = Callable[[str, str], float | None]
"""Paired error of the difference in fitness of two finalists; None where it is not known."""


def rows(
  records: Sequence[Record],
  fitness: Fitness,
  count: int,
  method: str,
  mean: Point | None,
  sure: Point | None = None,
) -> dict[str, Candidate]:
  """The named rows of a result, as far as the budget let them be evaluated.

  best_single (by the mean of the task scores), best_on_<task>, uniform, merge_best, trajectory (the
  fittest one along the run), greedy, search_best (highest fitness of all evaluated), search_mean (the mean
  of the proposer's distribution; of the five best points where it has none), search_sure (the surest gain).

  Args:
    records: of the search.
    fitness: the search's own.
    count: number of checkpoints.
    method: the merge rule that was searched.
    mean: from `search`.
    sure: from `surrogate.surest`, where answers were kept.
  """
  singles = [r for r in records if r.kind == "single"]
  values = fitness.of(records)
  found: dict[str, Record | None] = {}
  at = best(signed([r.scores for r in singles], fitness.tasks, fitness.signs).mean(axis=1))
  found["best_single"] = None if at is None else singles[at]
  for task in fitness.tasks:
    found[f"{SPECIALIST}{task}"] = baselines.best_on(records, fitness, task)
  soups: dict[str, Point | None] = {"uniform": baselines.soup(range(count), count)}
  if len(singles) == count:
    soups["merge_best"] = baselines.merge_best(records, fitness, count)
    soups["greedy"] = baselines.greedy(records, fitness, count)
  for name, point in soups.items():
    at = None if point is None else baselines.find(records, point)
    found[name] = None if at is None else records[at]
  along = np.array([record.kind == "trajectory" for record in records], bool)
  at = best(np.where(along, values, np.nan))
  found["trajectory"] = None if at is None else records[at]
  at = best(values)
  found["search_best"] = None if at is None else records[at]
  result = {name: record.candidate for name, record in found.items() if record is not None}
  if mean is None:
    points = [record.point for record in top(records, np.where(baselines.searched(records), values, np.nan))]
    mean = mean_of(points) if points else None
  if mean is not None:
    result[MEAN] = Candidate(MEAN, method, mean)
  if sure is not None:
    result[SURE] = Candidate(SURE, method, sure)
  return result


def finalists(found: Mapping[str, Candidate]) -> list[str]:
  """The rows that compete on validation: all but the specialists of one task."""
  return [name for name in found if not name.startswith(SPECIALIST)]


def select(
  validation: Mapping[str, Record],
  fitness: Fitness,
  records: Sequence[Record],
  *,
  caution: float = 0.0,
  error: Error = lambda one, other: None,
  smoothed: bool = False,
) -> Choice:
  """The finalist that the rule above selects; what is equally good is the simpler one.

  Args:
    validation: each finalist's record there, in order of simplicity.
    fitness: the search's own.
    records: of the search: its known points, and the singles that normalized scores refer to.
    caution: 0 takes the highest fitness on validation.
    error: of a finalist's gain; where it is not known, any gain counts.
    smoothed: whether the scores of `validation` are smoothed, for the sentence.

  Raises:
    ValueError: if no finalist has a finite fitness.
  """
  names, scored = list(validation), list(validation.values())
  values = fitness.values([r.scores for r in scored], [r.losses for r in scored])
  heights = dict(zip(names, fitness.aggregated(values, fitness.singles(records)), strict=True))
  highest = best(np.array(list(heights.values())))
  if highest is None:
    lost = baselines.told(baselines.unscored(scored, fitness.tasks) or fitness.tasks)
    raise ValueError(
      f"No finalist has finite scores on the validation examples ({lost}: null or not finite); mend the "
      "scorer or the task, and begin anew with --overwrite."
    )
  incumbent = _incumbent({n: r for n, r in validation.items() if np.isfinite(heights[n])}, fitness, records)
  kind = "smoothed " if smoothed else ""
  if incumbent is None:
    return Choice(names[highest], None, None, None, None, _highest(names[highest], kind))
  at = names.index(incumbent)
  gains = {name: heights[name] - heights[incumbent] for name in names if name != incumbent}
  errors = {name: nullable(error(name, incumbent)) for name in gains}
  wanted = {name: caution * (errors[name] or 0.0) for name in gains}
  # Equal and simpler: the same model under a simpler name, or with no caution as good a one.
  better = [
    name
    for name, gain in gains.items()
    if gain > wanted[name] or (gain == wanted[name] and names.index(name) < at)
  ]
  own = validation[incumbent].candidate
  others = [name for name in gains if not validation[name].candidate.same_model(own)]
  among = [name for name in names if name in (better or others or gains)]
  first = best(np.array([heights[name] for name in among]))
  rival = None if first is None else among[first]
  name = rival if better and rival is not None else incumbent
  gain = None if rival is None else nullable(gains[rival])
  stderr = None if rival is None else errors[rival]
  why = _why(name, incumbent, rival, gain, stderr, caution, kind)
  return Choice(name, incumbent, rival, gain, stderr, why)


def _incumbent(validation: Mapping[str, Record], fitness: Fitness, records: Sequence[Record]) -> str | None:
  """The known point that is fittest on the search's examples, the simplest among equals."""
  searched = {n: find(records, validation[n].candidate) for n in KNOWN if n in validation}
  there = {name: record for name, record in searched.items() if record is not None}
  values = fitness.values([r.scores for r in there.values()], [r.losses for r in there.values()])
  at = best(fitness.aggregated(values, fitness.singles(records))) if there else None
  return None if at is None else list(there)[at]


def _highest(name: str, kind: str) -> str:
  return f"{label(name)} has the highest {kind}fitness on the validation examples."


def _why(
  name: str, incumbent: str, rival: str | None, gain: float | None, stderr: float | None, caution: float,
  kind: str,
) -> str:  # fmt: skip
  """The choice in a sentence."""
  if not caution:
    return _highest(name, kind)
  known = "the best known point on the search examples"
  if rival is None or gain is None:
    return f"{label(incumbent)} is {known}, and there is no other finalist."
  found = f"{kind}validation gain {gain:+.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")
  times = "its paired error" if caution == 1 else f"{caution:g} paired errors"
  rule = times if stderr is not None else "0 (its error is not known)"
  if name == incumbent:
    return f"{label(name)} stays, {known}: the {found} of {label(rival)} does not exceed {rule}."
  if not gain:
    return f"{label(name)} is as good on validation as {label(incumbent)}, {known}, and simpler."
  return f"{label(name)} replaces {label(incumbent)}, {known}: its {found} exceeds {rule}."


def label(name: str) -> str:
  """A row's name for people; a task's own name stays.

  >>> label("merge_best"), label("best_on_my_task")
  ('merge best', 'best on my_task')
  """
  start = SPECIALIST if name.startswith(SPECIALIST) else name
  return start.replace("_", " ") + name.removeprefix(start)
