"""Reads the `config.json` of a Llama-like decoder; what is not supported is an error."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from merge_jax.errors import unknown

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")

# Fields that do not change what the forward pass computes.
_WITHOUT_EFFECT = frozenset((
  "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward",
  "dtype", "eos_token_id", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
  "is_llama_config", "label2id", "max_window_layers", "mlp_dropout", "name_or_path",
  "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "resid_pdrop",
  "embd_pdrop", "return_dict", "sep_token_id", "cls_token_id", "decoder_start_token_id",
  "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version",
  "transformers.js_config", "unk_token_id", "use_cache", "model_type", "license",
))  # fmt: skip
# Fields that are understood at one value alone.
_FIXED = {
  "hidden_act": "silu",
  "pretraining_tp": 1,
  "rope_interleaved": False,
  "partial_rotary_factor": 1.0,
  "use_mrope": False,
  "add_cross_attention": False,
  "tie_encoder_decoder": False,
}
_READ = frozenset((
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
  "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_scaling",
  "rope_parameters", "max_position_embeddings", "tie_word_embeddings", "attention_bias", "mlp_bias",
  "sliding_window", "use_sliding_window", "layer_types",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary position embedding: `kind` is one of `ROPE_TYPES`, `options` its numbers."""

  kind: str = "default"
  theta: float = 10_000.0
  options: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder's shape; made by `parse`.

  Attributes:
    windows: for each layer how many positions it looks back over (itself included), None for all.
  """

  family: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float
  rope: Rope
  max_positions: int
  tie_embeddings: bool
  qkv_bias: bool
  output_bias: bool
  mlp_bias: bool
  qk_norm: bool
  windows: tuple[int | None, ...]
  initializer_range: float = 0.02


def parse(config: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
  """Reads a Hugging Face config of a Llama, Mistral, Qwen2, Qwen3 or SmolLM model.

  Args:
    config: the content of `config.json`.
    where: its path, for errors.

  Raises:
    ValueError: another model family, an unsupported field or value, a missing field.

  >>> shape = dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48,
  ...              num_hidden_layers=2, num_attention_heads=4)
  >>> parse(shape).head_dim
  8
  """
  family = str(config.get("model_type"))
  if family not in FAMILIES:
    raise ValueError(
      unknown("model_type", family, FAMILIES, where) + " Score another family with your own apply "
      "function or with --scorer_command."
    )
  for name, value in config.items():
    if name in _FIXED:
      if value is not None and value != _FIXED[name]:
        raise ValueError(f"{where}: {name} is {value!r}; only {_FIXED[name]!r} is supported.")
    elif name not in _READ | _WITHOUT_EFFECT and not name.startswith("_") and value:
      raise ValueError(f"{where}: field {name!r} (= {value!r}) is not supported for {family}.")

  def need(name: str) -> int:
    if not isinstance(config.get(name), int):
      raise ValueError(f"{where}: {name} is {config.get(name)!r}; expected a whole number.")
    return int(config[name])

  hidden, heads = need("hidden_size"), need("num_attention_heads")
  layers = need("num_hidden_layers")
  head_dim = config.get("head_dim") or (128 if family == "qwen3" else hidden // heads)
  bias = bool(config.get("attention_bias", False))
  kv_default = 8 if family == "mistral" else 32 if family.startswith("qwen") else heads
  kv_heads = config.get("num_key_value_heads")
  if kv_heads is None:
    kv_heads = heads if "num_key_value_heads" in config else kv_default
  if heads % kv_heads:
    raise ValueError(f"{where}: {heads} heads cannot share {kv_heads} key/value heads.")
  return DecoderConfig(
    family=family,
    vocab_size=need("vocab_size"),
    hidden_size=hidden,
    intermediate_size=need("intermediate_size"),
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    norm_eps=float(config.get("rms_norm_eps", 1e-6)),
    rope=_rope(config, where),
    max_positions=int(config.get("max_position_embeddings", 2048)),
    tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    qkv_bias=True if family == "qwen2" else bias,
    output_bias=bias if family in ("llama", "qwen3") else False,
    mlp_bias=bool(config.get("mlp_bias", False)),
    qk_norm=family == "qwen3",
    windows=_windows(config, family, layers, where),
    initializer_range=float(config.get("initializer_range", 0.02)),
  )


def _windows(config: Mapping[str, Any], family: str, layers: int, where: str) -> tuple[int | None, ...]:
  window = config.get("sliding_window")
  if family.startswith("qwen") and not config.get("use_sliding_window", False):
    window = None
  if window is None or family == "llama":
    return (None,) * layers
  kinds = config.get("layer_types")
  if kinds is None:
    if family == "mistral":
      return (int(window),) * layers
    full = int(config.get("max_window_layers", 28))
    return tuple(None if i < full else int(window) for i in range(layers))
  for kind in kinds:
    if kind not in ("full_attention", "sliding_attention"):
      raise ValueError(unknown("layer type", str(kind), ("full_attention", "sliding_attention"), where))
  return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _rope(config: Mapping[str, Any], where: str) -> Rope:
  # Newer configs hold everything in rope_parameters, older ones in rope_theta and rope_scaling.
  options = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
  theta = float(options.pop("rope_theta", config.get("rope_theta") or 10_000.0))
  kind = str(options.pop("rope_type", options.pop("type", "default")))
  options.pop("type", None)
  if kind not in ROPE_TYPES:
    raise ValueError(unknown("rope_type", kind, ROPE_TYPES, where))
  if options.pop("partial_rotary_factor", 1.0) != 1.0:
    raise ValueError(f"{where}: a partial_rotary_factor other than 1 is not supported.")
  known = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {
      "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
    "yarn": {
      "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
      "original_max_position_embeddings", "truncate",
    },
  }[kind]  # fmt: skip
  for name in options:
    if name not in known:
      raise ValueError(unknown(f"option of rope_type {kind!r}", name, known, where))
  if kind != "default" and "factor" not in options:
    raise ValueError(f"{where}: rope_type {kind!r} needs a factor.")
  return Rope(kind, theta, tuple(sorted(options.items())))
