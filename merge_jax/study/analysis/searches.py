"""What the claims about searches need, and its statistics: arrays `[1 + draws]`, the data at index 0."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.evals.examples import Examples
from merge_jax.search.scores import floats
from merge_jax.study.analysis.intervals import resampled_scores, resampled_units


class Search(NamedTuple):
  """One search.

  Attributes:
    examples: its answer's, on report examples (which chose nothing).
    top: weights `[solutions][checkpoints]` of its five best solutions, of the checkpoints it searched over.
    fitness: of its proposals in order, None where one failed.
    average: mean score of the answer over the fitness tasks on the search's own examples, higher is better.
  """

  examples: Examples
  top: Sequence[Sequence[float]] = ()
  fitness: Sequence[float | None] = ()
  average: float | None = None


class Setting(NamedTuple):
  """Searches for one fitness, by different seeds.

  Attributes:
    name: of the setting.
    tasks: of the fitness; the others that were scored are held out.
    rows: report examples of "best_single", "best_on_TASK", "uniform" and "merge_best", which were chosen on
      the search's examples.
    searches: at least one.
    singles: report examples of every checkpoint.
    fitness: of every checkpoint that was searched over alone, on the search's examples.
  """

  name: str
  tasks: Sequence[str]
  rows: Mapping[str, Examples]
  searches: Sequence[Search]
  singles: Sequence[Examples] = ()
  fitness: Sequence[float | None] = ()

  @property
  def repeats(self) -> int:
    """Of searches."""
    return len(self.searches)


class Sample(NamedTuple):
  """Resampled scores of a setting, higher is better.

  Attributes:
    name, tasks: of the setting.
    columns: of the fitness tasks among all.
    rest: of the others.
    rows: `[1 + draws, tasks]` by name.
    singles: `[1 + draws, checkpoints, tasks]`.
    answers: `[1 + draws, searches, tasks]`.
    weights: `[1 + draws, searches]`.
    gap: by how much the answers' averages are higher on the search's own examples; NaN if unknown.
  """

  name: str
  tasks: Sequence[str]
  columns: list[int]
  rest: list[int]
  rows: dict[str, np.ndarray]
  singles: np.ndarray
  answers: np.ndarray
  weights: np.ndarray
  gap: float

  @property
  def repeats(self) -> int:
    """Of searches."""
    return self.answers.shape[1]

  def mean(self, values: np.ndarray) -> np.ndarray:
    """Of `[1 + draws, searches]` over searches."""
    weighed = np.where(self.weights > 0, values, 0.0) * self.weights  # an infinite margin may weigh nothing
    return weighed.sum(axis=1) / self.weights.sum(axis=1)

  def gain(self, over: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """Mean over tasks of the answers' scores less those of a row."""
    return self.mean((self.answers[..., columns] - over[:, None, columns]).mean(axis=-1))


def sample(setting: Setting, draws: int, seed: int) -> Sample:
  """Resamples examples, alike for all models (and settings), and searches.

  Raises:
    ValueError: a task of the fitness was not scored, or other examples for some models.
  """
  answers = [one.examples for one in setting.searches]
  scores = resampled_scores([*setting.rows.values(), *setting.singles, *answers], draws, seed)
  known = answers[0].tasks
  missing = [task for task in setting.tasks if task not in known]
  if missing:
    raise ValueError(f"Setting {setting.name!r}: no scores of {missing}; scored tasks: {', '.join(known)}.")
  scores = scores * np.array(answers[0].signs)
  columns = [known.index(task) for task in setting.tasks]
  first, last = len(setting.rows), len(setting.rows) + len(setting.singles)
  own = floats([one.average for one in setting.searches])
  return Sample(
    setting.name,
    known,
    columns,
    [i for i in range(len(known)) if i not in columns],
    {name: scores[:, i] for i, name in enumerate(setting.rows)},
    scores[:, first:last],
    scores[:, last:],
    resampled_units(len(answers), draws, (seed, 2)),
    float(np.mean(own) - scores[0, last:][:, columns].mean()),
  )


def over_units(values: Sequence[float], draws: int, seed: int) -> np.ndarray:
  """Mean of one value a unit; draws are NaN where there is one unit alone, for nothing is resampled."""
  if len(values) == 1:
    return np.array([values[0], *[np.nan] * draws])
  return np.average(
    np.tile(values, (1 + draws, 1)), axis=1, weights=resampled_units(len(values), draws, (seed, 3))
  )


def margin(one: Sample) -> np.ndarray:
  """How far the answers are from being dominated.

  For each other model the task on which the answer is furthest ahead of it; the smallest of these. Below 0
  some model is better on every task. Models that score exactly the same are left out.
  """
  others = np.concatenate([one.singles, np.stack(list(one.rows.values()), axis=1)], axis=1)[..., one.columns]
  ahead = one.answers[:, :, None, one.columns] - others[:, None]
  best = ahead.max(axis=-1)  # [1 + draws, searches, others]
  best = np.where((ahead == 0).all(axis=(0, 3)), np.inf, best)
  return one.mean(best.min(axis=2))


def density(search: Search, threshold: float) -> float:
  """The least share of weights above `threshold` of the uniform one in magnitude, of the best solutions."""
  weights = np.abs(np.array(search.top, np.float64))
  return float(
    (weights / weights.sum(axis=1, keepdims=True) > threshold / weights.shape[1]).mean(axis=1).min()
  )


@np.errstate(invalid="ignore", divide="ignore")
def rank_correlations(a: np.ndarray, b: np.ndarray, draws: int, seed: int) -> np.ndarray:
  """Spearman's coefficient of the pairs, and of pairs that are drawn again: `[1 + draws]`.

  NaN where one side is constant. The same seed draws the same pairs.
  """
  from scipy import stats

  count = len(a)
  drawn = np.random.default_rng((seed, 4)).integers(0, count, (draws, count))
  index = np.concatenate([np.arange(count)[None], drawn])
  ranks = [stats.rankdata(np.asarray(side, np.float64)[index], axis=1) for side in (a, b)]
  x, y = (one - one.mean(axis=1, keepdims=True) for one in ranks)
  return (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
