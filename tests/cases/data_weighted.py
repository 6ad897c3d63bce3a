"""Fisher and RegMean, from their formulas; a user's statistics are random here."""

import functools
import zlib

import numpy as np

from merge_jax.operators.contrib.fisher import fisher
from merge_jax.operators.contrib.regmean import regmean
from tests.cases.common import Case, wide


def random(name, seed):
  return np.random.default_rng([seed, zlib.crc32(name.encode())])


def information(tree, seed):
  """A Fisher diagonal of each tensor, over three orders of magnitude, some of it 0."""
  result = {}
  for name, value in tree.items():
    draws = random(name, seed).uniform(-4, -1, np.shape(value))
    result[name] = np.where(draws < -3.8, 0.0, 10.0**draws).astype(np.float32)
  return result


def grams(tree, seed, tokens=200):
  """A Gram matrix of the inputs of each matrix, of unequal sizes."""
  result = {}
  for name, value in tree.items():
    result[name] = None
    if np.ndim(value) == 2:
      generator, count = random(name, seed), np.shape(value)[1]
      x = generator.normal(size=(tokens, count)) * 10 ** generator.uniform(-0.5, 0.5, count)
      result[name] = (x.T @ x / tokens).astype(np.float32)
  return result


def np_fisher(experts, base, weights, statistics, floor=1e-6, normalization="model"):
  merged = {}
  whole = [np.concatenate([np.ravel(f).astype(np.float64) for f in one.values()]) for one in statistics]
  for name in experts[0]:
    values = [wide(e)[name] for e in experts]
    shares = []
    for w, one, every in zip(weights, statistics, whole, strict=True):
      f = np.asarray(one[name], np.float64)
      norms = {"model": every, "tensor": f, "none": 1.0}
      norm = np.sqrt(np.mean(np.square(norms[normalization])))
      shares.append(w * np.maximum(f / (norm or 1.0), floor))
    total, mean = sum(shares), sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    top = sum(s * v for s, v in zip(shares, values, strict=True))
    merged[name] = np.where(total == 0, mean, top / np.where(total == 0, 1, total))
  return merged


def np_regmean(experts, base, weights, statistics, a=1.0):
  merged = {}
  for name in experts[0]:
    values = [wide(e)[name] for e in experts]
    if statistics[0][name] is None:
      merged[name] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
      continue
    total = top = 0
    for w, v, one in zip(weights, values, statistics, strict=True):
      gram = np.asarray(one[name], np.float64)
      gram = w * (a * gram + (1 - a) * np.diag(np.diag(gram)))
      total, top = total + gram, top + v @ gram
    merged[name] = np.linalg.solve(total, top.T).T
  return merged


CASES = {
  "fisher": Case(fisher(), np_fisher, weights=(0.5, 0.2, 0.9), statistics=information),
  "fisher_tensor": Case(
    fisher(normalization="tensor"), functools.partial(np_fisher, normalization="tensor"),
    weights=(0.5, 0.2, 0.9), statistics=information,
  ),
  "fisher_plain": Case(
    fisher(floor=0.0, normalization="none"),
    functools.partial(np_fisher, floor=0.0, normalization="none"),
    weights=(0.5, 0.2, 0.9), statistics=information,
  ),
  "regmean": Case(
    regmean(), np_regmean, weights=(0.5, 0.2, 0.9), statistics=grams, elementwise=False, gathers=True,
  ),
  "regmean_off_diagonal": Case(
    regmean(0.6), functools.partial(np_regmean, a=0.6), weights=(0.5, 0.2, 0.9), statistics=grams,
    elementwise=False, gathers=True,
  ),
}  # fmt: skip
