"""Both formats read back what was written; damage is named."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from merge_jax import checkpoints, preflight, sharding
from merge_jax.checkpoints import huggingface
from tests import pools

TENSORS = {
  "model.embed_tokens.weight": np.arange(32, dtype=np.float32).reshape(8, 4),
  "model.norm.weight": np.ones(4, ml_dtypes.bfloat16),
  "steps": np.array(3, np.int32),
  "empty": np.zeros((0, 3), np.float16),
}


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype, name
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("format", checkpoints.FORMATS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_round_trip(tmp_path, format):
  tensors = dict(TENSORS)
  if format == "orbax":
    del tensors["empty"]  # Orbax refuses arrays without elements
  checkpoints.write(tmp_path, tensors, format=format)
  opened = checkpoints.open(tmp_path)
  assert opened.format == format
  same({name: opened.read(name) for name in tensors}, tensors)
  same(opened.reader(tensors), tensors)
  assert set(opened.specs) == set(tensors)


@pytest.mark.parametrize("limit", [5_000_000_000, 100])
def test_the_safetensors_library_reads_ours(tmp_path, limit):
  huggingface.write_folder(tmp_path, TENSORS, max_shard_bytes=limit)
  files = sorted(tmp_path.glob("*.safetensors"))
  assert len(files) == (1 if limit > 100 else 2)
  read = {}
  for file in files:
    read |= safetensors.numpy.load_file(file)
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0  # so that XLA uses mapped memory in place
  same({name: read[name] for name in TENSORS}, TENSORS)
  same({name: checkpoints.open(tmp_path).read(name) for name in TENSORS}, TENSORS)


def test_reads_what_the_safetensors_library_writes(tmp_path):
  safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
  same({name: checkpoints.open(tmp_path).read(name) for name in TENSORS}, TENSORS)


def test_nnx_states_and_plain_trees_have_the_same_names(tmp_path):
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.dense = nnx.Linear(2, 3, rngs=rngs)
      self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs)])

  state = nnx.state(Net(nnx.Rngs(0)))
  ocp.save(tmp_path / "state", state)
  ocp.save(tmp_path / "plain", nnx.to_pure_dict(state))
  for name in ("state", "plain"):
    opened = checkpoints.open(tmp_path / name)
    assert set(opened.specs) == {
      "dense.bias", "dense.kernel", "layers.0.bias", "layers.0.kernel",
    }  # fmt: skip
    np.testing.assert_array_equal(opened.read("dense.kernel"), state["dense"]["kernel"].get_value())
    checkpoints.write(tmp_path / f"{name}2", opened.load(), like=opened)  # the same structure again
    a, b = (ocp.metadata(tmp_path / x).metadata for x in (name, f"{name}2"))
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_ties_are_resolved_and_checked(tmp_path):
  config = {"tie_word_embeddings": True}
  for folder, head in (("equal", TENSORS["model.embed_tokens.weight"]), ("other", np.zeros((8, 4), "f"))):
    (tmp_path / folder).mkdir()
    huggingface.write_folder(tmp_path / folder, TENSORS | {"lm_head.weight": head})
    (tmp_path / folder / "config.json").write_text(json.dumps(config))
  equal, other = (checkpoints.open(tmp_path / name) for name in ("equal", "other"))
  assert "lm_head.weight" not in equal.specs
  assert equal.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
  assert all(f.level != "error" for f in preflight.check([equal]))
  assert any("ties lm_head.weight" in f.detail for f in preflight.check([other]))


def test_sharded_placement_reads_parts(tmp_path):
  huggingface.write_folder(tmp_path, {"w": np.arange(64, dtype=np.float32).reshape(8, 8)})
  opened = checkpoints.open(tmp_path)
  mesh = sharding.make_mesh({"fsdp": 4, "tp": 2})
  for rules in (((r".*", P("fsdp", "tp")),), sharding.DEFAULT):
    placed = opened.load(sharding.shardings(opened.specs, mesh, rules))
    np.testing.assert_array_equal(placed["w"], opened.read("w"))
    assert placed["w"].addressable_shards[0].data.size == 8


def test_sharding_rules_that_do_not_fit():
  mesh = sharding.make_mesh({"fsdp": 8})
  specs = {"w": jax.ShapeDtypeStruct((3, 5), jnp.float32)}
  assert sharding.shardings(specs, mesh)["w"].spec == P()
  for rules, message in (
    (((r"v", P()),), "no sharding rule"), (((r"w", P(None, None, "fsdp")),), "more axes"),
    (((r"w", P("fsdp")),), "divisible|divide"), (((r"w", "tp"),), "not known"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      sharding.shardings(specs, mesh, rules)


def damage(path, how):
  content = path.read_bytes()
  path.write_bytes(how(content))


@pytest.mark.parametrize(
  ("how", "message"),
  [
    (lambda c: c[:-10], "truncated: "),
    (lambda c: c[:5], "truncated or not safetensors"),
    (lambda c: b"\xff" * 8 + c[8:], "truncated or not safetensors"),
    (lambda c: c[:8] + b"x" + c[9:], "header is damaged"),
    (lambda c: c.replace(b'"F32"', b'"F99"'), "dtype F99"),
    (lambda c: c.replace(b"[8,4]", b"[9,4]"), "bytes, not what"),
  ],
)
def test_damaged_files_are_named(tmp_path, how, message):
  huggingface.write_folder(tmp_path, TENSORS)
  damage(tmp_path / "model.safetensors", how)
  with pytest.raises(ValueError, match=message):
    checkpoints.open(tmp_path)


def test_folders_that_are_no_checkpoints(tmp_path):
  with pytest.raises(FileNotFoundError, match="no such folder"):
    checkpoints.open(tmp_path / "none")
  with pytest.raises(ValueError, match="remote paths are not supported yet"):
    checkpoints.open("gs://bucket/model")
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(ValueError, match="no pickle is ever loaded"):
    checkpoints.open(tmp_path)
  index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
  (tmp_path / huggingface.INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match="which is not there"):
    checkpoints.open(tmp_path)


@pytest.fixture
def pool(tmp_path):
  return pools.make_pool(tmp_path)


def errors(paths, base=None):
  opened, opened_base = preflight.open_pool([str(p) for p in paths], base)
  return [f for f in preflight.check(opened, opened_base) if f.level != "ok"]


def rewrite(path, change):
  opened = checkpoints.open(path)
  tensors = {name: np.array(value) for name, value in opened.reader(opened.specs).items()}
  change(tensors)
  huggingface.write_folder(path, tensors)


def test_preflight_accepts_a_family(pool, tmp_path):
  assert errors(pool, str(tmp_path / "base")) == []


@pytest.mark.parametrize(
  ("change", "check", "detail"),
  [
    (lambda t: t.pop("model.norm.weight"), "names", "'model.norm.weight' is missing in m1"),
    (lambda t: t.update(extra=np.ones(2, np.float32)), "names", "'extra' is missing in m0"),
    (lambda t: t.update({"model.norm.weight": np.ones(5, np.float32)}), "shapes", "is (32,) in m0"),
    (lambda t: t["model.norm.weight"].__setitem__(3, np.nan), "values", "of m1 has NaN"),
    (lambda t: t["model.norm.weight"].__setitem__(3, np.inf), "values", "of m1 has NaN"),
  ],
)
def test_preflight_names_what_does_not_merge(pool, change, check, detail):
  rewrite(pool[1], change)
  found = errors(pool)
  assert found[0].level == "error" and found[0].check == check and detail in found[0].detail
  with pytest.raises(preflight.PreflightError, match=check):
    preflight.require(found)


def test_preflight_warns_without_a_common_ancestor(pool):
  generator = np.random.default_rng(9)

  def unrelated(tensors):
    for name, value in tensors.items():
      tensors[name] = generator.normal(size=value.shape).astype(np.float32) * 0.02

  rewrite(pool[1], unrelated)
  (found,) = errors(pool)
  assert found.level == "warning" and "NO COMMON ANCESTOR" in found.detail


def test_preflight_compares_vocabularies(pool):
  path = pool[2] / "tokenizer.json"
  path.write_text(path.read_text().replace('"a"', '"ä"'))
  assert any(f.check == "vocabulary" and f.level == "error" for f in errors(pool))


def test_finite_reads_bits():
  for dtype in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64, np.int32):
    values = np.ones(1000, dtype)
    assert preflight.finite(values)
    if dtype is not np.int32:
      for bad in (np.nan, np.inf, -np.inf):
        values[777] = bad
        assert not preflight.finite(values)


def test_a_full_disk_is_found_before(tmp_path):
  with pytest.raises(OSError, match="the disk has"):
    preflight.require_disk(tmp_path / "not" / "yet", 1 << 60)


def test_pool_lists():
  with pytest.raises(ValueError, match="at least one"):
    preflight.open_pool([])
