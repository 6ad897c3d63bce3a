"""What the safetensors library refuses is refused in one sentence; all else is read as it says."""

import json
import os
import random

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from merge_jax import checkpoints
from merge_jax.checkpoints import huggingface, safetensors_file

TENSORS = {
  "a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, ml_dtypes.bfloat16),
  "c": np.array(2**40 + 3), "empty": np.zeros((0, 3), np.float16), "d": np.array([True, False, True]),
}  # fmt: skip
DTYPES = [*safetensors_file.DTYPES, "F4", "F6_E2M3", "F99", "f32", None, 3, {"U8": None}]
NUMBERS = [0, 1, 2, 3, -1, 1.0, 2**31, 2**62, 2**63, 2**64, 2**70, "1", None, [], True, 10**400]


PIECES = (
  b"\xef\xbb\xbf",
  b" ",
  b"\xff",
  b'"',
  b"{",
  b"]",
  b"\\ud800",
  b"\n",
  b",",
  b"[" * 3000,
  b"",
  b'"a":',
)


def mutant(content, rng):
  """A damaged copy of a safetensors file: its bytes, its header's text, or a field of it."""
  length = int.from_bytes(content[:8], "little")
  text, data = content[8 : 8 + length], content[8 + length :]
  kind = rng.randrange(8)
  if kind == 0:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
      changed[rng.randrange(rng.choice([8, 8 + length, len(content)]))] = rng.randrange(256)
    return bytes(changed)
  if kind == 1:
    return content[: rng.randrange(len(content))]
  if kind == 2:
    return content + rng.randbytes(rng.randint(1, 8))
  if kind == 3:
    wrong = rng.choice([0, 1, length - 1, length + 1, length + 8, 2**32, 2**63])
    return wrong.to_bytes(8, "little") + content[8:]
  if kind == 4:
    at = rng.randrange(len(text))
    text = text[:at] + rng.choice(PIECES) + text[at + rng.randrange(3) :]
  else:
    pairs = list(json.loads(text).items())
    at = rng.randrange(len(pairs))
    pairs[at] = (pairs[at][0], changed_field(dict(pairs[at][1]), rng))
    if rng.randrange(4) == 0:
      pairs.insert(at, rng.choice([*pairs, ("__metadata__", {"format": "pt"}), ("x", pairs[at][1])]))
    text = ("{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs) + "}").encode()
  return len(text).to_bytes(8, "little") + text + data


def changed_field(item, rng):
  """An entry of a header with another dtype, shape or offsets, or of another form."""
  key = rng.choice(["dtype", "shape", "data_offsets", "whole"])
  if key not in item:
    return rng.choice([item | {"z": 1}, None, [], list(item.values()), {"format": 1}, "x"])
  if key == "dtype":
    item[key] = rng.choice(DTYPES)
  elif rng.randrange(3):
    item[key] = rng.choice([rng.sample([*item[key], rng.choice(NUMBERS)], k=len(item[key])), [1] * 70])
  else:
    item[key] = rng.choice(NUMBERS)
  if rng.randrange(6) == 0:
    del item[key]
  return item


def agree(folder, content):
  """Holds our reader to the library's; returns whether the file was read."""
  (folder / "model.safetensors").write_bytes(content)
  try:
    expected = {name: item for name, item in safetensors.deserialize(content)}
  except Exception:
    expected = None
  try:
    opened = checkpoints.open(folder)
  except (ValueError, OSError) as error:
    assert str(folder / "model.safetensors") in str(error) and "\n" not in str(error)
    assert expected is None or "which is not supported" in str(error) or "numpy does not hold" in str(error)
    return False
  assert expected is not None and opened.specs.keys() == expected.keys()
  for name, item in expected.items():
    value = opened.read(name)
    assert value.dtype == safetensors_file.DTYPES[item["dtype"]] and list(value.shape) == item["shape"]
    assert value.tobytes() == bytes(item["data"])
  return True


@pytest.fixture
def content(tmp_path):
  checkpoints.write(tmp_path, TENSORS)
  return (tmp_path / "model.safetensors").read_bytes()


