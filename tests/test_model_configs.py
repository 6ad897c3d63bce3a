"""What a `config.json` may say: refused in one sentence, compared field by field, held against tensors."""

import dataclasses
import functools
import math
import random

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from merge_jax import models
from merge_jax.models import config, decoder, families, rope
from tests.golden import cases, published

WHERE = "pool/a/config.json"
LLAMA3, YARN, DYNAMIC = (
  cases.CASES[name]["rope_parameters"] for name in ("llama3", "llama_yarn", "llama_dynamic")
)
HEADS = ["num_heads", "num_kv_heads", "head_dim"]
GEMMA2, GEMMA3 = ({"model_type": kind, "hidden_act": None} for kind in ("gemma2", "gemma3_text"))
SLIDING = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4}


@functools.cache
def built(name):
  model = models.build(cases.config_of(name))
  return model, cases.parameters({n: s.shape for n, s in model.specs.items()})


def is_one_sentence(error):
  text = str(error)
  return text.startswith(WHERE) and text.endswith(".") and "\n" not in text and len(text) < 500


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "lama"}, "did you mean 'llama'"),
    ({"model_type": ["llama"]}, "unknown model_type"),
    ({"hidden_act": "gelu"}, "only 'silu' is supported"),
    ({"no_rope_layers": [1]}, "'no_rope_layers'"),
    ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
    ({"model_type": "mistral", "attention_bias": True}, "'attention_bias'"),
    ({"vocab_size": 0}, "vocab_size is 0; expected a whole number >= 1"),
    ({"vocab_size": 2**31}, "vocab_size is 2147483648"),
    ({"hidden_size": None}, "hidden_size is None"),
    ({"hidden_size": "32"}, "hidden_size is '32'; expected a whole number"),
    ({"hidden_size": 30}, "hidden_size is 30, which num_attention_heads = 4"),
    ({"intermediate_size": -40}, "intermediate_size is -40"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100000; expected a whole number <= 1000"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": 4.0}, "num_attention_heads is 4.0"),
    ({"num_key_value_heads": 3}, "cannot share num_key_value_heads = 3"),
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ({"head_dim": 7}, "head_dim is 7; expected an even number"),
    ({"head_dim": [8]}, r"head_dim is \[8\]"),
    ({"rms_norm_eps": None}, "rms_norm_eps is None; expected a number"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ({"initializer_range": "0.02"}, "initializer_range is '0.02'"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; expected true or false"),
    ({"mlp_bias": 1}, "mlp_bias is 1"),
    ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
    ({"rope_theta": math.inf}, "rope_theta is inf"),
    ({"rope_theta": 1}, "rope_theta is 1"),
    ({"rope_parameters": [LLAMA3]}, "rope_parameters is .*; expected an object or null"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters: unknown rope_type 'longrope'"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters: unknown rope_type"),
    ({"rope_parameters": {"rope_type": "linear"}}, "the field 'factor' is missing"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 1}}, "'beta_fast'"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling: factor is 0"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling: factor is '2'"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor must be less than"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": None}}, "'low_freq_factor' is missing"),
    ({"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 0}}, "embeddings is 0"),
    ({"rope_parameters": YARN | {"beta_fast": 1.0}}, "beta_slow must be less than"),
    ({"rope_parameters": YARN | {"attention_factor": -1}}, "attention_factor is -1"),
    ({"rope_parameters": YARN, "rope_scaling": LLAMA3}, "say different things"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
    ({"model_type": "cohere2", "layer_switch": 3}, "layer_switch is 3; expected the sliding_window_p"),
    ({"model_type": "mistral", "sliding_window": "7"}, "sliding_window is '7'"),
    (SLIDING | {"layer_types": ["linear"] * 2}, "unknown layer type 'linear'"),
    (SLIDING | {"layer_types": ["full_attention"]}, "layer_types has 1 entries, num_hidden_layers is 2"),
    (SLIDING | {"layer_types": [0, 0]}, r"layer_types\[0\] is 0; expected a string"),
    (SLIDING | {"layer_types": ["sliding_attention"] * 2, "sliding_window": None}, "sliding_window is not"),
    (SLIDING | {"use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
    ({"model_type": "cohere", "logit_scale": None}, "logit_scale is None; expected a number"),
    ({"model_type": "cohere", "use_parallel_block": False}, "use_parallel_block is False; only True"),
    ({"model_type": "cohere", "mlp_bias": True}, "'mlp_bias' .* is not supported for cohere"),
    ({"model_type": "cohere2", "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ({"model_type": "cohere2", "sliding_window": None}, "sliding_window is not in use"),
    ({"model_type": "mixtral", "num_experts_per_tok": 9}, "tok is 9; .* num_local_experts = 8"),
    ({"model_type": "mixtral", "num_local_experts": 0}, "num_local_experts is 0"),
    ({"model_type": "mixtral", "num_local_experts": 10**9}, "expected a whole number <= 1024"),
    ({"model_type": "qwen3_moe", "num_experts": 4}, "num_experts_per_tok is 8; .* num_experts = 4"),
    ({"model_type": "qwen3_moe", "use_sliding_window": True}, "use_sliding_window is True; only False"),
    ({"model_type": "qwen3_moe", "mlp_only_layers": [-1]}, r"mlp_only_layers\[0\] is -1"),
    ({"model_type": "qwen3_moe", "shared_expert_intermediate_size": 5}, "'shared_expert_intermediate_size'"),
    ({"model_type": "gemma2"}, "hidden_act is 'silu'; only 'gelu_pytorch_tanh' or 'gelu' is"),
    (GEMMA2 | {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; only 'gelu_pytorch_tanh'"),
    (GEMMA2 | {"use_bidirectional_attention": True}, "use_bidirectional_attention is True; only False"),
    (GEMMA2 | {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
    (GEMMA2 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; only null"),
    (GEMMA3 | {"rope_parameters": {"rope_type": "default"}}, "unknown layer type 'rope_type'"),
    (GEMMA3 | {"rope_parameters": {"sliding_attention": 3}}, "sliding_attention is 3; expected an object"),
    (GEMMA3 | {"rope_parameters": {"full_attention": {"factor": 8.0}}}, "'factor'"),
    ({"is_causal": False}, "is_causal is False; only True"),
    ({"model_type": "mistral", "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
    ({"model_type": "qwen3_moe", "num_experts": 8, "num_local_experts": 9}, "they are one number"),
  ],
)  # fmt: skip
def test_what_is_damaged_or_not_supported_is_one_sentence(change, message):
  with pytest.raises(ValueError, match=message) as caught:
    models.parse(cases.SHAPE | {"model_type": "llama"} | change, WHERE)
  assert is_one_sentence(caught.value)


@pytest.mark.parametrize(
  ("name", "rope_type", "head_dim", "window"),
  [
    ("SmolLM2-135M", "default", 64, None),
    ("Llama-3.1-8B-Instruct", "llama3", 128, None),
    ("Mistral-7B-v0.1", "default", 128, 4096),
    ("Qwen2.5-7B-Instruct", "yarn", 128, None),
    ("Qwen3-0.6B", "default", 128, None),
    ("c4ai-command-r-plus", "default", 128, None),
    ("gemma-2-9b", "default", 256, 4096),
    ("Mixtral-8x7B-v0.1", "default", 128, None),
    ("Qwen3-30B-A3B", "default", 128, None),
    ("Meta-Llama-3-8B", "default", 128, None),
    ("gemma-3-27b-it (text)", "linear", 128, 1024),
  ],
)
def test_published_configs_are_read(name, rope_type, head_dim, window):
  parsed = models.parse(published.CONFIGS[name])
  assert parsed.rope == rope.KINDS[rope_type](**msgspec.structs.asdict(parsed.rope))
  assert (parsed.head_dim, set(parsed.windows) - {None}) == (head_dim, {window} - {None})
  assert parsed.rope.rope_theta == published.CONFIGS[name].get("rope_theta", 1_000_000.0)


def test_the_published_command_r7b_alternates_windows_and_no_rotation():
  parsed = models.parse(published.CONFIGS["c4ai-command-r7b-12-2024"])
  assert parsed.windows == (4096, 4096, 4096, None) * 8
  assert isinstance(parsed.rope, rope.Unrotated) and parsed.local_rope.rope_theta == 50_000


def test_what_transformers_writes_otherwise():
  shape = cases.SHAPE | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "model_type": "qwen3_moe"}
  one, other = (models.parse(shape | {name: 4}) for name in ("num_experts", "num_local_experts"))
  assert one == other and set(one.experts) == {4}
  kinds = ["full_attention", "sliding_attention"] * (cases.SHAPE["num_hidden_layers"] // 2)
  mistral = models.parse(cases.SHAPE | {"model_type": "mistral", "sliding_window": 3, "layer_types": kinds})
  assert mistral.windows == tuple(None if kind == "full_attention" else 3 for kind in kinds)
  scaling = {"rope_type": "dynamic", "factor": 8.0}
  assert models.parse(cases.SHAPE | {"model_type": "llama", "rope_scaling": scaling}) == models.parse(
    cases.SHAPE | {"model_type": "llama", "rope_scaling": scaling | {"original_max_position_embeddings": 4}}
  )


@pytest.mark.parametrize("content", [None, [], "llama", 3])
def test_a_config_is_an_object(content):
  with pytest.raises(ValueError, match="expected an object") as caught:
    models.parse(content, WHERE)
  assert is_one_sentence(caught.value)


def test_what_tools_leave_in_a_config_changes_nothing():
  plain = cases.SHAPE | {
    "model_type": "mistral",
    "layer_types": ["full_attention"] * 2,
    "num_hidden_layers": 2,
  }
  left = {
    "unsloth_version": "2025.1",
    "temperature": 0.7,
    "num_beams": 1,
    "max_length": 20,
    "do_sample": True,
  }
  assert models.parse(plain | left | {"model_type": "ministral"}) == models.parse(plain)


def test_yarn_of_a_context_shorter_than_a_turn():
  """The ramp turns over, as in transformers: `clip((i - low) / (high - low), 0, 1)` with high below low."""
  told = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "beta_slow": 2.0,
          "truncate": False}  # fmt: skip
  (rope,) = {models.parse(cases.SHAPE | {"model_type": "llama", "head_dim": 16, "rope_scaling": told}).rope}
  found, _ = rope.frequencies(16, 8)
  plain = 1e4 ** (-np.arange(8) / 8)
  low, high = (16 * np.log(8 / (turns * 2 * np.pi)) / (2 * np.log(1e4)) for turns in (32, 2))
  assert max(low, 0) > high
  ramp = np.clip((np.arange(8) - max(low, 0)) / (high - max(low, 0)), 0, 1)
  np.testing.assert_allclose(found, plain / 8 * ramp + plain * (1 - ramp), rtol=1e-6)


@pytest.mark.parametrize(
  ("model_type", "expected"),
  [
    ("llama", {"num_kv_heads": 32, "head_dim": 2, "qkv_bias": False, "windows": (None,) * 30}),
    ("mistral", {"num_kv_heads": 8, "head_dim": 2, "qkv_bias": False, "windows": (4096,) * 30}),
    ("qwen2", {"num_kv_heads": 32, "head_dim": 2, "qkv_bias": True, "qk_norm": False}),
    ("qwen3", {"num_kv_heads": 32, "head_dim": 128, "qkv_bias": False, "qk_norm": True}),
  ],
)
def test_defaults_are_those_of_the_family(model_type, expected):
  shape = {"vocab_size": 48, "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 30,
           "num_attention_heads": 32}  # fmt: skip
  parsed = models.parse(shape | {"model_type": model_type})
  assert {name: getattr(parsed, name) for name in expected} == expected
  if model_type == "qwen2":
    late = models.parse(shape | {"model_type": "qwen2", "use_sliding_window": True})
    assert late.windows == (None,) * 28 + (4096,) * 2


@pytest.mark.parametrize(
  ("name", "change", "fields"),
  [
    ("llama2", {"num_attention_heads": 8, "num_key_value_heads": 8}, HEADS),
    ("llama2", {"rope_theta": 5e5}, ["rope_theta"]),
    ("llama2", {"rms_norm_eps": 1e-2}, ["norm_eps"]),
    ("llama2", {"tie_word_embeddings": True}, ["tie_embeddings"]),
    ("llama2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_type", "factor"]),
    ("llama3", {"rope_parameters": LLAMA3 | {"factor": 4.0}}, ["factor"]),
    ("llama_dynamic", {"max_position_embeddings": 32}, ["original_max_position_embeddings"]),
    ("mistral", {"sliding_window": 5}, ["sliding_window"]),
    ("mistral", {"sliding_window": None}, ["sliding_window", "sliding_layers"]),
    ("qwen2_windows", {"max_window_layers": 0}, ["sliding_layers"]),
    ("command_r", {"logit_scale": 0.5}, ["logit_scale"]),
    ("gemma2", {"attn_logit_softcapping": 2.0}, ["attention_cap"]),
    ("gemma2", {"final_logit_softcapping": None}, ["logit_cap"]),
    ("gemma2", {"query_pre_attn_scalar": 4}, ["attention_scale"]),
    ("gemma3", {"rope_local_base_freq": 1e4}, ["local_rope_theta"]),
    ("mixtral", {"num_experts_per_tok": 3}, ["experts_per_token"]),
    ("qwen3_moe", {"norm_topk_prob": True}, ["normalized"]),
    ("command_r7b", {"rope_theta": 5e4}, ["local_rope_theta"]),
    ("command_r7b", {"layer_types": ["full_attention"] * 2}, ["sliding_window", "sliding_layers"]),
  ],
)  # fmt: skip
def test_what_changes_the_forward_pass_is_a_difference(name, change, fields):
  """The tensors fit both configs, so nothing else would tell."""
  model, params = built(name)
  true, other = cases.config_of(name), cases.config_of(name) | change
  models.check(other, model.specs, WHERE)
  assert [text.split(" is ")[0] for text in models.differences(true, other, "sft", "dpo")] == fields
  tokens = jnp.asarray(cases.TOKENS)
  ours, theirs = jax.jit(model.apply)(params, tokens), jax.jit(models.build(other).apply)(params, tokens)
  assert float(jnp.abs(ours - theirs).max()) > 1e-3


@pytest.mark.parametrize(
  ("name", "change"),
  [
    ("llama2", {"max_position_embeddings": 4096, "initializer_range": 0.5, "sliding_window": 3}),
    ("llama2", {"rope_theta": 10_000, "head_dim": 8, "rope_scaling": None, "num_key_value_heads": None}),
    ("llama2", {"model_type": "mistral", "sliding_window": None, "torch_dtype": "float16"}),
    ("llama_linear", {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 2}}),
    ("llama3", {"max_position_embeddings": 32}),
    ("llama_yarn", {"rope_parameters": YARN | {"beta_fast": 32, "beta_slow": None, "truncate": True}}),
    ("qwen2", {"sliding_window": 7, "attention_bias": False, "layer_types": ["full_attention"] * 2}),
    ("gemma3", {"rope_scaling": None, "rope_theta": None, "rope_local_base_freq": 1e4, "rope_parameters": {
      "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
      "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}}),
    ("gemma2", {"layer_types": ["sliding_attention", "full_attention"], "cache_implementation": "hybrid"}),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),
  ],
)  # fmt: skip
def test_what_changes_nothing_is_no_difference(name, change):
  model, params = built(name)
  true, other = cases.config_of(name), cases.config_of(name) | change
  assert models.differences(true, other) == []
  tokens = jnp.asarray(cases.TOKENS)
  np.testing.assert_array_equal(model.apply(params, tokens), models.build(other).apply(params, tokens))


def test_differences_show_both_values():
  true = cases.config_of("llama2")
  assert models.differences(true, true | {"rope_theta": 5e5}, "sft", "dpo") == [
    "rope_theta is 10000.0 in sft, 500000.0 in dpo"
  ]
  with pytest.raises(ValueError, match="dpo: rope_theta is 0"):
    models.differences(true, true | {"rope_theta": 0}, "sft", "dpo")


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("llama2", {"num_hidden_layers": 1}, r"num_hidden_layers is 1, but the tensors have layers 0 … 1\."),
    ("llama2", {"num_hidden_layers": 900}, r"num_hidden_layers is 900, but the tensors have layers 0 … 1\."),
    ("llama2", {"vocab_size": 50}, r"weight' has shape \(48, 32\); .* \(50, 32\) \(see vocab_size\)\."),
    ("llama2", {"hidden_size": 64}, r"\(see hidden_size\)"),
    ("llama2", {"intermediate_size": 2**31 - 1}, r"\(see intermediate_size\)"),
    ("llama3", {"num_key_value_heads": 4}, r"k_proj.weight' .*\(see num_key_value_heads or head_dim\)"),
    ("qwen3", {"head_dim": 8}, r"\(see head_dim|or head_dim\)"),
    ("llama_tied_biased", {"attention_bias": False}, r"_proj.bias' has no place .* \(see attention_bias\)"),
    ("llama2", {"mlp_bias": True}, r"_proj.bias' is missing \(see mlp_bias\)"),
    ("smollm", {"tie_word_embeddings": False}, r"'lm_head.weight' is missing \(see tie_word_embeddings\)"),
    ("qwen3", {"model_type": "llama"}, r"_norm.weight' has no place .* \(see model_type or use_qk_norm\)"),
    ("mixtral", {"num_local_experts": 4}, r"gate.weight' .* \(see num_local_experts\)"),
    ("mixtral", {"intermediate_size": 64}, r"experts.0.w1.weight' .* \(see intermediate_size\)"),
    ("qwen3_moe", {"moe_intermediate_size": 40}, r"\(see moe_intermediate_size\)"),
    ("qwen3_moe", {"mlp_only_layers": []}, r"is missing \(see num_experts, .* mlp_only_layers\)"),
    ("command_r_plus", {"use_qk_norm": False}, r"_norm.weight' has no place .* or use_qk_norm\)"),
    ("command_r_plus", {"num_key_value_heads": 4}, r"\(2, 8\).* \(4, 8\) \(see head_dim or the number"),
  ],
)  # fmt: skip
def test_tensors_that_speak_against_the_config_are_named(name, change, message):
  model, _ = built(name)
  models.check(cases.config_of(name), model.specs, WHERE)
  with pytest.raises(ValueError, match=message) as caught:
    models.check(cases.config_of(name) | change, model.specs, WHERE)
  assert is_one_sentence(caught.value)


@pytest.mark.parametrize("names", [(), ("weight",), ("model.layers.x.weight",)])
def test_tensors_of_no_layer_are_refused_before_a_model_is_built(names):
  with pytest.raises(ValueError, match="no tensor belongs to a layer"):
    models.check(cases.config_of("llama2") | {"num_hidden_layers": 1000}, dict.fromkeys(names), WHERE)


@dataclasses.dataclass(frozen=True)
class CappedConfig(config.DecoderConfig):
  cap: float = 0.0


class CappedFields(families.Llama, frozen=True, kw_only=True):
  cap: float = 30.0

  def parts(self):
    return {**super().parts(), "cap": self.cap}


class Capped(decoder.Decoder):
  def __call__(self, *args):
    return self.config.cap * jnp.tanh(super().__call__(*args) / self.config.cap)


def test_another_architecture_is_a_row(monkeypatch):
  """Fields, config and module of its own; nothing else changes."""
  read = functools.partial(config.read, CappedFields, made=CappedConfig)
  monkeypatch.setitem(families.FAMILIES, "capped", families.Family(read, Capped))
  plain, params = built("llama2")
  true, other = cases.config_of("llama2"), cases.config_of("llama2") | {"model_type": "capped"}
  models.check(other, plain.specs, WHERE)
  tokens = jnp.asarray(cases.TOKENS)
  expected = 5.0 * np.tanh(np.asarray(plain.apply(params, tokens)) / 5.0)
  capped = models.build(other | {"cap": 5.0})
  np.testing.assert_allclose(capped.apply(params, tokens), expected, atol=1e-5)
  assert models.differences(true, other, "a", "b") == [
    "model_type is 'llama' in a, 'capped' in b",
    "cap is None in a, 30.0 in b",
  ]
  assert models.differences(other, other | {"cap": 5}) == ["cap is 30.0 in a, 5.0 in b"]
  with pytest.raises(ValueError, match=r"field 'cap' .* is not supported for llama"):
    models.parse(true | {"cap": 5.0}, WHERE)


HOSTILE = [
  None, True, False, 0, 1, 2, 3, 7, -1, 1000, 100_000, 2**31 - 1, 2**31, 10**30, 10**400, 0.0, 0.5, 2.0, -1.5,
  1e-300, 1e300, math.nan, math.inf, -math.inf, "", "2", "silu", "yarn", "llama3", "a\nb", "\ud800",
  "x" * 1000, [], [1], [None], ["full_attention"] * 2, ["sliding_attention"] * 2, {}, {"a": 1},
  {"rope_type": "yarn"}, [[[]]], {"rope_type": "dynamic", "factor": 1e-300}, {"rope_theta": None},
]  # fmt: skip
FIELDS = sorted({*cases.SHAPE, "model_type", "head_dim", "rope_theta", "rope_scaling", "rope_parameters",
                 "tie_word_embeddings", "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window",
                 "max_window_layers", "layer_types", "initializer_range", "layer_norm_eps", "logit_scale",
                 "use_qk_norm", "sliding_window_pattern", "attn_logit_softcapping", "query_pre_attn_scalar",
                 "rope_local_base_freq", "hidden_act", "num_local_experts", "num_experts",
                 "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers",
                 "unheard_of"})  # fmt: skip
ROPE = sorted({*LLAMA3, *YARN, "type", "beta_fast", "beta_slow", "attention_factor", "mscale", "truncate"})


def damaged(true, chance):
  """A copy with one to three fields replaced, taken away or damaged inside."""
  result = dict(true)
  for _ in range(chance.randint(1, 3)):
    field, value = chance.choice(FIELDS), chance.choice(HOSTILE)
    if chance.random() < 0.1:
      result.pop(field, None)
    elif field == "rope_parameters" and chance.random() < 0.8:
      result[field] = {**chance.choice([LLAMA3, YARN, DYNAMIC]), chance.choice(ROPE): value}
    else:
      result[field] = value
  return result


@pytest.mark.parametrize("name", cases.CASES)
def test_any_damage_is_read_or_refused_in_one_sentence(name):
  model, _ = built(name)
  true, chance = cases.config_of(name), random.Random(name)
  refused = 0
  for _ in range(40):
    other = damaged(true, chance)
    try:
      models.check(other, model.specs, WHERE)
      parsed = models.parse(other, WHERE)
      inverse, factor = parsed.rope.frequencies(parsed.head_dim, 72)
      assert np.isfinite(inverse).all() and math.isfinite(factor)
      assert (models.differences(true, other) == []) == (parsed == model.config)
    except ValueError as error:
      assert is_one_sentence(error), other
      refused += 1
  assert 10 < refused < 40
