"""Direct combinations of models."""

import functools

import numpy as np

import merge_jax as mj
from tests.cases.common import Case, wide


def np_linear(experts, base, weights):
  total = sum(weights)
  return {n: sum(w * wide(e)[n] for w, e in zip(weights, experts, strict=True)) / total for n in experts[0]}


def np_slerp(experts, base, weights, t=None):
  t = weights[1] / sum(weights) if t is None else t
  merged = {}
  for name in experts[0]:
    a, b = (wide(e)[name] for e in experts)
    angle = np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
    merged[name] = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
  return merged


CASES = {
  "linear": Case(mj.linear(), np_linear, weights=(0.5, 0.2, 0.9)),
  "uniform": Case(mj.uniform(), lambda e, b, w: np_linear(e, b, (1, 1, 1))),
  "slerp": Case(mj.slerp(), np_slerp, 2, (0.6, 0.4), elementwise=False),
  "slerp_t": Case(mj.slerp(0.3), functools.partial(np_slerp, t=0.3), 2, permutes=False, elementwise=False),
}