def test_damaged_files_are_refused_as_the_library_does(tmp_path, content):
  cases = int(os.environ.get("MERGE_JAX_FUZZ", "400"))
  rng = random.Random(0)
  assert agree(tmp_path, content)
  read = sum(agree(tmp_path, mutant(content, rng)) for _ in range(cases))
  assert 0.02 * cases < read < 0.9 * cases


TENSOR = '"dtype":"U8","shape":[2],"data_offsets":'
A = f'"a":{{{TENSOR}[0,2]}}'


@pytest.mark.parametrize(
  ("header", "data"),
  [
    (f'{{{A},"b":{{{TENSOR}[1,3]}}}}', b"123"),  # overlap
    (f'{{{A},"b":{{{TENSOR}[3,5]}}}}', b"12345"),  # hole
    (f'{{{A},"b":{{{TENSOR}[-1,1]}}}}', b"12"),
    (f"\ufeff{{{A}}}", b"12"),
    (f'{{"a":{{"dtype":"U8",{TENSOR}[0,2]}}}}', b"12"),
    (f'{{{A},"a":{{{TENSOR}[2,4]}}}}', b"1234"),
    (f'{{"__metadata__":{{"x":1}},{A}}}', b"12"),
    (f'{{"__metadata__":3,{A}}}', b"12"),
    ('{"a":{"shape":[2],"data_offsets":[0,2]}}', b"12"),
    ('{"a":{"dtype":"U8","shape":"2","data_offsets":[0,2]}}', b"12"),
    ('{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}', b"12"),
    ('{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}', b"12"),
    ('{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,2]}}', b"12"),
    ('{"a":3}', b""),
    ("[]", b""),
    ("[" * 9999, b""),
    (f"{{{A}}}", b"123"),  # bytes behind the end
    (f"{{{A}}}", b"1"),  # truncated
  ],
)
def test_each_kind_of_damage_is_one_sentence(tmp_path, header, data):
  text = header.encode()
  path = tmp_path / "model.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  with pytest.raises(safetensors.SafetensorError):
    safetensors.deserialize(path.read_bytes())
  with pytest.raises(ValueError, match=r"model.safetensors: damaged, truncated or not safetensors \(.+\)\.$"):
    checkpoints.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8 + b"{}", b"\x02" + bytes(7) + b"{"])
def test_what_is_no_safetensors_file_is_named(tmp_path, content):
  (tmp_path / "model.safetensors").write_bytes(content)
  with pytest.raises(ValueError, match=r"model.safetensors: damaged, truncated or not safetensors"):
    checkpoints.open(tmp_path)


@pytest.mark.parametrize("name", list(safetensors_file.DTYPES))
def test_every_dtype_is_carried_as_bytes(tmp_path, name):
  dtype = np.dtype(safetensors_file.DTYPES[name])
  stored = np.frombuffer(np.random.default_rng(0).bytes(6 * dtype.itemsize), np.uint8)
  value = (stored % 2 if name == "BOOL" else stored).view(dtype).reshape(2, 3)
  checkpoints.write(tmp_path, {"w": value})
  ((_, item),) = safetensors.deserialize((tmp_path / "model.safetensors").read_bytes())
  assert item["dtype"] == name and bytes(item["data"]) == value.tobytes()
  read = checkpoints.open(tmp_path).read("w")
  assert read.dtype == dtype and read.tobytes() == value.tobytes()
  loaded = checkpoints.open(tmp_path).load()["w"]  # 64 bits stay on the host
  assert loaded.dtype == dtype and np.asarray(loaded).tobytes() == value.tobytes()


