"""Every operator against float64 numpy written from the formula, and the laws that hold for all."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import merge_jax as mj
from merge_jax.operators import naming
from merge_jax.operators.blocks import Trim

SHAPES = {"model.embed.weight": (32, 16), "model.layers.0.w": (16, 64), "model.norm.weight": (16,)}
KEY = jax.random.key(7)


def make_tree(seed, scale=1.0, around=None, dtype=np.float32):
  generator = np.random.default_rng(seed)
  tree = {}
  for name, shape in SHAPES.items():
    value = generator.normal(size=shape) * scale
    tree[name] = (value if around is None else around[name] + value).astype(dtype)
  return tree


BASE = make_tree(0)
EXPERTS = [make_tree(seed, 0.1, BASE) for seed in (1, 2, 3)]


def wide(tree):
  return {name: np.asarray(value, np.float64) for name, value in tree.items()}


def deltas(experts, base):
  base = wide(base)
  return [{name: value - base[name] for name, value in wide(e).items()} for e in experts]


def np_linear(experts, base, weights):
  total = sum(weights)
  return {
    name: sum(w * wide(e)[name] for w, e in zip(weights, experts, strict=True)) / total for name in SHAPES
  }


def np_task_arithmetic(experts, base, weights, scaling=1.0):
  tasks = deltas(experts, base)
  return {
    name: wide(base)[name] + scaling * sum(w * t[name] for w, t in zip(weights, tasks, strict=True))
    for name in SHAPES
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


def np_dare_ties(experts, base, weights, density=0.5):
  """The operator's own masks, recovered from the keys that the documentation promises."""
  tasks = deltas(experts, base)
  for model, task in enumerate(tasks):
    for name in task:
      key = jax.random.fold_in(naming.key_of(KEY, model, name), 0)
      mask = np.asarray(jax.random.uniform(key, SHAPES[name], jnp.float32)) < density
      task[name] = np.where(mask, task[name], 0.0) / density
  merged = np_agree(tasks, weights, "unweighted", "count", "majority")
  return {name: wide(base)[name] + value for name, value in merged.items()}


def np_slerp(experts, base, weights, t):
  merged = {}
  for name in SHAPES:
    a, b = (wide(e)[name] for e in experts)
    angle = np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
    merged[name] = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
  return merged


# name: operator, its reference, models, weights
OPERATORS = {
  "linear": (mj.linear(), np_linear, 3, (0.5, 0.2, 0.9)),
  "uniform": (mj.uniform(), lambda e, b, w: np_linear(e, b, (1, 1, 1)), 3, None),
  "task_arithmetic": (
    mj.task_arithmetic(scaling=0.7),
    functools.partial(np_task_arithmetic, scaling=0.7), 3, (0.5, -0.2, 1.3),
  ),
  "ties": (mj.ties(), np_ties, 3, (1.0, 0.5, 2.0)),
  "ties_mergekit": (
    mj.ties(0.3, scope="tensor", keep="exact", election="weighted", divisor="weights",
            zero_sign="positive", scaling=1.2),
    functools.partial(np_ties, density=0.3, scope="tensor", keep="exact", election="weighted",
                      divisor="weights", zero_sign="positive", scaling=1.2), 3, (1.0, -0.5, 2.0),
  ),
  "dare_ties": (mj.dare_ties(0.5), np_dare_ties, 3, (1.0, 0.5, 2.0)),
  "slerp": (mj.slerp(0.3), functools.partial(np_slerp, t=0.3), 2, None),
}  # fmt: skip


def arguments(name, experts=EXPERTS, base=BASE):
  operator, reference, count, weights = OPERATORS[name]
  kwargs = {"base": base} if operator.needs_base else {}
  if operator.needs_key:
    kwargs["key"] = KEY
  return operator, reference, experts[:count], weights, kwargs


def place(tree, mesh):
  specs = {"model.embed.weight": P("fsdp", "tp"), "model.layers.0.w": P(None, "tp")}
  return {n: jax.device_put(v, NamedSharding(mesh, specs.get(n, P("tp")))) for n, v in tree.items()}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("mesh", ["one", "auto", "explicit"])
