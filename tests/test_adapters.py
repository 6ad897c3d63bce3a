"""LoRA adapters: W + s·B·A against float64, names of every kind, and one sentence for what is no plain LoRA.

The same cases were compared with `merge_and_unload` of PEFT 0.21.2: equal to 3e-8.
"""

import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from merge_jax import checkpoints
from merge_jax.streaming import Source

RNG = np.random.default_rng(0)
BASE = {
  "model.embed_tokens.weight": RNG.normal(size=(7, 4)),
  "model.layers.0.q_proj.weight": RNG.normal(size=(6, 4)),
  "model.layers.1.q_proj.weight": RNG.normal(size=(6, 4)),
  "model.layers.1.o_proj.weight": RNG.normal(size=(4, 4)),
  "model.conv.weight": RNG.normal(size=(5, 3, 2, 2)),
  "model.norm.weight": RNG.normal(size=4),
  "lm_head.weight": RNG.normal(size=(7, 4)),
}
CONFIG = {
  "peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "target_modules": ["q_proj"],
  "lora_dropout": 0.1, "task_type": "CAUSAL_LM", "qalora_group_size": 16,
  "rank_pattern": {}, "init_lora_weights": True,
}  # fmt: skip
Q0, Q1, O = "model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.1.o_proj"
PREFIX = "base_model.model."


def factors(module, a, b, *, prefix=PREFIX):
  a, b = (RNG.normal(size=shape).astype(np.float32) for shape in (a, b))
  return {f"{prefix}{module}.lora_A.weight": a, f"{prefix}{module}.lora_B.weight": b}


def product(tensors, module, prefix=PREFIX):
  a, b = (tensors[f"{prefix}{module}.lora_{k}.weight"].astype(np.float64) for k in "AB")
  return b @ a


@pytest.fixture
def base(tmp_path):
  checkpoints.write(tmp_path / "base", {n: v.astype(ml_dtypes.bfloat16) for n, v in BASE.items()})
  (tmp_path / "base" / "config.json").write_text("{}")
  return checkpoints.open(tmp_path / "base")


def adapter(folder, tensors, **config):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
  (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
  return folder


def stored(base, name):
  return base.read(name).astype(np.float64)


def close(got, want):
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  ("config", "rank", "scale"),
  [
    ({}, 2, 3 / 2),
    ({"use_rslora": True}, 2, 3 / 2**0.5),
    ({"rank_pattern": {"q_proj": 5}}, 5, 3 / 5),
    ({"rank_pattern": {"layers.0.q_proj": 5}, "use_rslora": True}, 5, 3 / 5**0.5),
    ({"rank_pattern": {"proj": 5, "o_proj": 3}}, 2, 3 / 2),  # whole parts of a name match
    ({"alpha_pattern": {r".*\.0\..*": 8, "q_proj": 9}}, 2, 8 / 2),  # the first one counts
  ],
)
def test_scales_and_ranks(tmp_path, base, config, rank, scale):
  tensors = factors(Q0, (rank, 4), (6, rank))
  adapted = checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors, **config))
  name = f"{Q0}.weight"
  close(adapted.read(name), stored(base, name) + scale * product(tensors, Q0))
  for index in ((slice(1, 3), slice(None)), (slice(0, 6), slice(2, 4)), (slice(2, 2),), ()):
    np.testing.assert_array_equal(adapted.read(name, index), adapted.read(name)[index])
  assert adapted.specs[name].dtype == np.float32 and adapted.result_dtype(name) == ml_dtypes.bfloat16
  other = f"{Q1}.weight"
  assert adapted.read(other).tobytes() == base.read(other).tobytes()
  assert adapted.specs[other] == base.specs[other] and adapted.specs.keys() == base.specs.keys()
  np.testing.assert_array_equal(adapted.load()[name], adapted.read(name))


