"""Recipes of data-weighted methods, with files of statistics as `launch.statistics` writes them."""

import json
import re

import numpy as np
import pytest

from merge_jax import checkpoints, recipes
from merge_jax.evals import statistics_file

WIDTH = 4
SHAPES = {"model.layers.0.up.weight": (3, WIDTH), "model.layers.0.gate.weight": (3, WIDTH), "norm": (WIDTH,)}
UP, GATE, NORM = SHAPES
MODELS = ("a", "b")


@pytest.fixture
def world(tmp_path, monkeypatch):
  """Two models, with Fisher information and Gram matrices; the gate shares that of the layer beside it."""
  monkeypatch.chdir(tmp_path)
  found = {}
  for seed, model in enumerate(MODELS):
    generator = np.random.default_rng(seed)
    values = {n: generator.normal(size=shape).astype(np.float32) for n, shape in SHAPES.items()}
    (tmp_path / model).mkdir()
    checkpoints.write(tmp_path / model, values)
    fisher = {n: generator.exponential(size=shape).astype(np.float32) for n, shape in SHAPES.items()}
    inputs = generator.normal(size=(9, WIDTH)).astype(np.float32)
    gram = inputs.T @ inputs
    for kind, stored, shared in (("fisher", fisher, {}), ("gram", {UP: gram}, {GATE: UP})):
      about = statistics_file.About(kind=kind, tensors=list(SHAPES), shared=shared)
      statistics_file.save(f"{model}_{kind}.safetensors", stored, about)
    found[model] = {"values": values, "fisher": fisher, "gram": gram}
  return found


def recipe(method, file="{model}_{kind}.safetensors", models=MODELS, parameters="{}"):
  kind = {"fisher": "fisher", "regmean": "gram"}.get(method, "fisher")
  listed = ", ".join(
    f"{model}: {{path: {model}" + (f", statistics: {file.format(model=model, kind=kind)}}}" if file else "}")
    for model in models
  )
  return f"method: {method}\nmodels: {{{listed}}}\nparameters: {parameters}\n"


def merge(tmp_path, text, output="out"):
  (tmp_path / "recipe.yml").write_text(text)
  built = recipes.run("recipe.yml", output)
  opened = checkpoints.open(output)
  return built, {name: opened.read(name).astype(np.float64) for name in opened.specs}


def test_fisher(world, tmp_path):
  built, got = merge(tmp_path, recipe("fisher", parameters="{normalization: none}"))
  for name in SHAPES:
    info = [np.maximum(world[m]["fisher"][name].astype(np.float64), 1e-6) for m in MODELS]
    values = [world[m]["values"][name] for m in MODELS]
    expected = sum(f * x for f, x in zip(info, values, strict=True)) / sum(info)
    np.testing.assert_allclose(got[name], expected, rtol=1e-5)
  record = recipes.manifest.make(built, 0)
  assert record.inputs.keys() == {*MODELS, "a_fisher.safetensors", "b_fisher.safetensors"}


def test_statistics_are_of_a_models_own_names(world, tmp_path):
  """One of the models leaves `model.` out, in its file as in what was measured of it."""
  short = {name: name.removeprefix("model.") for name in SHAPES}
  _, expected = merge(tmp_path, recipe("fisher", parameters="{normalization: none}"))
  (tmp_path / "b" / "model.safetensors").unlink()
  checkpoints.write(tmp_path / "b", {short[name]: value for name, value in world["b"]["values"].items()})
  about = statistics_file.About(kind="fisher", tensors=list(short.values()), shared={})
  fisher = {short[name]: value for name, value in world["b"]["fisher"].items()}
  statistics_file.save("b_fisher.safetensors", fisher, about)
  _, got = merge(tmp_path, recipe("fisher", parameters="{normalization: none}"), "again")
  for name in SHAPES:
    np.testing.assert_array_equal(got[name], expected[name])


