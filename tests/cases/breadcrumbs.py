"""Breadcrumbs, with rows and tensors, DELLA and SCE."""

import functools

import numpy as np

from merge_jax.operators import hashing, naming
from merge_jax.operators.contrib import breadcrumbs as crumbs
from merge_jax.operators.contrib import della as dellas
from merge_jax.operators.contrib import sce as sces
from tests.cases.common import KEY, Case, deltas, wide
from tests.cases.task_vector import np_agree


def keep_between(values, density, gamma, shift):
  """Of one row; in float32 magnitudes, as the operator compares them."""
  n = values.size
  top, target = int(np.floor(gamma * n + 1e-9)), int(np.floor(density * n + 1e-9))
  top = min(top, n - target) if shift else top
  order = np.argsort(-np.abs(values.astype(np.float32)), kind="stable")
  mask = np.zeros(n, bool)
  mask[order[top : top + target]] = True
  return mask


def np_breadcrumbs(experts, base, weights, density, gamma, scope, scaling=1.0, agree=None):
  tasks = deltas(experts, base)
  for task in tasks:
    for name, value in task.items():
      rows = value.reshape(1, -1) if value.ndim < 2 or scope == "tensor" else value
      mask = np.stack([keep_between(row, density, gamma, scope == "tensor") for row in rows])
      task[name] = np.where(mask.reshape(value.shape), value, 0.0)
  if agree is None:
    merged = {n: sum(w * t[n] for w, t in zip(weights, tasks, strict=True)) for n in experts[0]}
  else:
    merged = np_agree(tasks, weights, *agree)
  return {name: wide(base)[name] + scaling * value for name, value in merged.items()}


def midranks(values):
  """Ranks from 0; equal magnitudes share the mean of theirs."""
  x = np.abs(values.astype(np.float32))
  return np.array([((x < one).sum() + (x <= one).sum() - 1) / 2 for one in x])


def np_della(experts, base, weights, density, epsilon, reduce):
  tasks = deltas(experts, base)
  for model, task in enumerate(tasks):
    for name, value in task.items():
      key = hashing.Key(naming.key_of(KEY, model, name))
      rows = value.reshape(1, -1) if value.ndim < 2 else value
      draws = np.asarray(hashing.uniform(key, rows))
      ranks = np.stack([midranks(row) for row in rows])
      q = density - epsilon + 2 * epsilon * ranks / (rows.shape[1] - 1)
      task[name] = (np.where(draws < q, rows, 0.0) / q).reshape(value.shape)
  if reduce is None:
    merged = {n: sum(w * t[n] for w, t in zip(weights, tasks, strict=True)) for n in experts[0]}
  else:
    merged = np_agree(tasks, weights, *reduce)
  return {name: wide(base)[name] + value for name, value in merged.items()}


def np_sce(experts, base, weights, topk, masked):
  tasks, merged = deltas(experts, base), {}
  for name in experts[0]:
    stack = np.stack([task[name].reshape(-1) for task in tasks])
    variance = stack.var(0)
    k = int(np.floor((variance > 0).sum() * topk + 1e-9))
    selected = np.zeros(variance.size, bool)
    selected[np.argsort(-variance, kind="stable")[:k]] = True
    chosen = np.where(selected | (topk >= 1), stack, 0.0)
    energy = (chosen**2).mean(1)
    share = energy / energy.sum() if energy.sum() else np.full(len(tasks), 1 / len(tasks))
    stack = chosen if masked else stack
    sign = np.where(stack.sum(0) >= 0, 1.0, -1.0)
    agree = (stack * sign > 0) * share[:, None]
    total = (agree * stack).sum(0) / np.where(agree.sum(0) == 0, 1.0, agree.sum(0))
    merged[name] = wide(base)[name] + total.reshape(experts[0][name].shape)
  return merged


W = (1.0, 0.5, 2.0)
ROWS = {"density": 0.4, "gamma": 0.1, "scope": "row"}
TENSOR = {"density": 0.8, "gamma": 0.3, "scope": "tensor"}
WEIGHTED = ("weighted", "weights", "positive")
CASES = {
  "breadcrumbs": Case(
    crumbs.breadcrumbs(0.4, 0.1, scaling=0.5), functools.partial(np_breadcrumbs, **ROWS, scaling=0.5), 3, W,
    gathers=True,
  ),
  "breadcrumbs_ties": Case(
    crumbs.breadcrumbs_ties(0.8, 0.3, scope="tensor"),
    functools.partial(np_breadcrumbs, **TENSOR, agree=("unweighted", "none", "majority")), 3, W,
  ),
  "della": Case(
    dellas.della(0.6, 0.2), functools.partial(np_della, density=0.6, epsilon=0.2, reduce=WEIGHTED), 3, W,
    smooth=False, gathers=True,
  ),
  "della_linear": Case(
    dellas.della_linear(0.5, 0.1), functools.partial(np_della, density=0.5, epsilon=0.1, reduce=None), 3, W,
    gathers=True,
  ),
  "sce": Case(sces.sce(0.5), functools.partial(np_sce, topk=0.5, masked=False), 3),
  "sce_masked": Case(sces.sce(0.3, masked=True), functools.partial(np_sce, topk=0.3, masked=True), 3),
}  # fmt: skip