@pytest.mark.parametrize("prefix", [PREFIX, "", "base_model.model.outer."])
@pytest.mark.parametrize("bare", [False, True])
def test_names_fit_with_and_without_prefixes(tmp_path, prefix, bare):
  """A base without `model.`, an adapter of the model in a larger one, and both."""
  names = {name.removeprefix("model.") if bare else name: value for name, value in BASE.items()}
  checkpoints.write(tmp_path / "base", names)
  if bare and prefix.endswith("outer."):
    prefix = "base_model.model.outer.model."
  module = Q0 if not prefix.endswith("model.outer.model.") else Q0.removeprefix("model.")
  tensors = factors(module, (2, 4), (6, 2), prefix=prefix)
  adapted = checkpoints.with_adapter(checkpoints.open(tmp_path / "base"), adapter(tmp_path / "a", tensors))
  name = (Q0.removeprefix("model.") if bare else Q0) + ".weight"
  close(adapted.read(name), BASE[f"{Q0}.weight"] + 1.5 * product(tensors, module, prefix))


def test_a_base_with_one_prefix_more(tmp_path):
  checkpoints.write(tmp_path / "base", {f"language.{name}": value for name, value in BASE.items()})
  tensors = factors(Q0, (2, 4), (6, 2)) | factors("lm_head", (2, 4), (7, 2))
  adapted = checkpoints.with_adapter(checkpoints.open(tmp_path / "base"), adapter(tmp_path / "a", tensors))
  for module in (Q0, "lm_head"):
    close(
      adapted.read(f"language.{module}.weight"), BASE[f"{module}.weight"] + 1.5 * product(tensors, module)
    )


def test_every_kind_of_layer(tmp_path, base):
  """[in, out] kernels by their shape, square ones by the config; convolutions; embeddings; whole modules."""
  conv = factors("model.conv", (2, 3, 2, 2), (5, 2, 1, 1))
  turned, square = factors(Q0, (2, 6), (4, 2)), factors(O, (2, 4), (4, 2))
  a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 7), (4, 2)))
  embedding = {
    f"{PREFIX}model.embed_tokens.lora_embedding_{k}": v for k, v in (("A", a), ("B", b))
  }  # fmt: skip
  head = RNG.normal(size=(7, 4)).astype(np.float32)
  whole = {f"{PREFIX}lm_head.modules_to_save.weight": head, f"{PREFIX}model.norm.weight": head[0]}
  every = conv | turned | square | embedding | whole
  adapted = checkpoints.with_adapter(base, adapter(tmp_path / "a", every, fan_in_fan_out=True))
  kernel = np.einsum(
    "orxy,rikl->oikl",
    *(conv[f"{PREFIX}model.conv.lora_{k}.weight"].astype(np.float64) for k in "BA"),
  )
  for name, delta in (
    ("model.conv.weight", kernel),
    (f"{Q0}.weight", product(turned, Q0).T),
    (f"{O}.weight", product(square, O).T),
    ("model.embed_tokens.weight", (b.astype(np.float64) @ a).T),
  ):
    close(adapted.read(name), stored(base, name) + 1.5 * delta)
    np.testing.assert_array_equal(adapted.read(name, (slice(1, 3),)), adapted.read(name)[1:3])
  np.testing.assert_array_equal(adapted.read("lm_head.weight"), head)
  np.testing.assert_array_equal(adapted.read("model.norm.weight"), head[0])
  assert adapted.result_dtype("lm_head.weight") == ml_dtypes.bfloat16
  straight = checkpoints.with_adapter(base, adapter(tmp_path / "b", square))
  close(straight.read(f"{O}.weight"), stored(base, f"{O}.weight") + 1.5 * product(square, O))


