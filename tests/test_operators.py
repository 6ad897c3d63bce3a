"""Every operator against float64 numpy written from the formula, and the laws that hold for all."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import merge_jax as mj
from merge_jax.operators import naming
from merge_jax.operators.masks import Trim
from merge_jax.operators.pytrees import pytree
from tests.cases import CASES, FAMILIES, every, program
from tests.cases.common import BASE, EXPERTS, KEY, SHAPES, arguments, deltas, expected, make_tree, merge, wide
from tests.cases.task_vector import np_ties

EXPERTS3 = EXPERTS[:3]


def cases(law=lambda case: True, always=FAMILIES):
  """Those for which a law holds."""
  return every([name for name, case in CASES.items() if law(case)], always=always)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", cases(always=CASES))
def test_matches_reference(name, jit):
  case = CASES[name]
  want = expected(case)
  experts, kwargs = arguments(case)
  merged = program(name)(experts, kwargs) if jit else merge(case)
  for leaf, value in merged.items():
    np.testing.assert_allclose(value, want[leaf], rtol=case.exact, atol=2e-6, err_msg=leaf)


@pytest.mark.parametrize("name", cases())
def test_keeps_dtype_and_rounds_once(name):
  case = CASES[name]
  low = [
    {n: jnp.asarray(v, jnp.bfloat16) for n, v in tree.items()} for tree in (*EXPERTS[: case.count], BASE)
  ]
  merged = merge(case, low[:-1], low[-1])
  exact = merge(case, low[:-1], low[-1], dtype=jnp.float32)
  chex.assert_trees_all_equal_shapes_and_dtypes(merged, low[0])
  for leaf in merged:  # two programs may differ in the last bit of float32, on either side of a rounding
    wide = np.asarray(exact[leaf])
    rounded = [np.asarray(wide + sign * 1e-6 * np.abs(wide), jnp.bfloat16) for sign in (-1, 0, 1)]
    assert np.all(np.any([np.asarray(merged[leaf]) == one for one in rounded], axis=0))


@pytest.mark.parametrize("name", cases(lambda case: case.weights is not None))
def test_weights_do_not_retrace_vmap_and_have_gradients(name):
  case = CASES[name]
  experts, kwargs = arguments(case)
  weights = jnp.array(case.weights)
  prepared = mj.prepare(case.operator, experts, **kwargs)
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def once(prepared, weights):
    return loss(prepared, weights)

  def loss(prepared, weights):
    merged = mj.combine(prepared, weights)
    return sum(jnp.sum(jnp.sin(value)) for value in merged.values())

  many = jnp.stack([weights, weights * jnp.linspace(0.9, 1.1, len(experts))])
  single = [once(prepared, row) for row in many]
  both = jax.jit(jax.vmap(loss, in_axes=(None, 0)))(prepared, many)
  np.testing.assert_allclose(both, jnp.stack(single), rtol=1e-4)
  if not case.smooth:
    return
  gradient = jax.jit(jax.grad(loss, argnums=1))(prepared, weights)
  for i in range(len(experts)):
    step = jnp.zeros(len(experts)).at[i].set(1e-2)
    slope = (once(prepared, weights + step) - once(prepared, weights - step)) / 2e-2
    np.testing.assert_allclose(gradient[i], slope, rtol=3e-2, atol=3e-1)


def test_density_is_traced_and_vmapped():
  traces = []

  @jax.jit
  def merged(density):
    traces.append(1)
    return mj.merge(mj.ties(density), EXPERTS3, base=BASE)

  densities = jnp.array([0.0, 1e-6, 0.1, 0.5, 1.0])
  singles = [merged(d) for d in densities]
  assert len(traces) == 1
  together = jax.vmap(merged)(densities)
  for i, density in enumerate((0.0, 1e-6, 0.1, 0.5, 1.0)):
    expected = np_ties(EXPERTS3, BASE, (1, 1, 1), density=density)
    for leaf in SHAPES:
      np.testing.assert_allclose(singles[i][leaf], expected[leaf], rtol=2e-5, atol=2e-6)
      np.testing.assert_allclose(together[leaf][i], expected[leaf], rtol=2e-5, atol=2e-6)


def test_scaling_has_a_gradient():
  def total(scaling):
    merged = mj.merge(mj.task_arithmetic(scaling=scaling), EXPERTS3, base=BASE)
    return sum(jnp.sum(value) for value in merged.values())

  expected = sum(value.sum() for task in deltas(EXPERTS3, BASE) for value in task.values())
  np.testing.assert_allclose(jax.grad(total)(0.3), expected, rtol=1e-3)


@pytest.mark.parametrize("name", cases(lambda case: case.permutes and case.count > 1))
def test_models_may_be_permuted(name):
  case = CASES[name]
  experts, kwargs = arguments(case)
  statistics = kwargs.pop("statistics", None)
  want = mj.merge(
    case.operator, dict(zip("abcd", experts, strict=False)), case.weights, statistics=statistics, **kwargs
  )
  order = [*range(1, case.count), 0]
  permuted = None if case.weights is None else [case.weights[i] for i in order]
  moved = None if statistics is None else [statistics[i] for i in order]
  other = mj.merge(
    case.operator, {"abcd"[i]: experts[i] for i in order}, permuted, statistics=moved, **kwargs
  )
  for leaf in SHAPES:
    np.testing.assert_allclose(
      other[leaf], want[leaf], rtol=max(1e-5, case.exact), atol=max(2e-6, case.exact / 10)
    )


@pytest.mark.parametrize("name", cases(lambda case: case.statistics is None))
def test_stacked_is_separate(name):
  case = CASES[name]
  axis = 1 if name in FAMILIES else 0
  generator = np.random.default_rng(5)
  layers = [
    {f"blocks.{i}.w": generator.normal(size=(6, 10)).astype(np.float32) for i in range(4)} for _ in range(5)
  ]
  stacked = [{"blocks.w": np.stack(list(tree.values()), axis)} for tree in layers]
  rules = ((r"(blocks)\..*", mj.Axes(stack=axis, out=(1 if axis == 0 else 0,))),)
  weight_rows = mj.Weights(
    jnp.array([[0.5, 0.6, 0.7, 0.8][: case.count], [1.0, 2.0, 0.5, 1.5][: case.count]]),
    (r"blocks\.0\..*", r".*"),
  )
  given = None if case.weights is None else weight_rows
  kwargs = {"key": KEY} if case.operator.needs_key else {}
  bases = ({"base": layers[4]}, {"base": stacked[4]}) if case.operator.needs_base else ({}, {})
  separate = mj.merge(case.operator, layers[: case.count], given, **kwargs, **bases[0])
  together = mj.merge(case.operator, stacked[: case.count], given, **kwargs, **bases[1], axes=rules)
  want = np.stack([np.asarray(value) for value in separate.values()], axis)
  np.testing.assert_allclose(together["blocks.w"], want, rtol=max(1e-5, case.exact), atol=2e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LargestRows(mj.Operator):
  """A user's own rule: each row from the model in which its norm is largest."""

  by_rows = True

  def combine(self, leaf, prepared, weights):
    norms = jnp.stack([jnp.linalg.norm(x, axis=1, keepdims=True) for x in leaf.experts])
    best = jnp.argmax(norms, axis=0)
    return sum(jnp.where(best == i, x, 0.0) for i, x in enumerate(leaf.experts))


