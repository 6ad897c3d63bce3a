"""Model Stock from cosines of task vectors."""

import functools
import itertools

import numpy as np

from merge_jax.operators.contrib.model_stock import model_stock
from tests.cases.common import Case, deltas, wide


def np_t(taus, clamp, floor):
  def cosine(a, b):
    size = max(np.linalg.norm(a) * np.linalg.norm(b), floor)
    return np.clip(np.sum(a * b) / size, -1, 1) if size else 0.0

  count, c = len(taus), np.mean([cosine(*pair) for pair in itertools.combinations(taus, 2)])
  below = 1 + (count - 1) * c
  t = 0.0 if abs(below) < 1e-6 else count * c / below
  return np.clip(t, 0, 1) if clamp else t


def np_model_stock(experts, base, weights, by="tensor", clamp=True, floor=0.0):
  merged = {}
  for name, start in wide(base).items():
    taus = [tree[name] for tree in deltas(experts, base)]
    t = np_t(taus, clamp, floor)
    if by == "row" and start.ndim > 1:
      t = np.array([np_t(rows, clamp, floor) for rows in zip(*taus, strict=True)])[:, None]
    merged[name] = start + t * np.mean(taus, 0)
  return merged


def case(**options):
  reference = functools.partial(np_model_stock, **options)
  return Case(model_stock(**options), reference, elementwise=False)


CASES = {
  "model_stock": case(),
  "model_stock_mergekit": case(by="row", clamp=False, floor=1e-1),
}
