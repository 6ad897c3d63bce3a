"""Blocks: how tensors are cut, that rules go by them, and order statistics that are found in one pass."""

import itertools
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import streaming
from merge_jax.operators import counting, hashing, leafwise, naming, rows, selection, sums
from merge_jax.operators.contrib import sphere
from merge_jax.operators.core import Leaf, Ranked, Total
from merge_jax.operators.pytrees import pytree
from merge_jax.operators.reduce import Reducer
from merge_jax.streaming import blocks, order
from tests.cases import CASES, every
from tests.cases.common import make_tree
from tests.further import beyond
from tests.test_plan import Memory, Result, jobs_of

KEY = jax.random.key(5)


@pytest.mark.parametrize("size", [1, 5, 1024, 1025, 5000])
def test_blocks_cover_a_tensor_once(size):
  x, base = np.arange(size, dtype=np.float32), np.ones((size,), np.float16)
  parts = blocks.split(Leaf((x,), base), naming.Axes(), (1024,))
  assert [len(part.leaf.experts[0]) for part in parts] == [1024] * len(parts)
  np.testing.assert_array_equal(np.concatenate([p.leaf.experts[0][: p.size] for p in parts]), x)
  assert sum(part.size for part in parts) == size and parts[0].leaf.base.dtype == np.float16
  assert [part.start for part in parts] == [int(part.leaf.start[1]) for part in parts]
  assert not parts[-1].leaf.experts[0][parts[-1].size :].any()
  some = blocks.thinned(parts)
  assert 0 < some.size <= 1024
  every = x if size <= 1024 else x[:: -(-2 * size // 1024) | 1]
  np.testing.assert_array_equal(some.leaf.experts[0][: some.size], every)


def test_blocks_of_rows():
  x = np.arange(7 * 300, dtype=np.float32).reshape(7, 300)
  shape = blocks.shape_of(x.shape, 1024, rows=True)
  parts = blocks.split(Leaf((x,)), naming.Axes(), shape)
  assert shape == (3, 300) and [part.leaf.experts[0].shape for part in parts] == [shape] * 3
  assert [(part.start, part.size) for part in parts] == [(0, 900), (900, 900), (1800, 300)]
  np.testing.assert_array_equal(parts[2].leaf.experts[0], [x[6], 0 * x[6], 0 * x[6]])
  assert blocks.shape_of((5,), 1024, rows=True) is None
  assert blocks.shape_of((2, 5000), 1024, rows=True) == (1, 5000)


@pytest.mark.parametrize("kind", ["normal", "bf16", "zeros", "tied", "equal"])
def test_ranks_in_rows_are_those_of_programs(kind):
  x = KEYS[kind](np.random.default_rng(1), 600).astype(np.float32).reshape(6, 100)
  keys = np.abs(x).view(np.uint32)
  np.testing.assert_array_equal(order.ranks_in_rows(keys), rows.ranks_in_rows(jnp.asarray(keys)))


def test_lengths_of_blocks():
  assert [blocks.length_for([n]) for n in (1, 1000, 1025, 10**6, 10**9)] == [1024, 1024, 2048, 2**18, 2**18]
  assert blocks.length_for([]) == blocks.SHORTEST
  thirds = [3 << 17] * 10
  assert blocks.length_for(thirds) == 3 << 16
  assert blocks.length_for([*thirds, (1 << 32) + 1]) == blocks.LONGEST  # positions are split at powers of two


def test_rows_are_divided_evenly():
  assert blocks.shape_of((768, 768), blocks.LONGEST, rows=True) == (256, 768)
  assert blocks.shape_of((3, 768), blocks.LONGEST, rows=True) == (3, 768)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_blocks_lie_where_programs_use_them_in_place(dtype):
  memory = np.zeros(3000, jnp.dtype(dtype))
  places = {x.__array_interface__["data"][0] % blocks.ALIGNMENT for x in (memory, memory[1:])}
  assert places != {0}
  for x in (memory, memory[1:]):
    x[:] = np.arange(len(x)) % 7
    for part in blocks.split(Leaf((x,)), naming.Axes(), (1024,)):
      (found,) = part.aligned().experts
      assert found.__array_interface__["data"][0] % blocks.ALIGNMENT == 0 and found.dtype == x.dtype
      np.testing.assert_array_equal(found[: part.size], x[part.start : part.start + part.size])
      assert not found[part.size :].astype(np.float32).any()


def test_a_large_tensor_that_stands_first_keeps_nobody_waiting():
  """As the embedding of most models does: a quarter of a small one."""
  tree = {name: np.ones(1 << 16, np.float32) for name in "abcdefghij"}
  jobs, together = jobs_of(mj.linear(), [Memory(tree, "m")], None), threading.Barrier(2, timeout=20)

  class Slow(Result):
    def write_parts(self, name, parts):
      if name in "aj":  # the first is not done before the last
        together.wait()
      super().write_parts(name, parts)

  result = Slow(jobs)
  streaming.stream(jobs, result, threads=2)
  assert set(result) == set(tree)


def test_a_block_has_the_random_bits_of_its_place():
  whole = np.asarray(hashing.bits(hashing.Key(KEY, 2), jnp.zeros((7, 640)))).ravel()
  start = np.array([0, 1024], np.uint32)
  part = hashing.bits(hashing.Key(KEY, 2, start), jnp.zeros(1024))
  np.testing.assert_array_equal(part, whole[1024:2048])
  words = hashing.bits(hashing.Key(jax.random.key_data(KEY), 2), jnp.zeros((7, 640)))
  np.testing.assert_array_equal(words, whole.reshape(7, 640))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize(
  "kind", [jax.random.key, jax.random.PRNGKey, lambda s: jax.random.key(s, impl="rbg")]
)
def test_keys_on_the_host_are_those_of_programs(kind, seed):
  key, models, name = kind(seed), ["a", "some/folder", 3], "model.layers.0.w"
  expected = [jax.random.key_data(naming.key_of(key, model, name)) for model in models]
  np.testing.assert_array_equal(naming.words_of(key, models, name), np.stack(expected))


@pytest.mark.parametrize("place", [0, 3, 2**31, 2**32 + 17, 2**40])
def test_places_have_64_bits(place):
  """Of a tensor of 2^33 elements: by rows, as a program for all of it would count."""
  rows, columns = 1 << 16, 1 << 17
  row, column = divmod(place % (rows * columns), columns)
  index = jnp.uint32(row)
  low = index * np.uint32(columns)
  high = hashing._high_word(index, columns)
  found = (int(high) << 32) + int(low) + column
  assert found == place % (rows * columns)


class Held:
  """A tensor in memory, as streams read it."""

  def __init__(self, value):
    self.value = np.asarray(value)
    self.spec = jax.ShapeDtypeStruct(self.value.shape, self.value.dtype)

  def read(self):
    return self.value

  def release(self):
    pass


def streams_alike(monkeypatch, operator, count, weights=None, statistics=None):
  """Whether a stream of tensors of several blocks, the last not full, gives what a merge in memory does."""
  monkeypatch.setattr(blocks, "LONGEST", 512)
  monkeypatch.setattr(blocks, "SHORTEST", 512)
  shapes = {"model.layers.0.w": (18, 65), "model.norm.weight": (16,)}
  base = make_tree(0, shapes=shapes)
  experts = [make_tree(i + 1, 0.1, base, shapes=shapes) for i in range(count)]
  kwargs = {"key": KEY} if operator.needs_key else {}
  if operator.needs_base:
    kwargs["base"] = base
  if statistics is not None:
    statistics = kwargs["statistics"] = [statistics(tree, i) for i, tree in enumerate(experts)]
  weights = None if weights is None else np.array(weights, np.float32)
  jobs = [
    streaming.Job(
      tensor,
      jax.ShapeDtypeStruct(shape, np.float32),
      operator,
      tuple(Held(tree[tensor]) for tree in experts),
      Held(base[tensor]) if operator.needs_base else None,
      weights,
      tuple(map(str, range(count))),
      None
      if statistics is None
      else tuple(None if one[tensor] is None else Held(one[tensor]) for one in statistics),
    )
    for tensor, shape in shapes.items()
  ]
  result = Result(jobs)
  streaming.stream(jobs, result, key=KEY)
  named = {str(i): tree for i, tree in enumerate(experts)}
  expected = mj.merge(operator, named, weights, **kwargs)
  chex.assert_trees_all_close(dict(result), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", every())
def test_every_rule_streams_what_it_merges_in_memory(name, monkeypatch):
  case = CASES[name]
  streams_alike(monkeypatch, case.operator, case.count, case.weights, case.statistics)


SPARSIFIERS = {
  "trim": mj.trim(0.4),
  "exact": mj.trim(0.5, scope="tensor", keep="exact"),
  "rows": mj.trim(0.5, scope="row"),
  "drop": mj.drop(0.6),
  "ranked": mj.drop_by_magnitude(0.5, 0.2),
  "outliers": mj.trim_outliers(0.5, 0.1, scope="tensor"),
  "row outliers": mj.trim_outliers(0.5, 0.1),
  "varying": mj.keep_variance(0.5),
}
REDUCERS = {
  "sum": mj.WeightedSum(),
  "agreeing": mj.AgreeingMean(),
  "energy": mj.EnergyMean(mj.keep_variance(0.6)),
}
PAIRS = list(itertools.product(SPARSIFIERS, SPARSIFIERS))
CHAINS = [(*pair, reduce) for pair, reduce in zip(PAIRS, itertools.cycle(REDUCERS), strict=False)][::3]


@pytest.mark.parametrize("chain", beyond(CHAINS[::7], CHAINS), ids="-".join)
def test_every_chain_streams_what_it_merges_in_memory(chain, monkeypatch):
  *blocks_, reduce = chain
  operator = mj.TaskVector(tuple(SPARSIFIERS[name] for name in blocks_), REDUCERS[reduce])
  streams_alike(monkeypatch, operator, 3)


@pytree
class Halved(mj.Operator):
  """Keeps half of the model; its ranks say what they are told of the survey before."""

  def survey(self):
    def ranks(size, count, surveyed):
      assert surveyed == (None,)
      return [counting.fraction(size, 0.5)]

    keys = Ranked(lambda leaf, _: (selection.magnitude(leaf.experts[0]),), ranks)
    return Total(lambda leaf, _: jnp.sum(leaf.experts[0])), keys

  def combine(self, leaf, prepared, weights):
    return jnp.where(selection.reaches(selection.magnitude(leaf.experts[0]), prepared), leaf.experts[0], 0.0)

  def prepare(self, leaf, surveyed):
    return surveyed[1][0]


def test_ranks_of_whole_models_are_told_the_same_in_streams_and_in_memory():
  tree = make_tree(0)
  jobs = jobs_of(Halved(), [Memory(tree, "0")], None)
  result = Result(jobs)
  streaming.stream(jobs, result)
  chex.assert_trees_all_equal(dict(result), mj.merge(Halved(), [tree]))


SCALED = [mj.slerp(0.3), mj.model_stock(), mj.karcher(), mj.multislerp()]


@pytest.mark.parametrize("operator", SCALED, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-12, 1e-25, 1e-30, 1e12, 5e17, 1e30, 0.0])
def test_norms_of_any_size_are_those_in_memory(operator, size, monkeypatch):
  """Streams try the numbers as they are, and scale them where squares might end."""
  monkeypatch.setattr(blocks, "LONGEST", 1024)
  shapes, measured = {"w": (40, 65), "v": (10,)}, []
  base = make_tree(0, size, shapes=shapes)
  experts = [make_tree(seed, 0.1 * size, base, shapes=shapes) for seed in (1, 2)]
  experts[1]["v"] = base["v"]  # a task vector of zeros
  base = base if operator.needs_base else None
  jobs = jobs_of(
    operator, [Memory(tree, str(i)) for i, tree in enumerate(experts)], base and Memory(base, "b")
  )
  real = leafwise.measure
  monkeypatch.setattr(leafwise, "measure", lambda *args: measured.append(len(args[2])) or real(*args))
  result = Result(jobs)
  streaming.stream(jobs, result)
  assert (0 in measured) == (not 1e-5 < size < 1e10 or operator.needs_base)
  expected = mj.merge(operator, experts, base=base)
  chex.assert_trees_all_close(dict(result), expected, rtol=1e-6, atol=1e-7 * size)


@pytest.mark.parametrize("operator", [mj.karcher(), mj.multislerp(), mj.multislerp(task_vectors=True)])
@pytest.mark.parametrize(("times", "passes"), [(1.7, 1), (2.3, 3), (1e4, 3)])
def test_norms_that_differ_much_are_measured_before_distances(operator, times, passes, monkeypatch):
  """Vectors of nearly one direction: distances say nothing beside the difference of their norms."""
  zero, one, other = (make_tree(seed, shapes={"w": (40, 65)}) for seed in range(3))
  base = zero if operator.needs_base else None
  origin = zero["w"] if operator.needs_base else 0.0
  near = times * (one["w"] + 1e-4 * other["w"])
  experts = [{"w": (origin + x).astype(np.float32)} for x in (one["w"], near)]
  measured, real = set(), leafwise.measure
  monkeypatch.setattr(leafwise, "measure", lambda *args: measured.add(len(args[2])) or real(*args))
  jobs, result = merged_by(operator, experts, base)
  streaming.stream(jobs, result)
  assert measured == ({2} if passes == 1 else {0, 1, 2})
  chex.assert_trees_all_close(
    dict(result), mj.merge(operator, experts, base=base), rtol=1e-6, atol=1e-6 * times
  )


def test_combinations_share_a_program_in_streams():
  trees = [make_tree(seed, shapes={"w": (9, 10)}) for seed in range(3)]
  streaming.stream(*merged_by(mj.linear(), trees))
  before = leafwise.merge._cache_size()
  for operator in (mj.uniform(), mj.karcher(max_iter=3), mj.multislerp()):
    jobs, result = merged_by(operator, trees)
    streaming.stream(jobs, result)
    chex.assert_trees_all_close(dict(result), mj.merge(operator, trees), rtol=1e-6, atol=1e-6)
  assert leafwise.merge._cache_size() == before


def merged_by(operator, trees, base=None):
  models = [Memory(tree, str(i)) for i, tree in enumerate(trees)]
  jobs = jobs_of(operator, models, base and Memory(base, "b"))
  return jobs, Result(jobs)


def test_squares_that_end_differently_in_two_blocks_are_scaled(monkeypatch):
  monkeypatch.setattr(blocks, "LONGEST", 1024)
  a, half = np.full(2048, 1e25, np.float32), np.full(1024, 1e25, np.float32)
  trees = [{"w": a}, {"w": np.concatenate([half, -0.5 * half])}]
  jobs = jobs_of(mj.slerp(0.5), [Memory(tree, str(i)) for i, tree in enumerate(trees)], None)
  result = Result(jobs)
  streaming.stream(jobs, result)
  chex.assert_trees_all_close(dict(result), mj.merge(mj.slerp(0.5), trees), rtol=1e-6)


@pytree
class Counted(mj.Operator):
  """How many elements of the model lie in tensors with a norm: of the whole model, after a scale."""

  elementwise = True

  def survey(self):
    def squares(leaf, surveyed):
      numbers = sums.scaled(leaf.experts, sums.exponent(surveyed[0]))
      return jnp.stack([jnp.sum(x * x) for x in numbers])

    def count(leaf, surveyed):
      return jnp.where(surveyed[1][0] > 0, jnp.sum(jnp.where(leaf.experts[0] == 0, 0.0, 1.0)), 0.0)

    return sums.scale(lambda surveyed: [surveyed[1]]), Total(squares, whole=False), Total(count)

  def prepare(self, leaf, surveyed):
    return surveyed[2]

  def combine(self, leaf, prepared, weights):
    return jnp.full_like(leaf.experts[0], prepared)


@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_surveys_of_whole_models_see_scales_that_did(size):
  tree = make_tree(0, size)
  jobs = jobs_of(Counted(), [Memory(tree, "0")], None)
  result = Result(jobs)
  streaming.stream(jobs, result)
  chex.assert_trees_all_equal(dict(result), mj.merge(Counted(), [tree]))
  assert result.popitem()[1].max() > 0


@pytree
class Sized(Reducer):
  """The norm of what is left of the first task vector, everywhere."""

  elementwise = True

  def survey(self):
    return sums.scale(lambda surveyed: [surveyed[1]]), Total(sphere.norms, whole=False)

  def reduce(self, deltas, weights, surveyed):
    norm = jnp.ldexp(jnp.sqrt(surveyed[1][0]), sums.exponent(surveyed[0]))
    return jnp.full_like(deltas[0], norm)


@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_scales_are_judged_by_the_results_of_their_own_block(size):
  base, tree = make_tree(0, 0.0), make_tree(1, size)
  rule = mj.TaskVector((mj.trim(0.5, scope="tensor"),), Sized())
  jobs = jobs_of(rule, [Memory(tree, "0")], Memory(base, "b"))
  result = Result(jobs)
  streaming.stream(jobs, result)
  expected = mj.merge(rule, [tree], base=base)
  chex.assert_trees_all_close(dict(result), expected, rtol=1e-6)
  assert min(x.min() for x in result.values()) > 0


def test_most_rules_go_by_blocks():
  split = {name for name, case in CASES.items() if case.operator.elementwise}
  assert len(split) > len(CASES) / 2
  assert all(
    any(name.startswith(one) for name in split) for one in ("linear", "ties", "dare", "slerp", "sce")
  )


KEYS = {
  "normal": lambda g, n: g.normal(size=n),
  "bf16": lambda g, n: np.asarray(g.normal(size=n), jnp.bfloat16).astype(np.float32),
  "zeros": lambda g, n: np.where(g.random(n) < 0.1, g.normal(size=n), 0.0),
  "tied": lambda g, n: g.integers(-3, 4, n).astype(float),
  "equal": lambda g, n: np.full(n, 0.5),
  "rising": lambda g, n: np.arange(n) + 1.0,
}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("size", [1, 3, 1000, 20_000])
def test_order_statistics_of_blocks_are_a_stable_sort(kind, size):
  generator = np.random.default_rng(size)
  x = KEYS[kind](generator, size).astype(np.float32)
  parts = blocks.split(Leaf((x,), np.zeros_like(x)), naming.Axes(), (1024,))
  sorted_places = np.argsort(-np.abs(x), kind="stable")
  for density in (0.0, 0.001, 0.2, 0.5, 0.9, 1.0):
    rule = mj.ties(np.float32(density), scope="tensor", keep="exact", zero_sign="positive")
    (cut,) = order.cuts(rule, parts, ())
    count = max(int(size * density + 1e-9), density > 0)
    kept = np.zeros(size, bool)
    kept[sorted_places[:count]] = True
    magnitudes = np.abs(x).view(np.uint32)
    found = (magnitudes >= cut.high) | ((magnitudes >= cut.low) & (np.arange(size) <= cut.last[0]))
    np.testing.assert_array_equal(found, kept, err_msg=f"{density}")


def test_a_wrong_bracket_is_left():
  search = order._Search(3, 100, 200)
  for keys in (np.array([1, 2, 3], np.uint32), np.array([50, 60, 70], np.uint32)):
    search.count(keys)
  search.close()
  assert search.value is None and (search.low, search.high) == (0, 99)
  for keys in (np.array([1, 2, 3], np.uint32), np.array([50, 60, 70], np.uint32)):
    search.count(keys)
  search.close()
  assert search.value == 50


def test_programs_do_not_depend_on_shapes():
  """Other shapes and more layers compile nothing."""

  def stream(names, seed):
    generator = np.random.default_rng(seed)
    trees = [{n: generator.normal(size=s).astype(np.float32) for n, s in names.items()} for _ in range(3)]
    models = [Memory(tree, str(i)) for i, tree in enumerate(trees)]
    rule = mj.dare_ties(np.float32(0.5), rescale="l1", zero_sign="positive")
    jobs = jobs_of(rule, models[:2], models[2])
    streaming.stream(jobs, Result(jobs), key=KEY)

  stream({"a": (30, 40), "b": (5,)}, 0)
  before = leafwise.merge._cache_size(), leafwise.measure._cache_size()
  stream({"a": (40, 50), "b": (7, 3), **{f"c{i}": (2, i + 1) for i in range(5)}}, 1)
  assert (leafwise.merge._cache_size(), leafwise.measure._cache_size()) == before
