"""Every score of a study with its resamplings, and means over merges that are paired where they can be."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from merge_jax.study.analysis import scores as scoring
from merge_jax.study.analysis.intervals import crossed_units, resampled_scores
from merge_jax.study.analysis.scores import Categories, Columns, Model, Scored

Family = tuple[str, str]
"""Name of the size and kind of base."""
Unit = tuple[int, int]
"""Training seed and subset of experts: merges of one unit are merges of the same experts."""


@dataclasses.dataclass(frozen=True)
class Draws:
  """Scored models; arrays of draws hold the data themselves at index 0.

  Attributes:
    models: those whose scores are finite.
    sizes: names in order of their parameters.
    columns: places of tasks in categories.
    scores: float64 `[1 + draws, models, tasks]`.
    refer: int `[models, categories]`, whose scores each model's are relative to.
    kept: bool `[places]` by family: tasks that are not dropped.
    ratios: float64 `[1 + draws, models, categories]`, relative to the expert or the base.
    units: by size.
    seed: of the resamplings.
    families: those that are looked at.
    dropped: what was left out, in sentences.
  """

  models: tuple[Model, ...]
  sizes: tuple[str, ...]
  columns: Columns
  scores: np.ndarray
  refer: np.ndarray
  kept: Mapping[Family, np.ndarray]
  ratios: np.ndarray
  units: Mapping[str, tuple[Unit, ...]]
  seed: int
  families: tuple[Family, ...]
  dropped: tuple[str, ...]

  @property
  def categories(self) -> tuple[str, ...]:
    """Names of the held-in ones."""
    return self.columns.names[: self.columns.held_in]

  @functools.cached_property
  def held_out(self) -> np.ndarray:
    """`[1 + draws, models]`: mean over the held-out categories of the score relative to the base's."""
    return scoring.mean_defined(self.ratios[:, :, self.columns.held_in :])

  def held_in(self, row: int, members: Sequence[str]) -> np.ndarray:
    """`[1 + draws]`: mean over the members' categories of a model's score relative to their experts'."""
    return scoring.mean_defined(self.ratios[:, row, [self.categories.index(name) for name in members]])

  def held(self, rows: Sequence[int], out: bool) -> np.ndarray:
    """`[1 + draws, rows]` of merges, on held-out categories or on those of their members."""
    if out:
      return self.held_out[:, list(rows)]
    return np.stack([self.held_in(row, self.models[row].members) for row in rows], axis=1)

  def raw(self, rows: Sequence[int], out: bool = False) -> float:
    """Mean of one cell's scores as the metrics give them, on the same tasks and with the same weights."""
    means, places = [], self.columns
    for row in rows:
      model = self.models[row]
      wanted = range(places.held_in, len(places.names)) if out else map(self.categories.index, model.members)
      kept = self.kept[model.size, model.kind]
      tasks = [places.tasks[(places.categories == i) & kept] for i in wanted]
      means.append(
        scoring.mean_defined(np.array([self.scores[0, row, own].mean() for own in tasks if len(own)]))
      )
    return float(self.mean(np.array([means]), rows)[0])

  def find(self, role: str, size: str, kind: str) -> list[int]:
    """Models of a role in a family."""
    return [i for i, m in enumerate(self.models) if (m.role, m.size, m.kind) == (role, size, kind)]

  def cells(self, size: str, kind: str, tuned: bool = True) -> dict[tuple[str, int], list[int]]:
    """A family's merges by method and number of experts; none of families that are not looked at."""
    found: dict[tuple[str, int], list[int]] = {}
    for i in self.find("merge", size, kind) if (size, kind) in self.families else ():
      model = self.models[i]
      if model.tuned == tuned:
        found.setdefault((model.method, len(model.members)), []).append(i)
    return dict(sorted(found.items(), key=lambda item: item[0][1]))

  def unit(self, row: int) -> Unit:
    return self.models[row].seed, self.models[row].subset

  def weights(self, rows: Sequence[int]) -> np.ndarray:
    """`[1 + draws, rows]`: weights of one cell's merges in each draw.

    Units are drawn for a size as a whole, so that methods, counts and kinds of base are paired where they
    have the same seeds. Where a seed has fewer subsets than elsewhere (all experts are one subset), those
    that are there share the weight of the others, so that every seed weighs the same.
    """
    size, seeds = self.models[rows[0]].size, {self.unit(row)[0] for row in rows}
    units = tuple(unit for unit in self.units[size] if unit[0] in seeds)
    drawn = _drawn(units, len(self.scores) - 1, (self.seed, 1, self.sizes.index(size)))
    result = np.empty((len(drawn), len(rows)))
    for seed in seeds:
      here = [j for j, row in enumerate(rows) if self.unit(row)[0] == seed]
      own = [units.index(self.unit(rows[j])) for j in here]
      others = [k for k, unit in enumerate(units) if unit[0] == seed and k not in own]
      result[:, here] = drawn[:, own] + drawn[:, others].sum(axis=1, keepdims=True) / len(here)
    return result

  @np.errstate(invalid="ignore")
  def mean(self, values: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """`[1 + draws]`: mean over one cell's merges of what is defined; NaN in draws without any."""
    defined = np.isfinite(values)
    weights = np.where(defined, self.weights(rows)[: len(values)], 0)
    return (np.where(defined, values, 0) * weights).sum(axis=1) / weights.sum(axis=1)

  def multitask(self, row: int) -> tuple[int | None, bool]:
    """The multitask model to compare a merge with, and whether it was trained on the same categories.

    The one of the same family and seed that was trained on the merge's own categories; else the one
    trained on all.
    """
    merge, everything = self.models[row], set(self.categories)
    found = {
      frozenset(self.models[i].members or everything): i
      for i in self.find("multitask", merge.size, merge.kind)
      if self.models[i].seed == merge.seed
    }
    own = frozenset(merge.members)
    return (found[own], True) if own in found else (found.get(frozenset(everything)), False)

  def over_common_tasks(self, families: Iterable[Family]) -> "Draws":
    """These families' scores over the tasks that none of them dropped, so that they can be compared."""
    chosen = tuple(families)
    common: np.ndarray = np.all([self.kept[family] for family in chosen], axis=0)
    if all((self.kept[family] == common).all() for family in chosen):
      return dataclasses.replace(self, families=chosen)
    kept = dict(self.kept)
    kept.update((family, common) for family in chosen)
    ratios = scoring.normalise(self.scores, self.refer, self.columns, _by_model(self.models, kept))
    return dataclasses.replace(self, families=chosen, kept=kept, ratios=ratios)


_drawn = functools.lru_cache(maxsize=128)(crossed_units)


def resample(
  scored: Sequence[Scored],
  categories: Categories,
  sizes: Sequence[str],
  draws: int = 1000,
  seed: int = 0,
  floors: Mapping[str, float] | None = None,
) -> Draws:
  """Normalised scores of a study, with their resamplings.

  Args:
    scored: models; scores of all tasks.
    categories: tasks by category.
    sizes: names in order of their parameters.
    draws: resamplings.
    seed: of the resamplings.
    floors: scores at or below which a task's reference is no denominator, such as the level of chance; 0
      where nothing is said. The task is then dropped for that size and kind of base.

  Raises:
    ValueError: no models, an unknown size or category, other tasks or examples in some models.
  """
  if not scored:
    raise ValueError("No model of the study has been scored; there is nothing to analyse.")
  first = scored[0].examples
  places = scoring.columns(categories, first.tasks, first.signs)
  for model, _ in scored:
    odd = [name for name in model.members if name not in categories.held_in]
    if odd or model.size not in sizes:
      what = f"of categories {odd}" if odd else f"of size {model.size!r}"
      raise ValueError(f"A scored {model.role} is {what}; expected one of "
                       f"{', '.join(categories.held_in if odd else sizes)}.")  # fmt: skip
  models = [one.model for one in scored]
  drawn = resampled_scores([one.examples for one in scored], draws, seed)
  left_out = _left_out(models, drawn[0], places)
  fine = [i for i in range(len(models)) if i not in left_out]
  models, drawn = [models[i] for i in fine], drawn[:, fine]
  kinds = list(dict.fromkeys(model.kind for model in models))
  families = sorted({(m.size, m.kind) for m in models}, key=lambda f: (sizes.index(f[0]), kinds.index(f[1])))
  refer = scoring.references(models, places.names, places.held_in)
  least = np.array([(floors or {}).get(task, 0.0) for task in first.tasks])
  usable = [scoring.usable(drawn[0], row[places.categories], places, least) for row in refer]
  kept: dict[Family, np.ndarray] = {}
  for model, own in zip(models, usable, strict=True):
    family = model.size, model.kind
    kept[family] = kept.get(family, True) & own
  said = [
    f"Task {first.tasks[places.tasks[i]]} of {places.names[places.categories[i]]} is dropped for {size}, "
    f"{kind}: {'an expert' if places.categories[i] < places.held_in else 'a base'} scores too little."
    for size, kind in families
    for i in np.flatnonzero(~kept[size, kind])
  ]
  units = {
    size: tuple(sorted({(m.seed, m.subset) for m in models if m.role == "merge" and m.size == size}))
    for size in sizes
  }
  return Draws(
    models=tuple(models),
    sizes=tuple(sizes),
    columns=places,
    scores=drawn,
    refer=refer,
    kept=kept,
    ratios=scoring.normalise(drawn, refer, places, _by_model(models, kept)),
    units=units,
    seed=seed,
    families=tuple(families),
    dropped=(*left_out.values(), *said),
  )


def _left_out(models: Sequence[Model], points: np.ndarray, places: Columns) -> dict[int, str]:
  """Models with scores that are not finite, and merges whose experts are missing or such; with sentences."""
  needed = points[:, np.unique(places.tasks)]
  broken = ~np.isfinite(needed[:, np.isfinite(needed).any(axis=0)]).all(axis=1)
  bad = np.flatnonzero(broken).tolist()
  result = {i: f"The {models[i]} is left out: its scores are not finite." for i in bad}
  sound = [model._replace(role="") if i in result else model for i, model in enumerate(models)]
  refer = scoring.references(sound, places.names, places.held_in)
  for i, model in enumerate(sound):
    alone = [name for name in model.members if refer[i, places.names.index(name)] < 0]
    if model.role == "merge" and alone:
      result[i] = f"The {model} is left out: there are no scores of the experts of {', '.join(alone)}."
  return result


def _by_model(models: Sequence[Model], kept: Mapping[Family, np.ndarray]) -> np.ndarray:
  return np.stack([kept[model.size, model.kind] for model in models])
