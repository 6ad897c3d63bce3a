"""One plan for merges in memory, under jit and streamed: who merges which tensor."""

import collections
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import checkpoints, streaming
from tests.further import beyond, further

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


class Memory(checkpoints.Checkpoint):
  """A checkpoint whose tensors are in memory; counts how often each is read."""

  format = "memory"

  def __init__(self, tensors, name):
    specs = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in tensors.items()}
    super().__init__(Path(name), specs, {}, None)
    vars(self).update(tensors=tensors, reads=collections.Counter())

  def _stored(self, name, index):
    self.reads[name] += 1
    return self.tensors[name][index or ()]

  def files(self):
    return ()

  def writer(self, folder, specs, **options):
    return checkpoints.writer(folder, specs, **options)


class Result(dict):
  """A writer that keeps what it gets."""

  def __init__(self, jobs):
    self.shapes = {job.name: job.spec.shape for job in jobs}

  def write_parts(self, name, parts):
    flat = np.concatenate([np.reshape(part, -1) for part in parts])
    self[name] = flat.reshape(self.shapes[name])

  def done(self):
    return set()


def jobs_of(operator, experts, base):
  plan, parts = mj.plan(operator, experts[0].specs), operator.parts
  jobs = []
  for entry in plan.entries:
    part = parts[entry.part]
    jobs.append(
      streaming.Job(
        entry.name,
        experts[0].specs[entry.name],
        part,
        tuple(streaming.Source(one, entry.name) for one in experts),
        streaming.Source(base, entry.name) if part.needs_base else None,
        models=tuple(one.name for one in experts),
        group=entry.part,
      )
    )
  return jobs


CHAIN = (mj.trim(0.8, scope="tensor"), mj.trim(0.5), mj.drop(0.5))
FLAT = {
  "ties_mergekit": mj.ties(0.3, scope="tensor", keep="exact", zero_sign="positive"),
  "crumbs": mj.breadcrumbs(0.6, 0.1, scope="tensor"),
  "chain": mj.TaskVector(CHAIN, mj.AgreeingMean()),
}


@pytest.mark.parametrize("threads", [further(1), 3])
@pytest.mark.parametrize("name", ["plain", "random", "shared", "nested", "mixed", *FLAT])
def test_a_stream_gives_what_memory_gives(name, threads):
  operator = (ROUTES | FLAT)[name]
  bf16 = {"c": jnp.bfloat16}  # differences with ties
  trees = [{n: np.asarray(v, bf16.get(n, v.dtype)) for n, v in tree.items()} for tree in (*EXPERTS, BASE)]
  experts, base = [Memory(tree, str(i)) for i, tree in enumerate(trees[:2])], Memory(trees[2], "base")
  jobs = jobs_of(operator, experts, base)
  result, done = Result(jobs), []
  streaming.stream(jobs, result, key=KEY, threads=threads, memory_gib=1e-5, progress=done.append)
  named = {"0": trees[0], "1": trees[1]}
  chex.assert_trees_all_close(dict(result), mj.merge(operator, named, base=trees[2], key=KEY), rtol=1e-6)
  assert done == list(range(1, len(trees[0]) + 1))
  assert max(experts[0].reads.values()) <= 4  # three passes at most, and the merge itself


@pytest.mark.parametrize("name", beyond(("plain", "random", "mixed"), ROUTES))
def test_eager_and_jitted_are_the_same(name):
  operator = ROUTES[name]
  kwargs = {"base": BASE, "key": KEY, "axes": AXES}
  eager = mj.merge(operator, EXPERTS, **kwargs)
  jitted = jax.jit(lambda operator, trees: mj.merge(operator, trees, **kwargs))(operator, EXPERTS)
  chex.assert_trees_all_close(eager, jitted, rtol=1e-6)


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
  assert [entry.part for entry in plan.entries] == [0, 0, 1, 1, 2, 2]
  assert [entry.name for entry in plan.entries if not entry.merged] == ["step"]
  assert plan.entries[2].slices == ("b.0.w", "b.1.w", "b.2.w")
  assert [sum(math.prod(entry.shape) for entry in plan.of(i)) for i in range(3)] == [210, 630, 64]
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


def test_a_stack_of_no_layers_is_carried_over():
  tree = {"layers": {"w": np.zeros((0, 3, 4), np.float32)}, "b": np.ones(2, np.float32)}
  axes = ((r"(layers)\..*", mj.Axes(stack=0, out=(2,))),)
  merged = mj.merge(mj.linear(), [tree, tree], [2.0, 1.0], axes=axes)
  chex.assert_trees_all_equal(merged, tree)
