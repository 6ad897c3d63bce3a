"""PCB-Merging with sorted vectors."""

import functools

import numpy as np

from merge_jax.operators.contrib.pcb import pcb
from tests.cases.common import Case, deltas, wide


def shortened(x):
  """A number with 23 bits: thresholds of scores are found in float32 without the last bit."""
  mantissa, power = np.frexp(x)
  bits = np.float32(mantissa).view(np.uint32)
  bits = bits | np.uint32(1) if x < 0 else bits & np.uint32(0xFFFFFFFE)
  return np.ldexp(np.float64(bits.view(np.float32)), power)


def between(x, low, high):
  return np.clip((x - low) / (high - low), 0, 1) if high > low else np.zeros_like(x)


def np_scores(taus, q):
  """Clamped magnitudes and scores of K flat vectors, each a row."""
  count, n = taus.shape
  clamped = []
  for tau in taus:
    ordered = np.sort(np.abs(tau).astype(np.float32)).astype(np.float64)
    low, high = ordered[int(n * q)], ordered[max(int(n * (1 - q)) - 1, 0)]
    clamped.append(np.clip(np.abs(tau), low, high))
  inside = [np.exp(count * between(a, a.min(), a.max()) ** 2 - count) for a in clamped]
  return np.array(clamped), np.array(inside) * np.tanh(taus * taus.sum(0))


def np_pcb(experts, base, weights, density=0.1, q=1e-4):
  tasks, base = deltas(experts, base), wide(base)
  taus = np.stack([np.concatenate([np.ravel(x) for x in task.values()]) for task in tasks])
  clamped, scores = np_scores(taus, q)
  shares = []
  for score in scores:
    ordered = np.sort(score)
    low, high = shortened(ordered[int(round(score.size * (1 - density), 6))]), shortened(ordered[-1])
    shares.append(np.where(score > low + 1e-6 * abs(low), between(score, low, high), 0.0))
  total = sum(shares)
  merged = sum(w * s * np.sign(tau) * a for w, s, tau, a in zip(weights, shares, taus, clamped, strict=True))
  merged = np.split(merged / np.where(total == 0, 1, total), np.cumsum([x.size for x in base.values()])[:-1])
  return {name: x + part.reshape(x.shape) for (name, x), part in zip(base.items(), merged, strict=True)}


NUMBERS = {"density": 0.3, "q": 0.01}
CASES = {
  "pcb": Case(pcb(**NUMBERS), functools.partial(np_pcb, **NUMBERS), 2, (0.5, 1.2), elementwise=False),
}
