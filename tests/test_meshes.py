"""Operators on meshes: the result of one device, the layout of the inputs, and what crosses devices."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import merge_jax as mj
from merge_jax.collectives import collectives
from tests.cases import CASES, FAMILIES, every
from tests.cases.common import arguments, expected, make_tree
from tests.further import beyond

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
AXES = ((r"(blocks)\..*", mj.Axes(stack=0, out=(1,))),)
SPECS = {
  "up": P("tensor", "fsdp"), "down": P("fsdp", "tensor"), "norm": P("fsdp"), "scale": P(),
  "blocks.w": P(None, "fsdp", "tensor"),
}  # fmt: skip
STACK = {"blocks.0.w": (8, 16), "blocks.1.w": (8, 16)}
VARIANTS = {  # of an operator that is there already: tried on one mesh
  "consensus_per_model", "fisher_tensor", "fisher_plain", "knots_ties", "model_stock_mergekit",
  "multislerp_sum", "nuslerp_columns", "passthrough_scaled", "ram_plus_tensor", "regmean_off_diagonal",
  "sce_masked", "slerp_t", "ties_mergekit", "ties_per_model",
}  # fmt: skip


def make_mesh(shape, kind):
  names = ("candidate", "data", "fsdp", "tensor")
  return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * 4)


def stacked(tree):
  blocks = [name for name in tree if name.startswith("blocks.")]
  rest = {name: value for name, value in tree.items() if name not in blocks}
  return rest | ({"blocks.w": np.stack([tree[name] for name in blocks])} if blocks else {})


def place(tree, mesh, specs):
  return {name: jax.device_put(value, NamedSharding(mesh, specs[name])) for name, value in tree.items()}


def like_tensors(measured, tree, mesh, specs):
  """Statistics lie as their tensors do where they have their shape, and on the host where not."""
  alike = {name: value for name, value in measured.items() if np.shape(value) == tree[name].shape}
  return measured | place(alike, mesh, specs)


def merge(operator, experts, weights, kwargs):
  return mj.merge(operator, experts, weights, axes=AXES, **kwargs)


def same_bits(operator):
  """Whether a mesh has nothing to add in another order, nor compilers products to round or not (FMA)."""
  sums = [one for one in operator.survey() if isinstance(one, mj.Total) and one.kind == "sum"]
  rescaled = [block for block in getattr(operator, "sparsify", ()) if block.rescale != "none"]
  return operator.elementwise and not sums and not rescaled


def check(case, shapes, mesh, run, specs=SPECS):
  """Merges on a mesh: against one device to the bit, or float64 numpy; results lie as the inputs."""
  base = make_tree(0, shapes=shapes)
  experts, kwargs = arguments(case, [make_tree(seed, 0.1, base, shapes=shapes) for seed in (1, 2, 3)], base)
  want = stacked(expected(case, experts, base))
  experts = [stacked(tree) for tree in experts]
  kwargs |= {name: stacked(kwargs[name]) for name in kwargs if name == "base"}
  if "statistics" in kwargs:
    kwargs["statistics"] = [stacked(one) for one in kwargs["statistics"]]
  if same_bits(case.operator):
    want = run(case.operator, experts, case.weights, kwargs)
  placed = kwargs | {name: place(kwargs[name], mesh, specs) for name in kwargs if name == "base"}
  if "statistics" in kwargs:
    pairs = zip(kwargs["statistics"], experts, strict=True)
    placed["statistics"] = [like_tensors(one, tree, mesh, specs) for one, tree in pairs]
  sharded = [place(tree, mesh, specs) for tree in experts]
  merged = run(case.operator, sharded, case.weights, placed)
  for name, value in merged.items():
    if same_bits(case.operator):
      np.testing.assert_array_equal(value, want[name], err_msg=name)
    else:
      np.testing.assert_allclose(value, want[name], rtol=case.exact, atol=2e-6, err_msg=name)
    assert value.sharding.is_equivalent_to(sharded[0][name].sharding, value.ndim), name


@pytest.mark.parametrize("kind", beyond(("explicit",), KINDS))
@pytest.mark.parametrize("name", every(FAMILIES, "mesh"))
def test_eager_merges_are_those_of_one_device(name, kind):
  shapes = {"up": (16, 8), "norm": (16,), "scale": (5,)}
  check(CASES[name], shapes, make_mesh((1, 1, 4, 2), kind), merge)


@pytest.mark.parametrize(("mesh", "shapes"), [((1, 1, 8, 1), {"up": (16, 8)}), ((1, 1, 4, 2), STACK)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", every((name for name in CASES if name not in VARIANTS), "mesh"))
def test_jitted_merges_are_those_of_one_device(name, kind, mesh, shapes):
  check(CASES[name], shapes, make_mesh(mesh, kind), jax.jit(merge))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", every(CASES, "mesh"))
def test_nothing_is_gathered_but_what_an_operator_says(name, kind):
  case, programs = CASES[name], []
  shape = (16, 64) if case.gathers else (512, 256)

  def run(*args):
    programs.append(jax.jit(merge).lower(*args).compile())
    return programs[-1](*args)

  check(case, {"down": shape}, make_mesh((1, 2, 2, 2), kind), run)
  sent, surveys, tensor = collectives(programs[-1]), case.operator.survey(), 4 * math.prod(shape)
  sums = [one.bytes for one in sent if one.kind == "all-reduce"]
  moved = [one.bytes for one in sent if one.kind != "all-reduce"]
  if case.gathers:  # the models' tensors side by side at most, or a Gram matrix
    assert max(moved) <= max(case.count * tensor, 4 * shape[1] ** 2)
  elif case.operator.elementwise and all(isinstance(one, mj.Total) for one in surveys):
    assert not moved and sum(sums) <= (128 if surveys else 0)
  else:  # a sample of the keys, all models side by side at most; some numbers for each row
    whole = any(isinstance(one, mj.Ranked) and one.whole for one in surveys)
    assert max(moved, default=0) <= case.count * 4 * (16384 if whole else 1100)
    assert max(sums) <= tensor / 32


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", ["linear", "ties", "sce", "dare_ties", "tsv"])
def test_stacks_may_be_split_along_the_stack(name, jit):
  """Also where the types say so: inside, these axes are Auto."""
  check(
    CASES[name], {f"blocks.{i}.w": (4, 8) for i in range(4)}, make_mesh((1, 2, 2, 2), "explicit"),
    jax.jit(merge) if jit else merge, SPECS | {"blocks.w": P("fsdp", None, "tensor")},
  )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operator", [mj.ram_plus(), mj.slerp(0.3)], ids=["counts", "sums"])
def test_blocks_lie_within_shards(operator, kind):
  """Those in which elements are counted and added, also of vectors and where shards are no multiple of 64."""
  mesh = make_mesh((1, 1, 4, 2), kind)
  specs = {((576, 24), P("fsdp", "tensor")), ((1024,), P(("fsdp", "tensor"))), ((40, 72), P("fsdp"))}
  tree = {
    str(shape): jax.ShapeDtypeStruct(shape, "bfloat16", sharding=NamedSharding(mesh, spec))
    for shape, spec in specs
  }
  kwargs = {"base": tree} if operator.needs_base else {}
  weights = None if operator.weightless else (1.0, 2.0)
  sent = collectives(jax.jit(merge).lower(operator, [tree] * 2, weights, kwargs).compile())
  assert sent and all(one.kind == "all-reduce" and one.bytes <= 64 for one in sent), sent


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("spec", [P("fsdp", None, "tensor"), P(None, "tensor", "fsdp")])
@pytest.mark.parametrize("operator", [mj.tsv(), mj.model_stock(by="row")], ids=["tsv", "model_stock"])
def test_axes_that_make_rows_together_may_be_split(operator, spec, jit):
  """Attention kernels `[in, heads, size]`."""
  generator, sharding = np.random.default_rng(0), NamedSharding(make_mesh((1, 1, 4, 2), "explicit"), spec)
  trees = [{"w": generator.normal(size=(16, 4, 8)).astype(np.float32)} for _ in range(3)]

  def run(operator, trees):
    return mj.merge(operator, trees[1:], base=trees[0], axes=((".*", mj.Axes(out=(1, 2))),))["w"]

  placed = [{"w": jax.device_put(tree["w"], sharding)} for tree in trees]
  merged = (jax.jit(run) if jit else run)(operator, placed)
  np.testing.assert_allclose(merged, run(operator, trees), rtol=2e-4, atol=2e-6)
  assert merged.sharding.is_equivalent_to(sharding, 3)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("first", [False, True], ids=["statistics", "model"])
def test_the_host_may_hold_some_of_what_lies_on_a_mesh(first, jit):
  """Fisher information as its files give it, or a model beside others that are not split alike."""
  mesh, shapes = make_mesh((1, 1, 4, 2), "explicit"), {"up": (16, 8), "scale": (8,)}
  case, trees = CASES["fisher"], [make_tree(seed, shapes=shapes) for seed in range(3)]
  experts, kwargs = arguments(case, trees)
  specs = [{"up": P("fsdp", "tensor"), "scale": P("fsdp")}, {"up": P("tensor", "fsdp"), "scale": P()}]
  placed = [
    *([experts[0]] if first else []),
    *(place(tree, mesh, specs[i % 2]) for i, tree in enumerate(experts[first:])),
  ]
  merged = (jax.jit(merge) if jit else merge)(case.operator, placed, case.weights, kwargs)
  for name, value in expected(case, trees).items():
    np.testing.assert_allclose(merged[name], value, rtol=case.exact, atol=2e-6)
    assert merged[name].sharding.is_equivalent_to(placed[first][name].sharding, value.ndim)


def test_weights_and_keys_may_lie_on_one_device():
  mesh, away = make_mesh((1, 1, 4, 2), "auto"), jax.devices()[3]
  base, *experts = (place({"up": np.full((8, 4), i, np.float32)}, mesh, {"up": P("fsdp")}) for i in range(3))
  for key in (jax.random.key(0), jax.random.PRNGKey(0)):

    def merged(weights, key):
      return mj.merge(mj.dare_linear(0.5), experts, weights, base=base, key=key)["up"]

    want = merged([1.0, 2.0], key)
    weights = jax.device_put(np.array([1.0, 2.0], np.float32), away)
    np.testing.assert_array_equal(merged(weights, jax.device_put(key, away)), want)
    named = mj.Weights(weights[None], (".*",))
    np.testing.assert_array_equal(merged(named, key), want)


def test_candidates_of_tsv_gather_nothing():
  """The factors are split as rows and columns."""
  mesh = make_mesh((1, 1, 4, 2), "explicit")
  spec = jax.ShapeDtypeStruct((16, 8), "float32", sharding=NamedSharding(mesh, P("fsdp", "tensor")))
  trees = [{"w": spec}] * 2
  prepared = jax.eval_shape(lambda e, b: mj.prepare(mj.tsv(), e, base=b), trees, {"w": spec})
  left, _, right = prepared.prepared["w"]
  assert (left.sharding.spec, right.sharding.spec) == (P("fsdp", None), P(None, "tensor"))
  with jax.set_mesh(mesh):
    assert collectives(jax.jit(mj.combine).lower(prepared, (1.0, 2.0)).compile()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "ties", "slerp"])
def test_experts_may_lie_otherwise_than_the_first(name, kind):
  case, mesh, specs = (
    CASES[name],
    make_mesh((1, 1, 4, 2), kind),
    (P("fsdp", "tensor"), P("tensor", "fsdp"), P()),
  )
  shapes = {"up": (16, 8)}
  base = make_tree(0, shapes=shapes)
  experts, kwargs = arguments(case, [make_tree(seed, 0.1, base, shapes=shapes) for seed in (1, 2, 3)], base)
  placed = [place(tree, mesh, {"up": spec}) for tree, spec in zip(experts, specs, strict=False)]
  if "base" in kwargs:
    kwargs["base"] = place(kwargs["base"], mesh, {"up": P("fsdp")})
  merged = mj.merge(case.operator, placed, case.weights, **kwargs)
  want = expected(case, experts, base)
  np.testing.assert_allclose(merged["up"], want["up"], rtol=case.exact, atol=2e-6)
  if kind == "explicit":  # on an Auto mesh XLA decides between them
    assert merged["up"].sharding.is_equivalent_to(NamedSharding(mesh, specs[0]), 2)


@pytest.mark.parametrize("keep", ["threshold", "exact"])
def test_devices_of_a_shard_map_may_merge_models_of_their_own(keep):
  mesh, operator = make_mesh((1, 1, 4, 2), "auto"), mj.ties(0.4, scope="tensor", keep=keep)
  models = [make_tree(seed, shapes={"up": (4, 3, 5)})["up"] for seed in (0, 1, 2)]

  def merge(base, *experts):
    return mj.merge(operator, experts, base=base)

  mapped = jax.shard_map(
    lambda *x: merge(*(one[0] for one in x))[None], mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp")
  )
  want = np.stack([merge(*one) for one in zip(*models, strict=True)])
  np.testing.assert_allclose(jax.jit(mapped)(*models), want, atol=2e-6)
