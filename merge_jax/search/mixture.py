"""What a mixture of data would score, from merges of experts that were each trained on a part of it.

A merge of experts of one base, with weights on the simplex, stands for a model trained on their data in these
ratios. From evaluated merges a Gaussian process a task gives the score of any ratios, and so the best for any
wishes, without training one.

Sources: MergeMix (arXiv 2601.17858), DeMix (arXiv 2602.00747); the regression is our choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.search import regression
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.options import LINEAR
from merge_jax.search.regression import Fit, Floats
from merge_jax.search.scores import signed

LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
SAMPLES, CLOSER = 4096, 6
"""Ratios that are drawn, and how often they are drawn again closer to the best."""


class Mixtures(NamedTuple):
  """Scores as functions of ratios.

  Attributes:
    fits: one for each task, of its score as higher is better.
    fitness: of the tasks.
    singles: float64 `[K, tasks]`, what normalized scores refer to.
  """

  fits: tuple[Fit, ...]
  fitness: Fitness
  singles: Floats

  def at(self, ratios: Floats) -> tuple[Floats, Floats]:
    """Predicted scores, higher is better, and their deviations: `[n, tasks]` each, at ratios `[n, K]`."""
    pairs = [fit.at(np.atleast_2d(np.asarray(ratios, np.float64))) for fit in self.fits]
    mean, deviation = (np.stack(some, axis=1) for some in zip(*pairs, strict=True))
    return mean, deviation

  def best(self, seed: int = 0) -> Floats:
    """The ratios `[K]` whose predicted fitness is highest."""
    generator, count = np.random.default_rng(seed), self.fits[0].points.shape[1]
    drawn = np.concatenate([np.eye(count), generator.dirichlet(np.ones(count), SAMPLES)])
    for closer in range(CLOSER + 1):
      heights = self.fitness.aggregated(self.at(drawn)[0], self.singles)
      top: Floats = drawn[int(np.argmax(heights))]
      step = generator.dirichlet(np.ones(count), SAMPLES)
      drawn = np.concatenate([top[None], top + 0.5 ** (closer + 1) * (step - top)])
    return top


def learn(records: Sequence[Record], fitness: Fitness, count: int) -> Mixtures:
  """From all linear merges among the records whose weights are ratios: 0 or more, of sum 1.

  Args:
    records: of a search.
    fitness: of the tasks, with the weights that are wished.
    count: K, of experts.

  Raises:
    ValueError: fewer than K + 2 such merges.
  """
  points = [
    (record.point.array, record) for record in records
    if record.method in LINEAR and record.point.array.ndim == 1 and not record.point.numbers
  ]  # fmt: skip
  chosen = [(w, r) for w, r in points if (w > -1e-9).all() and abs(w.sum() - 1) < 1e-6]
  values = signed([r.scores for _, r in chosen], fitness.tasks, fitness.signs)
  finite = np.isfinite(values).all(axis=1)
  if finite.sum() < count + 2:
    raise ValueError(
      f"{int(finite.sum())} evaluated merges have weights that are ratios; expected at least {count + 2}. "
      "Search in the space simplex, as launch.recycle --mixture does."
    )
  ratios = np.array([w for w, _ in chosen])[finite]
  fits = tuple(regression.fit(ratios, column, regression.matern, LENGTHS) for column in values[finite].T)
  singles = signed([r.scores for r in records if r.kind == "single"], fitness.tasks, fitness.signs)
  return Mixtures(fits, fitness, singles)
