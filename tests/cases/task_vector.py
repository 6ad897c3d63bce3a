"""Task-vector methods made of blocks."""

import functools

import numpy as np

import merge_jax as mj
from merge_jax.operators import hashing, naming
from tests.cases.common import KEY, Case, deltas, wide


def np_task_arithmetic(experts, base, weights, scaling=1.0):
  tasks = deltas(experts, base)
  return {
    name: wide(base)[name] + scaling * sum(w * t[name] for w, t in zip(weights, tasks, strict=True))
    for name in experts[0]
  }


def np_trim(tasks, density, scope, keep):
  """In float32 magnitudes, as the operator compares them."""

  def kept(values):
    size = values.size
    k = int(np.floor(size * density + 1e-9))
    if keep == "exact":
      order = np.argsort(-np.abs(values), kind="stable")
      mask = np.zeros(size, bool)
      mask[order[:k]] = True
      return mask
    if density in (0, 1):
      return np.full(size, density == 1)
    threshold = np.sort(np.abs(values))[size - k - 1]
    return np.abs(values) >= threshold

  result = []
  for task in tasks:
    f32 = {name: value.astype(np.float32) for name, value in task.items()}
    if scope == "model":
      mask = kept(np.concatenate([value.ravel() for value in f32.values()]))
      parts = np.split(mask, np.cumsum([value.size for value in f32.values()])[:-1])
      masks = {n: m.reshape(f32[n].shape) for n, m in zip(f32, parts, strict=True)}
    else:
      masks = {name: kept(value.ravel()).reshape(value.shape) for name, value in f32.items()}
    result.append({name: np.where(masks[name], task[name], 0.0) for name in task})
  return result


def np_agree(tasks, weights, election, divisor, zero_sign):
  totals = {}
  for name in tasks[0]:
    voters = [w if election == "weighted" else 1.0 for w in weights]
    totals[name] = sum(v * t[name] for v, t in zip(voters, tasks, strict=True))
  unweighted = {name: sum(t[name] for t in tasks) for name in tasks[0]}
  majority = np.sign(sum(np.sign(value).sum() for value in unweighted.values()))
  filler = {"majority": majority if majority else -1.0, "positive": 1.0, "neither": 0.0}[zero_sign]
  merged = {}
  for name, total in totals.items():
    elected = np.where(total == 0, filler, np.sign(total))
    weighted = [w * t[name] for w, t in zip(weights, tasks, strict=True)]
    signs = weighted if election == "weighted" else [t[name] for t in tasks]
    agree = [(s * elected > 0).astype(np.float64) for s in signs]
    top = sum(a * v for a, v in zip(agree, weighted, strict=True))
    if divisor == "count":
      top = top / np.maximum(sum(agree), 1)
    elif divisor == "weights":
      scale = sum(a * w for a, w in zip(agree, weights, strict=True))
      top = top / np.where(scale == 0, 1.0, scale)
    merged[name] = top
  return merged


def np_ties(
  experts, base, weights, density=0.2, scope="model", keep="threshold", election="unweighted",
  divisor="count", zero_sign="majority", scaling=1.0,
):  # fmt: skip
  tasks = np_trim(deltas(experts, base), density, scope, keep)
  merged = np_agree(tasks, weights, election, divisor, zero_sign)
  return {name: wide(base)[name] + scaling * value for name, value in merged.items()}


def drops(tasks, density, order=0):
  """The masks that the documentation promises: by key, position in the chain, model and name."""
  for model, task in enumerate(tasks):
    for name, value in task.items():
      key = hashing.Key(naming.key_of(KEY, model, name), order)
      task[name] = np.where(np.asarray(hashing.uniform(key, value)) < density, value, 0.0)
  return tasks


def np_dare(experts, base, weights, density=0.5, rescale="inverse", reduce=None, scaling=1.0):
  tasks = deltas(experts, base)
  before = [{n: np.abs(v).sum() for n, v in task.items()} for task in tasks]
  tasks = drops(tasks, density)
  for task, norms in zip(tasks, before, strict=True):
    for name, value in task.items():
      l1 = norms[name] / np.abs(value).sum()
      task[name] = value * {"inverse": 1 / density, "l1": l1, "none": 1.0}[rescale]
  if reduce is None:
    merged = {n: sum(w * t[n] for w, t in zip(weights, tasks, strict=True)) for n in experts[0]}
  else:
    merged = np_agree(tasks, weights, *reduce)
  return {name: wide(base)[name] + scaling * value for name, value in merged.items()}


PER_MODEL = np.array([0.2, 0.5, 1.0], np.float32)


def np_ties_per_model(experts, base, weights):
  """Equal numbers as equal, each model trimmed with its own density."""
  tasks = [np_trim([task], d, "model", "threshold")[0]
           for task, d in zip(deltas(experts, base), PER_MODEL, strict=False)]  # fmt: skip
  merged = np_agree(tasks, weights, "unweighted", "none", "neither")
  return {name: wide(base)[name] + value for name, value in merged.items()}


MERGEKIT = {"election": "weighted", "divisor": "weights", "zero_sign": "positive"}
CASES = {
  "task_arithmetic": Case(
    mj.task_arithmetic(scaling=0.7), functools.partial(np_task_arithmetic, scaling=0.7), 3, (0.5, -0.2, 1.3)
  ),
  "ties": Case(mj.ties(), np_ties, 3, (1.0, 0.5, 2.0)),
  "ties_mergekit": Case(
    mj.ties(0.3, scope="tensor", keep="exact", scaling=1.2, **MERGEKIT),
    functools.partial(np_ties, density=0.3, scope="tensor", keep="exact", scaling=1.2, **MERGEKIT),
    3, (1.0, -0.5, 2.0), smooth=False,
  ),
  "ties_per_model": Case(
    mj.ties(PER_MODEL, divisor="none", zero_sign="neither"), np_ties_per_model, 3, (1.0, 0.5, 2.0),
    permutes=False,
  ),
  "dare_linear": Case(
    mj.dare_linear(0.3, scaling=0.5), functools.partial(np_dare, density=0.3, scaling=0.5), 3, (1.0, 0.5, 2.0)
  ),
  "dare_ties": Case(
    mj.dare_ties(0.5, rescale="l1"),
    functools.partial(np_dare, rescale="l1", reduce=("unweighted", "count", "majority")), 3, (1.0, 0.5, 2.0),
  ),
}  # fmt: skip