@pytest.mark.parametrize(("dtype", "data"), [("F4", b"1"), ("F6_E2M3", b"123"), ("F6_E3M2", b"123")])
def test_dtypes_below_a_byte_are_refused_by_name(tmp_path, dtype, data):
  size = {"F4": 2}.get(dtype, 4)
  text = json.dumps({"w": {"dtype": dtype, "shape": [size], "data_offsets": [0, len(data)]}}).encode()
  (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
  with pytest.raises(ValueError, match=f"model.safetensors: tensor 'w' has dtype {dtype}, which is not supp"):
    checkpoints.open(tmp_path)


def test_a_file_cut_after_it_was_opened_is_named(tmp_path, content):
  opened = checkpoints.open(tmp_path)
  os.truncate(tmp_path / "model.safetensors", len(content) - 4)
  with pytest.raises(
    ValueError, match=r"model.safetensors: tensor 'd' lies behind its end; the file changed"
  ):
    opened.read("d")


@pytest.fixture
def sharded(tmp_path):
  """A folder with two shards and an index, in a folder with other things."""
  folder = tmp_path / "model"
  folder.mkdir()
  with huggingface.FolderWriter(folder, TENSORS, max_shard_bytes=60) as writer:
    for name, value in TENSORS.items():
      writer.write(name, value)
  return folder


def shards(folder):
  return sorted(folder.glob("*.safetensors"))


def test_shards_may_be_links_that_stay_or_those_of_the_hub(sharded):
  cache = sharded.parent / "cache"
  (cache / "blobs").mkdir(parents=True)
  snapshot = cache / "snapshots" / "0123"
  snapshot.mkdir(parents=True)
  for i, file in enumerate([*shards(sharded), sharded / huggingface.INDEX]):
    (cache / "blobs" / str(i)).write_bytes(file.read_bytes())
    (snapshot / file.name).symlink_to(f"../../blobs/{i}")
  first = shards(sharded)[0]
  (sharded / "real").mkdir()
  first.rename(sharded / "real" / "x")
  first.symlink_to("real/x")
  for folder in (sharded, snapshot):
    opened = checkpoints.open(folder)
    assert {name: opened.read(name).tobytes() for name in TENSORS} == {
      name: value.tobytes() for name, value in TENSORS.items()
    }


@pytest.mark.parametrize(
  "name", ["../other.safetensors", "{absolute}", "sub/x.safetensors", "", "..", ".", "link.safetensors", "\0"]
)
def test_shards_outside_the_folder_are_refused(sharded, name):
  outside = sharded.parent / "other.safetensors"
  safetensors.numpy.save_file({"a": TENSORS["a"]}, outside)
  (sharded / "sub").mkdir()
  (sharded / "sub" / "x.safetensors").write_bytes(outside.read_bytes())
  (sharded / "link.safetensors").symlink_to(outside)
  index = {"weight_map": {"a": name.format(absolute=outside)}}
  (sharded / huggingface.INDEX).write_text(json.dumps(index))
  with pytest.raises(ValueError, match=r"index.json names .*(plain name|out of the folder|not there)"):
    checkpoints.open(sharded)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"\xff\xfe", "not valid JSON"),
    (b"[]", "expected an object"),
    (b"{}", "weight_map' is missing"),
    (b'{"weight_map": []}', "weight_map: the content is .*expected an object"),
    (b'{"weight_map": {"a": 3}}', "weight_map: .*; expected a string"),
    (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' is listed twice"),
    (b'{"weight_map": ' + b"[" * 9999, "not valid JSON"),
    (b'{"weight_map": {"a": "none.safetensors"}}', "'none.safetensors', which is not there"),
    (b'{"weight_map": {"a": "model-00002-of-00002.safetensors"}}', "'a' is not in model-00002"),
  ],
)
def test_a_damaged_index_is_named(sharded, content, message):
  (sharded / huggingface.INDEX).write_bytes(content)
  with pytest.raises(ValueError, match=f"{huggingface.INDEX}.*({message})"):
    checkpoints.open(sharded)


@pytest.mark.parametrize(
  "name", ["model.safetensors", huggingface.INDEX, "config.json", "tokenizer.json", "generation_config.json"]
)
def test_a_fifo_is_refused_and_not_opened(tmp_path, name):
  if name.endswith(".json"):
    checkpoints.write(tmp_path, TENSORS)
  os.mkfifo(tmp_path / name)
  with pytest.raises(ValueError, match=f"{name}: is a fifo; expected a regular file"):
    checkpoints.open(tmp_path)
