"""Proposers: what to evaluate after the known points. Each is a function of the journal."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from merge_jax.errors import unknown
from merge_jax.search import baselines
from merge_jax.search import fitness as fitnesses
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Candidate, Record
from merge_jax.search.loop import Proposal, Proposer
from merge_jax.search.space import Space


@dataclasses.dataclass(frozen=True)
class Setting:
  """What every proposer is made from.

  Attributes:
    space: of the weights.
    fitness: of the records.
    count: number of checkpoints.
    seed: of everything random.
    sigma: first step width; None takes the space's.
    population: candidates in a generation; None: 4 + 3 ln(count).
    start: "best" starts from the best known point, "uniform" from 1/count.
  """

  space: Space
  fitness: Fitness
  count: int
  seed: int = 0
  sigma: float | None = None
  population: int | None = None
  start: str = "best"

  def first(self, records: Sequence[Record]) -> tuple[np.ndarray, float]:
    """The vector to start from and its fitness (-inf if nothing is known)."""
    values = self.fitness.of(records)
    at = fitnesses.best(values) if self.start == "best" else None
    if at is None:
      uniform = np.full(self.count, 1.0 / self.count)
      known = baselines.find(records, tuple(uniform))
      value = -np.inf if known is None else values[known]
      return self.space.point(uniform), float(np.nan_to_num(value, nan=-np.inf))
    return self.space.point(np.array(records[at].weights)), float(values[at])

  def candidate(self, kind: str, x: np.ndarray) -> Candidate:
    """The candidate at a vector."""
    return Candidate(kind, tuple(float(w) for w in self.space.weights(x)))


def cma_es(records: Sequence[Record], setting: Setting) -> Iterator[Proposal]:
  """CMA-ES (pycma) on the vector; the paper's search, started from the best known point.

  Sources: arXiv 2412.04144; Hansen, arXiv 1604.00772.
  """
  start, _ = setting.first(records)
  population = setting.population or 4 + int(3 * math.log(setting.count))
  strategy = _strategy(start, setting, population)
  worst = 0.0
  while not strategy.stop():
    points = strategy.ask()
    before = len(records)
    mean = strategy.result.xfavorite if strategy.countiter else None
    weights = None if mean is None else tuple(map(float, setting.space.weights(mean)))
    yield Proposal([setting.candidate("cma_es", x) for x in points], weights)
    losses = -setting.fitness.of(records)[before:]
    finite = np.isfinite(losses)
    worst = max([worst, *losses[finite]])
    # A failed candidate is told as worse than the worst: NaN would corrupt the ranking.
    strategy.tell(points, list(np.where(finite, losses, worst + abs(worst) + 1.0)))
    strategy.sm.randn = strategy.opts["randn"]  # a change to the full matrix forgets the generator


DIAGONAL = 100
"""Evaluations per dimension before correlations between coordinates are learned."""


class _Normal:
  """Normal numbers of one optimiser; the library's default is numpy's global generator."""

  def __init__(self, seed: int):
    self._generator = np.random.default_rng(seed)

  def __call__(self, *shape: int) -> np.ndarray:
    return self._generator.standard_normal(shape)


def _strategy(start: np.ndarray, setting: Setting, population: int) -> Any:
  import cma

  options: dict[str, Any] = {
    "seed": float("nan"), "randn": _Normal(setting.seed), "popsize": population,
    "CMA_diagonal": DIAGONAL * setting.count // population, "verbose": -9, "verb_log": 0,
    # The default stops end a search after one generation on a plateau (accuracy of few examples).
    "tolfun": 0.0, "tolfunhist": 0.0, "tolflatfitness": 20, "tolx": 1e-6,
    "tolstagnation": np.inf, "maxiter": np.inf,
  }  # fmt: skip
  if setting.space.bounds is not None:
    options["bounds"] = list(setting.space.bounds)
    start = np.clip(start, *setting.space.bounds)
  sigma = setting.sigma or setting.space.sigma
  return cma.CMAEvolutionStrategy(np.asarray(start, float), sigma, options)


def line_search(records: Sequence[Record], setting: Setting) -> Iterator[Proposal]:
  """Adaptive line search: the overall scale first, then each checkpoint's weight, in turns.

  Each direction keeps a step and a sign of its own. A success makes the step half as long again, a
  failure turns the sign, two failures halve the step. When all steps are below 0.01 they start
  again at 0.1, in another order.
  """
  generator = np.random.default_rng(setting.seed)
  x, best = setting.first(records)
  singles = setting.fitness.of(records)[: setting.count]
  if len(singles) < setting.count:
    singles = np.zeros(setting.count)
  order = [-1, *np.argsort(-np.nan_to_num(singles, nan=-np.inf), kind="stable")]
  if setting.space.name != "free":
    order = order[1:]  # elsewhere the scale has no effect
  widths = dict.fromkeys(order, setting.sigma or 0.25)
  signs = dict.fromkeys(order, 1.0)
  while True:
    for direction in order:
      for _ in range(2):
        step = signs[direction] * widths[direction]
        trial = x * (1 + step) if direction == -1 else x + step * np.eye(setting.count)[direction]
        if setting.space.bounds is not None:
          trial = np.clip(trial, *setting.space.bounds)
        yield Proposal([setting.candidate("line_search", trial)])
        value = float(setting.fitness.of(records)[-1])
        if value > best:
          x, best = trial, value
          widths[direction] *= 1.5
          break
        signs[direction] = -signs[direction]
      else:
        widths[direction] *= 0.5
    if max(widths.values()) < 0.01:
      widths = dict.fromkeys(order, 0.1)
      order = [order[i] for i in generator.permutation(len(order))]


def random(records: Sequence[Record], setting: Setting) -> Iterator[Proposal]:
  """Dirichlet(1) weights: the control that a search has to beat."""
  generator = np.random.default_rng(setting.seed)
  while True:
    weights = generator.dirichlet(np.ones(setting.count))
    yield Proposal([Candidate("random", tuple(map(float, weights)))])


PROPOSERS: dict[str, Callable[[Sequence[Record], Setting], Iterator[Proposal]]] = {
  "line_search": line_search,
  "cma_es": cma_es,
  "random": random,
}


def proposer(name: str, setting: Setting, *, known: bool = True) -> Proposer:
  """The known points, then a proposer by name.

  Args:
    name: a key of `PROPOSERS`.
    setting: see `Setting`.
    known: off leaves the known points out (a cold start).

  Raises:
    ValueError: an unknown name, or start.
  """
  if name not in PROPOSERS:
    raise ValueError(unknown("proposer", name, PROPOSERS))
  if setting.start not in ("best", "uniform"):
    raise ValueError(unknown("start", setting.start, ("best", "uniform")))

  def propose(records: Sequence[Record]) -> Iterator[Proposal]:
    if known:
      yield from baselines.known_points(records, setting.fitness, setting.count)
    yield from PROPOSERS[name](records, setting)

  return propose
