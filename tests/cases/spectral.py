"""TSV-M, Iso-C, Iso-CTS and KnOTS, from their formulas, with numpy's SVD in float64.

Where single singular vectors count, differences of float32 models are exact to 1e-5 times what the gaps
between singular values amplify.
"""

import functools

import numpy as np

import merge_jax as mj
from merge_jax.operators.contrib.iso_c import iso_c
from merge_jax.operators.contrib.iso_cts import iso_cts
from merge_jax.operators.contrib.knots import knots
from merge_jax.operators.contrib.tsv import tsv
from tests.cases.common import Case, deltas, wide
from tests.cases.task_vector import np_task_arithmetic


def svd(x):
  return np.linalg.svd(x, full_matrices=False)


def polar(x):
  u, s, v = svd(x)
  kept = s > 1e-6 * s[0]
  return (u * kept) @ v


def spectral(rule):
  """A rule of the weighted task vectors of one matrix; the mean for vectors."""

  def reference(experts, base, weights, scaling=1.0, **options):
    merged = {}
    for name, start in wide(base).items():
      tasks = [w * one[name] for w, one in zip(weights, deltas(experts, base), strict=True)]
      change = rule(tasks, **options) if start.ndim == 2 else None
      merged[name] = start + scaling * (sum(tasks) / len(tasks) if change is None else change)
    return merged

  return reference


@spectral
def np_tsv(tasks):
  keep = min(tasks[0].shape) // len(tasks)
  if keep == 0:
    return None
  us, ss, vs = zip(*(svd(task) for task in tasks), strict=True)
  u = np.concatenate([u[:, :keep] for u in us], 1)
  s = np.concatenate([s[:keep] for s in ss])
  v = np.concatenate([v[:keep] for v in vs])
  return polar(u) @ np.diag(s) @ polar(v)


@spectral
def np_iso_c(tasks):
  s = np.linalg.svd(sum(tasks), compute_uv=False)
  return s[s > 1e-6 * s[0]].mean() * polar(sum(tasks))


@spectral
def np_iso_cts(tasks, common=0.8):
  r, count = min(tasks[0].shape), len(tasks)
  each = min(round((r - int(r * common)) / count), r // count)
  k = r - each * count
  u, s, v = svd(sum(tasks))
  parts = [svd(task - u[:, :k] @ u[:, :k].T @ task) for task in tasks]
  us, ss, vs = zip(*[(u[:, :each], s[:each], v[:each]) for u, s, v in parts], strict=True)
  left = polar(np.concatenate([*us, u[:, :k]], 1))
  right = polar(np.concatenate([*vs, v[:k]]))
  return np.concatenate([*ss, s[:k]]).mean() * left @ right


def np_knots(experts, base, weights, density=0.3, rank=None):
  """With TIES: trimmed to k + 1 entries each, signs elected unweighted, divided by their number."""
  merged = {}
  for name, start in wide(base).items():
    tasks = [one[name] for one in deltas(experts, base)]
    u = np.eye(start.shape[0])
    if start.ndim == 2:
      u = svd(np.concatenate(tasks, 1))[0][:, :rank]
      tasks = [u.T @ task for task in tasks]
    trimmed = []
    for task in tasks:
      threshold = np.sort(np.abs(task), None)[task.size - int(task.size * density) - 1]
      trimmed.append(np.where(np.abs(task) >= threshold, task, 0.0))
    elected = np.sign(sum(trimmed))
    agree = [np.sign(task) * elected > 0 for task in trimmed]
    top = sum(w * a * task for w, a, task in zip(weights, agree, trimmed, strict=True))
    merged[name] = start + u @ (top / np.maximum(sum(agree), 1))
  return merged


WEIGHTS = (0.5, 1.0, 0.7)
TIES = mj.ties(0.3, scope="tensor", zero_sign="positive")
CASES = {
  "tsv": Case(
    tsv(0.7), functools.partial(np_tsv, scaling=0.7), weights=WEIGHTS, elementwise=False, gathers=True,
    exact=5e-4,
  ),
  "iso_c": Case(
    iso_c(0.7), functools.partial(np_iso_c, scaling=0.7), weights=WEIGHTS, elementwise=False, gathers=True,
  ),
  "iso_cts": Case(
    iso_cts(0.7, common=0.6), functools.partial(np_iso_cts, scaling=0.7, common=0.6), weights=WEIGHTS,
    elementwise=False, gathers=True, exact=1e-4,
  ),
  "knots": Case(
    knots(mj.task_arithmetic(scaling=0.7)), functools.partial(np_task_arithmetic, scaling=0.7),
    weights=WEIGHTS, elementwise=False, gathers=True,
  ),
  "knots_ties": Case(
    knots(TIES, rank=8), functools.partial(np_knots, rank=8), weights=WEIGHTS, elementwise=False,
    gathers=True, exact=2e-4,
  ),
}  # fmt: skip