def test_fisher_information_follows_the_rows_of_a_tokenizer(tmp_path, monkeypatch):
  """In b tokens stand in another order, and one more; what a lacks weighs next to nothing there."""
  monkeypatch.chdir(tmp_path)
  values, fisher = {}, {}
  for model, words in (("a", ["?", "x", "y"]), ("b", ["y", "?", "z", "x"])):
    values[model] = np.arange(len(words), dtype=np.float32)[:, None] + (10 if model == "b" else 0)
    fisher[model] = np.arange(1, len(words) + 1, dtype=np.float32)[:, None]
    (tmp_path / model).mkdir()
    checkpoints.write(tmp_path / model, {"model.embed_tokens.weight": values[model]})
    (tmp_path / model / "config.json").write_text(json.dumps({"vocab_size": len(words)}))
    tokens = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "?"}
    (tmp_path / model / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": tokens}))
    about = statistics_file.About(kind="fisher", tensors=["model.embed_tokens.weight"], shared={})
    statistics_file.save(f"{model}_fisher.safetensors", {"model.embed_tokens.weight": fisher[model]}, about)
  text = recipe("fisher", parameters="{normalization: none}") + "tokenizer: union\n"
  _, got = merge(tmp_path, text)
  (a, b), (fa, fb) = ((each["a"][:, 0], each["b"][:, 0]) for each in (values, fisher))
  order = [1, 3, 0]
  expected = [*(fa * a + fb[order] * b[order]) / (fa + fb[order]), b[2]]
  np.testing.assert_allclose(got["model.embed_tokens.weight"][:, 0], expected, rtol=1e-5)


def test_fisher_normalised_over_the_model(world, tmp_path):
  _, got = merge(tmp_path, recipe("fisher"))
  norms = []
  for m in MODELS:
    squares = [np.square(x.astype(np.float64)) for x in world[m]["fisher"].values()]
    norms.append(np.sqrt(sum(x.sum() for x in squares) / sum(x.size for x in squares)))
  for name in SHAPES:
    info = [np.maximum(world[m]["fisher"][name] / n, 1e-6) for m, n in zip(MODELS, norms, strict=True)]
    expected = sum(f * world[m]["values"][name] for f, m in zip(info, MODELS, strict=True)) / sum(info)
    np.testing.assert_allclose(got[name], expected, rtol=1e-5)


def test_regmean_with_shared_and_missing_matrices(world, tmp_path):
  _, got = merge(tmp_path, recipe("regmean"))
  grams = [world[m]["gram"].astype(np.float64) for m in MODELS]
  for name in (UP, GATE):
    right = sum(world[m]["values"][name] @ g for m, g in zip(MODELS, grams, strict=True))
    np.testing.assert_allclose(got[name], right @ np.linalg.inv(sum(grams)), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(got[NORM], sum(world[m]["values"][NORM] for m in MODELS) / 2, rtol=1e-6)


def test_all_axes_but_the_first_are_inputs_of_regmean(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  values, grams = [], []
  for seed, model in enumerate(MODELS):
    generator = np.random.default_rng(seed)
    values.append(generator.normal(size=(3, 2, WIDTH)).astype(np.float32))
    inputs = generator.normal(size=(20, 2 * WIDTH)).astype(np.float32)
    grams.append(inputs.T @ inputs)
    (tmp_path / model).mkdir()
    checkpoints.write(tmp_path / model, {"conv": values[-1]})
    about = statistics_file.About(kind="gram", tensors=["conv"])
    statistics_file.save(f"{model}_gram.safetensors", {"conv": grams[-1]}, about)
  _, got = merge(tmp_path, recipe("regmean"))
  right = sum(x.reshape(3, -1).astype(np.float64) @ g for x, g in zip(values, grams, strict=True))
  expected = (right @ np.linalg.inv(sum(grams).astype(np.float64))).reshape(3, 2, WIDTH)
  np.testing.assert_allclose(got["conv"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (recipe("fisher", ""), r"statistics of a are missing; .*merge_jax statistics --kind=fisher"),
    (recipe("regmean", "a_fisher.safetensors"), "holds those of kind 'fisher'; .*--kind=gram"),
    (recipe("fisher", "short.safetensors"), f"short.safetensors is of a model without tensor '{GATE}'"),
    (recipe("fisher", "wide.safetensors"), re.escape("has shape (5,); expected (4,)")),
    (recipe("fisher", "few.safetensors"), "have none for tensor 'norm'"),
    (recipe("fisher", "none.safetensors"), "none.safetensors"),
    (recipe("fisher", "a/model.safetensors"), "no file of statistics"),
    (recipe("linear", "a_fisher.safetensors"), "linear does not use statistics"),
  ],
)
def test_statistics_that_do_not_fit_are_refused_before_anything_is_written(world, tmp_path, text, words):
  full = world["a"]["fisher"]
  for name, values, tensors in (
    ("short", {UP: full[UP]}, [UP, NORM]),
    ("wide", full | {NORM: np.ones(5, np.float32)}, list(SHAPES)),
    ("few", {n: full[n] for n in (UP, GATE)}, list(SHAPES)),
  ):
    statistics_file.save(f"{name}.safetensors", values, statistics_file.About(kind="fisher", tensors=tensors))
  before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  with pytest.raises((ValueError, OSError), match=words) as caught:
    merge(tmp_path, text)
  assert "\n" not in str(caught.value)
  (tmp_path / "recipe.yml").unlink()
  assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_statistics_of_another_checkpoint_are_told(world, tmp_path):
  made = {"checkpoint": checkpoints.open("a").digest()}
  about = statistics_file.About(kind="fisher", tensors=list(SHAPES), made=made)
  statistics_file.save("a_fisher.safetensors", world["a"]["fisher"], about)
  built, _ = merge(tmp_path, recipe("fisher"))
  assert not any("measured" in note for note in built.notes)
  built, _ = merge(tmp_path, recipe("fisher", "a_fisher.safetensors"), "twice")
  (note,) = [note for note in built.notes if "measured" in note]
  assert note.startswith("the statistics of b (a_fisher.safetensors) were measured on another checkpoint")


def test_other_statistics_are_another_job(world, tmp_path):
  """An interrupted merge is not continued with files that changed."""
  built, _ = merge(tmp_path, recipe("fisher"))
  before = recipes.manifest.make(built, 0)
  about = statistics_file.About(kind="fisher", tensors=list(SHAPES))
  statistics_file.save("a_fisher.safetensors", world["b"]["fisher"], about)
  assert recipes.manifest.make(built, 0) != before
