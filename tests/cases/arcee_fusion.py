"""The plain formula of importance, with sorted quantiles."""

import numpy as np

from merge_jax.operators.contrib.arcee_fusion import arcee_fusion
from tests.cases.common import Case, wide


def np_softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def np_arcee_fusion(experts, base, weights):
  merged = {}
  for name, start in wide(base).items():
    other = wide(experts[0])[name]
    p, q = (np_softmax(x) + 1e-8 for x in (other, start))
    scores = np.abs(other - start) * np.sum(p * np.log(p / q), -1, keepdims=True)
    ordered = np.sort(scores, axis=None)
    q1, q2, q3 = (ordered[int(f * (ordered.size - 1))] for f in (0.25, 0.5, 0.75))
    merged[name] = np.where(scores >= q2 + 1.5 * (q3 - q1), other, start)
  return merged


CASES = {"arcee_fusion": Case(arcee_fusion(), np_arcee_fusion, count=1, elementwise=False)}
