"""WIDEN with plain column norms and cosines."""

import functools

import numpy as np

from merge_jax.operators.contrib.widen import widen
from tests.cases.common import Case, deltas, wide


def np_scores(values, threshold, score):
  shares = np.exp(values - np.max(values, 0))
  shares = shares / np.sum(shares, 0)
  return np.where(values > threshold * np.mean(values, 1, keepdims=True), score, shares)


def np_ranks(values):
  return np.argsort(np.argsort(values, kind="stable"), kind="stable") / values.size


def np_widen(experts, base, weights, threshold=1.0, score=1.0):
  merged = {}
  for name, start in wide(base).items():
    taus = [tree[name] for tree in deltas(experts, base)]
    if start.ndim < 2:
      shares = np_scores(np.abs(taus), threshold, score)
    else:
      norm, norms, turns = np.linalg.norm(start, axis=0), [], []
      for tau in taus:
        size = np.linalg.norm(start + tau, axis=0)
        norms.append(np_ranks(np.abs(size - norm)))
        turns.append(np_ranks(1 - np.sum(start * (start + tau), 0) / size / norm))
      shares = sum(np_scores(np.array(ranks), threshold, score) for ranks in (norms, turns)) / 2
    merged[name] = start + sum(s * tau for s, tau in zip(shares, taus, strict=True))
  return merged


def case(**options):
  reference = functools.partial(np_widen, **options)
  return Case(widen(**options), reference, elementwise=False, gathers=True)


CASES = {"widen": case(threshold=0.7, score=0.8)}