def test_row_rules_follow_the_axes_of_flax_kernels():
  name = "model.layers.0.w"
  torch_like = mj.merge(LargestRows(), [{name: e[name]} for e in EXPERTS3])
  flax_like = mj.merge(
    LargestRows(), [{name: e[name].T} for e in EXPERTS3], axes=((r".*", mj.Axes(out=(1,))),)
  )
  np.testing.assert_array_equal(flax_like[name], torch_like[name].T)
  norms = [np.linalg.norm(e[name], axis=1) for e in EXPERTS3]
  np.testing.assert_allclose(np.linalg.norm(torch_like[name], axis=1), np.max(norms, axis=0), 1e-6)


@pytest.mark.parametrize("name", cases(lambda case: case.equal == "model"))
def test_equal_models_give_the_model(name):
  """With a base, models that are equal to it; then zero weights give it, too."""
  case = CASES[name]
  operator, weights = case.operator, case.weights
  tree = BASE if operator.needs_base else EXPERTS[0]
  merged = merge(case, [tree] * case.count)
  for leaf in SHAPES:
    if operator.needs_base:
      np.testing.assert_array_equal(merged[leaf], tree[leaf])
    else:
      np.testing.assert_allclose(merged[leaf], tree[leaf], rtol=1e-5, atol=1e-6)
  if operator.needs_base and weights is not None and not operator.normalize:
    zero = merge(case._replace(weights=(0.0,) * case.count))
    for leaf in SHAPES:
      np.testing.assert_array_equal(zero[leaf], BASE[leaf])


