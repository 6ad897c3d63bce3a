"""Both formats read back what was written; damage is named."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax.sharding import PartitionSpec as P
from orbax import checkpoint as legacy
from orbax.checkpoint import v1 as ocp

from merge_jax import checkpoints, preflight, sharding, storage
from merge_jax.checkpoints import huggingface
from merge_jax.preflight.values import finite
from tests import pools

TENSORS = {
  "model.embed_tokens.weight": np.arange(32, dtype=np.float32).reshape(8, 4),
  "model.norm.weight": np.ones(4, ml_dtypes.bfloat16),
  "steps": np.array(3, np.int32),
  "long": np.array([2**40 + 3, -(2**62)]),
  "unsigned": np.array([2**64 - 1], np.uint64),
  "double": np.array([1 + 2.0**-50]),
  "complex": np.array([1 + 2j], np.complex64),
}
FORMATS = pytest.mark.parametrize("format", checkpoints.FORMATS)


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype, name
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@FORMATS
def test_round_trip(tmp_path, format):
  checkpoints.write(tmp_path, TENSORS, format=format)
  opened = checkpoints.open(tmp_path)
  assert opened.format == format
  assert {n: (s.shape, s.dtype) for n, s in opened.specs.items()} == {
    n: (v.shape, v.dtype) for n, v in TENSORS.items()
  }
  same({name: opened.read(name) for name in TENSORS}, TENSORS)
  loaded = opened.load()
  same(loaded, TENSORS)
  assert {n for n, v in loaded.items() if not isinstance(v, jax.Array)} == {"long", "unsigned", "double"}
  with pytest.raises(ValueError, match=r"unknown tensor 'model.norm'; did you mean 'model.norm.weight'"):
    opened.read("model.norm")


@FORMATS
def test_a_slice_is_read_alone(tmp_path, format):
  w = np.arange(24, dtype=np.int64).reshape(4, 6)
  checkpoints.write(tmp_path, {"w": w, "s": np.float32(2)}, format=format)
  opened = checkpoints.open(tmp_path)
  for index in ((slice(1, 3), slice(None)), (slice(0, 4), slice(2, 6)), (slice(2, 2),), ()):
    np.testing.assert_array_equal(opened.read("w", index), w[index])
  assert opened.read("s", ()) == 2


def test_a_slice_is_a_view_of_the_mapped_file(tmp_path):
  checkpoints.write(tmp_path, {"w": np.ones((1 << 10, 1 << 10), np.float32)})
  part = checkpoints.open(tmp_path).read("w", (slice(5, 6), slice(None)))
  assert not part.flags.owndata and not part.flags.writeable


@FORMATS
def test_a_writer_takes_tensors_in_any_order_once_each(tmp_path, format):
  with checkpoints.writer(tmp_path, TENSORS, format=format) as writer:
    for name in reversed(TENSORS):
      value = TENSORS[name].copy()
      writer.write(name, value)
      value[...] = 0  # a buffer that is used again
    for name, value, message in (
      ("steps", np.array(3, np.int32), "'steps' was written before"),
      ("step", np.ones(2), "unknown tensor 'step'"),
    ):  # fmt: skip
      with pytest.raises(ValueError, match=message):
        writer.write(name, value)
  same({name: checkpoints.open(tmp_path).read(name) for name in TENSORS}, TENSORS)


@FORMATS
def test_an_unfinished_checkpoint_is_none(tmp_path, format):
  writer = checkpoints.writer(tmp_path, TENSORS, format=format)
  for value in (np.ones(4, np.float32), np.ones(5, ml_dtypes.bfloat16)):
    with pytest.raises(ValueError, match=r"'model.norm.weight' is .*; expected bfloat16\[4\]"):
      writer.write("model.norm.weight", value)
  for name in list(TENSORS)[:-1]:
    writer.write(name, TENSORS[name])
  with pytest.raises(ValueError, match="tensor 'complex' and 0 more were never written"):
    writer.finish()
  with pytest.raises(ValueError):
    checkpoints.open(tmp_path)


@pytest.mark.parametrize(
  ("format", "tensors", "message"),
  [
    ("orbax", {"e": np.zeros((0, 3), np.float32)}, "tensor 'e' has no elements, which Orbax does not hold"),
    (
      "safetensors",
      {"e": np.zeros(2, np.complex128)},
      "'e' has dtype complex128, which safetensors does not",
    ),
    ("safetensors", {"__metadata__": np.zeros(2)}, "'__metadata__' has a reserved name"),
    ("gguf", {"e": np.zeros(2)}, "unknown checkpoint format 'gguf'"),
  ],
)
def test_what_a_format_cannot_hold_is_named(tmp_path, format, tensors, message):
  with pytest.raises(ValueError, match=message):
    checkpoints.write(tmp_path, tensors, format=format)


@pytest.mark.parametrize("limit", [5_000_000_000, 100])
def test_the_safetensors_library_reads_ours(tmp_path, limit):
  tensors = {n: v for n, v in TENSORS.items() if v.dtype != ml_dtypes.bfloat16}
  tensors["empty"] = np.zeros((0, 3), np.float16)
  with huggingface.FolderWriter(tmp_path, tensors, max_shard_bytes=limit) as writer:
    for name, value in tensors.items():
      writer.write(name, value)
  files = sorted(tmp_path.glob("*.safetensors"))
  assert len(files) == (1 if limit > 100 else 2)
  read = {}
  for file in files:
    read |= safetensors.numpy.load_file(file)
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0  # so that XLA uses mapped memory in place
  same({name: read[name] for name in tensors}, tensors)
  same({name: checkpoints.open(tmp_path).read(name) for name in tensors}, tensors)


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
  with pytest.raises(ValueError, match=r"'dense.bias' is not in both the result and the tree"):
    opened.writer(tmp_path / "x", {n: s for n, s in opened.specs.items() if n != "dense.bias"})


def test_a_training_state_is_told_to_give_its_parameters_alone(tmp_path):
  ocp.save(tmp_path / "state", {"params": {"w": np.ones(2, "f")}, "step": 3})
  with pytest.raises(ValueError, match=r"'step' is of Python's type int, .* save the parameters alone"):
    checkpoints.open(tmp_path / "state")


def test_a_folder_may_be_named_by_a_string(tmp_path):
  checkpoints.write(str(tmp_path / "x"), TENSORS)
  opened = checkpoints.open(str(tmp_path / "x"))
  same({name: opened.read(name) for name in TENSORS}, TENSORS)


@FORMATS
@pytest.mark.parametrize("config", [{"tie_word_embeddings": True}, {"model_type": "gemma"}])
def test_ties_are_resolved_and_checked(tmp_path, format, config):
  tensors = dict(list(TENSORS.items())[:3])
  for folder, head in (("equal", TENSORS["model.embed_tokens.weight"]), ("other", np.zeros((8, 4), "f"))):
    checkpoints.write(tmp_path / folder, tensors | {"lm_head.weight": head}, format=format)
    (tmp_path / folder / "config.json").write_text(json.dumps(config))
  equal, other = (checkpoints.open(tmp_path / name) for name in ("equal", "other"))
  assert "lm_head.weight" not in equal.specs
  assert equal.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
  np.testing.assert_array_equal(equal.read("lm_head.weight"), equal.read("model.embed_tokens.weight"))
  assert other.read_alias("lm_head.weight").sum() == 0
  assert all(f.level != "error" for f in preflight.check([equal]))
  assert any("ties lm_head.weight" in f.detail for f in preflight.check([other]))
  tied = {name: value + value for name, value in equal.load().items()}
  checkpoints.write(tmp_path / "again", tied, like=equal)
  again = checkpoints.open(tmp_path / "again")
  same({name: again.read(name) for name in again.specs}, {name: np.asarray(v) for name, v in tied.items()})


@FORMATS
@pytest.mark.filterwarnings("ignore::UserWarning")  # Orbax, of a sharding beside it
def test_sharded_placement_reads_parts(tmp_path, format):
  w = np.arange(64, dtype=np.float32).reshape(8, 8)
  checkpoints.write(tmp_path, {"w": w, "long": np.array([[2**40]])}, format=format)
  opened = checkpoints.open(tmp_path)
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  for rules in (((r".*", P("fsdp", "tensor")),), sharding.DECODER):
    specs = {"w": opened.specs["w"]}
    shardings = sharding.shardings(specs, mesh, rules) | {"long": None}
    placed = opened.load(shardings)
    np.testing.assert_array_equal(placed["w"], w)
    assert placed["w"].sharding == shardings["w"]
    assert placed["w"].addressable_shards[0].data.size == 8
    assert placed["long"] == 2**40 and placed["long"].dtype == np.int64


@FORMATS
def test_files_are_those_that_are_read(tmp_path, format):
  checkpoints.write(tmp_path, TENSORS, format=format)
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "tokenizer.json").write_text("{}")
  opened = checkpoints.open(tmp_path)
  every = {path for path in opened.path.rglob("*") if path.is_file()}
  assert set(opened.files()) == every and len(opened.files()) == len(every)
  before = storage.digest(opened.files(), opened.path), storage.fingerprint(opened.files())
  (tmp_path / "train.log").write_text("step 1")
  (tmp_path / "events").mkdir()
  (tmp_path / "events" / "0").write_text("x")
  assert set(checkpoints.open(tmp_path).files()) == every
  assert before == (storage.digest(opened.files(), opened.path), storage.fingerprint(opened.files()))
  (tmp_path / "tokenizer.json").write_text("[]")
  assert before[0] != storage.digest(opened.files(), opened.path)


@FORMATS
def test_side_files_are_carried_over_into_either_format(tmp_path, format):
  config = {"torch_dtype": "bfloat16", "limit": float("inf")}
  checkpoints.write(tmp_path / "a", {"w": np.ones(2, ml_dtypes.bfloat16)}, format="orbax")
  (tmp_path / "a" / "config.json").write_text(json.dumps(config))
  (tmp_path / "a" / "merges.txt").write_text("a b")
  (tmp_path / "b").mkdir()
  checkpoints.write(
    tmp_path / "b", {"w": np.ones(2, np.float32)}, like=checkpoints.open(tmp_path / "a"), format=format
  )
  written = checkpoints.open(tmp_path / "b")
  assert written.format == format and written.config == config | {"torch_dtype": "float32"}
  assert (tmp_path / "b" / "merges.txt").read_text() == "a b"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON"), (b"", "not valid JSON"),
    (b"[" * 100_000, "not valid JSON .nested too deeply"),
    (b"[1]", r"the content is \[1\]; expected an object"), (b"null", "the content is None"),
    (b'{"tie_word_embeddings": "yes"}', "tie_word_embeddings is 'yes'; expected true or false"),
    (b'{"tie_word_embeddings": null}', "tie_word_embeddings is None; expected true or false"),
    (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
  ],
)  # fmt: skip
@FORMATS
def test_a_damaged_config_is_named(tmp_path, format, content, message):
  checkpoints.write(tmp_path, {"w": np.ones(2, np.float32)}, format=format)
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(ValueError, match=f"config.json: {message}"):
    checkpoints.open(tmp_path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Orbax leaves its thread behind when it raises
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b"null"])
def test_a_damaged_orbax_directory_is_one_sentence(tmp_path, name, content):
  checkpoints.write(tmp_path, {"w": np.ones(2, np.float32)}, format="orbax")
  for path in tmp_path.rglob(name):
    path.write_bytes(content)
  try:
    value = checkpoints.open(tmp_path).read("w")
  except ValueError as error:
    assert str(tmp_path) in str(error) and "\n" not in str(error) and len(str(error)) < 600
  else:
    np.testing.assert_array_equal(value, np.ones(2, np.float32))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("damage", ["missing", "empty", "bool"])
def test_an_orbax_directory_that_shows_no_tensors_is_refused(tmp_path, damage, capfd):
  ocp.save(tmp_path / "x", {"w": np.ones(2, "f")} | ({"flag": True} if damage == "bool" else {}))
  for path in (tmp_path / "x" / "state" / "d").iterdir() if damage != "bool" else ():
    path.unlink() if damage == "missing" else path.write_bytes(b"")
  capfd.readouterr()
  with pytest.raises(ValueError, match="x: Orbax finds no tensors in it") as caught:
    checkpoints.open(tmp_path / "x")
  assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Orbax, of restoring without a sharding
@pytest.mark.parametrize(
  ("path", "at"),
  [("flat", ""), ("alone", ""), ("steps/0/params", ""), ("one/0", "default"), ("one/0/default", "")],
)
def test_what_orbax_wrote_in_another_layout_is_read_and_written_like_it(tmp_path, path, at):
  tree = {"layer": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "long": np.array([2**40])}
  save = legacy.args.StandardSave
  items = {"params": save(tree), "opt": save({"mu": np.ones(3, np.float32)}), "m": legacy.args.JsonSave({})}
  for name, args in {"one": save(tree), "steps": legacy.args.Composite(**items)}.items():
    with legacy.CheckpointManager(tmp_path / name) as manager:
      manager.save(0, args=args)
  with legacy.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "flat", tree)
  shutil.copytree(tmp_path / "one" / "0" / "default", tmp_path / "alone")
  opened = checkpoints.open(tmp_path / path)
  flat = {"layer.w": tree["layer"]["w"], "long": tree["long"]}
  same({name: opened.read(name) for name in opened.specs}, flat)
  same(opened.load(), flat)
  assert {file for file in opened.path.rglob("*") if file.is_file()} == set(opened.files())
  assert opened.digest() == checkpoints.open(tmp_path / path).digest()
  checkpoints.write(tmp_path / "out", opened.load(), like=opened)
  same(checkpoints.open(tmp_path / "out").load(), flat)
  for checkpointer in (legacy.StandardCheckpointer(), legacy.PyTreeCheckpointer()):
    with checkpointer:
      restored = checkpointer.restore(tmp_path / "out" / at)
    jax.tree.map(np.testing.assert_array_equal, restored, tree)
  with pytest.raises(ValueError, match=r"steps/0: holds the trees opt, params; .*, as .*steps/0/params"):
    checkpoints.open(tmp_path / "steps" / "0")


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA", "config.json"])
def test_a_fifo_in_an_orbax_directory_is_refused_and_not_opened(tmp_path, name):
  checkpoints.write(tmp_path, {"w": np.ones(2, np.float32)}, format="orbax")
  for path in [*tmp_path.rglob(name)] or [tmp_path / name]:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
  with pytest.raises(ValueError, match=f"{name}: is a fifo; expected a regular file"):
    checkpoints.open(tmp_path)


@pytest.mark.parametrize("output", ["model", "model/sub", "link/sub"])
def test_convert_never_writes_into_its_input(tmp_path, output):
  checkpoints.write(tmp_path / "model", {"w": np.ones(2, np.float32)})
  (tmp_path / "link").symlink_to(tmp_path / "model")
  before = sorted(tmp_path.rglob("*"))
  words = ["convert", f"--input={tmp_path}/model", f"--output={tmp_path}/{output}", "--format=safetensors"]
  done = subprocess.run([sys.executable, "-m", "merge_jax", *words], capture_output=True, text=True)
  assert done.returncode == 1 and re.fullmatch(
    r"error: --output: .* (is|lies in) the input .*; choose another place\.\n", done.stderr
  )
  assert sorted(tmp_path.rglob("*")) == before


def test_folders_that_are_no_checkpoints(tmp_path, monkeypatch):
  for path, message in (("", "is empty"), ("~nobody-of-this-name/m", "no such user")):
    with pytest.raises(ValueError, match=message):
      checkpoints.open(path)
  with pytest.raises(FileNotFoundError, match="no such folder"):
    checkpoints.open(tmp_path / "none")
  with pytest.raises(ValueError, match="unknown scheme 'ftp'; Known: gs, s3"):
    checkpoints.open("ftp://host/model")
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(ValueError, match="neither a safetensors folder nor an Orbax directory"):
    checkpoints.open(tmp_path)
  with pytest.raises(
    ValueError, match=r"notes.txt: is a file; expected a folder, or a file named \*.safetensors"
  ):
    checkpoints.open(tmp_path / "notes.txt")
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "m").mkdir()
  checkpoints.write(tmp_path / "m", {"w": np.ones(2, np.float32)})
  assert checkpoints.open("~/m").path == tmp_path / "m"


@pytest.mark.parametrize(
  ("names", "command"),
  [
    (
      ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "training_args.bin", "x.pt"],
      r"model.safetensors'? .*pytorch_model-00001-of-00002.bin'? .*pytorch_model-00002-of-00002.bin'?",
    ),
    (["consolidated.00.pth", "optimizer.pt", "rng_state_0.pth"], r"model.safetensors .*consolidated.00.pth"),
    (["last.ckpt"], r"model.safetensors .*last.ckpt"),
  ],
)
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, names, command):
  for name in names:
    (tmp_path / name).write_bytes(b"\x80\x02.")
  with pytest.raises(
    ValueError, match=f"no pickle is ever loaded; convert them: python -c .*{command}$"
  ) as raised:
    checkpoints.open(tmp_path)
  code = shlex.split(str(raised.value).partition("convert them: ")[2])[2]
  assert "weights_only=True" in code and ast.parse(code)
  with pytest.raises(ValueError, match="convert them: python"):
    checkpoints.open(tmp_path / names[0])
  checkpoints.write(tmp_path, {"w": np.ones(2)})
  assert checkpoints.open(tmp_path).specs.keys() == {"w"}  # what lies beside safetensors is not looked at


def test_a_plain_file_is_a_checkpoint(tmp_path):
  checkpoints.write(tmp_path, TENSORS)
  (tmp_path / "config.json").write_text("{}")
  file = (tmp_path / "model.safetensors").rename(tmp_path / "any name.safetensors")
  opened = checkpoints.open(file)
  same({name: opened.read(name) for name in TENSORS}, TENSORS)
  assert opened.files() == (file,) and opened.config is None and opened.format == "safetensors"
  assert opened.digest() == checkpoints.open(file).digest() and opened.name == file.name
  checkpoints.write(tmp_path / "out", TENSORS, like=opened)
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


NUMBERED = ["model-00001-of-00002", "model-00002-of-00002"]


@pytest.mark.parametrize(
  ("names", "read"),
  [
    (["model", "consolidated", "adapter_model", "other"], ["model"]),
    ([*NUMBERED, "consolidated"], NUMBERED),
    (
      ["diffusion-00001-of-00002", "diffusion-00002-of-00002"],
      ["diffusion-00001-of-00002", "diffusion-00002-of-00002"],
    ),
    (["consolidated"], ["consolidated"]),
    (["any", "adapter_model"], ["any"]),
    (
      ["any", "consolidated"],
      r"holds any.safetensors, consolidated.safetensors and no model.safetensors.index",
    ),
    (
      ["a-00001-of-00002", "a-00002-of-00002", "b"],
      "which of them are the model is not known; name one file",
    ),
    (
      ["model-00001-of-00003", "model-00003-of-00003"],
      "of the 3 files like model-00001-of-00003.* number 2 is missing",
    ),
    (["model-00001-of-99999999999"], "of the 99999999999 files like .* number 2 is missing"),
    (["model-00001-of-00001", "model-00002-of-00001"], "of 1 files from 1 on; number 2 is none"),
    (["model-00000-of-00002", "model-00001-of-00002"], "of 2 files from 1 on; number 0 is none"),
    (["adapter_model"], "is a PEFT adapter and no model"),
  ],
)
def test_which_files_of_a_folder_are_the_model(tmp_path, names, read):
  for name in names:
    safetensors.numpy.save_file({f"in {name}": np.ones(2)}, tmp_path / f"{name}.safetensors")
  if isinstance(read, str):
    with pytest.raises(ValueError, match=read):
      checkpoints.open(tmp_path)
  else:
    assert checkpoints.open(tmp_path).specs.keys() == {f"in {name}" for name in read}


@pytest.mark.parametrize(
  ("listed", "read"),
  [
    ("model-00001-of-00002.safetensors", "model"),  # what transformers leaves behind
    ("other.safetensors", "model"),
    ("model.safetensors", "model"),
  ],
)
def test_one_file_counts_before_the_index_of_earlier_shards(tmp_path, listed, read):
  for name in ("model", "other"):
    safetensors.numpy.save_file({f"in {name}": np.ones(2)}, tmp_path / f"{name}.safetensors")
  index = {"weight_map": {f"in {listed.partition('.')[0]}": listed}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  assert list(checkpoints.open(tmp_path).specs) == [f"in {read}"]


def test_an_index_names_tensors(tmp_path):
  safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
  (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
  with pytest.raises(ValueError, match="weight_map names no tensor"):
    checkpoints.open(tmp_path)


def test_side_files_of_unknown_architectures_are_carried_over(tmp_path):
  """Of a vision model with code of its own, too; the code is copied and not run."""
  kept = {
    "config.json": '{"model_type": "x", "auto_map": {"AutoModel": "modeling_later.M"}, "dtype": "float64"}',
    "generation_config.json": "{}", "tokenizer.json": "{}", "tokenizer_config.json": "{}",
    "tokenizer.model": "x", "special_tokens_map.json": "{}", "added_tokens.json": "{}", "vocab.json": "{}",
    "vocab.txt": "a", "merges.txt": "a",
    "chat_template.jinja": "{{ x }}", "preprocessor_config.json": "{}", "processor_config.json": "{}",
    "video_preprocessor_config.json": "{}", "qwen.tiktoken": "x", "tekken.json": "{}",
    "modeling_later.py": "raise RuntimeError", "configuration_later.py": "raise RuntimeError",
  }  # fmt: skip
  left = ["README.md", "LICENSE", "optimizer.pt", "trainer_state.json", "model.safetensors.bak", "x.gguf"]
  checkpoints.write(tmp_path / "in", {"w": np.ones(2)})
  for name, text in (kept | dict.fromkeys(left, "x")).items():
    (tmp_path / "in" / name).write_text(text)
  (tmp_path / "in" / "folder.py").mkdir()
  checkpoints.write(tmp_path / "out", {"w": np.ones(2)}, like=checkpoints.open(tmp_path / "in"))
  assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors"} == kept


@pytest.fixture
def pool(tmp_path):
  return pools.make_pool(tmp_path)


def errors(paths, base=None):
  opened, opened_base = preflight.open_pool([str(p) for p in paths], base)
  return [f for f in preflight.check(opened, opened_base) if f.level != "ok"]


def rewrite(path, change):
  opened = checkpoints.open(path)
  tensors = {name: np.array(opened.read(name)) for name in opened.specs}
  change(tensors)
  checkpoints.write(path, tensors)


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


def test_preflight_names_a_model_that_is_the_base(pool, tmp_path):
  base = checkpoints.open(tmp_path / "base")
  for change, count in ((lambda tensors: None, 1), (lambda t: t["model.norm.weight"].__setitem__(3, 2.0), 0)):

    def copy(tensors, change=change):
      tensors |= {name: np.array(base.read(name)) for name in base.specs}
      change(tensors)

    rewrite(pool[1], copy)
    said = [f.detail for f in errors(pool, str(base.path))]
    assert said == ["m1 equals the base: its task vector is zero"] * count


def test_preflight_compares_vocabularies(pool):
  path = pool[2] / "tokenizer.json"
  path.write_text(path.read_text().replace('"a"', '"ä"'))
  assert any(f.check == "vocabulary" and f.level == "error" for f in errors(pool))


def test_preflight_compares_what_tokenizers_are_built_from(pool):
  words = [json.loads((path / "tokenizer.json").read_text())["model"]["vocab"] for path in pool]
  (pool[2] / "tokenizer.json").unlink()
  (pool[2] / "vocab.json").write_text(json.dumps(words[2]))
  (said,) = [f for f in errors(pool) if f.check == "vocabulary"]
  told = (
    "tokenizers of several kinds are not compared: m0 has tokenizer.json, m1 has tokenizer.json, m2 has vo"
  )
  assert said.level == "warning" and said.detail.startswith(told)
  for path, one in zip(pool[:2], ({**words[0]}, dict(reversed(words[1].items()))), strict=True):
    (path / "tokenizer.json").unlink()
    (path / "vocab.json").write_text(json.dumps(one))
  assert not [f for f in errors(pool) if f.check == "vocabulary"]  # in another order
  (pool[1] / "vocab.json").write_text(json.dumps(words[1] | {"a": 3}))
  (said,) = [f for f in errors(pool) if f.check == "vocabulary"]
  assert said.level == "error" and said.detail == "m1 and m0 differ, first in token 'a'"
  for path, content in zip(pool, (b"x", b"x", b"y"), strict=True):
    (path / "vocab.json").unlink()
    (path / "tokenizer.model").write_bytes(content)
  (said,) = [f for f in errors(pool) if f.check == "vocabulary"]
  assert said.level == "error" and said.detail == "m2 and m0 differ in tokenizer.model"


def test_finite_reads_bits():
  for dtype in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64, np.int32):
    values = np.ones(1000, dtype)
    assert finite(values)
    if dtype is not np.int32:
      for bad in (np.nan, np.inf, -np.inf):
        values[777] = bad
        assert not finite(values)


FLOATS = (
  "float64 float32 float16 bfloat16 complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
  "float8_e5m2fnuz float8_e8m0fnu float8_e4m3 float4_e2m1fn"
)


@pytest.mark.parametrize("dtype", FLOATS.split())
def test_nonfinite_elements_are_counted(dtype):
  kind = np.dtype(dtype)
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 256, (3 << 18) * kind.itemsize, dtype=np.uint8)
  if kind.itemsize > 2:  # most bits are of the mantissa: make more exponents full
    bits.reshape(-1, kind.itemsize)[::3, -2:] = 0xFF
  value = bits.view(kind).reshape(3, -1)
  with np.errstate(all="ignore"):
    wide = value if kind.kind in "fc" else value.astype(np.float32)
    expected = int((~np.isfinite(wide)).sum())
  assert checkpoints.nonfinite(value) == expected and (expected or dtype == "float4_e2m1fn")
  assert checkpoints.nonfinite(value.T) == expected  # not contiguous
  assert checkpoints.nonfinite(value[0, 0]) in (0, 1) and checkpoints.nonfinite(value[:0]) == 0
  assert checkpoints.nonfinite(np.ones(3, np.int32)) == 0


def test_a_full_disk_is_found_before(tmp_path):
  with pytest.raises(OSError, match="the disk has"):
    storage.require_space(tmp_path / "not" / "yet", 1 << 60)


def test_pool_lists():
  with pytest.raises(ValueError, match="at least one"):
    preflight.open_pool([])