@pytest.mark.parametrize("name", OPERATORS)
def test_matches_reference(name, mesh, jit):
  operator, reference, experts, weights, kwargs = arguments(name)
  expected = reference(experts, BASE, weights)
  if mesh != "one":
    kind = AxisType.Auto if mesh == "auto" else AxisType.Explicit
    grid = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(kind,) * 2)
    experts = [place(tree, grid) for tree in experts]
    kwargs = {k: place(v, grid) if k == "base" else v for k, v in kwargs.items()}

  def run(operator, experts, weights, kwargs):
    return mj.merge(operator, experts, weights, **kwargs)

  merged = (jax.jit(run) if jit else run)(operator, experts, weights, kwargs)
  for leaf, value in merged.items():
    np.testing.assert_allclose(value, expected[leaf], rtol=2e-5, atol=2e-6, err_msg=leaf)
    if mesh != "one":
      assert value.sharding.is_equivalent_to(experts[0][leaf].sharding, value.ndim), leaf


@pytest.mark.parametrize("name", OPERATORS)
def test_sharded_is_not_gathered(name):
  """Nothing bigger than a scalar crosses devices."""
  operator, _, experts, weights, kwargs = arguments(name)
  grid = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
  experts = [place(tree, grid) for tree in experts]
  kwargs = {k: place(v, grid) if k == "base" else v for k, v in kwargs.items()}

  def run(operator, experts, kwargs):
    return mj.merge(operator, experts, weights, **kwargs)

  text = jax.jit(run).lower(operator, experts, kwargs).compile().as_text()
  for collective in ("all-gather", "all-to-all", "collective-permute"):
    assert collective not in text, collective


@pytest.mark.parametrize("name", OPERATORS)
def test_keeps_dtype_and_rounds_once(name):
  operator, _, experts, weights, kwargs = arguments(name)
  low = [{n: jnp.asarray(v, jnp.bfloat16) for n, v in tree.items()} for tree in experts]
  kwargs = {
    k: {n: jnp.asarray(x, jnp.bfloat16) for n, x in v.items()} if k == "base" else v
    for k, v in kwargs.items()
  }
  merged = mj.merge(operator, low, weights, **kwargs)
  exact = mj.merge(operator, low, weights, **kwargs, dtype=jnp.float32)
  chex.assert_trees_all_equal_shapes_and_dtypes(merged, low[0])
  for leaf in merged:
    np.testing.assert_array_equal(merged[leaf], exact[leaf].astype(jnp.bfloat16))


@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "uniform"])
def test_weights_do_not_retrace_vmap_and_have_gradients(name):
  operator, _, experts, weights, kwargs = arguments(name)
  if name == "slerp":
    operator, weights = mj.slerp(), (0.6, 0.4)
  weights = jnp.array(weights)
  prepared = mj.prepare(operator, experts, **kwargs)
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
  both = jax.vmap(loss, in_axes=(None, 0))(prepared, many)
  np.testing.assert_allclose(both, jnp.stack(single), rtol=1e-4)
  if name == "ties_mergekit":
    return  # signs elected on weighted task vectors jump with the weights
  gradient = jax.grad(loss, argnums=1)(prepared, weights)
  for i in range(len(experts)):
    step = jnp.zeros(len(experts)).at[i].set(1e-2)
    slope = (loss(prepared, weights + step) - loss(prepared, weights - step)) / 2e-2
    np.testing.assert_allclose(gradient[i], slope, rtol=3e-2, atol=3e-1)


def test_density_is_traced_and_vmapped():
  traces = []

  @jax.jit
  def merged(density):
    traces.append(1)
    return mj.merge(mj.ties(density), EXPERTS, base=BASE)

  densities = jnp.array([0.0, 1e-6, 0.1, 0.5, 1.0])
  singles = [merged(d) for d in densities]
  assert len(traces) == 1
  together = jax.vmap(merged)(densities)
  for i, density in enumerate((0.0, 1e-6, 0.1, 0.5, 1.0)):
    expected = np_ties(EXPERTS, BASE, (1, 1, 1), density=density)
    for leaf in SHAPES:
      np.testing.assert_allclose(singles[i][leaf], expected[leaf], rtol=2e-5, atol=2e-6)
      np.testing.assert_allclose(together[leaf][i], expected[leaf], rtol=2e-5, atol=2e-6)


