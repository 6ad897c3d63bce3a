"""Every operator on inputs of every kind, to half a unit in the last place and a part in 10⁵ of what changed.

|out - ref| ≤ ½ ulp + 10⁻⁵ |ref - base|, element by element; base is 0 for rules without one. Where task
vectors cancel, float32 itself rounds their sum by about their last place. Where a rule mixes elements the
bound is one on norms, and has twice what the reference moves when inputs do by a part in 10⁵: gaps between
singular values amplify, and one decision may change a whole column.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from tests.cases import CASES, every, program
from tests.cases.common import arguments, expected

SHAPES = {"model.layers.0.w": (24, 40), "model.norm.weight": (48,)}


def apart(generator, count):
  return [{n: generator.normal(size=shape) for n, shape in SHAPES.items()} for _ in range(count)]


def near(generator, count, draw):
  """Fine-tunes of one base, whose differences share a part."""
  trees = []
  for shape in SHAPES.values():
    base, common = 0.02 * generator.normal(size=shape), draw(generator, shape)
    trees.append([base + common / 2 + draw(generator, shape) for _ in range(count - 1)] + [base])
  return [dict(zip(SHAPES, values, strict=True)) for values in zip(*trees, strict=True)]


def tied(generator, count):
  """On the grid of bfloat16: few distinct differences, many of them 0."""
  trees = near(generator, count, lambda g, shape: 1e-4 * g.normal(size=shape))
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), trees)


KINDS = {
  "random": apart,
  "correlated": functools.partial(near, draw=lambda g, shape: 1e-3 * g.normal(size=shape)),
  "heavy": functools.partial(near, draw=lambda g, shape: 1e-4 * g.standard_t(1.5, size=shape)),
  "tied": tied,
}
"""K models, the last of them the base."""

TINY, HUGE = -90, 60  # powers of 2: differences of 8e-31, models of 1e18


LEFT_OUT = {
  ("sce", "tied"): "variances that are equal but for the order of models: rounding chooses between them",
  ("sce_masked", "tied"): "the same",
}


def concatenated(tree):
  return np.concatenate([np.asarray(tree[name], np.float64).ravel() for name in SHAPES])


def moved(case, experts, base, start, want, part, count=3):
  """How far the reference moves when each difference to the start does by a part of itself."""
  for seed in range(count):
    generator = np.random.default_rng(seed)

    def near(x, at, generator=generator):
      return at + (x.astype(np.float64) - at) * (1 + generator.choice([-part, part], x.shape))

    other = [{n: near(tree[n], start[n].astype(np.float64)) for n in SHAPES} for tree in experts]
    yield np.abs(concatenated(expected(case, other, base)) - want)


@pytest.mark.parametrize("name", every())
@settings(
  derandomize=True, max_examples=6, deadline=None, database=None, phases=(Phase.explicit, Phase.generate)
)
@given(kind=st.sampled_from(list(KINDS)), power=st.sampled_from([0, TINY, HUGE]), seed=st.integers(0, 2**32))
@example(kind="random", power=0, seed=0)
@example(kind="correlated", power=0, seed=1)
@example(kind="heavy", power=0, seed=2)
@example(kind="tied", power=0, seed=3)
@example(kind="random", power=TINY, seed=4)
@example(kind="random", power=HUGE, seed=5)
def test_accuracy(name, kind, power, seed):
  if (name, kind) in LEFT_OUT:
    return
  case = CASES[name]
  trees = KINDS[kind](np.random.default_rng(seed), case.count + 1)
  *experts, base = [{n: np.ldexp(x.astype(np.float32), power) for n, x in tree.items()} for tree in trees]
  start = base if case.operator.needs_base else {n: np.zeros_like(x) for n, x in base.items()}
  want, zero = concatenated(expected(case, experts, base)), concatenated(start)
  size = np.max([np.abs(concatenated(tree) - zero) for tree in experts], 0)
  merged = program(name)(*arguments(case, experts, base))
  for dtype in (jnp.float32, jnp.bfloat16):
    got = concatenated(jax.tree.map(lambda x, to=dtype: x.astype(to), merged))
    error, half = np.abs(got - want), np.ldexp(0.5, np.frexp(want)[1] - 1 - jnp.finfo(dtype).nmant)
    allowed = half + 1e-5 * np.abs(want - zero) + 4 * np.finfo(np.float32).eps * size
    if np.all(error <= allowed):
      continue
    if case.elementwise:  # but where a threshold or a sign hangs on a part in 10⁶
      kept = np.max(list(moved(case, experts, base, start, want, 1e-6)), 0) <= 1e-4 * size
      assert np.all((error <= allowed)[kept]) and np.mean(error > allowed) < 1e-2
    else:
      movement = max(np.linalg.norm(x) for x in moved(case, experts, base, start, want, 1e-5, 10))
      error, half, change = (np.linalg.norm(x) for x in (error, half, want - zero))
      assert error <= half + 1e-5 * change + 2 * movement
