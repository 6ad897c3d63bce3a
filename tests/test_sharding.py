"""Meshes by flag, and the rules that say which part of a tensor lies where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import merge_jax as mj
from merge_jax import checkpoints, sharding

STACKED = ((r"(layers)\..*", mj.Axes(stack=0, out=(1,))),)


def spec_of(shape, rule, mesh="fsdp:4,tensor:2", name="w", axes=()):
  specs = {name: jax.ShapeDtypeStruct(shape, jnp.float32)}
  made = sharding.shardings(specs, sharding.make_mesh(mesh), ((".*", rule),), axes)
  return tuple(made[name].spec)


@pytest.mark.parametrize(
  ("text", "shape"),
  [
    ("", (1, 1, 8, 1)),
    ("fsdp:8", (1, 1, 8, 1)),
    ("fsdp:2", (1, 1, 2, 1)),  # some of the devices
    ("candidate:2,fsdp:-1", (2, 1, 4, 1)),
    (" tensor : 2 , data : 4 ", (1, 4, 1, 2)),
    ("candidate:-1", (8, 1, 1, 1)),
  ],
)
def test_meshes_have_all_axes(text, shape):
  mesh = sharding.make_mesh(text)
  assert mesh.axis_names == sharding.AXES and mesh.devices.shape == shape


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("fsdp", "expected axis:size, as in fsdp:8; got 'fsdp'"),
    ("fspd:8", "unknown mesh axis 'fspd'; did you mean 'fsdp'"),
    ("fsdp:0", "fsdp has size 0; expected 1 or more"),
    ("fsdp:-2", "fsdp has size -2"),
    ("fsdp:x", "expected axis:size"),
    ("fsdp:2,fsdp:4", "named twice"),
    ("fsdp:-1,data:-1", "several axes have size -1"),
    ("fsdp:16", "needs 16 devices; there are 8"),
    ("fsdp:-1,data:3", "8 devices are not a multiple of 3"),
    ("fsdp:-1,data:16", "8 devices are not a multiple of 16"),
  ],
)
def test_a_mesh_that_cannot_be_is_one_sentence(text, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(text)


@pytest.mark.parametrize("sizes", [{"fspd": 2}, {"fsdp": 0}, {"fsdp": 2.0}, {"fsdp": -1, "data": -1}])
def test_sizes_from_python_are_checked_as_those_of_flags(sizes):
  with pytest.raises(ValueError, match=r"^mesh 'f.*expected|unknown mesh axis 'fspd'|several axes"):
    sharding.make_mesh(sizes)


@pytest.mark.parametrize(
  ("shape", "rule", "spec"),
  [
    ((16, 8), "column", ("tensor", "fsdp")),
    ((16, 8), "row", ("fsdp", "tensor")),
    ((16,), "column", ("tensor",)),
    ((16, 8), "fsdp", (("fsdp", "tensor"), None)),
    ((4, 12), "fsdp", (None, "fsdp")),  # eight divide neither axis
    ((3, 8), "column", (None, ("fsdp", "tensor"))),  # two do not divide the outputs
    ((3, 5), "fsdp", (None, None)),
    ((), "fsdp", ()),
    ((0, 8), "column", (None, ("fsdp", "tensor"))),
    ((16, 8), "replicate", (None, None)),
    ((16, 8), P("fsdp"), ("fsdp", None)),
    ((16, 8), P(("data", "fsdp"), "tensor"), (("data", "fsdp"), "tensor")),
  ],
)
def test_tactics_make_specs_of_shapes(shape, rule, spec):
  assert spec_of(shape, rule) == spec


def test_the_axis_of_a_stack_is_never_cut():
  assert spec_of((8, 16, 4), "column", name="layers.w", axes=STACKED) == (None, "tensor", "fsdp")
  assert spec_of((8, 16), P("fsdp"), name="layers.b", axes=STACKED) == (None, "fsdp")


def test_the_first_rule_that_matches_wins():
  specs = {
    f"model.layers.0.self_attn.{n}_proj.weight": jax.ShapeDtypeStruct((16, 8), "float32") for n in "qo"
  }
  made = sharding.shardings(specs, sharding.make_mesh("fsdp:4,tensor:2"))
  assert [tuple(one.spec) for one in made.values()] == [("tensor", "fsdp"), ("fsdp", "tensor")]


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    (((r"v", P()),), "no sharding rule matches; have \\['v'\\]. Add one"),
    (((r"w", P(None, None, "fsdp")),), "rule 'w': .* more axes than shape"),
    (((r"w", P("fsdp")),), "axis 0 of shape \\(3, 5\\) is not a multiple of 8"),
    (((r"w", P("rows")),), "unknown mesh axis 'rows'"),
    (((r"w", P("data", "data")),), "names mesh axis 'data' twice"),
    (((r"w", "colum"),), "unknown tactic 'colum'; did you mean 'column'"),
  ],
)
def test_rules_that_do_not_fit_say_which_and_how_to_mend_it(rules, message):
  specs = {"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)}
  with pytest.raises(ValueError, match=message):
    sharding.shardings(specs, sharding.make_mesh("fsdp:8"), rules)


def test_rules_are_for_the_names_of_layers():
  assert spec_of((8, 16), P("fsdp"), name="layers.b", axes=STACKED) == (None, "fsdp")
  specs = {"layers.w": jax.ShapeDtypeStruct((8, 16, 4), jnp.float32)}
  mesh, rest = sharding.make_mesh("fsdp:8"), (r".*", "replicate")
  made = sharding.shardings(specs, mesh, ((r"layers\.\d+\.w", "fsdp"), rest), STACKED)
  assert tuple(made["layers.w"].spec) == (None, "fsdp", None)
  with pytest.raises(ValueError, match=r"layers.w: several of the sharding rules .* lie alike"):
    sharding.shardings(specs, mesh, ((r"layers\.0\.w", "fsdp"), rest), STACKED)


def test_rows_are_divided_where_a_mesh_is_in_use():
  x = np.ones((8, 3), np.float32)
  assert sharding.rows(x) is x
  with jax.set_mesh(sharding.make_mesh("data:2,fsdp:2,tensor:2")):
    assert jax.jit(sharding.rows)(x).sharding.spec[0] == ("data", "fsdp")
    assert jax.jit(sharding.rows)(x[:3]).sharding.is_fully_replicated  # four do not divide three rows


def test_heads_are_divided_where_all_of_them_can_be():
  x = np.ones((8, 6, 4, 2), np.float32)
  assert sharding.heads(x, 2) is x
  for mesh, count, expected in [
    ("fsdp:4,tensor:2", 2, (("data", "fsdp"), None, "tensor", None)),
    ("fsdp:2,tensor:4", 2, (("data", "fsdp"), None, None, None)),  # four do not divide two
    ("fsdp:4,tensor:2", 4, (("data", "fsdp"), None, "tensor", None)),
  ]:
    made = sharding.make_mesh(mesh)
    with jax.set_mesh(made):
      found = jax.jit(sharding.heads, static_argnums=1)(x, count).sharding
      assert found.is_equivalent_to(jax.sharding.NamedSharding(made, P(*expected)), x.ndim)
      assert jax.jit(sharding.heads, static_argnums=1)(x[:3], 1).sharding.is_fully_replicated


def test_a_mesh_may_split_the_axes_of_a_torus(monkeypatch):
  def refuse(*_, **__):
    raise NotImplementedError("Failed to find assignment for logical_axis_index 3 of size 8")

  monkeypatch.setattr(jax, "make_mesh", refuse)
  mesh = sharding.make_mesh("candidate:2,tensor:4")
  assert mesh.axis_names == sharding.AXES and mesh.devices.shape == (2, 1, 1, 4)
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 4


SHAPES = {"w": (3, 16, 8), "b": (3, 8)}
STACKS = {f"layers.{leaf}": tuple(f"layers.{i}.{leaf}" for i in range(3)) for leaf in SHAPES}


@pytest.fixture(scope="module", params=checkpoints.FORMATS)
def written(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  generator = np.random.default_rng(0)
  whole = {
    f"layers.{leaf}": generator.normal(size=shape).astype(np.float32) for leaf, shape in SHAPES.items()
  }
  slices = {part: whole[name][i] for name, parts in STACKS.items() for i, part in enumerate(parts)}
  own = {"embed": generator.normal(size=(24, 8)).astype(np.float32), "long": np.array([2**40])}
  checkpoints.write(folder, slices | own, format=request.param)
  return checkpoints.open(folder), whole | own


@pytest.mark.parametrize("mesh", ["fsdp:1", "fsdp:8", "data:2,fsdp:2,tensor:2"])
@pytest.mark.parametrize("memory", ["device", "pinned_host"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Orbax, of a sharding beside it
def test_layers_are_stacked_where_they_are_placed(written, mesh, memory):
  checkpoint, whole = written
  specs = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in whole.items()}
  made = sharding.shardings(specs, sharding.make_mesh(mesh), axes=STACKED)
  made = {name: one.with_memory_kind(memory) for name, one in made.items()}
  placed = checkpoints.place(checkpoint, made, STACKS, verify=True)
  assert placed.keys() == whole.keys() and isinstance(placed["long"], np.ndarray)
  for name, value in whole.items():
    np.testing.assert_array_equal(placed[name], value)
    assert name == "long" or placed[name].sharding == made[name]


@pytest.mark.parametrize("written", ["safetensors"], indirect=True)  # Orbax restores each device's part
def test_a_process_reads_each_layer_once(written, monkeypatch):
  checkpoint, whole = written
  read, count = type(checkpoint).read, []
  monkeypatch.setattr(type(checkpoint), "read", lambda *args: count.append(args[1]) or read(*args))
  made = sharding.shardings(
    {"layers.w": jax.ShapeDtypeStruct((3, 16, 8), jnp.float32)},
    sharding.make_mesh("data:2,fsdp:2,tensor:2"), ((".*", "column"),), STACKED,
  )  # fmt: skip
  stack = checkpoint.load_stack(STACKS["layers.w"], made["layers.w"])
  np.testing.assert_array_equal(stack, whole["layers.w"])
  assert count == list(STACKS["layers.w"])


def test_stacks_of_64_bits_stay_on_the_host(tmp_path):
  tensors = {name: np.full((4,), 1 / 3) for name in STACKS["layers.b"]}
  checkpoints.write(tmp_path, tensors)
  where = sharding.shardings(
    {"layers.b": jax.ShapeDtypeStruct((3, 4), "float64")}, sharding.make_mesh("fsdp:2")
  )
  stacks = {"layers.b": STACKS["layers.b"]}
  placed = checkpoints.place(checkpoints.open(tmp_path), where, stacks)["layers.b"]
  assert isinstance(placed, np.ndarray) and placed.dtype == np.float64 and placed.shape == (3, 4)


def test_a_device_that_holds_other_bytes_is_found(written, monkeypatch):
  checkpoint, whole = written
  specs = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in whole.items()}
  made = sharding.shardings(specs, sharding.make_mesh("fsdp:2"), axes=STACKED)

  def wrong(names, to):
    return jax.device_put(whole["layers.w"] + np.eye(16, 8, dtype=np.float32), to)

  monkeypatch.setattr(type(checkpoint), "load_stack", lambda self, names, to: wrong(names, to) if
                      names == STACKS["layers.w"] else jax.device_put(whole["layers.b"], to))  # fmt: skip
  with pytest.raises(ValueError, match=r"tensor 'layers.0.w' lies on .* with other bytes than its file has"):
    checkpoints.place(checkpoint, made, STACKS, verify=True)


def test_a_mesh_of_ones_own_has_what_its_axes_allow():
  own = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  specs = {"w": jax.ShapeDtypeStruct((4, 8), "float32")}
  assert sharding.shardings(specs, own)["w"].spec == P(None, None)
  assert sharding.shardings(specs, own, ((".*", P("model")),))["w"].spec == P("model", None)
  for rule in (None, P(P.UNCONSTRAINED), 3):
    with pytest.raises(ValueError, match=r"w: sharding rule '\.\*' is .*; expected a tactic"):
      sharding.shardings(specs, own, ((".*", rule),))