def test_scaling_has_a_gradient():
  def total(scaling):
    merged = mj.merge(mj.task_arithmetic(scaling=scaling), EXPERTS, base=BASE)
    return sum(jnp.sum(value) for value in merged.values())

  expected = sum(value.sum() for task in deltas(EXPERTS, BASE) for value in task.values())
  np.testing.assert_allclose(jax.grad(total)(0.3), expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "dare_ties", "ties_mergekit", "slerp"])
def test_leaf_by_leaf_is_the_same(name):
  """What a stream over the tensors gives, for rules without whole-model statistics."""
  operator, _, experts, weights, kwargs = arguments(name)
  if name == "dare_ties":
    operator = mj.dare_ties(0.5, zero_sign="positive")
  whole = mj.merge(operator, experts, weights, **kwargs)
  for leaf in SHAPES:
    one = {k: {leaf: v[leaf]} if k == "base" else v for k, v in kwargs.items()}
    alone = mj.merge(operator, [{leaf: tree[leaf]} for tree in experts], weights, **one)
    np.testing.assert_array_equal(alone[leaf], whole[leaf])


@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "slerp"])
def test_models_may_be_permuted(name):
  operator, _, experts, weights, kwargs = arguments(name)
  named = dict(zip("abc", experts, strict=True))
  expected = mj.merge(operator, named, weights, **kwargs)
  for order in itertools.permutations(range(3)):
    permuted = None if weights is None else [weights[i] for i in order]
    other = mj.merge(operator, {"abc"[i]: experts[i] for i in order}, permuted, **kwargs)
    for leaf in SHAPES:
      np.testing.assert_allclose(other[leaf], expected[leaf], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", OPERATORS)
def test_stacked_is_separate(name, axis):
  operator, _, count, weights = OPERATORS[name]
  generator = np.random.default_rng(5)
  layers = [
    {f"blocks.{i}.w": generator.normal(size=(6, 10)).astype(np.float32) for i in range(4)} for _ in range(4)
  ]
  stacked = [{"blocks.w": np.stack(list(tree.values()), axis)} for tree in layers]
  out = 1 if axis == 0 else 0
  rules = ((r"(blocks)\..*", mj.Axes(stack=axis, out=(out,))),)
  weight_rows = mj.Weights(
    jnp.array([[0.5, 0.6, 0.7][:count], [1.0, 2.0, 0.5][:count]]), (r"blocks\.0\..*", r".*")
  )
  given = None if weights is None else weight_rows
  kwargs = {"key": KEY} if operator.needs_key else {}
  bases = ({"base": layers[3]}, {"base": stacked[3]}) if operator.needs_base else ({}, {})
  separate = mj.merge(operator, layers[:count], given, **kwargs, **bases[0])
  together = mj.merge(operator, stacked[:count], given, **kwargs, **bases[1], axes=rules)
  expected = np.stack([np.asarray(value) for value in separate.values()], axis)
  np.testing.assert_allclose(together["blocks.w"], expected, rtol=1e-5, atol=1e-6)


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
  torch_like = mj.merge(LargestRows(), [{name: e[name]} for e in EXPERTS])
  flax_like = mj.merge(
    LargestRows(), [{name: e[name].T} for e in EXPERTS], axes=((r".*", mj.Axes(out=(1,))),)
  )
  np.testing.assert_array_equal(flax_like[name], torch_like[name].T)
  norms = [np.linalg.norm(e[name], axis=1) for e in EXPERTS]
  np.testing.assert_allclose(np.linalg.norm(torch_like[name], axis=1), np.max(norms, axis=0), 1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_identities(name):
  operator, _, count, weights = OPERATORS[name]
  same = [EXPERTS[0]] * count
  if name == "linear" or name == "uniform" or name == "slerp":
    merged = mj.merge(operator, same, weights)
    for leaf in SHAPES:
      np.testing.assert_allclose(merged[leaf], EXPERTS[0][leaf], rtol=1e-5, atol=1e-6)
    return
  kwargs = {"base": BASE} | ({"key": KEY} if operator.needs_key else {})
  nothing = mj.merge(operator, [BASE] * count, weights, **kwargs)  # no task vector: the base
  zero = mj.merge(operator, EXPERTS[:count], [0.0] * count, **kwargs)
  for leaf in SHAPES:
    np.testing.assert_array_equal(nothing[leaf], BASE[leaf])
    np.testing.assert_array_equal(zero[leaf], BASE[leaf])


@pytest.mark.parametrize("operator", [mj.ties(1.0), mj.task_arithmetic(), mj.dare_ties(1.0)])
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


@pytest.mark.parametrize("where", [0, 1, "base"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_not_finite_stays_visible(name, value, where):
  operator, _, experts, weights, kwargs = arguments(name)
  if where == "base" and not operator.needs_base:
    return
  leaf, at = "model.layers.0.w", (3, 5)
  for given in (weights, None if weights is None else [0.0, *weights[1:]]):
    trees = [{n: v.copy() for n, v in tree.items()} for tree in experts]
    kwargs = {k: {n: x.copy() for n, x in v.items()} if k == "base" else v for k, v in kwargs.items()}
    clean = mj.merge(operator, trees, given, **kwargs)
    (kwargs["base"] if where == "base" else trees[where])[leaf][at] = value
    merged = mj.merge(operator, trees, given, **kwargs)
    assert not np.isfinite(merged[leaf][at])
    if name in ("linear", "uniform", "task_arithmetic", "dare_ties"):
      clean[leaf] = clean[leaf].at[at].set(merged[leaf][at])
      chex.assert_trees_all_equal(merged, clean)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_thresholds_order_nan_above_infinity(scope):
  experts = [{n: v.copy() for n, v in tree.items()} for tree in EXPERTS]
  experts[0]["model.embed.weight"][:3] = np.nan
  experts[1]["model.embed.weight"][0] = np.inf
  filled = [{n: np.nan_to_num(v, nan=3.3e38, posinf=3.2e38) for n, v in tree.items()} for tree in experts]
  expected = np_ties(filled, BASE, (1, 1, 1), density=0.3, scope=scope)
  merged = mj.merge(mj.ties(0.3, scope=scope), experts, base=BASE)
  for leaf, value in merged.items():
    rows = slice(3, None) if leaf == "model.embed.weight" else slice(None)
    np.testing.assert_allclose(value[rows], expected[leaf][rows], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_x64_computes_float64_and_leaves_float32_as_it_is(name):
  operator, reference, experts, weights, kwargs = arguments(name)
  before = mj.merge(operator, experts, weights, **kwargs)
  with jax.enable_x64(True):
    chex.assert_trees_all_equal(mj.merge(operator, experts, weights, **kwargs), before)
    bases = {"base": wide(BASE)} if "base" in kwargs else {}
    merged = mj.merge(operator, [wide(tree) for tree in experts], weights, **kwargs | bases)
    expected = reference(experts, BASE, weights)
    for leaf, value in merged.items():
      assert value.dtype == np.float64
      np.testing.assert_allclose(value, expected[leaf], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 2, 2)])
@pytest.mark.parametrize("name", OPERATORS)
def test_empty_tensors(name, shape):
  operator, _, count, weights = OPERATORS[name]
  rules = ((r"(stack)", mj.Axes(stack=0, out=(len(shape) - 1,))),) if len(shape) == 3 else ()
  tree = {"stack": np.zeros(shape, np.float32), "w": np.ones(4, np.float32)}
  kwargs = {"base": tree} if operator.needs_base else {}
  merged = mj.merge(operator, [tree] * count, weights, key=KEY, axes=rules, dtype=jnp.bfloat16, **kwargs)
  assert merged["stack"].shape == shape and merged["stack"].dtype == jnp.bfloat16
  only = [{"stack": tree["stack"]}] * count
  kwargs = {"base": only[0]} if operator.needs_base else {}
  assert mj.merge(operator, only, weights, key=KEY, **kwargs)["stack"].shape == shape


def test_dare_is_unbiased_and_depends_on_names_only():
  ones, zeros = {"w": np.ones((300, 400), np.float32)}, {"w": np.zeros((300, 400), np.float32)}
  operator = mj.dare_ties(0.3)
  merged = mj.merge(operator, [ones], base=zeros, key=KEY)["w"]
  assert abs(float(merged.mean()) - 1.0) < 4 * np.sqrt(0.7 / 0.3 / merged.size)
  again = mj.merge(operator, [ones], base=zeros, key=KEY)["w"]
  other = mj.merge(operator, [{"v": ones["w"]}], base={"v": zeros["w"]}, key=KEY)["v"]
  np.testing.assert_array_equal(merged, again)
  assert 0.4 < float((merged == other).mean()) < 0.75  # 0.58 for independent masks


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
    (lambda: mj.merge(mj.linear(), EXPERTS, [1.0]), r"shape \(1,\) do not fit 3"),
    (lambda: mj.merge(mj.linear(), EXPERTS, [1.0, -1.0, 0.0]), "sum to 0"),
    (lambda: mj.merge(mj.uniform(), EXPERTS, [1.0, 2.0, 0.0]), "takes no weights"),
    (lambda: mj.merge(mj.ties(), EXPERTS), "pass base="),
    (lambda: mj.merge(mj.linear(), EXPERTS, base=BASE), "does not use a base"),
    (lambda: mj.merge(mj.dare_ties(0.5), EXPERTS, base=BASE), "pass key="),
    (lambda: mj.merge(mj.slerp(0.5), EXPERTS), "merges 2 models, got 3"),
    (lambda: mj.merge(mj.linear(), [{"a": np.ones(2)}, {"b": np.ones(2)}]), "'a' is missing"),
    (
      lambda: mj.merge(mj.linear(), [{"a": np.ones(2)}, {"a": np.ones(3)}]),
      r"'a' has shape \(3,\)",
    ),
    (lambda: mj.merge(mj.linear(), [{"a.b": 1.0, "a": {"b": 1.0}}]), "called 'a.b'"),
    (lambda: mj.ties(1.5), "between 0 and 1"),
    (lambda: mj.ties(scope="whole"), "unknown scope 'whole'; Known: model, tensor"),
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
    (lambda: mj.merge(mj.linear(), EXPERTS, mj.Weights(np.ones((1, 3)), ("(",))), "not a regular"),
    (lambda: mj.merge(mj.linear(), EXPERTS, mj.Weights(np.ones((2, 1, 3)), (".*",))), "do not fit 3"),
    (lambda: mj.merge(mj.linear(), EXPERTS, [1.0, np.nan, 0.0]), r"nan.*; expected finite numbers"),
    (lambda: mj.merge(mj.slerp(), EXPERTS[:2], [1.0, -1.0]), "sum to 0"),
    (lambda: mj.merge(mj.task_arithmetic(normalize=True), EXPERTS, [0.0] * 3, base=BASE), "sum to 0"),
    (
      lambda: mj.merge(
        mj.linear(), EXPERTS, mj.Weights(np.array([[1, 1, 1], [1, -1, 0]]), (".*embed.*", ".*"))
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
    (lambda: mj.merge(mj.linear(), EXPERTS, dtype=np.int32), "dtype is int32; expected a floating one"),
    (lambda: mj.merge(mj.linear(), EXPERTS, dtype=np.float64), "dtype is float64, which JAX would narrow"),
    (lambda: mj.merge(mj.linear(), EXPERTS, statistics=[SHAPES] * 2), "2 statistics for 3 experts"),
    (
      lambda: mj.merge(mj.linear(), EXPERTS, statistics=[SHAPES, SHAPES, {"model.norm.wight": 0}]),
      "statistics of expert 2: unknown tensor 'model.norm.wight'; did you mean 'model.norm.weight'",
    ),
    (
      lambda: mj.merge(mj.linear(), EXPERTS, statistics=[SHAPES, {}, SHAPES]),
      "statistics of expert 1: tensor .* is missing",
    ),
    (lambda: mj.Weights(jnp.ones((1, 3)), ("x",)).row("y"), "No pattern"),
    (
      lambda: mj.merge(mj.linear(), EXPERTS, axes=((r".*", mj.Axes(stack=0, out=(1,))),)),
      "no group|does not fit",
    ),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
