"""The Karcher mean by steps of whole vectors."""

import numpy as np

from merge_jax.operators.contrib.karcher import karcher
from tests.cases.common import Case, wide


def np_mean(xs, weights, max_iter=10, tol=1e-5):
  weights = np.array(weights, xs[0].dtype) / sum(weights)
  norms = [np.sqrt(np.sum(x * x)) for x in xs]
  pulls = [w if n else 0.0 for w, n in zip(weights, norms, strict=True)]
  if not any(pulls):
    return xs[0] * 0
  pulls = [p / sum(pulls) for p in pulls]
  units = [x / n if n else x for x, n in zip(xs, norms, strict=True)]
  u = sum(p * x for p, x in zip(pulls, units, strict=True))
  length = np.sqrt(np.sum(u * u))
  u = units[0] if length < 1e-6 else u / length
  for _ in range(max_iter):
    tangent = np.zeros_like(u)
    for pull, unit in zip(pulls, units, strict=True):
      chord = np.sqrt(np.sum((u - unit) ** 2))
      angle = 2 * np.arcsin(min(chord / 2, 1.0))
      if 0 < angle < np.pi - 0.1:
        tangent = tangent + pull * angle / np.sin(angle) * (unit - (1 - chord**2 / 2) * u)
    step = np.sqrt(np.sum(tangent**2))
    if step < tol:
      break
    u = np.cos(step) * u + np.sin(step) / step * tangent
    u = u / np.sqrt(np.sum(u * u))
  return u * sum(w * n for w, n in zip(weights, norms, strict=True))


def np_karcher(experts, base, weights, **options):
  return {name: np_mean([wide(e)[name] for e in experts], weights, **options) for name in experts[0]}


CASES = {"karcher": Case(karcher(), np_karcher, weights=(0.5, 0.2, 0.9), elementwise=False)}
