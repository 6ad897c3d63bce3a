"""Exact k-th magnitudes, counts and ranks, also beyond 2^32."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax.operators import counting, hashing, naming, selection


def whole(limbs):
  low, middle, high = (int(x) for x in counting.carry(limbs))
  return low + (middle << 16) + (high << 32)


@pytest.mark.parametrize("size", [1, 10, 1000, 2**20, 2**31 + 5, 256_000 * 12_288, 10**12])
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.1, 0.2, 0.3, 0.5, 0.7, 0.999, 1.0])
def test_fraction_is_exact_for_the_float32_density(size, density):
  k = whole(jax.jit(counting.fraction)(counting.limbs(size), density))
  value = np.float32(density)
  mantissa, exponent = np.frexp(value)
  numerator = size * (2 * int(mantissa * 2**24) + 1)
  expected = 0 if density == 0 else size if density == 1 else numerator >> (25 - int(exponent))
  assert k == expected
  if size <= 2**20:
    assert k == int(size * density + 1e-9)  # what the decimal means


@pytest.mark.parametrize("function", ["fraction", "carry", "at_least", "smaller", "larger", "minus", "of"])
def test_counts_on_the_host_are_those_of_programs(function):
  generator = np.random.default_rng(0)
  a, b = (generator.integers(0, 3, (50, 3)).astype(np.uint32) * 32_767 for _ in range(2))
  arguments = {
    "fraction": (counting.limbs(10**11 + 7), np.float32([*generator.random(50), 0, 1, np.nan, 1e-45])),
    "carry": (a * np.uint32(7),),
    "minus": (np.maximum(a, b) + np.uint32(1), np.minimum(a, b)),
    "smaller": (a, b[0]),
    "larger": (a[0], b),
    "of": (a[:, 0] > 0,),
  }.get(function, (a, b))
  host = getattr(counting, function)(*arguments)
  traced = jax.jit(getattr(counting, function))(*arguments)
  assert not isinstance(host, jax.Array) and host.dtype == traced.dtype
  np.testing.assert_array_equal(host, traced)


def test_counts_beyond_uint32():
  rows = np.full(400_000, 12_288, np.uint32)  # 4.9e9
  total = counting.sum_counts(jnp.asarray(rows), 400_000 * 12_288)
  assert whole(total) == 400_000 * 12_288
  generator = np.random.default_rng(0)
  rows = generator.integers(0, 2**31, 100_000, dtype=np.uint32)
  assert whole(counting.sum_counts(jnp.asarray(rows), 2**48)) == int(rows.astype(object).sum())


@pytest.mark.parametrize("shape", [(), (7,), (64,), (3, 5), (10, 64), (4, 3, 32)])
def test_count(shape):
  mask = np.random.default_rng(1).random(shape) < 0.4
  assert whole(counting.count(jnp.asarray(mask))) == int(mask.sum())


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
def test_the_k_largest_equal_a_stable_sort(distribution):
  x = DISTRIBUTIONS[distribution](np.random.default_rng(3), 960).astype(np.float32)
  x = x.reshape(12, 5, 16)

  @jax.jit
  def kept(x, k):
    keys = selection.magnitude(x)
    return selection.reaches(keys, selection.largest([keys], [k])[0])

  order = np.argsort(-np.abs(x.ravel()), kind="stable")
  for k in (0, 1, 2, 96, 500, 959, 960):
    expected = np.zeros(x.size, bool)
    expected[order[:k]] = True
    np.testing.assert_array_equal(kept(x, counting.limbs(k)).ravel(), expected, err_msg=f"k={k}")


def bf16(x):
  return np.asarray(x, jnp.bfloat16).astype(np.float32)


@pytest.mark.parametrize(
  "kind", ["normal", "bf16 difference", "90 % zeros", "bf16 difference, 90 % zeros", "cauchy"]
)
def test_eight_passes_are_the_rule(kind):
  generator = np.random.default_rng(8)
  size = 1 << 18
  base = bf16(generator.normal(size=size) * 0.02)
  x = {"normal": generator.normal(size=size), "cauchy": generator.standard_cauchy(size)}.get(kind)
  if x is None:
    x = (
      bf16(base + generator.normal(size=size) * 1e-3) - base
      if "bf16" in kind
      else generator.normal(size=size)
    )
  if "zeros" in kind:
    x = np.where(generator.random(size) < 0.1, x, 0.0)
  keys = selection.magnitude(jnp.asarray(x.reshape(512, 512), jnp.float32))
  passes = []
  for density in (0.01, 0.05, 0.2, 0.3, 0.5, 0.7, 0.9):
    found = jax.jit(selection.kth)([keys], [counting.limbs(int(density * size))])
    state = jax.tree.map(lambda x: x[0], found)
    passes.append(int(state.passes))
    reached = int((keys >= state.low).sum())
    assert (
      reached >= int(density * size) > int((keys > np.sort(np.asarray(keys)[keys >= state.low])[0]).sum())
    )
  assert max(passes) <= 8 and np.mean(passes) <= 5, passes


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_hashed_masks_are_random(density):
  """Uniform over bytes, along rows and columns, and independent between keys and neighbours."""
  like = jnp.zeros((700, 900))
  keys = [jax.random.key(0), jax.random.key(1), naming.key_of(jax.random.key(0), 0, "a")]
  keys = [*map(hashing.Key, keys), hashing.Key(keys[0], 1)]
  draws = [np.asarray(hashing.bits(key, like)) for key in keys]
  for words in draws:
    for shift in (0, 8, 16, 24):
      counts = np.bincount((words >> shift & 255).ravel(), minlength=256)
      chi2 = ((counts - words.size / 256) ** 2 / (words.size / 256)).sum()
      assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)
  masks = [(np.asarray(hashing.uniform(key, like)) < density) - density for key in keys]
  error = 1 / np.sqrt(masks[0].size)
  variance = density * (1 - density)
  for mask in masks:
    assert abs(mask.mean()) < 5 * np.sqrt(variance) * error
    for lag in (1, 2, 3, 7, 64):
      for axis in (0, 1):
        assert abs((mask * np.roll(mask, lag, axis)).mean()) / variance < 5 * error
    assert abs((mask.mean(0) ** 2).mean() * 700 / variance - 1) < 5 * np.sqrt(2 / 900)
  for a, b in itertools.combinations(range(4), 2):
    assert abs((masks[a] * masks[b]).mean()) / variance < 5 * error


def test_hashes_do_not_depend_on_layout():
  key, mesh = (
    jax.random.key(3),
    jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Explicit,) * 2),
  )
  like = jnp.zeros((8, 6, 4))
  key = hashing.Key(key)
  whole = hashing.bits(key, like)
  sharding = jax.sharding.NamedSharding(mesh, jax.P("a", None, "b"))
  with jax.set_mesh(mesh):
    split = jax.jit(hashing.bits)(key, jax.device_put(like, sharding))
  assert split.sharding.is_equivalent_to(sharding, 3)
  np.testing.assert_array_equal(whole, split)


def test_matrix_views_come_back():
  x = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
  for axes in (naming.Axes(), naming.Axes(out=(1, 2)), naming.Axes(out=(2,))):
    matrix = naming.as_matrix(x, axes)
    assert matrix.shape[0] == np.prod([x.shape[a] for a in axes.out])
    np.testing.assert_array_equal(naming.from_matrix(matrix, x.shape, axes), x)
