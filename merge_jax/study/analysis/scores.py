"""What a score is worth: relative to the expert where the task is held in, to the base where it is not."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.evals.examples import Examples


class Model(NamedTuple):
  """Which of a study's models.

  Attributes:
    role: "base", "expert", "multitask" or "merge".
    size, kind, seed: of the family: name of the size, kind of base, seed of the training.
    members: held-in categories: of an expert its one, of a merge those of its experts, of a multitask
      model those that it was trained on; none are all.
    method, subset: of a merge.
    tuned: whether a merge has the numbers chosen on validation examples, or the method's first ones.
  """

  role: str
  size: str
  kind: str
  seed: int
  members: tuple[str, ...] = ()
  method: str = ""
  subset: int = 0
  tuned: bool = True

  def __str__(self) -> str:
    what = {
      "expert": f"expert of {self.members[0] if self.members else 'nothing'}",
      "merge": f"{self.method} of {len(self.members)} (subset {self.subset})",
    }.get(self.role, self.role)
    return f"{what} of {self.size}, {self.kind}, seed {self.seed}"


class Scored(NamedTuple):
  """A model and what it scored on the test examples of every task."""

  model: Model
  examples: Examples


class Categories(NamedTuple):
  """Tasks by category."""

  held_in: Mapping[str, tuple[str, ...]]
  held_out: Mapping[str, tuple[str, ...]]


class Columns(NamedTuple):
  """Places of tasks in categories, in order: a place is one task of one category.

  Attributes:
    names: of the categories, held-in ones first.
    held_in: how many of them are.
    tasks: int `[places]`, index of the place's task.
    categories: int `[places]`, index of the place's category.
    signs: float64 `[places]`, -1 where a lower score is better.
  """

  names: tuple[str, ...]
  held_in: int
  tasks: np.ndarray
  categories: np.ndarray
  signs: np.ndarray


def columns(categories: Categories, tasks: Sequence[str], signs: Sequence[float]) -> Columns:
  """Where the scores of `tasks` go.

  Raises:
    ValueError: a category has no task or one that was not scored.
  """
  groups = [*categories.held_in.items(), *categories.held_out.items()]
  places = []
  for i, (name, members) in enumerate(groups):
    missing = [task for task in members if task not in tasks]
    if missing or not members:
      what = f"has no scores of {missing}" if missing else "has no tasks"
      raise ValueError(f"Category {name!r} {what}; scored tasks: {', '.join(tasks)}.")
    places += [(i, tasks.index(task)) for task in members]
  owner, task = np.array(places, int).reshape(-1, 2).T
  return Columns(
    tuple(name for name, _ in groups), len(categories.held_in), task, owner, np.asarray(signs)[task]
  )


def references(models: Sequence[Model], names: Sequence[str], held_in: int) -> np.ndarray:
  """Whose scores each model's are relative to: int `[models, categories]`, -1 where there is none.

  The expert of a held-in category, the base for the others, of the model's own family and seed.
  """
  known = {}
  for i, model in enumerate(models):
    if model.role in ("base", "expert"):
      known[model.size, model.kind, model.seed, model.members[:1]] = i
  owners = [(name,) if i < held_in else () for i, name in enumerate(names)]
  found = [[known.get((m.size, m.kind, m.seed, owner), -1) for owner in owners] for m in models]
  return np.array(found, int).reshape(len(models), len(names))


def usable(points: np.ndarray, indices: Iterable[int], places: Columns, floors: np.ndarray) -> np.ndarray:
  """Places where a score can be relative to these models' scores: bool `[places]`.

  Args:
    points: `[models, tasks]`.
    indices: of the models that are referred to, by place; -1 is not looked at.
    places: of the tasks.
    floors: `[tasks]`: scores at or below are no denominators; a loss is one above 0 where it is finite.
  """
  chosen = np.asarray(list(indices), int)
  values = points[chosen, places.tasks]
  least = np.where(places.signs > 0, floors[places.tasks], 0.0)
  return (chosen < 0) | (np.isfinite(values) & (values > least))


@np.errstate(invalid="ignore", divide="ignore")
def relative(scores: np.ndarray, reference: np.ndarray, signs: np.ndarray) -> np.ndarray:
  """score / reference; reference / score where lower is better, so that more than 1 is always better.

  >>> relative(np.array([0.4, 2.0]), np.array([0.5, 1.0]), np.array([1.0, -1.0])).tolist()
  [0.8, 0.5]
  """
  ratio = np.where(signs > 0, scores / reference, reference / scores)
  return np.where(np.isfinite(ratio), ratio, np.nan)


def normalise(scores: np.ndarray, refer: np.ndarray, places: Columns, kept: np.ndarray) -> np.ndarray:
  """Mean over each category's tasks of the score relative to that category's reference.

  One function for the scores themselves and for resampled ones: a reference is taken from the same draw.

  Args:
    scores: `[draws, models, tasks]`, as the metrics give them.
    refer: `[models, categories]`, see `references`.
    places: of the tasks.
    kept: bool `[models, places]`; other places are dropped, and in a draw those it leaves undefined.

  Returns:
    float64 `[draws, models, categories]`, NaN where a category has nothing left.
  """
  result = np.full((*scores.shape[:2], len(places.names)), np.nan)
  everywhere = np.arange(scores.shape[1])
  for i in range(len(places.names)):
    sums, count = np.zeros(result.shape[:2]), np.zeros(result.shape[:2])
    for place in np.flatnonzero(places.categories == i):
      one = scores[:, :, places.tasks[place]]
      ratio = relative(one, one[:, refer[everywhere, i]], places.signs[place])
      ratio[:, ~kept[:, place] | (refer[:, i] < 0)] = np.nan
      defined = np.isfinite(ratio)
      sums += np.where(defined, ratio, 0)
      count += defined
    np.divide(sums, count, out=result[:, :, i], where=count > 0)
  return result


def mean_defined(values: np.ndarray) -> np.ndarray:
  """Mean over the last axis of what is not NaN; NaN where nothing is."""
  defined = ~np.isnan(values)
  count = defined.sum(axis=-1)
  sums = np.where(defined, values, 0).sum(axis=-1)
  return np.divide(sums, count, out=np.full(sums.shape, np.nan), where=count > 0)
