"""Recipes from end to end: tiny folders in, a folder out, against float64 numpy."""

import json
import math
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml
from orbax import checkpoint as ocp

from merge_jax import checkpoints, recipes, storage
from merge_jax.recipes import card, manifest, spelling

VOCABULARY, WIDTH, LAYERS = 10, 4, 3
CONFIG = {
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY,
  "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "tie_word_embeddings": False,
}  # fmt: skip


def tensors(seed, layers=LAYERS, head=True):
  generator = np.random.default_rng(seed)
  shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
  shapes |= {"lm_head.weight": (VOCABULARY, WIDTH)} if head else {}
  for i in range(layers):
    for part in ("self_attn.o_proj", "mlp.up_proj"):
      shapes[f"model.layers.{i}.{part}.weight"] = (WIDTH, WIDTH)
  return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(folder, values, config=CONFIG):
  folder.mkdir(parents=True)
  checkpoints.write(folder, values)
  (folder / "config.json").write_text(json.dumps(config))
  return values


def load(folder):
  opened = checkpoints.open(folder)
  return {name: opened.read(name).astype(np.float64) for name in opened.specs}


@pytest.fixture
def world(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return {name: save(tmp_path / name, tensors(i)) for i, name in enumerate(("base", "a", "b"))}


def merge(text, output="out", **options):
  recipe = here("recipe.yml")
  recipe.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
  built = recipes.run(recipe, output, **options)
  return built, load(here(output))


def here(name):
  return Path.cwd() / name


def kit(method, *models, **more):
  listed = [{"model": m, "parameters": p} if p else {"model": m} for m, p in models]
  return {"merge_method": method, "models": listed, **more}


def test_filters_and_gradients_reach_every_tensor(world):
  text = kit(
    "linear", ("a", {"weight": [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.25}]}),
    ("b", {"weight": [1, 2, 4]}), parameters={"normalize": False},
  )  # fmt: skip
  _, got = merge(text)
  for name, value in got.items():
    layer = int(name.split(".")[2]) if ".layers." in name else 0
    of_a = layer / 2 if "mlp" in name else 0.25
    expected = of_a * world["a"][name].astype(np.float64) + [1, 2, 4][layer] * world["b"][name]
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_a_base_and_two_dtypes(world):
  text = kit(
    "task_arithmetic", ("a", {"weight": 0.5}), ("base", {}), ("b", {"weight": 0.25}), base_model="base",
    parameters={"lambda": 2}, dtype="float32", out_dtype="bfloat16",
  )  # fmt: skip
  built, got = merge(text, verify=True)
  for name, value in got.items():
    base, a, b = (world[key][name].astype(np.float64) for key in ("base", "a", "b"))
    expected = (base + 2 * (0.5 * (a - base) + 0.25 * (b - base))).astype(np.float32)
    np.testing.assert_allclose(value, expected.astype(ml_dtypes.bfloat16).astype(np.float64), rtol=1e-2)
  assert {str(spec.dtype) for spec in built.specs.values()} == {"bfloat16"}
  assert json.loads(here("out/config.json").read_text())["dtype"] == "bfloat16"


def test_an_unlisted_base_is_averaged_in_as_mergekit_does(world):
  built, got = merge(kit("linear", ("a", {}), ("b", {}), base_model="base", parameters={"weight": 1}))
  assert "averages the base" in built.notes[0]
  name = "model.norm.weight"
  np.testing.assert_allclose(got[name], sum(world[k][name] for k in world) / 3, rtol=1e-6)
  built, got = merge(
    kit("linear", ("a", {}), ("b", {}), base_model="base", parameters={"weight": 1}),
    "paper",
    semantics="paper",
  )
  assert "does not use the base" in built.notes[0]
  np.testing.assert_allclose(got[name], (world["a"][name] + world["b"][name]) / 2, rtol=1e-6)


@pytest.mark.parametrize(("method", "module"), [("linear", False), ("karcher", True)])
def test_a_base_is_not_averaged_into_slices(world, method, module):
  sources = [{"model": model, "layer_range": [0, 3]} for model in ("a", "b")]
  text = {"slices": [{"sources": sources}]}
  text = {"merge_method": method} | ({"modules": {"default": text}} if module else text)
  text |= {"parameters": {"weight": 1}} if method == "linear" else {}
  built, got = merge(text | {"base_model": "base"})
  assert "does not use the base" in built.notes[0]
  _, expected = merge(text, "without")
  for name, value in got.items():
    np.testing.assert_array_equal(value, expected[name])


def stacked(*parts):
  return [{"sources": [{"model": m, "layer_range": list(r), "parameters": {"weight": 1}}]} for m, r in parts]


def test_slices_stack_layers(world):
  built, got = merge({"merge_method": "linear", "slices": stacked(("a", (0, 2)), ("b", (1, 3)))}, verify=True)
  assert built.config["num_hidden_layers"] == 4 and len(got) == 3 + 2 * 4
  for layer, (model, source) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2)]):
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(got[name.format(layer)], world[model][name.format(source)])
  np.testing.assert_array_equal(got["model.embed_tokens.weight"], world["a"]["model.embed_tokens.weight"])
  np.testing.assert_array_equal(got["lm_head.weight"], world["b"]["lm_head.weight"])


