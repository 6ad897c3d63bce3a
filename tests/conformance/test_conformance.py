"""The same recipes give the same numbers as mergekit 0.1.5 in float32; random methods keep its laws.

MERGE_JAX_CONFORMANCE=1 runs every method on every architecture; else each runs on one.
"""

import os

import numpy as np
import pytest

from merge_jax import checkpoints
from merge_jax import recipes as ours
from tests.conformance import goldens, pools, recipes

GOLDENS = goldens.load()
ALL = bool(os.environ.get("MERGE_JAX_CONFORMANCE"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
  root = tmp_path_factory.mktemp("pool")
  pools.write_all(root)
  return root


def run(pool, name, text, output):
  recipe = pool / f"{name}.yml"
  recipe.write_text(text)
  ours.run(recipe, output, semantics="mergekit", stop=lambda: False)
  return goldens.read(output)


def test_every_recipe_has_its_golden():
  assert GOLDENS.keys() == recipes.RECIPES.keys()


@pytest.mark.parametrize(
  "name",
  recipes.RECIPES if ALL else recipes.USUAL,
)
def test_a_recipe_gives_mergekits_numbers(pool, tmp_path, name):
  got, expected = run(pool, name, recipes.RECIPES[name], tmp_path / "out"), GOLDENS[name]
  assert got[:-1] == expected[:-1]
  for tensor, sample in expected.samples.items():
    rounding = 2**-7 if expected.specs[tensor][0] == "bfloat16" else 1e-5  # one step, where a half is rounded
    scale = np.abs(sample).max(initial=0)
    np.testing.assert_allclose(got.samples[tensor], sample, rtol=rounding, atol=1e-6 * scale, err_msg=tensor)


def test_layers_of_other_kinds_take_them_along(pool, tmp_path):
  run(pool, "qwen2", recipes.QWEN2, tmp_path / "out")
  config = checkpoints.open(tmp_path / "out").config
  assert config["num_hidden_layers"] == 5
  assert [kind.partition("_")[0] for kind in config["layer_types"]] == ["full"] * 3 + ["sliding"] * 2


@pytest.mark.parametrize("name", recipes.RANDOM)
def test_random_methods_keep_mergekits_laws(pool, tmp_path, name):
  run(pool, name, recipes.RANDOM[name], tmp_path / "out")
  base, model, merged = (
    checkpoints.open(folder) for folder in (pool / "llama/base", pool / "llama/x1", tmp_path / "out")
  )
  kept = ranks = ()
  for tensor in merged.specs:
    delta = model.read(tensor) - base.read(tensor)
    change = merged.read(tensor) - base.read(tensor)
    np.testing.assert_allclose(np.abs(change).sum(), np.abs(delta).sum(), rtol=1e-5)
    mask = np.abs(change) > 1e-6
    factor = change[mask] / delta[mask]
    np.testing.assert_allclose(factor, factor.mean(), rtol=1e-3)
    if delta.ndim == 2:
      rank = np.argsort(np.argsort(np.abs(delta), -1), -1) / (delta.shape[-1] - 1)
      kept, ranks = np.append(kept, mask), np.append(ranks, rank)
  assert abs(kept.mean() - 0.4) < 4 * (0.24 / kept.size) ** 0.5
  slope = np.cov(kept, ranks)[0, 1] / ranks.var()
  assert abs(slope - (0.6 if "della" in name else 0)) < 0.1  # from density - ε to density + ε
