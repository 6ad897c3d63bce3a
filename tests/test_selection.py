"""Exact k-th magnitudes, counts and ranks, also beyond 2^32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax.operators import naming, selection


def whole(limbs):
  low, middle, high = (int(x) for x in selection.carry(limbs))
  return low + (middle << 16) + (high << 32)


@pytest.mark.parametrize("size", [1, 10, 1000, 2**20, 2**31 + 5, 256_000 * 12_288, 10**12])
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.1, 0.2, 0.3, 0.5, 0.7, 0.999, 1.0])
def test_fraction_is_exact_for_the_float32_density(size, density):
  k = whole(jax.jit(selection.fraction, static_argnums=0)(size, density))
  value = np.float32(density)
  mantissa, exponent = np.frexp(value)
  numerator = size * (2 * int(mantissa * 2**24) + 1)
  expected = 0 if density == 0 else size if density == 1 else numerator >> (25 - int(exponent))
  assert k == expected
  if size <= 2**20:
    assert k == int(size * density + 1e-9)  # what the decimal means


def test_counts_beyond_uint32():
  rows = np.full(400_000, 12_288, np.uint32)  # 4.9e9
  total = selection.sum_counts(jnp.asarray(rows), 400_000 * 12_288)
  assert whole(total) == 400_000 * 12_288
  generator = np.random.default_rng(0)
  rows = generator.integers(0, 2**31, 100_000, dtype=np.uint32)
  assert whole(selection.sum_counts(jnp.asarray(rows), 2**48)) == int(rows.astype(object).sum())


@pytest.mark.parametrize("shape", [(), (7,), (64,), (3, 5), (10, 64), (4, 3, 32)])
def test_count(shape):
  mask = np.random.default_rng(1).random(shape) < 0.4
  assert whole(selection.count(jnp.asarray(mask))) == int(mask.sum())


DISTRIBUTIONS = {
  "normal": lambda g, n: g.normal(size=n),
  "sparse": lambda g, n: np.where(g.random(n) < 0.1, g.normal(size=n), 0.0),
  "heavy": lambda g, n: g.standard_cauchy(n),
  "tied": lambda g, n: g.integers(-3, 4, n).astype(float),
  "equal": lambda g, n: np.full(n, -0.25),
  "zero": lambda g, n: np.zeros(n),
  "tiny": lambda g, n: g.normal(size=n) * 1e-38,
  "bf16": lambda g, n: np.asarray(jnp.asarray(g.normal(size=n), jnp.bfloat16), np.float32),
  "infinite": lambda g, n: np.where(g.random(n) < 0.01, np.inf, g.normal(size=n)),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_kth_and_order_equal_a_stable_sort(distribution):
  x = DISTRIBUTIONS[distribution](np.random.default_rng(3), 960).astype(np.float32)
  x = x.reshape(12, 5, 16)

  @jax.jit
  def kept(x, k):
    bits = selection.magnitude(x)
    order = selection.order(bits, selection.kth(bits, k))
    return order >= selection.kth(order, k, x.size + 2)

  order = np.argsort(-np.abs(x.ravel()), kind="stable")
  for k in (0, 1, 2, 96, 500, 959, 960):
    expected = np.zeros(x.size, bool)
    expected[order[:k]] = True
    np.testing.assert_array_equal(kept(x, selection.limbs(k)).ravel(), expected, err_msg=f"k={k}")


def test_matrix_views_come_back():
  x = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
  for axes in (naming.Axes(), naming.Axes(out=(1, 2)), naming.Axes(out=(2,))):
    matrix = naming.as_matrix(x, axes)
    assert matrix.shape[0] == np.prod([x.shape[a] for a in axes.out])
    np.testing.assert_array_equal(naming.from_matrix(matrix, x.shape, axes), x)
