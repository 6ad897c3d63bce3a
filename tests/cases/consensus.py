"""Votes of TALL masks."""

import functools

import numpy as np

from merge_jax.operators.contrib.consensus import consensus
from tests.cases.common import Case, deltas, wide


def np_consensus(experts, base, weights, threshold=0.4, k=2, scaling=1.0):
  merged, limits = {}, np.broadcast_to(threshold, (len(experts),))
  for name, start in wide(base).items():
    taus = [w * tree[name] for w, tree in zip(weights, deltas(experts, base), strict=True)]
    votes = sum(
      (np.abs(tau) > limit * np.abs(sum(taus) - tau)).astype(int)
      for tau, limit in zip(taus, limits, strict=True)
    )
    merged[name] = start + scaling * np.where(votes >= k, sum(taus), 0.0)
  return merged


def case(weights=None, permutes=True, **options):
  reference = functools.partial(np_consensus, **options)
  return Case(consensus(**options), reference, weights=weights, permutes=permutes, smooth=False)


CASES = {
  "consensus": case(),
  "consensus_per_model": case((0.5, 0.8, 1.2), False, threshold=(0.2, 0.4, 0.6), k=1, scaling=0.7),
}
