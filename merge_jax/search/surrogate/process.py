"""One Gaussian process for many outputs: they share the kernel, so that one n × n solve serves all.

    k(z, z') = c + a z·z' + q (z·z')² + b exp(-|z - z'|² / 2 l²)

plus `e + r |z|⁶` on the diagonal, where z are points in the metric of the task vectors around the incumbent:
an error of all answers, and what a quadratic leaves of them, which grows as |z|³. Without it a merge far away
(a spoilt checkpoint) bends what is foreseen near the incumbent. Log likelihoods of all outputs differ in
their data alone: Σₘ yₘᵀ K⁻¹ yₘ = tr(K⁻¹ Y Yᵀ).
"""

import dataclasses

import numpy as np

Vector = np.ndarray
LOW = np.log([1e-4, 1e-4, 1e-6, 1e-6, 0.1, 1e-6, 1e-8])
HIGH = np.log([1e4, 1e4, 1e3, 1e3, 10.0, 1e-1, 10.0])
START = np.log([0.5, 1.0, 0.1, 0.1, 1.0, 1e-3, 1e-4])
"""c, a, q, b, l, e and r: bounds and start of their logarithms, for outputs of unit variance."""


@dataclasses.dataclass(frozen=True)
class Process:
  """A fitted process.

  Attributes:
    points: float64 `[n, d]`.
    theta: logarithms of c, a, q, b, l, e, r.
    inverse: float64 `[n, n]`, of the kernel matrix with its diagonal.
  """

  points: np.ndarray
  theta: np.ndarray
  inverse: np.ndarray

  def at(self, z: Vector) -> tuple[Vector, float]:
    """Coefficients `[n]` of the data in the mean at a point, and the variance there."""
    k = _kernel(z[None], self.points, self.theta)[0]
    constant, linear, square, bump = np.exp(self.theta[:4])
    own = constant + linear * z @ z + square * (z @ z) ** 2 + bump
    coefficients = self.inverse @ k
    return coefficients, max(float(own - k @ coefficients), 0.0)

  def slopes(self, z: Vector) -> tuple[np.ndarray, Vector]:
    """Derivatives of the coefficients `[n, d]` and of the variance `[d]` by the point."""
    a, q = np.exp(self.theta[1:3])
    dk = self._kernel_slopes(z)
    coefficients, _ = self.at(z)
    return self.inverse @ dk, (2 * a + 4 * q * z @ z) * z - 2 * dk.T @ coefficients

  def slope_covariance(self) -> np.ndarray:
    """How unsure the derivatives of an output at the origin are, `[d, d]`.

    (a + b / l²) I - Dᵀ K⁻¹ D, with D the derivatives of the kernel there.
    """
    a, _, b, length = np.exp(self.theta[1:5])
    dk = self._kernel_slopes(np.zeros(self.points.shape[1]))
    return (a + b / length**2) * np.eye(dk.shape[1]) - dk.T @ self.inverse @ dk

  def _kernel_slopes(self, z: Vector) -> np.ndarray:
    """Derivatives `[n, d]` of the kernel between a point and those of the data, by the point."""
    a, q, b, length = np.exp(self.theta[1:5])
    apart = z - self.points
    bump = b * np.exp(-(apart**2).sum(axis=1) / (2 * length**2))
    return (a + 2 * q * self.points @ z)[:, None] * self.points - (bump / length**2)[:, None] * apart


def fit(points: np.ndarray, gram: np.ndarray, start: Vector = START) -> Process:
  """The process whose numbers make outputs most likely; of no more points than numbers those of the start.

  A few points are most likely with no relation at all: such a process foresees nothing anywhere, which a
  search would take for the end.

  Args:
    points: float64 `[n, d]`.
    gram: float64 `[n, n]`, Y Yᵀ over the number of outputs, for outputs of about unit variance.
    start: logarithms of the numbers to start from.
  """
  from scipy.optimize import minimize

  theta = start
  if len(points) > len(start):
    found = minimize(
      _cost, start, (points, gram), "L-BFGS-B", jac=True,
      bounds=list(zip(LOW, HIGH, strict=True)), options={"maxiter": 60},
    )  # fmt: skip
    theta = np.clip(found.x, LOW, HIGH)
  matrix = _kernel(points, points, theta) + np.diag(_noise(points, theta))
  return Process(points, theta, np.linalg.inv(matrix))


def _kernel(a: np.ndarray, b: np.ndarray, theta: Vector) -> np.ndarray:
  constant, linear, square, bump, length = np.exp(theta[:5])
  inner = a @ b.T
  return constant + linear * inner + square * inner**2 + bump * np.exp(-_squares(a, b) / (2 * length**2))


def _noise(points: np.ndarray, theta: Vector) -> Vector:
  """Variances `[n]` of errors and of what a quadratic leaves."""
  error, rest = np.exp(theta[5:])
  return error + rest * (points**2).sum(axis=1) ** 3


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)


def _cost(theta: Vector, points: np.ndarray, gram: np.ndarray) -> tuple[float, Vector]:
  """Minus the log likelihood of an output, in the mean over outputs, and its derivative."""
  constant, linear, square, bump, length = np.exp(theta[:5])
  squares = _squares(points, points)
  bumps = bump * np.exp(-squares / (2 * length**2))
  products = points @ points.T
  lines, curves = linear * products, square * products**2
  noise, error = _noise(points, theta), np.exp(theta[5])
  matrix = constant + lines + curves + bumps + np.diag(noise)
  sign, logdet = np.linalg.slogdet(matrix)
  inverse = np.linalg.inv(matrix)
  if sign <= 0:
    return 1e10, np.zeros(len(theta))
  inner = inverse - inverse @ gram @ inverse
  parts = (
    np.full_like(matrix, constant),
    lines,
    curves,
    bumps,
    bumps * squares / length**2,
    np.diag(np.full(len(points), error)),
    np.diag(noise - error),
  )
  return 0.5 * (logdet + (inverse * gram).sum()), np.array([0.5 * (inner * part).sum() for part in parts])
