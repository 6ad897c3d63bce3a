"""What is found before anything long starts: dtypes that do not merge, memory that is not there."""

import jax
import numpy as np
import pytest

from merge_jax import checkpoints, preflight, sharding
from merge_jax.preflight import memory
from merge_jax.recycle import methods
from tests import pools


@pytest.fixture
def pool(tmp_path):
  return [checkpoints.open(path) for path in pools.make_pool(tmp_path)]


def rewrite(checkpoint, dtype):
  tensors = {name: np.asarray(value) for name, value in checkpoint.load().items()}
  tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(dtype)
  checkpoints.write(checkpoint.path, tensors)
  return checkpoints.open(checkpoint.path)


@pytest.mark.parametrize(
  ("which", "dtype", "message"),
  [
    ((1,), np.int32, "'model.norm.weight' is float32 in m0, int32 in m1"),
    ((0, 1, 2), np.float64, "set JAX_ENABLE_X64=1"),
    ((0, 1, 2), np.complex64, "do not merge"),
  ],
)
def test_dtypes_that_do_not_merge(pool, which, dtype, message):
  found = preflight.check([rewrite(c, dtype) if i in which else c for i, c in enumerate(pool)], values=False)
  assert [message in f.detail for f in found if f.level == "error"] == [True]


@pytest.mark.parametrize(("value", "level"), [(np.inf, "error"), (np.nan, "error"), (3e38, "warning")])
def test_spoilt_values_are_said_without_a_warning_of_numpy(pool, value, level):
  tensors = {name: np.array(x) for name, x in pool[1].load().items()}
  tensors["model.embed_tokens.weight"][0, :2] = value, -value
  checkpoints.write(pool[1].path, tensors)
  models = [pool[0], checkpoints.open(pool[1].path), pool[2]]
  assert {f.level for f in preflight.read(models, pool[2])} - {"ok"} >= {level}


def specs(size):
  return {
    "w": jax.ShapeDtypeStruct((size, 2), np.dtype("bfloat16")),
    "b": jax.ShapeDtypeStruct((3,), np.float32),
  }


def test_bytes_of_each_device_follow_the_shardings():
  mesh = sharding.make_mesh({"fsdp": 8})
  made = memory.per_device(specs(64), sharding.shardings(specs(64), mesh))
  assert made == dict.fromkeys(mesh.devices.flat, 64 * 2 * 2 // 8 + 12)
  assert memory.per_device(specs(64)) == {jax.devices()[0]: 64 * 2 * 2 + 12}


def test_memory_counts_the_mean_base_and_a_batch(pool, monkeypatch):
  """A pool that fits alone does not with a base, nor with more candidates side by side."""
  one = sum(c.nbytes for c in pool) // len(pool)

  def verdict(method, batch, free):
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    (found,) = memory.verdict(methods.memory(method, pool, None, batch))
    return found.level

  assert verdict("linear", 1, 5 * one) == "ok"  # three, and a candidate with as much for its evaluation
  assert verdict("linear", 1, 5 * one - 1) == "error"
  assert verdict("task_arithmetic", 1, 5 * one) == "error"
  assert verdict("task_arithmetic", 1, 6 * one) == "ok"
  assert verdict("linear", 4, 11 * one) == "ok" and verdict("linear", 4, 11 * one - 1) == "error"


def test_the_fullest_device_decides(monkeypatch):
  mesh = sharding.make_mesh({"fsdp": 4})
  needs = preflight.Needs([specs(64)] * 3, specs(64), 1, sharding.shardings(specs(64), mesh))
  device = 3 * (64 + 12) + 2 * (128 + 12)  # the merge is float32
  monkeypatch.setattr(memory, "available_memory", lambda: 4 * device)
  assert [f.level for f in memory.verdict(needs)] == ["ok"]
  monkeypatch.setattr(memory, "available_memory", lambda: 4 * device - 1)
  assert [f.level for f in memory.verdict(needs)] == ["error"]


def test_a_model_without_tensors_is_named(tmp_path):
  for name in "ab":
    checkpoints.write(tmp_path / name, {})
  found = list(preflight.check([checkpoints.open(tmp_path / name) for name in "ab"]))
  assert [f.detail for f in found if f.level == "error"] == ["a has no tensors"]


def test_the_tokenizer_that_cannot_be_read_is_named(pool):
  for checkpoint, text in zip(pool, ("{", "{}", "{}"), strict=True):
    (checkpoint.path / "tokenizer.json").write_text(text)
  (error,) = (f.detail for f in preflight.check(pool, values=False) if f.level == "error")
  assert error.startswith("tokenizer.json of m0 cannot be read: ")


def test_a_member_that_is_called_base_is_compared(tmp_path):
  folders = pools.make_pool(tmp_path)
  folders = [folders[0], folders[1].rename(folders[1].parent / "base_"), folders[2]]
  named = tmp_path / "pool" / "x" / "base"
  named.parent.mkdir(parents=True)
  folders[1].rename(named)
  (named / "tokenizer.json").write_text((named / "tokenizer.json").read_text().replace('"a"', '"é"'))
  member, other, base = (checkpoints.open(path) for path in (named, folders[0], folders[2]))
  found = list(preflight.check([other, member], base, values=False))
  assert any(f.level == "error" and "differ, first in token" in f.detail for f in found)


@pytest.mark.parametrize("shape", [(5,), ()])
def test_models_of_vectors_alone_have_an_ancestor(tmp_path, shape):
  for i in range(2):
    values = {
      "w": np.full(shape, 5.0, np.float32) + np.float32(0.1 * i),
      "none": np.zeros((0, 2), np.float32),
    }
    (tmp_path / str(i)).mkdir()
    checkpoints.write(tmp_path / str(i), values)
  found = preflight.check([checkpoints.open(tmp_path / str(i)) for i in range(2)], None, values=True)
  assert not any("NO COMMON ANCESTOR" in f.detail for f in found)
