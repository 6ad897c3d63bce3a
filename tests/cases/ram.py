"""Means over active task vectors."""

import functools

import numpy as np

from merge_jax.operators.contrib.ram import ram, ram_plus
from tests.cases.common import Case, deltas, wide


def np_ram(experts, base, weights, epsilon=0.1, r=0.0, alpha=0.0, scope="model"):
  tasks, merged = deltas(experts, base), {}
  every = [np.concatenate([np.abs(tau).ravel() > epsilon for tau in task.values()]) for task in tasks]
  for name, start in wide(base).items():
    taus = [task[name] for task in tasks]
    active = [np.abs(tau) > epsilon for tau in taus]
    count = sum(a.astype(int) for a in active)
    whole = every if scope == "model" else active
    users, total = sum(a.astype(int) for a in whole), np.zeros_like(start)
    for tau, a, of in zip(taus, active, whole, strict=True):
      ratio = np.sum(of & (users > 1)) / max(np.sum(of & (users == 1)), 1)
      alone = np.where(count == 1, 1 + r * np.clip(ratio, 0, alpha), 1.0)
      total += np.where(a, tau * alone, 0.0)
    merged[name] = start + total / np.maximum(count, 1)
  return merged


PLUS = {"r": 0.3, "alpha": 2.0, "epsilon": 0.1}
CASES = {
  "ram": Case(ram(epsilon=0.1), np_ram),
  "ram_plus": Case(ram_plus(**PLUS), functools.partial(np_ram, **PLUS), elementwise=False),
  "ram_plus_tensor": Case(
    ram_plus(**PLUS, scope="tensor"), functools.partial(np_ram, **PLUS, scope="tensor"), elementwise=False
  ),
}
