"""One plan for merges in memory, under jit and streamed: who merges which tensor."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax.operators import counting, leafwise, naming

KEY = jax.random.key(3)
SHAPES = {"a.w": (20, 10), "a.x": (10,), "b.w": (3, 20, 10), "b.x": (30,), "c": (8, 8)}
AXES = ((r"(b)\.w", mj.Axes(stack=0, out=(1,))),)


def make_tree(seed):
  generator = np.random.default_rng(seed)
  scales = {"a": 1e-3, "b": 1.0, "c": 1e-2}  # one threshold for all would keep nothing of a
  tree = {name: generator.normal(size=s).astype(np.float32) * scales[name[0]] for name, s in SHAPES.items()}
  return {name: value.astype(np.float32) for name, value in tree.items()} | {"step": np.array(7)}


BASE = {name: np.zeros_like(value) if name != "step" else value for name, value in make_tree(0).items()}
EXPERTS = [make_tree(seed) for seed in (1, 2)]
TIES, DARE = mj.ties(0.3), mj.dare_ties(0.5)
ROUTES = {
  "plain": TIES,
  "random": DARE,
  "shared": mj.route((r"a.*", TIES), (r"b.*", TIES), (r".*", DARE)),
  "equal": mj.route((r"a.*", mj.ties(0.3)), (r"b.*", mj.ties(0.3)), (r".*", mj.ties(0.3))),
  "nested": mj.route((r"[ab].*", mj.route((r"a.*", TIES), (r".*", TIES))), (r".*", mj.route((r".*", TIES)))),
  "mixed": mj.route((r"a.w", mj.uniform()), (r"a.x", DARE), (r".*", mj.task_arithmetic())),
}


def streamed(operator, weights=None):
  """A merge with one tensor in memory at a time, in as many passes as the surveys take."""
  plan, parts = mj.plan(operator, EXPERTS[0], AXES), operator.parts

  def read(entry):
    def keys(model):
      each = [naming.key_of(KEY, model, name) for name in entry.slices]
      return each[0] if entry.axes.stack is None else jnp.stack(each)

    experts = tuple(jnp.asarray(tree[entry.name]) for tree in EXPERTS)
    needs_base = parts[entry.operator].needs_base
    return mj.Leaf(experts, jnp.asarray(BASE[entry.name]) if needs_base else None, tuple(map(keys, (0, 1))))

  def survey(index):
    surveyed = ()
    for one in parts[index].survey():
      entries = plan.of(index)
      if isinstance(one, mj.Total):
        parts_of = [leafwise.measure(parts[index], read(e), surveyed, e.axes) for e in entries]
        result = one.finish(functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts_of))
      else:
        keys = [leafwise.keys(parts[index], read(e), surveyed, e.axes) for e in entries]
        flat = [np.sort(np.concatenate([np.ravel(x) for x in each])) for each in zip(*keys, strict=True)]
        ranks = (int(counting.number(k)) for k in one.ranks(plan.size(index), len(EXPERTS)))
        result = tuple(jnp.asarray(x[len(x) - k]) for x, k in zip(flat, ranks, strict=True))
      surveyed = (*surveyed, result)
    return surveyed

  surveyed = [survey(index) for index in range(len(parts))]
  merged = {}
  for entry in plan.entries:
    if entry.merged:
      part, leaf = parts[entry.operator], read(entry)
      found = leafwise.prepare(part, leaf, surveyed[entry.operator], entry.axes)
      rows = [part.default_weights(2)] * len(entry.slices)
      row = rows[0] if entry.axes.stack is None else jnp.stack(rows)
      merged[entry.name] = leafwise.combine(part, leaf, found, row, entry.axes, leaf.experts[0].dtype)
    else:
      merged[entry.name] = EXPERTS[0][entry.name]
  return merged


@pytest.mark.parametrize("name", ROUTES)
def test_eager_jitted_and_streamed_are_the_same(name):
  operator = ROUTES[name]
  kwargs = {"base": BASE, "key": KEY, "axes": AXES}
  eager = mj.merge(operator, EXPERTS, **kwargs)
  jitted = jax.jit(lambda operator, trees: mj.merge(operator, trees, **kwargs))(operator, EXPERTS)
  chex.assert_trees_all_close(eager, jitted, rtol=1e-6)
  chex.assert_trees_all_close(eager, streamed(operator), rtol=1e-6)


@pytest.mark.parametrize("name", ["shared", "equal", "nested"])
def test_each_entry_of_a_route_has_a_threshold_of_its_own(name):
  """Each gives what a merge of its tensors alone gives."""
  merged = mj.merge(ROUTES[name], EXPERTS, base=BASE, key=KEY, axes=AXES)
  for group in ("a", "b"):
    part = [{n: v for n, v in tree.items() if n.startswith(group)} for tree in (*EXPERTS, BASE)]
    alone = mj.merge(TIES, part[:2], base=part[2], axes=AXES)
    chex.assert_trees_all_close({n: merged[n] for n in alone}, alone)
    assert any(np.any(value) for value in alone.values())


def test_plan_is_static_and_needs_no_tensor():
  operator = ROUTES["nested"]
  specs = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in EXPERTS[0].items()}
  plan = mj.plan(operator, specs, AXES)
  assert plan == mj.plan(operator, EXPERTS[0], AXES) and hash(plan) == hash(mj.plan(operator, specs, AXES))
  assert [entry.operator for entry in plan.entries] == [0, 0, 1, 1, 2, 2]
  assert [entry.name for entry in plan.entries if not entry.merged] == ["step"]
  assert plan.entries[2].slices == ("b.0.w", "b.1.w", "b.2.w")
  assert [plan.size(i) for i in range(3)] == [210, 630, 64]
  assert mj.prepare(operator, EXPERTS, base=BASE, axes=AXES).plan == plan


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: mj.plan(mj.route((r"a", TIES)), EXPERTS[0]), r"No pattern of the route matches 'a.w'"),
    (lambda: mj.plan(TIES, EXPERTS[0], ((r"[", mj.Axes()),)), r"'\[' is not a regular expression"),
    (lambda: mj.plan(TIES, EXPERTS[0], ((r"c", mj.Axes(out=(0, 0))),)), "c: .* does not fit a leaf of 2"),
    (lambda: mj.plan(TIES, EXPERTS[0], ((r"b\.w", mj.Axes(stack=0, out=(1,))),)), "no group"),
    (lambda: mj.plan(TIES, {"w": jax.ShapeDtypeStruct((2,), "complex64")}), "'w' is complex64"),
    (lambda: mj.plan(TIES, {"w": np.zeros(2)}), "'w' is float64"),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
