"""Gaussian-process regression on a few hundred points, with its scales chosen by marginal likelihood."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kernel = Callable[[Floats, Floats, float], Floats]
"""`(a [n, d], b [m, d], length) -> [n, m]`, of variance one."""
NOISES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Variances of the noise that are tried, as shares of the signal's."""


class Fit(NamedTuple):
  """What was learned; call `at` for predictions.

  Attributes:
    points, kernel, length: of the regression.
    mean, variance: constant mean and variance of the signal.
    factor: Cholesky factor of the points' covariance without the variance.
    weights: its inverse times the values less the mean.
  """

  points: Floats
  kernel: Kernel
  length: float
  mean: float
  variance: float
  factor: Floats
  weights: Floats

  def at(self, points: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the noiseless value at each point."""
    from scipy import linalg

    between = self.kernel(self.points, points, self.length)
    solved = linalg.solve_triangular(self.factor, between, lower=True)
    own = np.array([self.kernel(x[None], x[None], self.length)[0, 0] for x in points])
    left = np.maximum(own - (solved**2).sum(axis=0), 1e-12)
    return self.mean + between.T @ self.weights, np.sqrt(self.variance * left)


def fit(
  points: Floats, values: Floats, kernel: Kernel, lengths: Sequence[float], scatter: Floats | None = None
) -> Fit:
  """The likeliest of the given lengths and of `NOISES`; mean and variance are the maximum of the likelihood.

  Args:
    points: `[n, d]`.
    values: `[n]`, finite.
    kernel: see there.
    lengths: to choose from.
    scatter: factor of each point's noise variance; None: 1.

  >>> x = np.linspace(0, 1, 9)[:, None]
  >>> found = fit(x, np.sin(6 * x[:, 0]), matern, (0.1, 0.3, 1.0))
  >>> abs(found.at(np.array([[0.3]]))[0][0] - np.sin(1.8)) < 0.01
  np.True_
  """
  from scipy import linalg

  best: tuple[float, Fit] | None = None
  ones, spread = np.ones(len(values)), np.ones(len(values)) if scatter is None else scatter
  for length, noise in itertools.product(lengths, NOISES):
    covariance = kernel(points, points, length) + np.diag(noise * spread + 1e-8)
    try:
      factor = linalg.cholesky(covariance, lower=True)
    except linalg.LinAlgError:
      continue
    first, second = (linalg.cho_solve((factor, True), v) for v in (values, ones))
    mean = float(ones @ first / (ones @ second))
    rest = values - mean
    weights = first - mean * second
    variance = max(float(rest @ weights) / len(values), 1e-16)
    likelihood = -0.5 * len(values) * np.log(variance) - np.log(np.diag(factor)).sum()
    if best is None or likelihood > best[0]:
      best = likelihood, Fit(points, kernel, length, mean, variance, factor, weights)
  if best is None:
    raise ValueError("No covariance of these points could be inverted; are their values finite?")
  return best[1]


def matern(a: Floats, b: Floats, length: float) -> Floats:
  """Matérn 5/2 on Euclidean distances."""
  squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
  x = np.sqrt(5 * np.maximum(squares, 0.0)) / length
  kernel: Floats = (1 + x + x**2 / 3) * np.exp(-x)
  return kernel


def quadratic(a: Floats, b: Floats, length: float) -> Floats:
  """That of a second-order polynomial whose coefficients are independent and normal a priori."""
  product = a @ b.T / length**2
  kernel: Floats = product + 0.5 * product**2
  return kernel


def root(metric: Floats | None, count: int) -> Floats:
  """R with |R w| the length of w in a metric, `[count, count]`; a typical task vector (the median) has 1."""
  lengths = np.zeros(0) if metric is None else np.diag(metric)[np.diag(metric) > 0]
  if metric is None or not lengths.size:  # equal models have no distances
    return np.eye(count)
  values, vectors = np.linalg.eigh(metric / np.median(lengths))
  return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
