"""Object stores: checkpoints by ranges, folders with a commit, journals of objects, kills at any request."""

import fsspec
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from merge_jax import checkpoints, storage
from merge_jax.checkpoints import safetensors_file
from tests import stores


@pytest.fixture
def store(monkeypatch):
  return stores.install(monkeypatch)


def write(folder, tensors, **options):
  with checkpoints.writer(folder, tensors, **options) as out:
    for name, value in tensors.items():
      out.write(name, value)


def bytes_read(store):
  return sum(end - start for _, start, end in store.read)


@pytest.fixture
def tensors():
  generator = np.random.default_rng(0)
  shapes = {"a": (), "b": (64, 48), "c": (8, 4, 6), "d": (0, 3), "e": (50,)}
  return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_opening_reads_headers_alone(store, tensors, tmp_path):
  write(tmp_path / "m", tensors, max_shard_bytes=6000)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  local, there = checkpoints.open(tmp_path / "m"), checkpoints.open("gs://bucket/m")
  assert dict(there.specs) == dict(local.specs) and there.name == "m"
  headers = 0
  for file in (tmp_path / "m").glob("*.safetensors"):
    headers += 8 + int.from_bytes(file.read_bytes()[:8], "little")
  index = (tmp_path / "m" / "model.safetensors.index.json").stat().st_size
  assert bytes_read(store) == headers + index
  store.read.clear()
  for name, value in tensors.items():
    np.testing.assert_array_equal(there.read(name), value)
  assert bytes_read(store) == local.nbytes
  assert there.digest() == local.digest()


@pytest.mark.parametrize("gap", [0, 40, 1 << 18])
@pytest.mark.parametrize(
  ("name", "index"),
  [
    ("b", np.s_[8:24]), ("b", np.s_[:, 3:9]), ("b", np.s_[5:6, 40:]), ("b", np.s_[::2, :]), ("b", np.s_[:, ::-1]),
    ("c", np.s_[2:5, 1:3, 2:4]), ("c", np.s_[:, 1:2]), ("c", np.s_[3:3]), ("e", np.s_[7:11]), ("a", ()),
  ],
)  # fmt: skip
def test_slices_are_ranges_of_bytes(store, tensors, tmp_path, monkeypatch, name, index, gap):
  monkeypatch.setattr(safetensors_file, "GAP", gap)
  write(tmp_path / "m", tensors)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  there = checkpoints.open("gs://bucket/m")
  store.read.clear()
  index = index if isinstance(index, tuple) else (index,)
  got = there.read(name, index)
  np.testing.assert_array_equal(got, tensors[name][index])
  assert got.shape == tensors[name][index].shape
  contiguous = all(part in (slice(None), slice(None, None)) for part in index[1:])
  strided = any(part.step not in (None, 1) for part in index)
  if (gap == 0 or contiguous) and not strided:
    assert bytes_read(store) == got.nbytes
  if contiguous:
    assert len(store.read) == bool(got.size)


def test_long_ranges_are_read_in_parts(store, tensors, tmp_path, monkeypatch):
  monkeypatch.setattr(storage.remote, "PART", 1000)
  write(tmp_path / "m", tensors)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  there = checkpoints.open("gs://bucket/m/model.safetensors")
  store.read.clear()
  np.testing.assert_array_equal(there.read("b"), tensors["b"])
  assert len(store.read) == -(-tensors["b"].nbytes // 1000)


@pytest.mark.parametrize("axes", [("x",), (None, "x"), ("y", "x"), ()])
def test_a_sharded_load_reads_each_byte_once(store, tensors, tmp_path, axes):
  mesh = jax.make_mesh((4, 2), ("x", "y"))
  value = {"b": tensors["b"]}
  write(tmp_path / "m", value)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  there = checkpoints.open("gs://bucket/m")
  store.read.clear()
  loaded = there.load({"b": NamedSharding(mesh, PartitionSpec(*axes))})
  np.testing.assert_array_equal(loaded["b"], tensors["b"])
  assert bytes_read(store) == tensors["b"].nbytes and len(store.read) == 1


@pytest.mark.parametrize("cut", [0, 4, 50, -1])
def test_damaged_files_are_one_sentence(store, tensors, tmp_path, cut):
  write(tmp_path / "m", tensors)
  content = (tmp_path / "m" / "model.safetensors").read_bytes()
  file = storage.path("gs://bucket/m/model.safetensors")
  file.write_bytes(content[:cut])
  with pytest.raises(ValueError, match=r"gs://bucket/m/model.safetensors: damaged, truncated") as caught:
    checkpoints.open("gs://bucket/m")
  assert "\n" not in str(caught.value)
  file.write_bytes(content)
  there = checkpoints.open("gs://bucket/m")
  file.write_bytes(content[:-40])
  with pytest.raises(ValueError, match="changed after it was opened"):
    for name in there.specs:
      there.read(name)


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("ftp://host/m", "unknown scheme 'ftp'"), ("gs://", "names no bucket"), ("s3:///m", "names no bucket"),
    ("gs://bucket/none", "no such folder or file"), ("gss://b/m", "did you mean 'gs'"),
  ],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence(store, path, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    checkpoints.open(path)


def test_a_missing_package_is_named(monkeypatch):
  def missing(scheme):
    raise ImportError(scheme)

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  with pytest.raises(ValueError, match=r"needs the package s3fs; pip install 'merge-jax\[remote\]'"):
    storage.path("s3://bucket/m")


def test_failing_stores_are_one_sentence(store, monkeypatch):
  def refuse(*_, **__):
    raise RuntimeError("401\nwho are you?")

  monkeypatch.setattr(store, "info", refuse)
  with pytest.raises(
    OSError, match=r"gs://bucket/m: cannot be asked for on its store \(RuntimeError: 401 who"
  ):
    checkpoints.open("gs://bucket/m")
