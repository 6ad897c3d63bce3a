"""Mean direction and mean norm: the exponential map from the mean direction, as it is published."""

import functools

import numpy as np

from merge_jax.operators.contrib.multislerp import multislerp
from tests.cases.common import Case, wide


def np_multislerp(experts, base, weights, task_vectors=False, normalize=True):
  weights = np.array(weights) / (sum(weights) if normalize else 1.0)
  merged = {}
  for name in experts[0]:
    offset = wide(base)[name] if task_vectors else np.zeros(np.shape(experts[0][name]))
    xs = [wide(tree)[name] - offset for tree in experts]
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / n if n else x for x, n in zip(xs, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    if np.linalg.norm(mean) < 1e-8:
      merged[name] = offset + sum(w * x for w, x in zip(weights, xs, strict=True))
      continue
    mean = mean / np.linalg.norm(mean)
    tangent = sum(w * (u - np.sum(u * mean) * mean) for w, u in zip(weights, units, strict=True))
    length = np.linalg.norm(tangent)
    point = np.cos(length) * mean + np.sinc(length / np.pi) * tangent
    merged[name] = offset + point * sum(w * n for w, n in zip(weights, norms, strict=True))
  return merged


def case(**options):
  reference = functools.partial(np_multislerp, **options)
  return Case(multislerp(**options), reference, weights=(0.5, 0.2, 0.9), elementwise=False)


CASES = {
  "multislerp": case(),
  "multislerp_sum": case(task_vectors=True, normalize=False),
}
