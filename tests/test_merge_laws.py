"""What holds of every merge: the same bytes however it runs, one model is itself, bad recipes are told."""

import copy
import json
import os
import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml

from merge_jax import checkpoints, recipes
from merge_jax.checkpoints import hub
from tests import merging
from tests.merging import SHARD, run, save, values

FUZZ = int(os.environ.get("MERGE_JAX_FUZZ", "100"))


@pytest.fixture
def world(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  merging.make(tmp_path)
  return tmp_path


def tensors(folder):
  opened = checkpoints.open(folder)
  return {name: opened.read(name).tobytes() for name in opened.specs}


def own(method, *models, parameters="{}", base="base: base\n"):
  return f"method: {method}\n{base}models: [{', '.join(models)}]\nparameters: {parameters}\n"


@pytest.mark.parametrize(
  "text",
  [
    own("ties", "a", "b", parameters="{density: 0.3, scope: model}"),
    own("dare_ties", "a", "b", parameters="{density: 0.5}"),
    own("karcher", "a", "b", base=""),
    own("della", "a", "b", parameters="{density: 0.5, epsilon: 0.1}"),
  ],
)
def test_memory_threads_and_shards_do_not_change_a_byte(world, text):
  run(text, "first/out", memory_gib=1.0, threads=1)
  for i, (memory_gib, threads, shard) in enumerate([(1e-6, 1, SHARD), (1e-6, 4, 5.0), (1.0, 4, 5.0)]):
    run(text, f"{i}/out", memory_gib=memory_gib, threads=threads, max_shard_gb=shard)
    assert tensors(f"{i}/out") == tensors("first/out")
    if shard == 5.0:
      assert merging.content(world / f"{i}/out") == merging.content(world / "first/out")


def extremes(seed):
  """Values of every size that a dtype has, with both zeros and the smallest numbers."""
  generator = np.random.default_rng(seed)
  bits = generator.integers(0, 1 << 16, (8, 8)).astype(np.uint16)
  wild = bits.view(ml_dtypes.bfloat16)
  wild = np.where(np.isfinite(wild.astype(np.float32)), wild, 0).astype(ml_dtypes.bfloat16)
  half = bits.view(np.float16)
  return {
    "bf16": wild, "f16": np.where(np.isfinite(half), half, np.float16(-0.0)),
    "f32": np.array([0.0, -0.0, 1e38, -1e-38, np.pi], np.float32), "step": np.array(2**40 + 1),
    "flag": np.array([True, False]), "empty": np.zeros((0, 3), np.float16),
  }  # fmt: skip


ONE = {
  "linear": "merge_method: linear\nmodels: [{model: x}]\nparameters: {weight: 1}\n",
  "a sum": "merge_method: linear\nmodels: [{model: x}]\nparameters: {weight: 1, normalize: false}\n",
  "passthrough": "merge_method: passthrough\nmodels: [{model: x}]\n",
  "our linear": own("linear", "x", base=""), "uniform": own("uniform", "x", base=""),
  "trajectory": "method: linear\nmodels: {x: {path: x, step: 3}}\nschedule: {name: minus_sqrt}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_one_model_with_weight_1_gives_its_bytes_back(world, name):
  save(world / "x", extremes(0))
  run(ONE[name])
  want, got = checkpoints.open("x"), checkpoints.open("out")
  assert got.specs == want.specs
  for tensor in want.specs:
    np.testing.assert_array_equal(_bits(got.read(tensor)), _bits(want.read(tensor)), err_msg=tensor)


def _bits(value):
  return np.frombuffer(value.tobytes(), np.uint8)


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_one_adapted_model_is_the_model_that_it_stands_for(world, method):
  merging.adapt("lora")
  run(ONE[method].replace("model: x", "model: a+lora"))
  adapted, got = checkpoints.with_adapter(checkpoints.open("a"), world / "lora"), checkpoints.open("out")
  for name, spec in got.specs.items():
    assert spec.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(got.read(name), adapted.read(name).astype(ml_dtypes.bfloat16))
  changed = {name for name in got.specs if got.read(name).tobytes() != values(1)[name].tobytes()}
  assert changed == {f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)}


def test_an_adapter_on_an_earlier_result_is_one_of_its_origins(world):
  merging.adapt("lora")
  run("name: s\nmethod: linear\nmodels: [a, b]\n---\nmethod: passthrough\nmodels: [s+lora]\n")
  told = json.loads((world / "out" / "merge_manifest.json").read_text())
  assert sorted(told["inputs"]) == ["a", "b", "s+lora"]


SEEDS = (
  """
merge_method: ties
base_model: base
models:
- {model: a, parameters: {weight: 0.5, density: [0.2, 0.9]}}
- {model: b, parameters: {weight: [{filter: mlp, value: 1}, {value: 0.3}]}}
parameters: {density: 0.5, normalize: true}
dtype: float32
out_dtype: bfloat16
chat_template: auto
""",
  """
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [1, 2], parameters: {scale: 0.5}}]
name: x
tokenizer: {source: union, pad_to_multiple_of: 8}
""",
  """
method: dare_ties
base: base
models: {x: {path: a, weight: 0.5, density: 0.2}, y: {path: b, weight: 1}}
parameters: {scaling: 0.5, density: 0.5}
rules:
- {tensors: '.*norm.*', method: uniform}
- {tensors: '.*mlp.*', parameters: {scaling: 1, weight: {y: 0}}}
dtype: bfloat16
seed: 3
""",
)
ODD = (
  None, True, False, 0, 1, -1, 2**64, 0.5, -1e30, 1e39, float("nan"), float("inf"), "", "a", "a+b", "a@b",
  "x/y/z", "../a", "/", "\0", "é", "0.5", "1e-5", "[", "ties", "linear", "lambda", "*", [], [1, 2], [0, "a"],
  {}, {"a": 1}, {"value": 1}, {"filter": "mlp"}, [[]], [None], [{"model": "a"}], {"model": {"model": "a"}},
  "bfloat16", "float64", "int8", "union", [[[0.5]]], {"value": [], "filter": None}, {1: 2}, {None: 0},
)  # fmt: skip


def places(node, path=()):
  yield path
  if isinstance(node, dict):
    for key, value in node.items():
      yield from places(value, (*path, key))
  elif isinstance(node, list):
    for i, value in enumerate(node):
      yield from places(value, (*path, i))


def mutated(recipe, rng):
  """A recipe with one to three changes: a value, a key, a part of it left out, twice or elsewhere."""
  recipe = copy.deepcopy(recipe)
  for _ in range(rng.randint(1, 3)):
    path = rng.choice([one for one in places(recipe) if one] or [()])
    if not path:
      return rng.choice(ODD)
    parent = recipe
    for key in path[:-1]:
      parent = parent[key]
    kind, key = rng.randrange(6), path[-1]
    other = rng.choice([recipe, *ODD])
    if kind == 0:
      del parent[key]
    elif kind == 1 and isinstance(parent, list):
      parent.insert(key, copy.deepcopy(rng.choice([*parent, *ODD])))
    elif kind == 1:
      parent[rng.choice([*merging.SHAPES, "weight", "slices", "models", "base", "x", "", 3])] = copy.deepcopy(
        other
      )
    elif kind == 2 and isinstance(parent, dict) and isinstance(key, str) and key:
      at = rng.randrange(len(key))
      parent[key[:at] + rng.choice("abx_") + key[at + 1 :]] = parent.pop(key)
    else:
      parent[key] = copy.deepcopy(other)
  return recipe


def offline(text, *_):
  raise FileNotFoundError(f"{text}: not in the cache.")


def test_any_recipe_is_built_or_told_off_in_one_sentence(world, monkeypatch):
  rng, built = random.Random(0), 0
  loaded = [yaml.safe_load(text) for text in SEEDS]
  monkeypatch.setattr(checkpoints.Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
  monkeypatch.setattr(hub, "_snapshot", offline)
  for _ in range(FUZZ):
    text = yaml.safe_dump(mutated(rng.choice(loaded), rng), sort_keys=False, allow_unicode=True)
    if rng.randrange(5) == 0:
      at = rng.randrange(len(text))
      text = (
        text[:at] + rng.choice(["\t", ":", "- ", "{", "&a ", "*a", "!!python/none", "\n", "'"]) + text[at:]
      )
    Path("recipe.yml").write_text(text)
    try:
      recipes.check("recipe.yml")
      built += 1
    except (ValueError, OSError) as error:
      assert str(error) and "\n" not in str(error) and len(str(error)) < 2000, text
    except Exception as error:
      raise AssertionError(text) from error
  assert 0 < built < FUZZ