def test_a_resized_embedding_that_is_adapted_and_saved(tmp_path, base):
  """PEFT saves the embedding beside its factors, under `base_layer`: both count."""
  a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 7), (4, 2)))
  saved = RNG.normal(size=(7, 4)).astype(np.float32)
  stem = f"{PREFIX}model.embed_tokens"
  tensors = {
    f"{stem}.lora_embedding_A": a, f"{stem}.lora_embedding_B": b, f"{stem}.base_layer.weight": saved,
  }  # fmt: skip
  adapted = checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors))
  close(adapted.read("model.embed_tokens.weight"), saved + 1.5 * (b.astype(np.float64) @ a).T)
  tensors[f"{stem}.base_layer.weight"] = np.zeros((9, 4), np.float32)
  with pytest.raises(ValueError, match=r"\[9, 4\], in the model \[7, 4\]; if tokens were added"):
    checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors))


def test_zero_factors_give_the_model_back(tmp_path, base):
  tensors = {n: v * 0 for n, v in factors(Q0, (2, 4), (6, 2)).items()}
  adapted = checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors))
  with checkpoints.writer(tmp_path / "out", base.specs, like=adapted) as out:
    for name in adapted.specs:
      out.write(name, adapted.read(name).astype(adapted.result_dtype(name)))
  again = checkpoints.open(tmp_path / "out")
  assert again.format == adapted.format and again.config == {"dtype": "bfloat16"}
  assert all(again.read(name).tobytes() == base.read(name).tobytes() for name in base.specs)


def test_nonfinite_factors_stay_visible(tmp_path, base):
  tensors = factors(Q0, (2, 4), (6, 2))
  tensors[f"{PREFIX}{Q0}.lora_B.weight"][3, 0] = np.nan
  value = checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors)).read(f"{Q0}.weight")
  assert checkpoints.nonfinite(value) == 4 and np.isnan(value[3]).all()


def test_files_name_and_digest_tell_adapters_apart(tmp_path, base):
  tensors = factors(Q0, (2, 4), (6, 2))
  first = checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors))
  assert first.name == "base+a" and first.path == base.path and first.config == base.config
  assert set(first.files()) - set(base.files()) == set((tmp_path / "a").iterdir())
  digest = first.digest()
  assert digest == first.digest() != base.digest()
  second = checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors, lora_alpha=4))
  assert second.digest() != digest


def test_what_is_told_of_an_adapted_tensor_names_both_folders(tmp_path, base):
  """And the digest that a manifest has of it depends on neither place."""
  digests = []
  tensors = factors(Q0, (2, 4), (6, 2))
  for place in ("lora", "far/lora"):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    folder = adapter(tmp_path / place, tensors)
    adapted = checkpoints.with_adapter(base, folder)
    assert str(Source(adapted, f"{Q0}.weight")) == f"'{Q0}.weight' of {base.path}+{folder}"
    digests.append(adapted.digest())
  assert len(set(digests)) == 1


def test_adapters_of_tied_heads(tmp_path):
  embedding = BASE["model.embed_tokens.weight"]
  for folder, heads in (("both", {"lm_head.weight": embedding}), ("one", {})):
    checkpoints.write(tmp_path / folder, {"model.embed_tokens.weight": embedding, **heads})
    (tmp_path / folder / "config.json").write_text('{"tie_word_embeddings": true}')
  stem = f"{PREFIX}model.embed_tokens.lora_embedding_"
  a, b = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 7), (4, 2)))
  both = checkpoints.open(tmp_path / "both")
  adapted = checkpoints.with_adapter(both, adapter(tmp_path / "a", {f"{stem}A": a, f"{stem}B": b}))
  close(adapted.read("model.embed_tokens.weight"), embedding + 1.5 * (b.astype(np.float64) @ a).T)
  assert adapted.read_alias("lm_head.weight").tobytes() == adapted.read("lm_head.weight").tobytes()
  head = adapter(tmp_path / "h", factors("lm_head", (2, 4), (7, 2)))
  with pytest.raises(
    ValueError, match=r"adapts 'lm_head.weight', which .* ties to 'model.embed_tokens.weight'"
  ):
    checkpoints.with_adapter(both, head)
  with pytest.raises(ValueError, match="does not have; its head is tied to the embedding"):
    checkpoints.with_adapter(checkpoints.open(tmp_path / "one"), head)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; expected 'LORA'"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"use_dora": True}, "use_dora is True; expected it unset"),
    ({"lora_bias": True}, "lora_bias is True"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices is"),
    ({"target_parameters": ["experts.up"]}, "target_parameters is"),
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is"),
    ({"a_later_invention": {"x": 1}}, "a_later_invention is"),
    ({"bias": "all"}, "bias is 'all'; expected 'none'"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changed the base"),
    ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    ({"r": 0}, "r is 0; expected"),
    ({"r": "x"}, "r is 'x'; expected a whole number"),
    ({"rank_pattern": {"(": 3}}, "is no regular expression"),
    ({"alpha_pattern": {"(?i)UP_PROJ": 8}}, "is no regular expression"),  # within PEFT's own
    ({"r": 3}, r"A \[2, 4\] and B \[6, 2\] of .* do not fit rank 3"),
  ],
)
def test_configs_that_are_no_plain_lora(tmp_path, base, config, message):
  folder = adapter(tmp_path / "a", factors(Q0, (2, 4), (6, 2)), **config)
  with pytest.raises(ValueError, match=message) as raised:
    checkpoints.with_adapter(base, folder)
  assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


