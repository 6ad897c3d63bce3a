"""Proposers that learn the fitness as a function of the weights, and evaluate where that looks best.

Distances are those between the merged models (`Options.metric`), so that checkpoints that are alike count as
one; without the metric they are those between weights.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from merge_jax.search import regression
from merge_jax.search.journal import Record
from merge_jax.search.loop import Generations, Proposal
from merge_jax.search.options import Options
from merge_jax.search.point import Point
from merge_jax.search.regression import Floats

LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
SAMPLES = 400
"""Points of each round among which the best is looked for."""
MOST = 400
"""Points that are learned from: those nearest to the best one."""
FIRST = 4
"""Points that are evaluated before anything is learned, if so few are known."""


def gaussian_process(known: Sequence[Record], options: Options) -> Generations:
  """A Gaussian process on the fitness (Matérn 5/2); next is the largest expected improvement.

  Source: Jones et al., Efficient Global Optimization (1998).
  """
  from scipy import stats

  def expected(model: _Learned) -> Callable[[Floats], Floats]:
    found = regression.fit(model.places, model.values, regression.matern, LENGTHS)
    # Over the best that is believed: the best that was seen owes a part to noise.
    highest = found.at(model.places)[0].max()

    def gain(places: Floats) -> Floats:
      mean, deviation = found.at(places)
      z = (mean - highest) / deviation
      value: Floats = deviation * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
      return value

    return gain

  return _search("gaussian_process", known, options, expected, lambda radius, better: radius)


def response_surface(known: Sequence[Record], options: Options, *, radius: float = 0.3) -> Generations:
  """A quadratic response surface around the best point; next is its maximum within a trust region.

  Coefficients have normal priors, since there are more of them than points: a ridge regression whose scales
  are the likeliest. Far points tell less of the surface, so their noise is larger. The region grows by half
  with a success, and shrinks to .6 with a failure; `radius` is its first one.

  Source: Box and Wilson (1951).
  """

  def surface(model: _Learned) -> Callable[[Floats], Floats]:
    centred = model.places - model.places[model.best]
    distances = np.sqrt((centred**2).sum(axis=1))
    scatter = np.exp(np.minimum(0.5 * (distances / (2 * model.radius)) ** 2, 9.0))
    found = regression.fit(centred, model.values, regression.quadratic, LENGTHS, scatter)

    def height(places: Floats) -> Floats:
      moved = places - model.places[model.best]
      outside = np.sqrt((moved**2).sum(axis=1)) > model.radius
      return np.where(outside, -np.inf, found.at(moved)[0])

    return height

  def moved(radius: float, better: bool) -> float:
    return max(radius * (1.5 if better else 0.6), 0.02)

  return _search("response_surface", known, options, surface, moved, radius)


class _Learned:
  """What is known: vectors of the space, places in which distances are Euclidean, values."""

  def __init__(self, options: Options, radius: float):
    self._options, self._root = options, regression.root(options.metric, options.count)
    self.vectors, self.places, self.values = np.zeros((0, options.space.size)), np.zeros((0, 0)), np.zeros(0)
    self.radius = radius

  def learn(self, records: Sequence[Record]) -> None:
    """Takes the records that are `Options.usable`."""
    usable = self._options.usable(records)
    values = self._options.fitness.of(records)[usable]
    some = list(itertools.compress(records, usable))
    vectors = np.array([self._options.space.encode(record.point) for record in some])
    places = np.array([self._place(record.point) for record in some])
    far = np.linalg.norm(places - places[np.argmax(values)], axis=1)
    near = np.sort(np.argsort(far, kind="stable")[:MOST])
    self.values, self.vectors, self.places = values[near], vectors[near], places[near]

  @property
  def best(self) -> int:
    """The fittest."""
    return int(np.argmax(self.values))

  def of(self, vectors: Floats) -> Floats:
    """Places of vectors."""
    return np.array([self._place(self._options.space.decode(x)) for x in vectors])

  def _place(self, point: Point) -> Floats:
    place: Floats = (self._root @ np.atleast_2d(point.array).T).ravel()
    return place


def _search(
  kind: str,
  known: Sequence[Record],
  options: Options,
  learned: Callable[[_Learned], Callable[[Floats], Floats]],
  moved: Callable[[float, bool], float],
  radius: float = 1.0,
) -> Generations:
  """Evaluates the best of a function that is learned anew after each record."""
  generator, records, model = np.random.default_rng(options.seed), list(known), _Learned(options, radius)
  first = options.first(known)[0]
  while (usable := options.usable(records)).sum() < FIRST:
    tried = usable.any() or len(records) > len(known)
    trial = first + tried * options.space.step * generator.standard_normal(options.space.size)
    records += yield Proposal([options.candidate(kind, _inside(trial, options))])
    if len(records) > 10 * FIRST:
      return
  while True:
    model.learn(records)
    highest = model.values.max()
    if np.ptp(model.values) > 0:
      trial = _best(model, learned(model), options, generator)
    else:
      trial = _inside(first + options.space.step * generator.standard_normal(options.space.size), options)
    records += yield Proposal([options.candidate(kind, trial)])
    model.radius = moved(model.radius, bool(options.fitness.of(records)[-1] > highest))


def _best(
  model: _Learned, value: Callable[[Floats], Floats], options: Options, generator: np.random.Generator
) -> np.ndarray:
  """The best of samples around the five fittest points, then around the best of these, ever nearer.

  Steps are of all coordinates, of a few, or along the vector itself.
  """
  centres = model.vectors[np.argsort(-model.values, kind="stable")[:5]]
  size, scale = options.space.size, 4 * options.space.step
  best, highest = centres[0], -np.inf
  for _ in range(4):
    start = centres[generator.integers(len(centres), size=SAMPLES)]
    steps = scale * generator.random((SAMPLES, 1)) ** 2 * generator.standard_normal((SAMPLES, size))
    sparse = generator.random((SAMPLES, size)) < 1.5 / size
    steps = np.where(generator.random((SAMPLES, 1)) < 0.4, steps * sparse, steps)
    if options.space.scaled:
      along = generator.random((SAMPLES, 1)) < 0.1
      steps = np.where(along, start * scale * generator.standard_normal((SAMPLES, 1)), steps)
    trials = np.array([_inside(x, options) for x in start + steps])
    heights = value(model.of(trials))
    at = int(np.argmax(heights))
    if heights[at] > highest:
      best, highest = trials[at], float(heights[at])
    centres, scale = best[None], 0.4 * scale
  return best


def _inside(x: np.ndarray, options: Options) -> np.ndarray:
  return x if options.space.bounds is None else np.clip(x, *options.space.bounds)