@pytest.mark.parametrize("name", ["layers.1.extra", "embed_positions", "final", "layers.2.extra"])
def test_a_slices_further_sources_have_no_tensor_that_its_first_lacks(world, tmp_path, name):
  """In its layers, and where it is the first or last slice before or behind them."""
  more = {f"model.{name}.weight": np.ones(WIDTH, np.float32)}
  save(tmp_path / "more", world["b"] | more)
  rows = [[("a", (0, 2)), ("more", (0, 2))], [("a", (1, 2)), ("b", (1, 2))]]
  if name == "final":
    rows.reverse()
  slices = [{"sources": [s for part in row for s in stacked(part)[0]["sources"]]} for row in rows]
  recipe = {"merge_method": "linear", "slices": slices}
  if name == "layers.2.extra":  # in no layer that is taken
    merge(recipe)
  else:
    with pytest.raises(ValueError, match=f"'model.{name}.weight' of more is missing in a"):
      merge(recipe)


def test_the_first_model_leads_whatever_base_a_slice_has(world, tmp_path):
  save(tmp_path / "other", world["base"], CONFIG | {"rope_theta": 7.0})
  (tmp_path / "other/chat_template.jinja").write_text("{{ other }}")
  slices = stacked(("a", (0, 2)), ("b", (1, 3)))
  slices[0]["base_model"] = "other"
  built, _ = merge({"merge_method": "linear", "slices": slices, "chat_template": "chatml"})
  assert built.like.path.name == "a" and "rope_theta" not in built.config
  assert "linear does not use the base other" in built.notes


@pytest.mark.parametrize("sources", [["a"], ["a", "b"]])
def test_a_slice_lists_the_base_that_its_method_starts_from(world, sources):
  """As in mergekit; where differences to it are merged, it may join them."""
  slices = [{"sources": [{"model": m, "layer_range": [0, 3]} for m in sources]}]
  slerp = {"merge_method": "slerp", "base_model": "base", "slices": slices, "parameters": {"t": 0.5}}
  with pytest.raises(ValueError, match="base base, which is not among the sources of a slice"):
    merge(slerp)
  vectors = slerp | {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5}}
  built, _ = merge(vectors)
  assert any("the base base joins the slices" in note for note in built.notes)


@pytest.mark.parametrize("own", [True, False])
def test_parameters_of_a_restacked_layer(world, own):
  """Filters of what each model has its own of look at the input's name; gradients run in a slice."""
  slices = stacked(("a", (0, 2)), ("a", (1, 3)))
  sources = [one["sources"][0] for one in slices]
  scope = sources[1] if own else slices[1]
  del sources[1]["parameters"]
  scope["parameters"] = {"weight": [{"filter": "layers.2.", "value": 3}, {"value": [1, 2]}]}
  _, got = merge({"merge_method": "linear", "slices": slices, "parameters": {"normalize": False}})
  name = "model.layers.{}.mlp.up_proj.weight"
  for layer, factor in enumerate((1, 1, 1, 3)):
    source = world["a"][name.format(layer - layer // 2)]
    np.testing.assert_allclose(got[name.format(layer)], factor * source, rtol=1e-6)


def test_a_tied_head_beside_a_head_of_its_own(world, tmp_path):
  save(tmp_path / "tied", tensors(5, head=False), CONFIG | {"tie_word_embeddings": True})
  built, got = merge(kit("linear", ("tied", {}), ("a", {}), parameters={"weight": 1}))
  expected = (load(tmp_path / "tied")["model.embed_tokens.weight"] + world["a"]["lm_head.weight"]) / 2
  np.testing.assert_allclose(got["lm_head.weight"], expected, rtol=1e-6)
  assert built.config["tie_word_embeddings"] is False and "ties its head" in built.notes[0]


def test_counts_of_a_tied_head_are_those_of_its_embedding(world, tmp_path):
  saved = tensors(5, head=False)
  save(tmp_path / "tied", saved, CONFIG | {"tie_word_embeddings": True})
  save(tmp_path / "twin", saved | {"lm_head.weight": saved["model.embed_tokens.weight"]})
  (_, got), (_, expected) = (
    merge(
      kit("ties", (model, {}), base_model="base", parameters={"weight": 1, "density": 0.5}), f"of_{model}"
    )
    for model in ("tied", "twin")
  )
  np.testing.assert_array_equal(got["lm_head.weight"], expected["lm_head.weight"])


@pytest.mark.parametrize(
  "buffer",
  [
    "h.0.attn.masked_bias", "gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias",
    "transformer.rotary_pos_emb.inv_freq", "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq",
  ],
)  # fmt: skip
def test_buffers_of_old_exports_are_left_out(world, tmp_path, buffer):
  save(tmp_path / "old", tensors(5) | {buffer: np.ones((1, 1, 2, 2) if buffer.endswith("n.bias") else 2)})
  built, got = merge(kit("linear", ("old", {}), ("a", {}), parameters={"weight": 1}))
  assert built.notes == ("buffers that not all models hold are left out",) and got.keys() == world["a"].keys()


def test_buffers_that_all_models_hold_are_those_of_the_first(world, tmp_path):
  """They are computed, not learned: no rule changes them, whatever the result's dtype; a bias is no mask."""
  held = {"rotary.inv_freq": np.float32([1.0, 0.1]), "h.0.attn.bias": np.ones((1, 1, 2, 2), np.float32)}
  for i, model in enumerate(("one", "two"), 1):
    buffers = {name: i * value for name, value in held.items()}
    save(tmp_path / model, tensors(i) | buffers | {"h.1.attn.bias": np.full(4, i, np.float32)})
  weighed = {"weight": 0.5, "normalize": False}
  _, got = merge(kit("linear", ("one", {}), ("two", {}), parameters=weighed, dtype="float16"))
  written = checkpoints.open(tmp_path / "out").specs
  for name, value in held.items():
    assert written[name].dtype == np.float32
    np.testing.assert_array_equal(got[name], value)
  np.testing.assert_array_equal(got["h.1.attn.bias"], np.full(4, 1.5))


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (("model.", ""), "tensors are read with model. before their names"),
    (("LayerNorm.weight", "LayerNorm.gamma"), "LayerNorm.gamma and beta are read as weight and bias"),
  ],
)
@pytest.mark.parametrize("first", ["old", "new"])
def test_spellings_of_other_exports_are_aligned(world, tmp_path, change, said, first):
  old, new = (
    {name.replace("norm.weight", "LayerNorm.weight"): value for name, value in tensors(seed).items()}
    for seed in (1, 2)
  )
  save(tmp_path / "new", new)
  save(tmp_path / "old", {name.replace(*change): value for name, value in old.items()})
  models = (("old", {"weight": 0.25}), ("new", {"weight": 0.75}))
  built, got = merge(kit("linear", *(models if first == "old" else models[::-1])))
  assert built.notes == (f"old: {said}",) and got.keys() == new.keys()
  for name in new:
    np.testing.assert_allclose(got[name], 0.25 * old[name] + 0.75 * new[name], rtol=1e-6, atol=1e-7)


