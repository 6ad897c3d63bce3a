"""Steps of bounded size towards another model."""

import numpy as np

from merge_jax.operators.contrib.nearswap import nearswap
from tests.cases.common import Case, wide


def np_nearswap(experts, base, weights, t=0.05):
  merged = {}
  for name, start in wide(base).items():
    other = wide(experts[0])[name]
    share = np.clip(t / np.maximum(np.abs(start - other), 1e-6), 0, 1)
    merged[name] = share * other + (1 - share) * start
  return merged


CASES = {"nearswap": Case(nearswap(0.05), np_nearswap, count=1)}
