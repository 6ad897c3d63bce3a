"""The highest point of a surrogate within a trust region, in the metric of the task vectors."""

import dataclasses
from collections.abc import Callable

import numpy as np

CLIMBS = 3
"""Starts that are climbed from: the highest ones."""
RIDGE = 0.01
"""Of the metric, beside a task vector's unit length: directions that hardly change the model stay bounded."""


@dataclasses.dataclass(frozen=True)
class Metric:
  """Coordinates z of weights around a centre, in which distances are between merged models.

  Weights that change no model (of a part that was frozen, of a model that is the base) have none, and stay.

  Attributes:
    centre: float64 `[weights]`.
    to_z: float64 `[d, weights]`, z = to_z (weights - centre).
    to_weights: float64 `[weights, d]`, its inverse.
  """

  centre: np.ndarray
  to_z: np.ndarray
  to_weights: np.ndarray

  @classmethod
  def of(cls, gram: np.ndarray, centre: np.ndarray) -> "Metric":
    """From inner products of the directions `[weights, weights]`."""
    if not gram.any():
      gram = np.eye(len(gram))
    live = np.diag(gram) > 0
    own = gram[np.ix_(live, live)]
    scaled = own * (len(own) / np.trace(own))
    values, vectors = np.linalg.eigh((scaled + scaled.T) / 2)
    root = np.sqrt(np.maximum(values, 0.0) + RIDGE)
    places = np.eye(len(gram))[:, live]
    return cls(centre, root[:, None] * vectors.T @ places.T, places @ vectors / root)

  @property
  def size(self) -> int:
    """d."""
    return len(self.to_z)

  def z(self, weights: np.ndarray) -> np.ndarray:
    """Coordinates of weights `[…, weights]`."""
    return (weights - self.centre) @ self.to_z.T

  def weights(self, z: np.ndarray) -> np.ndarray:
    """Weights at coordinates `[d]`."""
    return self.centre + self.to_weights @ z


def highest(
  function: Callable[[np.ndarray], tuple[float, np.ndarray]],
  metric: Metric,
  radius: float,
  starts: list[np.ndarray],
  *,
  sums: int = 0,
) -> tuple[np.ndarray, float]:
  """The best point that SLSQP finds within |z| ≤ radius.

  Args:
    function: value and slope at z.
    metric: of the coordinates.
    radius: of the region.
    starts: points in it to start from.
    sums: in how many parts of equal length the weights must be 0 or more and sum to one; 0: none.
  """
  from scipy.optimize import minimize

  ball = {"type": "ineq", "fun": lambda z: radius**2 - z @ z, "jac": lambda z: -2 * z}
  constraints = [ball]
  if sums:
    ones = np.kron(np.eye(sums), np.ones(len(metric.centre) // sums))
    ones = ones[(ones @ metric.to_weights).any(axis=1)]  # other sums stay, and a slope of 0 is none to SLSQP
    constraints += [
      {"type": "ineq", "fun": metric.weights, "jac": lambda z: metric.to_weights},
      {
        "type": "eq",
        "fun": lambda z: ones @ metric.weights(z) - 1,
        "jac": lambda z: ones @ metric.to_weights,
      },
    ]

  def lower(z: np.ndarray) -> tuple[float, np.ndarray]:
    value, slope = function(z)
    return -value, -slope

  heights = [function(start)[0] for start in starts]
  order = np.argsort([-height for height in heights], kind="stable")[:CLIMBS]
  value, point = heights[order[0]], starts[order[0]]
  for start in (starts[i] for i in order):
    found = minimize(lower, start, jac=True, method="SLSQP", constraints=constraints,
                     options={"maxiter": 60, "ftol": 1e-7})  # fmt: skip
    z = found.x * min(1.0, radius / max(float(np.linalg.norm(found.x)), 1e-12))
    if np.isfinite(z).all() and (reached := function(z)[0]) > value:
      value, point = reached, z
  return point, value