def test_only_what_another_model_calls_otherwise_is_renamed():
  """Half of one model is old; another has a tensor of either name, and keeps both."""
  norm = [f"h.{i}.LayerNorm.{kind}" for i in range(2) for kind in ("weight", "gamma")]
  half = [f"h.{i}.LayerNorm.{kind}" for i, kind in enumerate(("weight", "gamma"))]
  found = spelling.spelled({"both": norm, "half": half, "new": norm[::2]})
  assert [own for own, _ in found.values()] == [norm, norm[::2], norm[::2]]


def test_layers_that_the_other_models_lack_are_aligned_too():
  short = [f"layers.{i}.w" for i in range(3)] + ["norm.w"]
  whole = [f"model.layers.{i}.w" for i in range(2)] + ["model.norm.w", "lm_head.w"]
  found = spelling.spelled({"short": [*short, "lm_head.w"], "whole": whole})
  assert found["short"][0] == [f"model.{name}" for name in short] + ["lm_head.w"]
  old = [f"layer.{i}.LayerNorm.gamma" for i in range(3)]
  found = spelling.spelled({"old": old, "new": ["layer.0.LayerNorm.weight"]})
  assert found["old"][0] == [name.replace("gamma", "weight") for name in old]


def test_the_result_of_a_stage_has_its_spelling_before_it_is_there(world, tmp_path):
  short = {name.removeprefix("model."): value for name, value in world["a"].items()}
  save(tmp_path / "short", short)
  first = kit("linear", ("a", {}), ("b", {}), parameters={"weight": 1}, name="one")
  last = kit("linear", ("one", {}), ("short", {}), parameters={"weight": 1})
  here("recipe.yml").write_text(yaml.safe_dump_all([first, last], sort_keys=False))
  planned = recipes.check("recipe.yml")[-1]
  built = recipes.run("recipe.yml", "out")
  assert [job.name for job in planned.jobs] == [job.name for job in built.jobs]
  assert checkpoints.open(here("out")).specs.keys() == world["a"].keys()


def test_the_container_of_a_tree_is_no_spelling(world, tmp_path):
  tree = {"params": {name: value + 1 for name, value in world["a"].items()}}
  with ocp.StandardCheckpointer() as saver:
    saver.save(tmp_path / "tree", tree)
  built, got = merge(kit("linear", ("tree", {}), ("a", {}), parameters={"weight": 1}))
  assert built.notes[0] == "tree: tensors are read without params. before their names"
  assert got.keys() == world["a"].keys()
  np.testing.assert_allclose(got["model.norm.weight"], world["a"]["model.norm.weight"] + 0.5, rtol=1e-6)


