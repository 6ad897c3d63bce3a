"""Merges that meet damage: one sentence or the right bytes, never half a folder, inputs untouched."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from merge_jax import checkpoints, recipes
from merge_jax.checkpoints import folder_writer
from merge_jax.evals import statistics_file
from merge_jax.recipes import embeddings
from tests import merging
from tests.merging import LINEAR, NORM, SHARD, content, merge, run, save, values
from tests.test_safetensors import mutant

KILLS = int(os.environ.get("MERGE_JAX_KILLS", "2"))
FUZZ = int(os.environ.get("MERGE_JAX_FUZZ", "100"))


@pytest.fixture
def world(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  merging.make(tmp_path)
  return tmp_path


def refused(world, text=LINEAR, output="out", **options):
  """The one sentence of a merge that changes nothing on the disk."""
  Path("recipe.yml").write_text(text)
  before = content(world), sorted(world.rglob("*"))
  with pytest.raises((ValueError, OSError)) as caught:
    recipes.run("recipe.yml", output, **options)
  assert (content(world), sorted(world.rglob("*"))) == before
  said = str(caught.value)
  assert "\n" not in said and "[Errno" not in said, said
  return said


def cut(share):
  def fault(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

  return fault


def header(change):
  """Changes the header of `a`: a dict to what is written as JSON, or as it is."""

  def fault(folder):
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    found = change(json.loads(raw[8 : 8 + length]))
    text = (found if isinstance(found, str) else json.dumps(found)).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

  return fault


def offsets(change):
  def changed(found):
    return found | {NORM: found[NORM] | {"data_offsets": change(*found[NORM]["data_offsets"])}}

  return header(changed)


def twice(found):
  """The name of one tensor for another one, too."""
  return json.dumps(found).replace('"lm_head.weight"', f'"{NORM}"')


def in_two_files(folder):
  shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
  (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")


def sharded(change=lambda text: text):
  """Puts `a` into shards, and changes the text of its index."""

  def fault(folder):
    (folder / "model.safetensors").unlink()
    save(folder, values(1), max_shard_bytes=100)
    file = folder / folder_writer.INDEX
    file.write_text(change(file.read_text()))

  return fault


def lost(folder):
  sharded()(folder)
  next(folder.glob("*-00002-of-*")).unlink()


def linked(folder):
  sharded()(folder)
  shard = next(folder.glob("*-00002-of-*"))
  shard.rename(folder.parent / "elsewhere.safetensors")
  shard.symlink_to(folder.parent / "elsewhere.safetensors")


FIRST = "model-00001-of-"
FAULTS = {
  "half": (cut(0.5), "damaged, truncated"), "a byte": (cut(0.9999), "damaged, truncated"),
  "in the header": (cut(0.1), "damaged, truncated"), "empty": (cut(0), "damaged, truncated"),
  "overlap": (offsets(lambda a, b: [a - 2, b - 2]), "damaged, truncated"),
  "beyond": (offsets(lambda a, b: [a + 2**40, b + 2**40]), "damaged, truncated"),
  "backwards": (offsets(lambda a, b: [b, a]), "damaged, truncated"),
  "twice": (header(twice), "damaged, truncated"),
  "in two files": (in_two_files, "a: tensor 'model.embed_tokens.weight' is in model-00001"),
  "name": (header(lambda h: {"model.nrom" if k == NORM else k: v for k, v in h.items()}), "missing in"),
  "shape": (lambda folder: save(folder, values(1) | {NORM: np.ones((2, 2), np.float32)}), "(2, 2) in a"),
  "kind": (lambda folder: save(folder, values(1) | {NORM: np.ones(4, np.int8)}), "int8 in a"),
  "lost shard": (lost, "which is not there"), "linked": (linked, "a link out of the folder"),
  "index": (sharded(lambda text: text[:-20]), "not valid JSON"),
  "no map": (sharded(lambda text: "{}"), "weight_map"),
  "up": (sharded(lambda text: text.replace(FIRST, f"../b/{FIRST}")), "plain name of a file beside it"),
  "absolute": (sharded(lambda text: text.replace(FIRST, f"/b/{FIRST}")), "plain name of a file beside it"),
  "other shard": (sharded(lambda text: text.replace("00001-of", "00002-of")), "is not in"),
  "unknown": (sharded(lambda text: text.replace(NORM, "model.x")), "'model.x' is not in"),
  "config": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
  "no tensors": (lambda folder: save(folder, {}), "missing in a"),
  "gone": (shutil.rmtree, "a"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_damage_is_one_sentence(world, name):
  fault, words = FAULTS[name]
  fault(world / "a")
  assert words in refused(world)


def test_random_damage_is_one_sentence_or_merged_as_it_reads(world):
  """A changed bit of a number is a number: then the result is that of what the library reads."""
  rng, file = random.Random(0), world / "a" / "model.safetensors"
  whole, merged, b = file.read_bytes(), 0, checkpoints.open("b")
  for _ in range(FUZZ):
    file.write_bytes(mutant(whole, rng))
    try:
      run(allow_nonfinite=True)
    except (ValueError, OSError) as error:
      assert "\n" not in str(error) and not Path("out").exists() and not list(world.glob(".out*")), error
      continue
    merged += 1
    got = checkpoints.open("out")
    read = checkpoints.open("a")  # held to the library's reader in test_safetensors.py
    for name in read.specs:
      with np.errstate(all="ignore"):
        expected = (read.read(name).astype(np.float32) + b.read(name).astype(np.float32)) / 2
        np.testing.assert_array_equal(got.read(name), expected.astype(got.specs[name].dtype))
    shutil.rmtree("out")
  assert 0 < merged < FUZZ


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(world, bad):
  tensors = values(2)
  tensors[NORM][2] = bad
  shutil.rmtree("b")
  save(world / "b", tensors)
  said = refused(world)
  assert f"Tensor '{NORM}' of b holds 1 values that are NaN or infinite" in said and "allow_nonfinite" in said
  run(allow_nonfinite=True)
  got = checkpoints.open("out")
  for name in got.specs:
    finite = np.isfinite(got.read(name).astype(np.float32))
    assert finite.tolist() == ([True, True, False, True] if name == NORM else np.ones_like(finite).tolist())


def test_a_result_that_overflows_is_named(world):
  large = LINEAR.replace("weight: 1", "weight: 1e6, normalize: false")
  assert "too large for float16" in refused(world, large + "out_dtype: float16\n")


@pytest.mark.parametrize("call", (0, 1, 5, 8))
def test_a_full_disk_is_one_sentence_and_the_rest_goes_on(world, monkeypatch, call):
  whole = merge(output="whole", max_shard_gb=SHARD)
  real, calls = os.pwrite, iter(range(call))

  def pwrite(*arguments):
    if next(calls, None) is None:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="the disk is full") as caught:
      run(max_shard_gb=SHARD)
  assert "\n" not in str(caught.value) and not Path("out").exists()
  assert merge(max_shard_gb=SHARD) == whole and not list(world.glob(".out*"))


@pytest.mark.parametrize(
  ("output", "words"),
  [
    (" ", "is empty"),
    ("recipe.yml", "exists"),
    ("recipe.yml/x", "Not a directory"),
    ("a/new/x", "lies in the input"),
    ("a", "is the input"),
    ("./b/../a/new", "lies in the input"),
    (".", "name the folder to make"),
    ("filled", "not empty"),
    ("x" * 300, "File name too long"),
    ("y" * 240, "the name is too long"),
    ("loop", "symbolic links"),
    ("/proc/merged", "/proc"),
    ("a\0b", "null byte"),
  ],
)
def test_places_that_cannot_be_written_are_refused(world, output, words):
  (world / "filled").mkdir()
  (world / "filled" / "mine.txt").write_text("x")
  (world / "loop").symlink_to("loop")
  Path("recipe.yml").write_text(LINEAR)
  said = refused(world, output=output)
  assert words in said


OWN = "method: {method}\nmodels: {{a: {{path: {a}}}, b: {{path: b{more}}}}}\nparameters: {{}}\n"


@pytest.mark.parametrize(
  ("text", "where"),
  [
    (OWN.format(method="linear", a="old/model.safetensors", more=""), "model.safetensors"),
    (OWN.format(method="linear", a="linked", more=""), "linked"),  # a folder with a link to the file
    (OWN.format(method="linear", a="old/sub", more=""), "sub"),
    (OWN.format(method="fisher", a="a, statistics: old/f", more=", statistics: f"), "old/f"),
    (OWN.format(method="linear", a="a, adapter: old/lora", more=""), "lora"),
  ],
)
def test_what_a_merge_reads_it_does_not_replace(world, text, where):
  run(output="old")
  shutil.copytree("a", "old/sub")
  Path("linked").mkdir()
  Path("linked/model.safetensors").symlink_to(world / "old" / "model.safetensors")
  shutil.copy("a/config.json", "linked")
  about = statistics_file.About(kind="fisher", tensors=list(values(0)))
  for file in ("f", "old/f"):
    statistics_file.save(file, {n: np.ones(x.shape, np.float32) for n, x in values(0).items()}, about)
  merging.adapt("old/lora")
  Path("recipe.yml").write_text(text)
  with pytest.raises(ValueError, match=f"the input .*{where}.* lies where old is written"):
    recipes.refuse_output(recipes.check("recipe.yml"), "old", overwrite=True)
  said = refused(world, text, "old", overwrite=True)
  assert "--output_dir: the input" in said
  run(text, "new")  # elsewhere it merges


def test_what_a_merge_reads_does_not_go_away_with_its_stages(world):
  shutil.copytree("a", ".out.stages/kept")
  stage = "name: s\nmethod: linear\nmodels: [a, b]\n---\n"
  said = refused(world, stage + "method: linear\nmodels: [s, .out.stages/kept]\n")
  assert "the input" in said and "lies where" in said


def test_a_merge_does_not_write_into_an_adapter(world):
  merging.adapt("lora")
  text = OWN.format(method="linear", a="a, adapter: lora", more="")
  adapted = checkpoints.with_adapter(checkpoints.open("a"), "lora")
  remapped = embeddings.Remapped(
    adapted.path, {}, {}, None, adapted, {"x": adapted}, "x", None, frozenset(), frozenset()
  )
  assert remapped.places == adapted.places == (adapted.path, Path("lora"))
  assert "lies in the input lora" in refused(world, text, "lora/inner")


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_platforms", "cpu")
from merge_jax import recipes
left = int(sys.argv[1])
def counted(name):
  real = getattr(os, name)
  def function(*args, **options):
    global left
    left -= 1
    if left == 0:
      os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
  setattr(os, name, function)
for name in ("pwrite", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "truncate"):
  counted(name)
recipes.run("recipe.yml", "out", max_shard_gb=float(sys.argv[2]))
print(int(sys.argv[1]) - left)
"""
DOCUMENTS = f"""{LINEAR}name: half
---
merge_method: dare_ties
base_model: base
models: [{{model: half}}, {{model: b}}]
parameters: {{weight: 1, density: 0.5}}
"""


def killed(at):
  return subprocess.run(
    [sys.executable, "-c", KILLED, str(at), str(SHARD)], capture_output=True, text=True, timeout=120
  )


def test_kills_at_any_step_end_in_the_same_bytes(world):
  """A kill at a random write, sync, rename or removal; the next run ends as if there was none."""
  whole, inputs = merge(DOCUMENTS, "whole", max_shard_gb=SHARD), content(world)
  rng = random.Random()
  for _ in range(KILLS):
    at = rng.randint(1, 105)
    done = killed(at)
    assert done.returncode in (-signal.SIGKILL, 0), (at, done.stderr)
    if Path("out").exists():  # the last rename was done
      got = {name: data for name, data in content(Path("out")).items() if "safetensors" in name}
      assert got == whole, at
      shutil.rmtree("out")
    assert merge(DOCUMENTS, max_shard_gb=SHARD) == whole, at
    assert {k: v for k, v in content(world).items() if not k.startswith("out/")} == inputs, at
    assert not list(world.glob(".*")), at
    shutil.rmtree("out")
