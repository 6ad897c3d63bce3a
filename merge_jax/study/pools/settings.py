"""What a suite of pools is told, as plain frozen data; types and ranges are checked where it is read."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from merge_jax import decoding
from merge_jax.errors import shown, unknown
from merge_jax.evals import metrics
from merge_jax.recycle import methods
from merge_jax.recycle.settings import Count, Positive
from merge_jax.search.options import STARTS
from merge_jax.search.proposers import PROPOSERS
from merge_jax.study.lineages import in_turn
from merge_jax.study.settings import Part, Size

SEEDS = ("tune", "confirm")
"""Parts of the training seeds: those to tune on, and those that are judged once."""
Share = Annotated[float, Meta(gt=0, lt=1)]
Numbers = Annotated[tuple[Positive, ...], Meta(min_length=1)]


class Puzzles(Part, frozen=True):
  """Tasks from reasoning-gym; names are those of `study.data.puzzle_table`.

  Attributes:
    tasks: what members are trained and scored on, with their metrics; those with a metric for choices are
      asked with four of them.
    others: puzzles that bases alone read about.
    train: at most so many items a task to train on.
    search, validation, test: examples a task to score, at most.
    share: of a task's items that are kept for scoring.
  """

  tasks: Annotated[dict[str, str], Meta(min_length=1)]
  others: tuple[str, ...] = ()
  train: Positive = 3000
  search: Positive = 150
  validation: Positive = 150
  test: Positive = 1000
  share: Share = 0.3


class MemberSettings(Part, frozen=True):
  """A checkpoint of a pool, or several along one run.

  Attributes:
    recipe: settings of `merge_jax.training.Recipe` that differ from the size's.
    rate: factor on its learning rate.
    start: another member that it is trained from; "": the base.
    every: each multiple of so many steps is a checkpoint of the pool, the last one, too; 0: the last alone.
    hidden: it is only there to start from.
  """

  recipe: dict[str, Any] = msgspec.field(default_factory=dict)
  rate: Annotated[float, Meta(gt=0)] = 1.0
  start: str = ""
  every: Count = 0
  hidden: bool = False


class Contestant(Part, frozen=True):
  """A way of searching; see `merge_jax.search.Options`.

  Attributes:
    proposer, method, space, start: names.
    granularity: of the weights, see `recycle.Search`.
    known: off does not look at the known points at all, so that they cost nothing (a cold start).
    sigma: first step width; 0 for the space's.
    population: candidates of a generation; 0 for the proposer's own.
    fitness: "metric", or "loss" for minus the mean log-loss.
    options: further arguments of the proposer itself.
  """

  proposer: str
  method: str = "task_arithmetic"
  space: str = "free"
  start: str = "best"
  granularity: Literal["model", "group", "depth", "layer"] = "model"
  known: bool = True
  sigma: Annotated[float, Meta(ge=0)] = 0.0
  population: Count = 0
  fitness: Literal["metric", "loss"] = "metric"
  options: dict[str, Any] = msgspec.field(default_factory=dict)


class Attainable(Part, frozen=True):
  """How much there is: gradient ascent on the smoothed score, and long searches over operators' numbers.

  Attributes:
    spaces: of the weights: "simplex", "free", "group" (attention, feed-forward, all else), "layer".
    steps, rate: of Adam, from the greedy soup.
    checks: times that the weights are scored on validation examples, evenly spaced.
    numbers: ranges of operators' numbers, by operator.
    evaluations: of each such search.
  """

  spaces: tuple[Literal["simplex", "free", "group", "layer"], ...] = ("simplex", "free", "group", "layer")
  steps: Positive = 200
  rate: Annotated[float, Meta(gt=0)] = 0.03
  checks: Positive = 10
  numbers: dict[str, dict[str, tuple[float, float]]] = msgspec.field(default_factory=dict)
  evaluations: Positive = 200


class Pools(Part, frozen=True):
  """A suite.

  Attributes:
    data: of all pools.
    sizes: models by name, with the recipes "pretrained" of the base and "member" of all checkpoints.
    recipes: of both stages, for all sizes.
    seeds: of the trainings, by part (`SEEDS`); a base for each size and seed.
    kinds: of pools, with their members by name.
    contestants: ways of searching by name.
    budgets: evaluations after which a finalist is chosen, increasing.
    opening: the first budget of a pool of K checkpoints is at least 2 K + this, where K is above 8.
    search_seeds: of each contestant on each pool.
    caution: paired errors by which a finalist must be better on validation than the best known point.
    attainable: None leaves it out.
  """

  data: Puzzles
  sizes: Annotated[dict[str, Size], Meta(min_length=1)]
  recipes: dict[Literal["pretrained", "member"], dict[str, Any]]
  seeds: dict[Literal["tune", "confirm"], tuple[Count, ...]]
  kinds: Annotated[dict[str, dict[str, MemberSettings]], Meta(min_length=1)]
  contestants: dict[str, Contestant]
  budgets: Numbers = (25, 50, 150)
  opening: Count = 10
  search_seeds: tuple[Count, ...] = (0,)
  caution: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0
  attainable: Attainable | None = None

  def budgets_of(self, count: int) -> tuple[int, ...]:
    """The budgets for a pool of `count` checkpoints."""
    first = max(self.budgets[0], 2 * count + self.opening) if count > 8 else self.budgets[0]
    return tuple(sorted({first, *(one for one in self.budgets[1:] if one > first)}))

  def part_of(self, seed: int) -> str:
    """Whether a training seed is to tune on or to confirm."""
    return next(part for part, seeds in self.seeds.items() if seed in seeds)


def from_mapping(values: Mapping[str, Any]) -> Pools:
  """Settings from nested plain data, as a config file gives them.

  Raises:
    ValueError: an unknown key, a value that is not of its type or range, names that are not known, starts
      that do not exist.
  """
  made = decoding.convert(dict(values), Pools, "config")
  for name, metric in made.data.tasks.items():
    metrics.named(metric, f"config: data.tasks.{name}")
  every = [seed for seeds in made.seeds.values() for seed in seeds]
  if not every or len(set(every)) != len(every):
    raise ValueError("config: seeds must be different, at least one; what confirms has not been tuned on.")
  if list(made.budgets) != sorted(set(made.budgets)):
    raise ValueError(f"config: budgets are {made.budgets}; expected increasing numbers.")
  for name in (*made.sizes, *made.kinds, *made.contestants):
    if not re.fullmatch(r"[\w .,+=-]+", name):
      raise ValueError(
        f"config: {shown(name)} cannot be a name here; expected letters, digits, blanks, .,+=-_"
      )
  for kind, members in made.kinds.items():
    in_turn({name: one.start for name, one in members.items()}, f"config: kinds.{kind}")
  for name, one in made.contestants.items():
    _check(one, f"config: contestants.{name}")
  return made


def _check(one: Contestant, where: str) -> None:
  if one.proposer not in PROPOSERS:
    raise ValueError(unknown("proposer", one.proposer, PROPOSERS, where))
  if one.start not in STARTS:
    raise ValueError(unknown("start", one.start, STARTS, where))
  try:
    methods.check(one.method, one.space)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
