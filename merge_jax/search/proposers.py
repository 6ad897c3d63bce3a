"""Proposers: what to evaluate after the known points. Each is a generator that is sent its records."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.errors import unknown
from merge_jax.search import baselines
from merge_jax.search.journal import Record
from merge_jax.search.loop import Generations, Proposal, Proposer
from merge_jax.search.model_based import gaussian_process, response_surface
from merge_jax.search.options import Options as Options
from merge_jax.search.point import Candidate
from merge_jax.search.soce import soce
from merge_jax.search.surrogate import surrogate


def cma_es(known: Sequence[Record], options: Options) -> Generations:
  """CMA-ES (pycma) on the vector; the paper's search, started from the best known point.

  Sources: arXiv 2412.04144; Hansen, arXiv 1604.00772.
  """
  start, _ = options.first(known)
  population = options.population or 4 + int(3 * math.log(options.space.size))
  strategy = _strategy(start, options, population)
  records, worst = list(known), 0.0
  while not strategy.stop():
    points = strategy.ask()
    mean = options.space.decode(strategy.result.xfavorite) if strategy.countiter else None
    made = yield Proposal([options.candidate("cma_es", x) for x in points], mean)
    records += made
    losses = -options.fitness.of(records)[-len(made) :]
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


def _strategy(start: np.ndarray, options: Options, population: int) -> Any:
  import cma

  settings: dict[str, Any] = {
    "seed": float("nan"), "randn": _Normal(options.seed), "popsize": population,
    "CMA_diagonal": DIAGONAL * options.space.size // population, "verbose": -9, "verb_log": 0,
    # The default stops end a search after one generation on a plateau (accuracy of few examples).
    "tolfun": 0.0, "tolfunhist": 0.0, "tolflatfitness": 20, "tolx": 1e-6,
    "tolstagnation": np.inf, "maxiter": np.inf,
  }  # fmt: skip
  if options.space.bounds is not None:
    settings["bounds"] = list(options.space.bounds)
    start = np.clip(start, *options.space.bounds)
  sigma = options.sigma or options.space.step
  return cma.CMAEvolutionStrategy(np.asarray(start, float), sigma, settings)


def line_search(known: Sequence[Record], options: Options) -> Generations:
  """Coordinate pattern search: the overall scale first, then each coordinate, in turns.

  Each direction keeps a step and a sign of its own. A success makes the step half as long again, a
  failure turns the sign, two failures halve the step. When all steps are below 0.01 they start
  again at 0.1, in another order.
  """
  generator = np.random.default_rng(options.seed)
  space = options.space
  x, highest = options.first(known)
  records = list(known)
  singles = options.fitness.of(records)[: options.count]
  if len(singles) < options.count:
    singles = np.zeros(options.count)
  models = [int(i) for i in np.argsort(-np.nan_to_num(singles, nan=-np.inf), kind="stable")]
  order = [row + i for row in range(0, space.weights, options.count) for i in models]
  order += range(space.weights, space.size)
  if highest == -np.inf:
    records += yield Proposal([options.candidate("line_search", x)])
    highest = float(np.nan_to_num(options.fitness.of(records)[-1], nan=-np.inf))
  if space.scaled:
    order = [-1, *order]
  widths = dict.fromkeys(order, options.sigma or 0.25)
  signs = dict.fromkeys(order, 1.0)
  while True:
    for direction in order:
      for _ in range(2):
        step = signs[direction] * widths[direction]
        trial = x.copy()
        if direction == -1:
          trial[: space.weights] *= 1 + step
        else:
          trial[direction] += step
        if space.bounds is not None:
          trial = np.clip(trial, *space.bounds)
        records += yield Proposal([options.candidate("line_search", trial)])
        value = float(options.fitness.of(records)[-1])
        if value > highest:
          x, highest = trial, value
          widths[direction] *= 1.5
          break
        signs[direction] = -signs[direction]
      else:
        widths[direction] *= 0.5
    if max(widths.values()) < 0.01:
      widths = dict.fromkeys(order, 0.1)
      order = [order[i] for i in generator.permutation(len(order))]


def random(known: Sequence[Record], options: Options) -> Generations:
  """Dirichlet(1) weights, and numbers anywhere in their range: the control that a search has to beat."""
  generator = np.random.default_rng(options.seed)
  while True:
    points = [options.space.draw(generator) for _ in range(options.batch)]
    yield Proposal([Candidate("random", options.method, point) for point in points])


def known_alone(known: Sequence[Record], options: Options) -> Generations:
  """Nothing beside the known points: what a search has to be better than."""
  del known, options
  yield from ()


class Kind(NamedTuple):
  """A proposer.

  Attributes:
    start: from the known records.
    least: the smallest space it can search.
    foresees: whether it learns from outputs (`Options.evidence`).
    measures: whether it looks at distances between merged models (`Options.metric`).
    rows: whether it takes several rows of weights.
    numbers: whether it takes numbers beside the weights, and any coordinates.
    takes: of `TUNING`, what it looks at.
    batches: whether it asks for several candidates at once.
  """

  start: Callable[..., Generations]
  least: int = 1
  foresees: bool = False
  measures: bool = False
  rows: bool = False
  numbers: bool = False
  takes: tuple[str, ...] = ()
  batches: bool = False


TUNING = ("sigma", "population", "start", "competitors")
"""Settings that some proposers look at."""

PROPOSERS: dict[str, Kind] = {
  "line_search": Kind(line_search, rows=True, numbers=True, takes=("sigma", "start")),
  "cma_es": Kind(
    cma_es, least=2, rows=True, numbers=True, takes=("sigma", "population", "start"), batches=True
  ),
  "random": Kind(random, rows=True, numbers=True, batches=True),
  "surrogate": Kind(surrogate, foresees=True, measures=True, rows=True, takes=("competitors",), batches=True),
  "gaussian_process": Kind(gaussian_process, measures=True, takes=("start",)),
  "response_surface": Kind(response_surface, measures=True, takes=("start",)),
  "soce": Kind(soce, least=2),
  "known": Kind(known_alone, rows=True, numbers=True, batches=True),
}


def proposer(name: str, options: Options, *, known: bool = True) -> Proposer:
  """The known points, then a proposer by name.

  Args:
    name: a key of `PROPOSERS`.
    options: see `Options`.
    known: off leaves the known points out (a cold start), which are merges by "linear": an objective without
      that method cannot evaluate them.

  Raises:
    ValueError: an unknown name or argument, or a space that is too small.
  """
  if name not in PROPOSERS:
    raise ValueError(unknown("proposer", name, PROPOSERS))
  kind = PROPOSERS[name]
  taken = list(inspect.signature(kind.start).parameters)[2:]
  for extra in options.extra:
    if extra not in taken:
      raise ValueError(unknown(f"argument of {name}", extra, taken))
  if not kind.numbers and options.space.weights < options.space.size:
    able = ", ".join(one for one, other in PROPOSERS.items() if other.numbers)
    raise ValueError(f"{name} searches weights alone; search numbers, or space trajectory, by {able}.")
  if not kind.rows and options.space.weights > options.count:
    able = ", ".join(one for one, other in PROPOSERS.items() if other.rows)
    raise ValueError(f"{name} searches one weight for each checkpoint; search more of them by {able}.")
  if options.space.size < kind.least:
    raise ValueError(
      f"{name} needs at least {kind.least} numbers to search, one for each checkpoint; got "
      f"{options.space.size}. Use line_search to scale a single one."
    )

  def propose() -> Generations:
    records: list[Record] = []
    if known:
      records = yield from baselines.known_points(options.fitness, options.count, options.trajectory)
    return (yield from kind.start(records, options, **options.extra))

  return propose