GOOD = factors(Q0, (2, 4), (6, 2))
MAGNITUDE = {f"{PREFIX}{Q0}.lora_magnitude_vector.weight": np.ones(6, np.float32)}


@pytest.mark.parametrize(
  ("tensors", "message"),
  [
    (dict(list(GOOD.items())[:1]), "lora_A.weight' is not one of a pair of A and B"),
    (dict(list(GOOD.items())[1:]), "lora_B.weight' is not one of a pair"),
    (GOOD | MAGNITUDE, "is of no plain LoRA"),
    (factors(Q0, (2, 5), (6, 2)), r"do not fit rank 2 of the config and the model's \[6, 4\]"),
    (factors(Q0, (2, 4), (6, 3)), "do not fit rank 2"),
    (factors(Q0, (2, 4), (5, 2)), "do not fit rank 2"),
    (factors(Q0, (2,), (6, 2)), "do not fit rank 2"),
    (factors("model.layers.2.q_proj", (2, 4), (6, 2)), r"adapts 'model.layers.2.q_proj.weight', which"),
    (GOOD | {f"{PREFIX}score.weight": np.ones((2, 4), np.float32)}, "adapts 'score.weight', which"),
    (GOOD | factors(Q0, (2, 4), (6, 2), prefix=""), "are for the same place"),
    (factors(Q0, (2, 6), (4, 2)) | factors(O, (2, 4), (4, 2)), "fan_in_fan_out is false, but other layers"),
  ],
)  # fmt: skip
def test_tensors_that_do_not_fit(tmp_path, base, tensors, message):
  with pytest.raises(ValueError, match=message) as raised:
    checkpoints.with_adapter(base, adapter(tmp_path / "a", tensors))
  assert "\n" not in str(raised.value)


def test_missing_and_pickled_files(tmp_path, base):
  with pytest.raises(FileNotFoundError, match="no such folder"):
    checkpoints.with_adapter(base, tmp_path / "none")
  folder = adapter(tmp_path / "a", GOOD)
  with pytest.raises(ValueError, match=re.escape(f"{folder}: is a PEFT adapter and no model")):
    checkpoints.open(folder)
  (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
  with pytest.raises(
    ValueError, match=r"no pickle is ever loaded; convert them: python -c .*weights_only=True"
  ):
    checkpoints.with_adapter(base, folder)
  (folder / "adapter_model.bin").unlink()
  with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors: there is no such file"):
    checkpoints.with_adapter(base, folder)
  (folder / "adapter_config.json").write_text("{")
  with pytest.raises(ValueError, match=r"adapter_config.json: not valid JSON"):
    checkpoints.with_adapter(base, folder)
