"""Spherical interpolation of two models, vector by vector."""

import functools

import numpy as np

from merge_jax.operators.contrib.nuslerp import nuslerp
from tests.cases.common import Case, wide


def np_slerp(a, b, t):
  size = np.linalg.norm(a) * np.linalg.norm(b)
  angle = np.arccos(np.clip(np.sum(a * b) / size, -1, 1)) if size else np.pi / 2
  if np.sin(angle) < 1e-9:
    return (1 - t) * a + t * b
  return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def np_nuslerp(experts, base, weights, by="tensor", task_vectors=False):
  merged, t = {}, weights[1] / sum(weights)
  for name in experts[0]:
    offset = wide(base)[name] if task_vectors else 0.0
    a, b = (wide(tree)[name] - offset for tree in experts)
    if by == "tensor" or a.ndim < 2:
      found = np_slerp(a, b, t)
    elif by == "row":
      found = np.stack([np_slerp(x, y, t) for x, y in zip(a, b, strict=True)])
    else:
      found = np.stack([np_slerp(x, y, t) for x, y in zip(a.T, b.T, strict=True)], 1)
    merged[name] = offset + found
  return merged


def case(equal=None, **options):
  """Weights of 0 mean t = 0.5, so that only without a base equal models are what is asked for."""
  reference = functools.partial(np_nuslerp, **options)
  return Case(nuslerp(**options), reference, count=2, weights=(0.6, 0.9), equal=equal, elementwise=False)


CASES = {
  "nuslerp_rows": case(by="row", task_vectors=True),
  "nuslerp_columns": case("model", by="column"),
}