def test_unions_of_vocabularies_take_rows_from_other_spellings(world, tmp_path):
  for name, prefix, words in (("bare", "", ["?", "a"]), ("pre", "transformer.", ["?", "b", "a"])):
    layer = {f"{prefix}h.{i}.w": np.ones((2, 2), np.float32) for i in range(2)}
    rows = np.arange(2 * len(words), dtype=np.float32).reshape(-1, 2) + 10 * len(prefix)
    save(tmp_path / name, layer | {f"{prefix}wte.weight": rows}, {"vocab_size": len(words)})
    tokens = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "?"}
    (tmp_path / name / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": tokens}))
  recipe = kit("linear", ("bare", {}), ("pre", {}), parameters={"weight": 1}, tokenizer_source="union")
  _, got = merge(recipe)
  bare, pre = np.arange(4.0).reshape(2, 2), np.arange(6.0).reshape(3, 2) + 120
  expected = [(bare[0] + pre[0]) / 2, (bare[1] + pre[2]) / 2, pre[1]]
  np.testing.assert_array_equal(got["transformer.wte.weight"], expected)


def test_filters_that_are_in_no_name_are_said(world):
  weight = [{"filter": "transformer.h.1", "value": 2.0}, {"value": 1.0}]
  built, _ = merge(kit("linear", ("a", {"weight": weight}), ("b", {"weight": 1.0})))
  assert built.notes == ("the filter 'transformer.h.1' is in no tensor's name",)


@pytest.mark.parametrize(("method", "said"), [("ties", True), ("linear", False)])
def test_experts_that_mergekit_fuses_are_said(world, tmp_path, method, said):
  names = [f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight" for i in range(2)]
  for seed, model in enumerate(("base", "x", "y")):
    extra = {name: np.full((4, 4), seed, np.float32) for name in names}
    save(tmp_path / "moe" / model, tensors(seed) | extra, CONFIG | {"model_type": "mixtral"})
  based = {"base_model": "moe/base"} if method == "ties" else {}
  built, _ = merge(kit(method, ("moe/x", {}), ("moe/y", {}), parameters={"weight": 1}, **based))
  assert any("all experts of a layer" in note for note in built.notes) == said


@pytest.mark.parametrize(
  ("tied", "untied", "expected"),
  [
    ({}, {"tie_word_embeddings": False}, {"tie_word_embeddings": False}),  # Gemma, GPT-2: a class may tie
    ({"tie_word_embeddings": True}, {}, {"tie_word_embeddings": False}),
    (None, {}, {}),
  ],
)
def test_the_config_says_whose_head_the_result_has(world, tmp_path, tied, untied, expected):
  config = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
  save(tmp_path / "untied", tensors(6), config | untied)
  save(tmp_path / "other", tensors(5, head=tied is None), config | (tied or {}))
  built, _ = merge(kit("linear", ("other", {}), ("untied", {}), parameters={"weight": 1}))
  assert built.config == config | expected


def test_a_head_that_its_config_ties_is_the_embedding_or_refused(world, tmp_path):
  same = tensors(5) | {"lm_head.weight": tensors(5)["model.embed_tokens.weight"]}
  for name, values in {"same": same, "other": tensors(5)}.items():
    save(tmp_path / name, values, CONFIG | {"tie_word_embeddings": True})
  recipe = kit("linear", ("same", {}), ("same", {}), parameters={"weight": 1})
  np.testing.assert_array_equal(merge(recipe)[1]["model.embed_tokens.weight"], same["lm_head.weight"])
  with pytest.raises(
    ValueError, match=r"other: config ties lm_head.weight .* set tie_word_embeddings to false"
  ):
    merge(kit("linear", ("same", {}), ("other", {}), parameters={"weight": 1}), "refused")
  assert not here("refused").exists()


def test_tied_models_that_store_a_head_stay_tied(world, tmp_path):
  for name in ("x", "y"):  # as T5
    values = {tensor: np.ones((6, 2), np.float32) for tensor in ("shared.weight", "lm_head.weight")}
    save(tmp_path / name, values, {"tie_word_embeddings": True})
  built, got = merge(kit("linear", ("x", {}), ("y", {}), parameters={"weight": 1}))
  assert built.config["tie_word_embeddings"] is True and "lm_head.weight" in got and not built.notes


@pytest.mark.parametrize(
  ("kinds", "dtype"),
  [
    (("bfloat16", "float32"), "float32"),
    (("float16", "bfloat16"), "float32"),
    (("float16", "float16"), "float16"),
  ],
)
def test_without_a_dtype_the_result_holds_the_numbers_of_all(world, kinds, dtype):
  for name, kind in zip(("x", "y"), kinds, strict=True):
    save(here(name), {key: value.astype(kind) for key, value in world["a"].items()})
  for i, models in enumerate((("x", "y"), ("y", "x"))):
    built, _ = merge(kit("linear", *((m, {}) for m in models), parameters={"weight": 1}), f"out{i}")
    assert {str(spec.dtype) for spec in built.specs.values()} == {dtype}
  built, _ = merge("method: linear\nmodels: [x, y]", "own")
  assert {str(spec.dtype) for spec in built.specs.values()} == {kinds[0]}


@pytest.mark.parametrize(
  ("method", "parameters", "flat"),
  [
    ("arcee_fusion", {}, (6, 4)),
    ("model_stock", {"filter_wise": True}, (6, 4)),
    ("nuslerp", {"weight": [1, 2], "nuslerp_flatten": False}, (6, 4)),
    ("nuslerp", {"weight": [1, 2], "nuslerp_flatten": False, "nuslerp_row_wise": True}, (2, 12)),
  ],
)
def test_rows_of_mergekit_run_along_the_last_axis(tmp_path, monkeypatch, method, parameters, flat):
  monkeypatch.chdir(tmp_path)
  names = ("base", "x", "y")[: 2 if method == "arcee_fusion" else 3]
  for seed, name in enumerate(names):
    cube = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    save(here(name), {"cube": cube, "flat": cube.reshape(flat), "line": cube.reshape(1, 24)})
  weights = parameters.pop("weight", None)
  models = [(name, {"weight": weights[i]} if weights else {}) for i, name in enumerate(names[1:])]
  _, got = merge(kit(method, *models, base_model="base", parameters=parameters))
  np.testing.assert_allclose(got["cube"].reshape(flat), got["flat"], rtol=1e-6, atol=1e-6)
  base, *others = (load(here(name)) for name in names)
  assert not np.allclose(got["cube"], base["cube"])
  if "nuslerp_row_wise" in parameters:  # vectors of one element
    np.testing.assert_allclose(got["line"], (others[0]["line"] + 2 * others[1]["line"]) / 3, rtol=1e-5)


def test_della_of_density_0_is_the_base(world):
  text = kit("della", ("a", {"weight": 1, "density": 0}), base_model="base")
  _, got = merge(text)
  for name, value in got.items():
    np.testing.assert_array_equal(value, world["base"][name])
  with pytest.raises(ValueError, match=r"density is 0\.1 and epsilon 0\.15;"):
    merge(kit("della", ("a", {"weight": 1, "density": 0.1}), base_model="base"), "x")


@pytest.mark.parametrize("base", [{}, {"base_model": "base"}])
def test_one_model_of_multislerp_is_itself_as_in_mergekit(world, base):
  _, got = merge(kit("multislerp", ("a", {"weight": 0.3}), parameters={"normalize_weights": False}, **base))
  assert all((value == world["a"][name]).all() for name, value in got.items())


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_ties", "sce", "ram"])
def test_a_base_alone_is_itself_as_in_mergekit(world, method):
  """As people put an adapter into a model: `base_model: model+adapter`, and nothing else."""
  sliced = {"slices": [{"sources": [{"model": "base", "layer_range": [0, LAYERS]}]}]}
  built, got = merge({"merge_method": method, "base_model": "base"} | sliced)
  assert all((value == world["base"][name]).all() for name, value in got.items())
  assert any("no model but the base" in note for note in built.notes)


def test_weights_that_cancel_in_some_tensors(world):
  _, got = merge(
    kit("task_arithmetic", ("a", {"weight": [0, 1]}), ("b", {"weight": [0, 0.5]}), base_model="base",
        parameters={"normalize": True})
  )  # fmt: skip
  for layer in range(LAYERS):
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    base, a, b = (world[key][name].astype(np.float64) for key in ("base", "a", "b"))
    expected = base + (2 * (a - base) + (b - base)) / 3 if layer else base
    np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)


def test_what_the_first_layer_holds_for_all_stays_there(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = [f"model.layers.{i}.w" for i in range(3)] + ["model.layers.0.relative_attention_bias.weight"]
  save(here("a"), {name: np.ones(2, np.float32) for name in names}, CONFIG)
  for i, (parts, kept) in enumerate([
    (((0, 2), (1, 3)), True), (((1, 2), (0, 2)), False), (((0, 2), (0, 2)), True), (((1, 3),), False),
  ]):  # fmt: skip
    text = {"merge_method": "linear", "slices": stacked(*(("a", part) for part in parts))}
    if kept:
      assert [name for name in merge(text, f"out{i}")[1] if "bias" in name] == names[-1:]
    else:
      with pytest.raises(ValueError, match="all layers use 'relative_attention_bias"):
        merge(text, f"out{i}")
  moe = [f"model.layers.{i}.{'dense' if i == 0 else 'experts'}" for i in range(3)]  # the config tells these
  save(here("moe"), {name: np.ones(2, np.float32) for name in moe})
  assert len(merge({"merge_method": "linear", "slices": stacked(("moe", (1, 3)))}, "moe_out")[1]) == 2


def test_modules_of_an_encoder_decoder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shapes = {"shared.weight": (6, 2), "lm_head.weight": (6, 2)} | {
    f"{part}.{name}": (2,) for part in ("encoder", "decoder")
    for name in ("block.0.w", "block.1.w", "final_layer_norm.weight")
  }  # fmt: skip
  config = {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2}
  world = {}
  for seed, model in enumerate("ab"):
    generator = np.random.default_rng(seed)
    values = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    world[model] = save(tmp_path / model, values, config)
  parts = {
    "encoder": {"slices": stacked(("a", (0, 2)), ("b", (1, 2)))},
    "decoder": {"models": [{"model": "b", "parameters": {"weight": 1}}]},
  }
  built, got = merge({"merge_method": "linear", "modules": parts})
  assert (built.config["num_layers"], built.config["num_decoder_layers"]) == (3, 2)
  np.testing.assert_array_equal(got["encoder.block.2.w"], world["b"]["encoder.block.1.w"])
  np.testing.assert_array_equal(got["shared.weight"], world["a"]["shared.weight"])
  np.testing.assert_array_equal(got["lm_head.weight"], world["b"]["lm_head.weight"])
  with pytest.raises(ValueError, match="decoder is missing"):
    merge({"merge_method": "linear", "modules": {"encoder": parts["decoder"]}}, "x")
  with pytest.raises(ValueError, match=r"several|one list of layers"):
    merge({"merge_method": "linear", "slices": stacked(("a", (0, 2)))}, "x")


EYES = ["vision_tower.transformer.layers.0.w", "vision_tower.patch_conv.weight", "vision_tower.ln.weight"]
WORDS = ["language_model.layers.0.w", "embed_tokens.weight", "lm_head.weight"]


@pytest.mark.parametrize(
  "modules",
  [
    {"language_model": [*WORDS, "visual.merger.w"], "transformer": EYES},
    {"transformer": EYES, "language_model": [*WORDS, "visual.merger.w"]},
    {"merger": ["visual.merger.w"], "transformer": EYES, "language_model": WORDS},
    {"text_decoder": WORDS, "vision_tower": EYES, "multi_modal_projector": ["visual.merger.w"]},  # mergekit's
  ],
)
def test_modules_have_what_their_names_say_in_any_order(tmp_path, monkeypatch, modules):
  """What is outside of layers in a model that sees: patches are of its eyes, its head is not."""
  monkeypatch.chdir(tmp_path)
  for seed, model in enumerate("abc"):
    values = {name: np.full(2, seed, np.float32) for name in (*WORDS, *EYES, "visual.merger.w")}
    save(tmp_path / model, values, {"model_type": "llava"})
  sources = zip(modules, "abc", strict=False)
  parts = {name: {"models": [{"model": model, "parameters": {"weight": 1}}]} for name, model in sources}
  _, got = merge({"merge_method": "linear", "modules": parts})
  for seed, names in enumerate(modules.values()):
    assert all((got[name] == seed).all() for name in names), got
  with pytest.raises(ValueError, match="merger has no layers to take slices of"):
    merge({"merge_method": "linear", "modules": parts | {"merger": {"slices": stacked(("a", (0, 1)))}}}, "x")


def test_our_own_format_with_rules(world):
  text = """
    method: task_arithmetic
    base: base
    models: {x: {path: a, weight: 0.5}, y: {path: b, weight: 1}}
    parameters: {scaling: 0.5}
    rules:
      - {tensors: '.*norm.*', method: uniform}
      - {tensors: '.*mlp.*', parameters: {scaling: 1, weight: {y: 0}}}
    dtype: float32
  """
  built, got = merge(text)
  for name, value in got.items():
    base, a, b = (world[key][name].astype(np.float64) for key in ("base", "a", "b"))
    expected = base + 0.5 * (0.5 * (a - base) + (b - base))
    if "norm" in name:
      expected = (a + b) / 2
    elif "mlp" in name:
      expected = base + 0.5 * (a - base)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
  assert built.semantics == "paper" and built.jobs[0].models == ("x", "y")
  assert len({job.group for job in built.jobs}) == 2


def test_rules_that_decide_nothing_are_said(world):
  rules = [{"tensors": "norm", "method": "uniform"}, {"tensors": ".*norm.*", "method": "uniform"}]
  built, _ = merge({"method": "linear", "models": ["a", "b"], "rules": rules})
  assert [note for note in built.notes if "rule" in note] == [
    "the rule for 'norm' decides no tensor: a pattern has to match the whole name of one, and the first that "
    "does counts"
  ]


def test_a_rules_method_takes_weights_alone_from_outside(world):
  """`epsilon` is a tolerance to ram, a spread of densities to della."""
  text = """
    method: della
    base: base
    models: {x: {path: a, density: 0.5}, y: {path: b, density: 0.5}}
    parameters: {epsilon: 0.1, weight: 0.3}
    rules: [{tensors: '.*norm.*', method: %s}, {tensors: '.*mlp.*', method: task_arithmetic}]
  """
  built, got = merge(text % "ram", "as_ram")
  by_name = {job.name: choice for job, choice in zip(built.jobs, built.choices, strict=True)}
  assert "epsilon" not in by_name["model.norm.weight"].arguments
  name = "model.layers.0.mlp.up_proj.weight"
  base, a, b = (world[key][name].astype(np.float64) for key in ("base", "a", "b"))
  np.testing.assert_allclose(got[name], base + 0.3 * (a - base + b - base), rtol=1e-5, atol=1e-6)
  with pytest.raises(ValueError, match="dare_ties needs density"):
    merge(text % "dare_ties", "as_dare")


def test_ties_of_the_whole_model(world):
  import merge_jax as mj

  _, got = merge("method: ties\nbase: base\nmodels: [a, b]\nparameters: {density: 0.3}\n")
  expected = mj.merge(mj.ties(np.float32(0.3)), [world["a"], world["b"]], base=world["base"])
  for name, value in got.items():
    np.testing.assert_array_equal(value, np.asarray(expected[name]))


def test_random_masks_depend_on_seed_and_model_alone(world):
  text = "method: dare_ties\nbase: base\nmodels: {}\nparameters: {{density: 0.5}}\nseed: 3\n"
  results = [
    merge(text.format(models), f"out{i}", **options)[1]
    for i, (models, options) in enumerate(
      [
        ("{x: a, y: b}", {}),
        ("{y: b, x: a}", {}),
        ("{x: a, y: b}", {"seed": 3}),
        ("{x: a, y: b}", {"seed": 4}),
      ]
    )
  ]
  name = "model.embed_tokens.weight"
  np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-6)
  np.testing.assert_array_equal(results[0][name], results[2][name])
  assert not np.allclose(results[0][name], results[3][name])
  one, two = (here(f"out{i}/model.safetensors").read_bytes() for i in (0, 2))
  assert one == two


DOCUMENTS = """
merge_method: linear
models: [{model: half}, {model: base}]
parameters: {weight: 1}
---
name: half
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
"""


def test_documents_that_use_each_other(world):
  here(".out.stages/.other.resume-0123456789abcdef").mkdir(parents=True)  # a kill's, of another name
  _, got = merge(DOCUMENTS)
  name = "model.norm.weight"
  np.testing.assert_allclose(
    got[name], world["base"][name] / 2 + (world["a"][name] + world["b"][name]) / 4, rtol=1e-6
  )
  assert sorted(p.name for p in here(".").iterdir()) == ["a", "b", "base", "out", "recipe.yml"]
  told = storage.read_json(here("out/merge_manifest.json"), manifest.Manifest)
  assert told.recipe == DOCUMENTS and sorted(told.inputs) == ["a", "b", "base"]
  page = here("out/README.md").read_text()
  assert "A merge of 3 models" in page and DOCUMENTS.strip("\n") in page
  with pytest.raises(ValueError, match="made from each other"):
    merge(DOCUMENTS.replace("model: b}", "model: half}").replace("model: a}", "model: b}"), "x")
  for name in ("''", '"a\\0b"', "'..'", "a/b", "x" * 300):
    with pytest.raises(ValueError, match=r"the name .* is no plain word"):
      merge(DOCUMENTS.replace("name: half", f"name: {name}"), "x")
  named = f"name: other\n{DOCUMENTS}".replace("\n\n", "\n")  # the result is what no other uses
  assert all((value == got[name]).all() for name, value in merge(named, "named")[1].items())
  with pytest.raises(ValueError, match="'other' and 'half' are used by no document"):
    merge(named.replace("model: half", "model: a"), "x")
  with pytest.raises(ValueError, match="2 documents have no name"):
    merge(DOCUMENTS.replace("name: half", ""), "x")


def test_the_folder_says_what_it_is(world):
  text = "# my words\nmerge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\n"
  _, got = merge(text, max_shard_gb=3e-7, verify=True)
  for name, value in world["a"].items():
    np.testing.assert_array_equal(got[name], value)
  page = here("out/README.md").read_text()
  metadata = yaml.safe_load(page.split("---")[1])
  assert "base_model" not in metadata and "merge" in metadata["tags"] and "# my words" in page
  record = json.loads(here("out/merge_manifest.json").read_text())
  files = {p.name for p in here("out").iterdir()}
  assert set(record["outputs"]) | {manifest.NAME} == files
  assert "model.safetensors.index.json" in files and sum(name.endswith(".safetensors") for name in files) > 1
  assert record["inputs"] == {"a": storage.digest(checkpoints.open("a").files(), Path("a"))}


def test_the_card_names_models_of_the_hub_as_the_hub_does(world, tmp_path, monkeypatch):
  home = tmp_path / "models--org--m"
  save(home / "snapshots" / "c0ffee", tensors(5))
  (home / "refs").mkdir()
  (home / "refs" / "v1").write_text("c0ffee")
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  merge({"method": "linear", "models": ["org/m@v1", {"path": "org/m", "revision": "v1"}, "a"]})
  page = here("out/README.md").read_text()
  assert yaml.safe_load(page.split("---")[1])["base_model"] == ["org/m"] and "- `org/m@v1`" in page


def test_what_the_models_folders_say_beside_their_tensors(world):
  """A config as Mamba's files have it; what a training noted is of one model alone."""
  odd = CONFIG | {"time_step_limit": [0.0, math.inf], "dtype": "bfloat16", "torch_dtype": "bfloat16"}
  for name in "ab":
    (here(name) / "config.json").write_text(json.dumps(odd))
    (here(name) / "training.json").write_text('{"tokens": 5}')
  merge(kit("linear", ("a", {"weight": 1}), ("b", {"weight": 1})))
  made = odd | {"dtype": "float32", "torch_dtype": "float32"}
  assert json.loads(here("out/config.json").read_text()) == made
  assert not here("out/training.json").exists()


def test_chat_templates_beside_the_default_one_come_along(world):
  """As transformers 5 writes those for tools and documents: in a folder."""
  name = "additional_chat_templates/tool_use.jinja"
  for file, text in (("chat_template.jinja", "A"), (name, "T")):
    (here("a") / file).parent.mkdir(exist_ok=True)
    (here("a") / file).write_text(text)
  text = kit("linear", ("a", {"weight": 1}))
  merge(text)
  assert here(f"out/{name}").read_text() == "T" and name in manifest.outputs(here("out"))
  merge(text | {"chat_template": "chatml"}, overwrite=True)
  assert here("out/chat_template.jinja").exists() and not here("out/additional_chat_templates").exists()


def test_a_name_that_is_no_text_costs_no_merge(world):
  merge(kit("linear", ("a", {"weight": 1})), os.fsdecode(b"out\xff"))


def test_a_folder_is_replaced_only_if_a_merge_made_it(world, monkeypatch):
  text = kit("linear", ("a", {"weight": 1}))
  merge(text)
  with pytest.raises(FileExistsError, match="not empty"):
    merge(text)
  here("out/mine.txt").write_text("x")
  merge(text, overwrite=True)
  assert [p.name for p in here(".").glob("out.before-*/*")] == ["mine.txt"]
  monkeypatch.setenv("HOME", str(here(".")))
  assert storage.set_aside("out") == storage.set_aside("~/out") == [here("out.before-1")]
  planned = recipes.check("recipe.yml")
  recipes.refuse_output(planned, "out", overwrite=True)
  recipes.refuse_output(planned, "new")
  with pytest.raises(FileExistsError, match="not empty"):
    recipes.refuse_output(planned, "out")
  with pytest.raises(FileExistsError, match="no merge made it"):
    merge(text, "b", overwrite=True)
  with pytest.raises(ValueError, match="the input"):
    merge(text, "a/x")
  for output in (".", "..", "out/..", "/"):
    with pytest.raises(ValueError, match=r"--output_dir is .*; name the folder to make"):
      recipes.run("recipe.yml", output)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (kit("linear", ("a", {"weight": 1}), ("small", {"weight": 1})), "'model.layers.2.* missing in small"),
    (kit("linear", ("small", {"weight": 1}), ("a", {"weight": 1})), "'model.layers.2.* missing in small"),
    (kit("linear", ("a", {"weight": 1}), ("wide", {"weight": 1})), r"\(12, 4\) in wide.*tokenizer_source"),
    (kit("linear", ("a", {"weight": 1}), ("b", {})), "needs weight of b for tensor"),
    (kit("ties", ("a", {"weight": 1})), "add base_model"),
    (kit("multislerp", ("base", {}), base_model="base"), "at least 1 model .*, got 0"),
    (kit("slerp", ("a", {}), ("b", {}), base_model="base", parameters={"t": 0.5}), "merges 2 models"),
    (kit("linear", ("nowhere", {"weight": 1})), "nowhere"),
    ({"merge_method": "linear", "slices": stacked(("a", (1, 4)))}, r"\[1, 4\] of a: it has 3 layers"),
    ("method: linear\nbase: base\nmodels: [a]", "does not use a base"),
    ("method: task_arithmetic\nmodels: [a]", "add base"),
    ("method: uniform\nmodels: [{path: a, weight: 1}]", "takes no weights"),
    ("method: task_arithmetic\nbase: base\nmodels: [{path: a, weight: 1}, b]", "weight of b is missing"),
    ("method: ties\nbase: base\nmodels: [a]\nparameters: {density: 2}", "ties: density is 2"),
    ("method: linear\nmodels: [a]\ndtype: float64", "float64"),
  ],
)
def test_what_cannot_merge_is_told_before_anything_is_read(world, tmp_path, monkeypatch, text, words):
  save(tmp_path / "small", tensors(3, layers=2), CONFIG | {"num_hidden_layers": 2})
  save(tmp_path / "wide", world["a"] | {"lm_head.weight": np.ones((12, 4), np.float32)})
  monkeypatch.setattr(checkpoints.Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
  with pytest.raises((ValueError, OSError), match=words) as caught:
    merge(text)
  assert "\n" not in str(caught.value) and not here("out").exists()


@pytest.mark.parametrize(
  ("flag", "number"),
  [
    ("max_shard_gb", np.nan),
    ("max_shard_gb", np.inf),
    ("memory_gib", np.nan),
    ("seed", 1 << 32),
    ("seed", -1),
  ],
)
def test_numbers_of_a_merge_are_finite(world, flag, number):
  with pytest.raises(ValueError, match=rf"^--{flag} is {number}; expected a number from 0 to "):
    merge(kit("linear", ("a", {}), parameters={"weight": 1}), **{flag: number})


def test_a_plan_is_shown_without_reading(world, monkeypatch):
  monkeypatch.setattr(checkpoints.Checkpoint, "read", lambda *_: pytest.fail("a tensor was read"))
  here("r.yml").write_text(DOCUMENTS)
  first, last = recipes.check("r.yml")
  assert (first.recipe.name, last.recipe.name) == ("half", None)
  text = card.plan(last)
  assert "linear(normalize=True) of [half, base] weights=1" in text and "result: 9 tensors" in text
  model = ("a", {"weight": 1, "density": 0.5})
  here("r.yml").write_text(yaml.safe_dump(kit("ties", model, ("b", model[1]), base_model="base")))
  text = card.plan(recipes.check("r.yml")[0])
  assert text.count("ties(") == 1 and "density=0.5," in text  # as it is written, whatever each tensor counts


def test_a_failed_merge_leaves_nothing(world, monkeypatch):
  shutil.copytree("a", "damaged")
  with monkeypatch.context() as patch, pytest.raises(ValueError, match="reads back other"):
    patch.setattr(
      "merge_jax.recipes.writing.raw", lambda value, state=[0]: state.append(0) or np.zeros(len(state), "u1")
    )
    merge(kit("linear", ("damaged", {"weight": 1})), verify=True)
  assert sorted(p.name for p in here(".").iterdir()) == ["a", "b", "base", "damaged", "recipe.yml"]


def test_an_interrupted_merge_asks_for_the_room_that_is_left_to_fill(world, monkeypatch):
  asked, calls = [], iter(range(10))
  of_job = {"out": asked.append}  # writers ask again, of their own folder
  monkeypatch.setattr(storage, "require_space", lambda place, nbytes: of_job.get(place.name, len)([nbytes]))
  text = kit("linear", ("a", {"weight": 1}), ("b", {"weight": 1}))
  with pytest.raises(RuntimeError, match="Stopped"):
    merge(text, max_shard_gb=1e-9, threads=1, stop=lambda: next(calls) == 3)
  files = [file for folder in here(".").glob(".out.resume-*") for file in folder.iterdir()]
  held = sum(512 * file.stat().st_blocks for file in files)
  merge(text, max_shard_gb=1e-9)
  assert len(files) == 3 and asked[0][0] - asked[1][0] == held > 0


def test_an_interrupted_merge_goes_on_and_gives_the_same_bytes(world, monkeypatch):
  merge(DOCUMENTS, "whole", max_shard_gb=3e-7)
  reads = []
  read = checkpoints.Checkpoint.read
  monkeypatch.setattr(
    checkpoints.Checkpoint, "read", lambda self, n, *a: reads.append(n) or read(self, n, *a)
  )
  with pytest.raises(RuntimeError, match="Stopped"):
    merge(DOCUMENTS, max_shard_gb=3e-7, stop=lambda: len(reads) > 9 + 9)
  assert not here("out").exists()
  before = len(reads)
  merge(DOCUMENTS, max_shard_gb=3e-7)
  assert (
    len(reads) - before == 8 * 2 + 9
  )  # not the first document, nor the first shard; `merge` loads the result
  ours, whole = ({p.name: p.read_bytes() for p in here(name).iterdir()} for name in ("out", "whole"))
  assert ours.keys() == whole.keys()
  assert all(ours[name] == whole[name] for name in ours if name.endswith((".safetensors", "index.json")))
  assert sorted(p.name for p in here(".").iterdir()) == ["a", "b", "base", "out", "recipe.yml", "whole"]