@pytest.mark.parametrize(
  "operator",
  [mj.ties(1.0), mj.task_arithmetic(), mj.dare_ties(1.0), mj.dare_linear(1.0)],
)
def test_one_model_with_weight_one_is_itself(operator):
  merged = mj.merge(operator, EXPERTS[:1], [1.0], base=BASE, key=KEY)
  for leaf in SHAPES:
    np.testing.assert_allclose(merged[leaf], EXPERTS[0][leaf], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ratio", [1.0, 1.001, 0.4, 3.0, 1e-3])
@pytest.mark.parametrize("opposite", [False, True])
def test_slerp_near_parallel_and_opposite(opposite, ratio):
  """Against the angle in long double; linear where sin Ω < 1e-6."""
  generator = np.random.default_rng(4)
  for angle, size in itertools.product((1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 3e-6, 1e-7), (4, 300)):
    a, n = generator.normal(size=(2, size))
    n -= a * (n @ a) / (a @ a)
    n *= np.linalg.norm(a) / np.linalg.norm(n)
    b = (np.cos(angle) * a + np.sin(angle) * n) * (-ratio if opposite else ratio)
    low = [{"w": x.astype(np.float32)} for x in (a, b)]
    prepared = mj.prepare(mj.slerp(), low)
    a, b = (tree["w"].astype(np.longdouble) for tree in low)
    units = [x / np.sqrt(np.sum(x * x)) for x in (a, b)]
    chords = [np.sqrt(np.sum(x * x)) for x in (units[0] - units[1], units[0] + units[1])]
    omega = 2 * np.arctan2(*chords)
    for t in (0.0, 0.1, 0.5, 0.75, 1.0):
      if np.sin(omega) < 1e-6:
        expected = (1 - t) * a + t * b
      else:
        share = np.longdouble(np.float32(t) / (np.float32(1 - t) + np.float32(t)))
        expected = (np.sin((1 - share) * omega) * a + np.sin(share * omega) * b) / np.sin(omega)
      merged = np.asarray(mj.combine(prepared, [1 - t, t])["w"])
      error = np.abs(merged - expected).max() / np.abs(expected).max()
      assert error < 1e-6, (angle, size, t)


@pytest.mark.parametrize("b", [(1, 2, 3), (0, 0, 0), (-1, -2, -3), (2, 4, 6)])
@pytest.mark.parametrize("a", [(1, 2, 3), (0, 0, 0)])
def test_slerp_has_finite_gradients(a, b):
  def total(a, b, t):
    return jnp.sum(mj.merge(mj.slerp(t), [{"w": a}, {"w": b}])["w"])

  numbers = [jnp.array(a, jnp.float32), jnp.array(b, jnp.float32), 0.3]
  chex.assert_tree_all_finite(jax.grad(total, argnums=(0, 1, 2))(*numbers))
  if not any(a) or not any(b):  # orthogonal to everything
    factor = np.sin(0.15 * np.pi) if any(b) else np.cos(0.15 * np.pi)
    np.testing.assert_allclose(total(*numbers), factor * (sum(a) + sum(b)), rtol=1e-6)


@pytest.mark.parametrize("where", [0, "base"])
@pytest.mark.parametrize("name", cases(always=CASES))
def test_what_is_not_finite_stays_visible(name, where):
  case = CASES[name]
  if where == "base" and not case.operator.needs_base:
    return
  leaf, places = "model.layers.0.w", {(3, 5): np.nan, (7, 60): np.inf, (12, 0): -np.inf}
  trees = [{n: v.copy() for n, v in tree.items()} for tree in (*EXPERTS[: case.count], BASE)]
  for at, value in places.items():
    (trees[-1] if where == "base" else trees[where])[leaf][at] = value
  merged = merge(case, trees[:-1], trees[-1])
  if not case.elementwise:
    assert not np.all(np.isfinite(merged[leaf]))
    return
  clean = merge(case)
  for at in places:
    assert not np.isfinite(merged[leaf][at]), at
  if name in ("linear", "uniform", "task_arithmetic", "dare_linear"):
    changed = merged[leaf] != clean[leaf]
    assert {tuple(map(int, at)) for at in np.argwhere(changed)} == set(places)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_thresholds_order_nan_above_infinity(scope):
  experts = [{n: v.copy() for n, v in tree.items()} for tree in EXPERTS3]
  experts[0]["model.layers.0.w"][:3] = np.nan
  experts[1]["model.layers.0.w"][0] = np.inf
  filled = [{n: np.nan_to_num(v, nan=3.3e38, posinf=3.2e38) for n, v in tree.items()} for tree in experts]
  expected = np_ties(filled, BASE, (1, 1, 1), density=0.3, scope=scope)
  merged = mj.merge(mj.ties(0.3, scope=scope), experts, base=BASE)
  for leaf, value in merged.items():
    rows = slice(3, None) if leaf == "model.layers.0.w" else slice(None)
    np.testing.assert_allclose(value[rows], expected[leaf][rows], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", every(FAMILIES, always=("linear", "ties", "karcher", "regmean")))
def test_x64_computes_float64_and_leaves_float32_as_it_is(name):
  case = CASES[name]
  before = merge(case)
  with jax.enable_x64(True):
    again = merge(case)  # another program: sums may be fused in another way
    chex.assert_trees_all_equal_dtypes(again, before)
    chex.assert_trees_all_close(again, before, rtol=1e-5, atol=1e-6)
    merged = merge(case, [wide(tree) for tree in EXPERTS], wide(BASE))
    for leaf, value in merged.items():
      assert value.dtype == np.float64
      np.testing.assert_allclose(value, expected(case)[leaf], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
@pytest.mark.parametrize("name", cases(lambda case: case.statistics is None))
def test_empty_scalar_and_short_tensors(name, shape):
  case = CASES[name]
  trees = [make_tree(i, shapes={"stack": shape, "one": (1,), "scalar": (), "row": (1, 3)}) for i in range(5)]
  merged = merge(case, trees[:4], trees[4], dtype=jnp.bfloat16)
  assert merged["stack"].shape == shape and merged["stack"].dtype == jnp.bfloat16
  assert merged["scalar"].shape == ()
  for value in merged.values():
    assert np.all(np.isfinite(value))
  only = [{"stack": tree["stack"]} for tree in trees]
  assert merge(case, only[:4], only[4])["stack"].shape == shape


def test_dare_is_unbiased_and_depends_on_names_only():
  ones, zeros = {"w": np.ones((300, 400), np.float32)}, {"w": np.zeros((300, 400), np.float32)}
  operator = mj.dare_ties(0.3)
  merged = mj.merge(operator, [ones], base=zeros, key=KEY)["w"]
  assert abs(float(merged.mean()) - 1.0) < 4 * np.sqrt(0.7 / 0.3 / merged.size)
  again = mj.merge(operator, [ones], base=zeros, key=KEY)["w"]
  other = mj.merge(operator, [{"v": ones["w"]}], base={"v": zeros["w"]}, key=KEY)["v"]
  np.testing.assert_array_equal(merged, again)
  assert 0.4 < float((merged == other).mean()) < 0.75  # 0.58 for independent masks


def test_probabilities_of_della_have_the_same_bits_in_all_programs():
  """A later block compares what is divided by them: one program finds a threshold, another uses it."""
  block, delta = mj.drop_by_magnitude(0.42, 0.04), jnp.asarray(EXPERTS[0]["model.layers.0.w"])

  def probabilities(block, delta):
    return block.probability((None, None), delta)

  of_constants = jax.jit(functools.partial(probabilities, block))(delta)
  np.testing.assert_array_equal(jax.jit(probabilities)(block, delta), of_constants)


def test_dellas_probabilities_are_those_of_float64_where_it_is():
  with jax.enable_x64(True):
    delta = jnp.asarray(np.arange(1.0, 6.0)[None])
    found = mj.drop_by_magnitude(0.7, 0.2).probability((None, None), delta)
    np.testing.assert_allclose(found[0], 0.5 + 0.4 * np.arange(5) / 4, rtol=1e-15)


def test_the_masks_of_before_are_there():
  delta = np.arange(1, 401, dtype=np.float32).reshape(20, 20)
  key = jax.random.fold_in(naming.key_of(KEY, 0, "w"), 0)
  mask = np.asarray(jax.random.uniform(key, delta.shape, jnp.float32)) < 0.3
  rule = mj.dare_linear(0.3, rescale="none", generator="threefry")
  merged = mj.merge(rule, [{"w": delta}], base={"w": np.zeros_like(delta)}, key=KEY)["w"]
  np.testing.assert_array_equal(merged, np.where(mask, delta, 0))


def test_zero_sums_take_the_sign_of_the_majority():
  base = {"w": np.zeros(4, np.float32)}
  experts = [
    {"w": np.array([1, -3, -3, 2], np.float32)},
    {"w": np.array([-1, -1, 0, -2], np.float32)},
  ]
  expected = {"majority": [-1, -2, -3, -2], "positive": [1, -2, -3, 2], "neither": [0, -2, -3, 0]}
  for zero_sign, values in expected.items():
    merged = mj.merge(mj.ties(1.0, zero_sign=zero_sign), experts, base=base)["w"]
    np.testing.assert_array_equal(merged, values, err_msg=zero_sign)


def test_route_and_nested_trees():
  nested = [{"norm": {"w": np.full(3, v, np.float32)}, "mlp": {"w": np.full(3, v, np.float32)}}
            for v in (1.0, 3.0)]  # fmt: skip
  base = jax.tree.map(np.zeros_like, nested[0])
  operator = mj.route((r"norm\..*", mj.uniform()), (r".*", mj.ties(1.0, scaling=10.0)))
  merged = mj.merge(operator, nested, base=base)
  np.testing.assert_allclose(merged["norm"]["w"], 2.0)
  np.testing.assert_allclose(merged["mlp"]["w"], 20.0)


BUFFERS = {
  "int64": np.array([2**40 + 3, -1]),
  "uint8": np.array([3], np.uint8),
  "bool": np.array(True),
  "text": np.array(["a", "b"]),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_are_carried_over_or_refused(kind):
  value = BUFFERS[kind]
  trees = [{"w": np.full(2, v, np.float32), "buffer": value.copy()} for v in (0.0, 1.0)]
  merged = mj.merge(mj.linear(), trees)
  assert merged["buffer"].dtype == value.dtype and merged["buffer"].tobytes() == value.tobytes()
  assert not np.shares_memory(merged["buffer"], trees[0]["buffer"])
  trees[1]["buffer"] = np.roll(value, 1) if value.size > 1 else ~value
  with pytest.raises(ValueError, match=r"'buffer'.*differs"):
    mj.merge(mj.linear(), trees)


def test_buffers_equal_in_their_low_bits_differ():
  trees = [{"w": np.zeros(2, np.float32), "steps": np.array(n)} for n in (2**40, 2**41)]
  with pytest.raises(ValueError, match=r"'steps'.*differs"):
    mj.merge(mj.linear(), trees)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_donated_result_leaves_the_pool(jit):
  trees = [{"w": jnp.full(2, v), "steps": jnp.arange(3)} for v in (0.0, 1.0)]
  prepared = mj.prepare(mj.linear(), trees)
  merged = (jax.jit(mj.combine) if jit else mj.combine)(prepared)
  jax.tree.map(lambda x: x.delete(), merged)
  assert trees[0]["steps"].tolist() == [0, 1, 2]
  assert int(mj.combine(prepared)["steps"][2]) == 2


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: mj.merge(mj.linear(), []), "at least one"),
    (lambda: mj.merge(mj.linear(), EXPERTS3, [1.0]), r"shape \(1,\) do not fit 3"),
    (lambda: mj.merge(mj.linear(), EXPERTS3, [1.0, -1.0, 0.0]), "sum to 0"),
    (lambda: mj.merge(mj.uniform(), EXPERTS3, [1.0, 2.0, 0.0]), "takes no weights"),
    (lambda: mj.merge(mj.slerp(0.5), EXPERTS[:2], [1.0, 2.0]), "takes no weights"),
    (lambda: mj.merge(mj.ties(), EXPERTS), "pass base="),
    (lambda: mj.merge(mj.linear(), EXPERTS3, base=BASE), "does not use a base"),
    (lambda: mj.merge(mj.dare_ties(0.5), EXPERTS, base=BASE), "pass key="),
    (lambda: mj.merge(mj.slerp(0.5), EXPERTS3), "merges 2 models, got 3"),
    (lambda: mj.merge(mj.linear(), [{"a": np.ones(2)}, {"b": np.ones(2)}]), "'a' is missing"),
    (
      lambda: mj.merge(mj.linear(), [{"a": np.ones(2)}, {"a": np.ones(3)}]),
      r"'a' has shape \(3,\)",
    ),
    (lambda: mj.merge(mj.linear(), [{"a.b": 1.0, "a": {"b": 1.0}}]), "called 'a.b'"),
    (lambda: mj.ties(1.5), "between 0 and 1"),
    (lambda: mj.ties(scope="whole"), "unknown scope 'whole'; Known: model, row, tensor"),
    (lambda: mj.ties(keep="exact"), "needs scope='tensor'"),
    (lambda: mj.AgreeingMean("weigted"), "unknown election 'weigted'; did you mean 'weighted'"),
    (lambda: mj.AgreeingMean(divisor=3), "unknown divisor '3'"),
    (lambda: Trim(0.5, scope="x"), "unknown scope 'x'"),
    (lambda: mj.dare_ties(np.float32(2)), r"density is .*2.0.*; expected a number between 0 and 1"),
    (lambda: mj.dare_ties(np.array(-0.1)), "density is"),
    (lambda: mj.trim(jnp.float32(np.nan)), "density is"),
    (lambda: mj.drop(True), "density is True"),
    (lambda: mj.trim("0.5"), "density is '0.5'"),
    (lambda: mj.slerp(np.nan), "t is nan; expected a finite number"),
    (lambda: mj.ties(scaling=np.inf), "scaling is inf; expected a finite number"),
    (lambda: mj.TaskVector(mj.trim(0.5)), r"expected a tuple of sparsifiers"),
    (lambda: mj.TaskVector(reduce=mj.AgreeingMean), "expected a reducer"),
    (lambda: mj.merge(mj.linear, EXPERTS), r"no operator; pass what a factory returns"),
    (lambda: mj.route(("a", mj.ties)), "'a' is .*; expected an operator"),
    (lambda: mj.route(("a(", mj.ties())), r"'a\(' is not a regular expression"),
    (lambda: mj.Weights(np.ones((2, 3)), ("a",)), r"shape \(2, 3\) for 1 patterns"),
    (lambda: mj.Weights(np.ones((1, 3)), ("a", "b")), r"shape \(1, 3\) for 2 patterns"),
    (lambda: mj.Weights(np.ones(3), ("a", "b", "c")), r"shape \(3,\) for 3 patterns"),
    (lambda: mj.merge(mj.linear(), EXPERTS3, mj.Weights(np.ones((1, 3)), ("(",))), "not a regular"),
    (lambda: mj.merge(mj.linear(), EXPERTS3, mj.Weights(np.ones((2, 1, 3)), (".*",))), "do not fit 3"),
    (lambda: mj.merge(mj.linear(), EXPERTS3, [1.0, np.nan, 0.0]), r"nan.*; expected finite numbers"),
    (lambda: mj.merge(mj.slerp(), EXPERTS[:2], [1.0, -1.0]), "sum to 0"),
    (lambda: mj.merge(mj.task_arithmetic(normalize=True), EXPERTS3, [0.0] * 3, base=BASE), "sum to 0"),
    (
      lambda: mj.merge(
        mj.linear(), EXPERTS3, mj.Weights(np.array([[1, 1, 1], [1, -1, 0]]), (".*embed.*", ".*"))
      ),
      "sum to 0",
    ),
    (lambda: mj.merge(mj.linear(), EXPERTS[0]), "one tree of tensors; pass a list"),
    (lambda: mj.merge(mj.linear(), np.ones((3, 2))), "pass a list of trees"),
    (lambda: mj.merge(mj.linear(), [{"w": "text"}, {"w": object()}]), "'w' in expert 1 is <object"),
    (lambda: mj.merge(mj.linear(), [{"w": np.ones(2, complex)}] * 2), "'w'.* complex tensors do not merge"),
    (lambda: mj.merge(mj.linear(), [{"w": np.ones(2)}] * 2), "'w'.* is float64, which JAX would narrow"),
    (
      lambda: mj.merge(mj.linear(), [{"w": np.ones(2, "float32")}, {"w": np.ones(2, "int32")}]),
      "'w' is int32 in expert 1 but float32 in expert 0",
    ),
    (lambda: mj.merge(mj.linear(), EXPERTS3, dtype=np.int32), "dtype is int32; expected a floating one"),
    (lambda: mj.merge(mj.linear(), EXPERTS3, dtype=np.float64), "dtype is float64, which JAX would narrow"),
    (lambda: mj.merge(mj.linear(), EXPERTS3, statistics=[SHAPES] * 2), "2 statistics for 3 experts"),
    (
      lambda: mj.merge(mj.linear(), EXPERTS3, statistics=[SHAPES, SHAPES, {"model.norm.wight": 0}]),
      "statistics of expert 2: unknown tensor 'model.norm.wight'; did you mean 'model.norm.weight'",
    ),
    (
      lambda: mj.merge(mj.linear(), EXPERTS3, statistics=[SHAPES, {}, SHAPES]),
      "statistics of expert 1: tensor .* is missing",
    ),
    (lambda: mj.Weights(jnp.ones((1, 3)), ("x",)).row("y"), "No pattern"),
    (
      lambda: mj.merge(mj.linear(), EXPERTS3, axes=((r".*", mj.Axes(stack=0, out=(1,))),)),
      "no group|does not fit",
    ),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize(
  "rule",
  [
    mj.ties(np.array([0.2, 0.3])),
    mj.breadcrumbs(np.array([0.2, 0.3]), scope="tensor"),
    mj.dare_linear(np.array([0.5])),
  ],
)
def test_numbers_of_another_number_of_models_are_refused(rule):
  with pytest.raises(ValueError, match=r"density has shape .* one for each of 3 models"):
    mj.merge(rule, EXPERTS3, base=BASE, key=KEY if rule.needs_key else None)


PER_MODEL = {
  "ties": lambda x: mj.ties(x),
  "breadcrumbs": lambda x: mj.breadcrumbs(x, 0.1),
  "dare_linear": lambda x: mj.dare_linear(x),
  "della_linear": lambda x: mj.della_linear(x, [0.1, 0.05, 0.0]),
  "consensus": lambda x: mj.consensus(x),
}


@pytest.mark.parametrize("name", PER_MODEL)
def test_lists_of_numbers_are_arrays(name):
  numbers = [0.25, 0.5, 0.75]
  made = [
    PER_MODEL[name](x)
    for x in (numbers, tuple(numbers), np.array(numbers), [jnp.float32(x) for x in numbers])
  ]
  key = KEY if made[0].needs_key else None
  first, *others = (mj.merge(one, EXPERTS3, base=BASE, key=key) for one in made)
  for other in others:
    chex.assert_trees_all_close(first, other, atol=1e-6)


@pytest.mark.parametrize(
  "operator",
  [mj.task_arithmetic(scaling=[0.1, 0.2]), mj.ties(scaling=np.ones(2)), mj.consensus(k=[1, 2])],
)
def test_numbers_that_all_models_share_are_one(operator):
  experts = [{"w": jnp.ones((2, 2))}, {"w": jnp.zeros((2, 2))}]
  with pytest.raises(ValueError, match=r"has shape \(2,\); expected one number\."):
    mj.merge(operator, experts, base={"w": jnp.zeros((2, 2))})


def test_an_operator_of_several_numbers_is_mapped():
  operator, base = mj.task_arithmetic(scaling=[0.1, 0.2]), {"w": jnp.zeros(2)}
  mapped = jax.vmap(lambda one: mj.merge(one, [{"w": jnp.ones(2)}], base=base))(operator)
  np.testing.assert_allclose(mapped["w"], [[0.1, 0.1], [0.2, 0.2]], rtol=1e-6)


@pytest.mark.parametrize("name", cases(lambda case: jax.tree.leaves(case.operator), always=CASES))
def test_a_number_that_is_nan_in_a_program_stays_visible(name):
  case = CASES[name]
  experts, kwargs = arguments(case)
  numbers, structure = jax.tree.flatten(case.operator)
  numbers = [jnp.asarray(x, float) for x in numbers]
  merged = jax.jit(
    lambda numbers: mj.merge(jax.tree.unflatten(structure, numbers), experts, case.weights, **kwargs)
  )
  for i, number in enumerate(numbers):
    lost = merged([*numbers[:i], number * jnp.nan, *numbers[i + 1 :]])
    assert all(np.isnan(x).all() for x in lost.values()), i
  assert all(np.isfinite(x).all() for x in merged(numbers).values())


@pytest.mark.parametrize("name", cases())
def test_concrete_arrays_inside_a_program(name):
  """Weights, or the models, that a jitted function closes over."""
  case = CASES[name]
  experts, kwargs = arguments(case)
  weights = None if case.weights is None else jnp.array(case.weights)
  want = mj.merge(case.operator, experts, weights, **kwargs)
  closed = jax.jit(lambda experts: mj.merge(case.operator, experts, weights, **kwargs))(experts)
  pool = jax.jit(
    lambda scale: mj.merge(case.operator, experts, None if weights is None else scale * weights, **kwargs)
  )
  for got in (closed, pool(jnp.float32(1.0))):
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def test_arrays_of_the_other_order_of_bytes_are_read():
  swapped = [{n: v.astype(v.dtype.newbyteorder()) for n, v in tree.items()} for tree in EXPERTS3]
  chex.assert_trees_all_equal(mj.merge(mj.linear(), swapped), mj.merge(mj.linear(), EXPERTS3))


def test_operators_are_equal_by_their_numbers():
  one, same, other = (mj.ties(np.array(x)) for x in ([0.3, 0.4], [0.3, 0.4], [0.3, 0.5]))
  assert one == same and hash(one) == hash(same) and one != other and mj.ties(0.2) == mj.ties(0.2)
  assert mj.ties(0.2) != mj.ties(0.2, scope="tensor") and mj.linear() != mj.uniform()


def test_prepared_pools_are_equal_by_their_numbers_and_keys():
  one, same, other = (
    mj.prepare(mj.dare_linear(0.5), EXPERTS3, base=BASE, key=jax.random.key(seed)) for seed in (0, 0, 1)
  )
  lost = mj.prepare(mj.linear(), [{"w": np.full(2, np.nan, np.float32)}])
  assert one == one and one == same and one != other and lost == lost


def test_equal_random_keys_are_carried_over():
  key = jax.random.key(0)
  merged = mj.merge(mj.linear(), [{"w": jnp.ones(2), "k": key}, {"w": jnp.zeros(2), "k": jax.random.key(0)}])
  assert jnp.all(jax.random.key_data(merged["k"]) == jax.random.key_data(key))
  with pytest.raises(ValueError, match="'k' of dtype key<fry> differs"):
    mj.merge(mj.linear(), [{"w": jnp.ones(2), "k": key}, {"w": jnp.zeros(2), "k": jax.random.key(1)}])


def test_what_is_in_a_box_has_the_name_of_the_box():
  boxes = {"layers": {"kernel": nnx.Param(jnp.ones(2)), "norm": nnx.Param({"scale": jnp.ones(1)})}}
  linen = {"layers": {"kernel": nn.Partitioned(jnp.ones(2), ("x",)), "norm": {"scale": jnp.ones(1)}}}
  mixed = boxes | {"steps": jnp.ones(1)}  # a State with an array of its own beside its Variables
  attention = {"query": nnx.Param(jnp.ones(1)), "value": nnx.Param(jnp.ones(1))}
  for tree in (boxes, linen, nnx.State(boxes)):
    assert set(naming.flatten(tree)[0]) == {"layers.kernel", "layers.norm.scale"}
  assert set(naming.flatten(nnx.State(mixed))[0]) == {"layers.kernel", "layers.norm.scale", "steps"}
  assert set(naming.flatten(attention)[0]) == {"query", "value"}
  assert set(naming.flatten({"a": {"value": nnx.Param(jnp.ones(1))}})[0]) == {"a.value"}


ONES = [{"w": jnp.ones(4)}, {"w": jnp.ones(4)}]


def merge_ones(weights=None, operator=None, **options):
  return mj.merge(operator or mj.linear(), ONES, weights, **options)


def drop_ones(key):
  return merge_ones(operator=mj.dare_linear(0.5), base=ONES[0], key=key)


@pytree
class Summed(mj.Operator):
  mode: str = "all"

  def combine(self, leaf, prepared, weights):
    return leaf.experts[0].sum(-1)


class Plain(mj.Operator):
  def combine(self, leaf, prepared, weights):
    return leaf.experts[0]


def in_memory(kind):
  return jax.device_put(ONES[0], jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=kind))


MISUSED = {
  "another shape": (lambda: merge_ones(operator=Summed(0.0)), r"^Summed: .* shape \(\); expected \(4,\)"),
  "a text that is not static": (
    lambda: mj.plan(Summed(), ONES[0]),
    "^Summed: mode is 'all', which is no number; .*metadata=merge_jax.STATIC",
  ),
  "a class that is no pytree": (
    lambda: merge_ones(operator=Plain()),
    "^Plain is no pytree; put @merge_jax.pytree",
  ),
  "a part that is no pytree": (
    lambda: mj.prepare(mj.route((".*", Plain())), ONES),
    "^Plain is no pytree; put @merge_jax.pytree",
  ),
  "complex weights": (lambda: merge_ones(np.array([1j, 1.0])), "expected a number for each"),
  "complex numbers among weights": (
    lambda: merge_ones([jnp.complex64(1), 1.0]),
    "expected a number for each",
  ),
  "models in two memories": (
    lambda: mj.merge(mj.linear(), [in_memory("device"), in_memory("pinned_host")]),
    "in other memory",
  ),
  "weights that overflow": (lambda: merge_ones([3e38, 3e38]), "sum to inf"),
  "weights whose reciprocal is subnormal": (lambda: merge_ones([1e38, 1e38]), "sum to 2e[+]38"),
  "subnormal weights": (lambda: merge_ones([1e-40, 1e-40]), "sum to 0"),
  "weights by name": (lambda: merge_ones({"a": 1.0, "b": 2.0}), "the models are .0, 1.; give each model one"),
  "weights that are no numbers": (lambda: merge_ones(["1", "x"]), "expected a number for each"),
  "weights of None": (lambda: merge_ones([1.0, None]), "expected a number for each"),
  "a key that is none": (lambda: drop_ones(0), "jax.random.key"),
  "several keys": (lambda: drop_ones(jax.random.split(KEY)), "one key"),
  "models on two devices": (
    lambda: mj.merge(mj.linear(), [jax.device_put(ONES[0], x) for x in jax.devices()[:2]]),
    "other devices",
  ),
  "paths": (lambda: mj.merge(mj.linear(), ["a", "b"]), "expected a tree of arrays"),
  "an unknown dtype": (lambda: merge_ones(dtype="bf16"), "expected a floating one"),
  "a switch": (lambda: mj.linear(normalize="no"), "expected True or False"),
  "a range": (lambda: mj.nearswap(-1.0), "a number from 0 on"),
  "steps": (lambda: mj.karcher(max_iter=True), "a whole number from 0 on"),
  "numbers of other models": (lambda: mj.della([0.5, 0.6], [0.1] * 3), "of the same models"),
  "an axes rule": (lambda: merge_ones(axes=((".*", 1),)), "expected pairs"),
  "axes": (lambda: merge_ones(axes=((".*", mj.Axes(out=1)),)), "expected a tuple"),
  "a rule of a route": (lambda: mj.route("a", mj.linear()), "expected pairs"),
}


@pytest.mark.parametrize("what", MISUSED)
def test_misuse_is_one_sentence(what):
  call, said = MISUSED[what]
  with pytest.raises(ValueError, match=said) as error:
    call()
  assert "\n" not in str(error.value)


def test_small_weights_and_names_of_any_kind_are_fine():
  assert mj.merge(mj.linear(), ONES, [1e-9, 1e-9])["w"].tolist() == [1.0] * 4
  for names in ((np.int64(3), 1.5), (-1, 10**10), (("a", 1), "b")):
    experts = dict(zip(names, ONES, strict=True))
    mj.merge(mj.dare_linear(0.5), experts, base=ONES[0], key=KEY)


NAMED = {"math": EXPERTS[0], "code": EXPERTS[1], "law": EXPERTS[2]}  # JAX would sort them
GIVEN = {"math": 0.6, "code": 0.3, "law": 0.1}


def same(found, expected, **how):
  chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-7, **how)


def test_weights_by_name_go_to_their_models_in_a_program_too():
  expected_ = mj.merge(mj.linear(), list(NAMED.values()), [0.6, 0.3, 0.1])
  for experts in (NAMED, dict(sorted(NAMED.items()))):
    for weights in (GIVEN, dict(sorted(GIVEN.items()))):
      same(mj.merge(mj.linear(), experts, weights), expected_)
      same(jax.jit(lambda e, w: mj.merge(mj.linear(), e, w))(experts, weights), expected_)
  prepared = mj.prepare(mj.linear(), NAMED)
  for weights in (GIVEN, list(GIVEN.values())):
    same(jax.jit(mj.combine)(prepared, weights), expected_)
  for weights in ({"math": 1.0}, GIVEN | {"poems": 1.0}):
    with pytest.raises(ValueError, match=r"the models are \['math', 'code', 'law'\]; give each model one"):
      mj.combine(prepared, weights)


def test_numbers_in_a_row_are_not_for_a_dict_that_jax_has_sorted():
  base = {"base": BASE}
  for operator, weights, options in (
    (mj.linear(), [0.6, 0.3, 0.1], {}),
    (mj.linear(), jnp.array([0.6, 0.3, 0.1]), {}),
    (mj.ties(density=jnp.array([0.1, 0.5, 0.9])), None, base),
    (mj.fisher(), None, {"statistics": [EXPERTS[0]] * 3}),
  ):
    with pytest.raises(ValueError, match="by position, but inside a program models by name lose their order"):
      jax.jit(lambda e, operator=operator, w=weights, o=options: mj.merge(operator, e, w, **o))(NAMED)
  squares = {name: jax.tree.map(jnp.square, tree) for name, tree in NAMED.items()}
  expected_ = mj.merge(mj.fisher(), list(NAMED.values()), statistics=list(squares.values()))
  same(jax.jit(lambda e, s: mj.merge(mj.fisher(), e, statistics=s))(NAMED, squares), expected_)


@pytest.mark.parametrize("made", [list, iter], ids=["list", "generator"])
def test_names_may_come_one_by_one(made):
  same(mj.merge(mj.linear(), EXPERTS3, GIVEN, names=made(NAMED)), mj.merge(mj.linear(), NAMED, GIVEN))


def test_a_list_of_models_may_have_names():
  """Masks go by them, in a program too, where a dict would be sorted."""
  rule, options = mj.dare_linear(0.5), {"base": BASE, "key": KEY}
  named = mj.merge(rule, NAMED, list(GIVEN.values()), **options)
  listed = jax.jit(lambda e, w: mj.merge(rule, e, w, names=tuple(NAMED), **options))
  same(listed(list(NAMED.values()), jnp.array(list(GIVEN.values()))), named)
  for names in (("a", "b"), ("a", "a", "b")):
    with pytest.raises(ValueError, match="expected a different one for each expert"):
      mj.merge(rule, EXPERTS3, names=names, **options)
  with pytest.raises(ValueError, match="names= is for a list"):
    mj.merge(rule, NAMED, names=("a", "b", "c"), **options)


def test_a_route_goes_by_the_layers_of_a_stack():
  layers = [{f"layers.{i}.w": jnp.full((2, 4), 1.0 + i + m) for i in range(3)} for m in range(2)]
  stacks = [{"layers.w": jnp.stack(list(one.values()))} for one in layers]
  axes = ((r"(layers)\..*", mj.Axes(stack=0, out=(2,))),)
  one = mj.route((r"layers\.\d\..*", mj.linear()), (r".*", mj.slerp(0.0)))
  merged = mj.merge(one, stacks, axes=axes)["layers.w"]
  same(list(merged), list(mj.merge(one, layers).values()))
  several = mj.route((r"layers\.0\..*", mj.linear()), (r".*", mj.slerp(0.0)))
  with pytest.raises(ValueError, match=r"'layers.w': several patterns of the route match its layers"):
    mj.merge(several, stacks, axes=axes)


def test_weights_are_checked_in_the_dtype_that_computes():
  with jax.enable_x64(True):
    for weights, message in (([1e-40, 1e-40], "sum to 0"), ([3e38, 3e38], "sum to inf")):
      with pytest.raises(ValueError, match=message):
        merge_ones(weights)
    twice = [{"w": jnp.ones(2, jnp.float64)}] * 2
    assert mj.merge(mj.linear(), twice, [1e-40, 1e-40])["w"].tolist() == [1.0, 1.0]


def test_statistics_of_a_stack_lie_in_front_and_slices_take_theirs():
  leaf = {"w": jnp.arange(24.0).reshape(2, 3, 4), "n": jnp.arange(3)}
  axes = ((r"(w)", mj.Axes(stack=1, out=(2,))),)
  information = {"w": 1.0 + jnp.arange(24.0).reshape(3, 2, 4)}  # of what is not merged there is none
  prepared = mj.prepare(mj.fisher(), [leaf, leaf], statistics=[information] * 2, axes=axes)
  slices = dict(prepared.slices())
  assert len(slices) == 3 and all(one.statistics[0].shape == (2, 4) for one in slices.values())
  for i, one in enumerate(slices.values()):
    np.testing.assert_array_equal(one.statistics[0], information["w"][i])
  with pytest.raises(ValueError, match=r"expected those of its 3 layers, stacked in front"):
    mj.prepare(mj.fisher(), [leaf, leaf], statistics=[{"w": leaf["w"]}] * 2, axes=axes)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"base": "runs/base"}, "the base is 'runs/base'; expected a tree of arrays"),
    (
      {"base": BASE, "statistics": [None] * 3},
      "statistics of expert 0: got None; expected what was measured",
    ),
    ({"base": BASE, "statistics": {"x": {}}}, "statistics: unknown model 'x'"),
    ({"base": BASE, "statistics": [{name: [[1.0]] for name in SHAPES}] * 3}, "expected arrays"),
  ],
)
def test_what_is_no_base_and_no_statistics(options, message):
  with pytest.raises(ValueError, match=message):
    mj.merge(mj.ties(), EXPERTS3, **options)
