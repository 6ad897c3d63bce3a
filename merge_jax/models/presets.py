"""What the `config.json` of published models says of their shape and numbers, by name."""

import copy
from typing import Any

from merge_jax.errors import unknown

CONFIGS: dict[str, dict[str, Any]] = {
  "command-r-plus-104b": {
    "model_type": "cohere", "vocab_size": 256000, "hidden_size": 12288, "intermediate_size": 33792,
    "num_hidden_layers": 64, "num_attention_heads": 96, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "layer_norm_eps": 1e-05, "rope_theta": 75000000.0,
    "logit_scale": 0.8333333333333334, "use_qk_norm": True, "tie_word_embeddings": True,
  },
  "command-r-35b": {
    "model_type": "cohere", "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528,
    "num_hidden_layers": 40, "num_attention_heads": 64, "num_key_value_heads": 64,
    "max_position_embeddings": 8192, "layer_norm_eps": 1e-05, "rope_theta": 8000000.0,
    "logit_scale": 0.0625, "tie_word_embeddings": True,
  },
  "llama-3-8b": {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "tie_word_embeddings": False,
  },
  "llama-3-70b": {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "tie_word_embeddings": False,
  },
  "llama-3.1-405b": {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 16384, "intermediate_size": 53248,
    "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {
      "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
  },
  "mistral-7b": {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "tie_word_embeddings": False,
  },
  "mixtral-8x7b": {
    "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
    "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False,
  },
  "qwen2.5-7b": {
    "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "use_sliding_window": False, "tie_word_embeddings": False,
  },
  "qwen3-8b": {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
    "attention_bias": False, "use_sliding_window": False, "tie_word_embeddings": False,
  },
  "qwen3-30b-a3b": {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "attention_bias": False, "use_sliding_window": False, "tie_word_embeddings": False,
  },
  "gemma-2-9b": {
    "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 3584, "intermediate_size": 14336,
    "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
  },
  "gemma-3-27b-text": {
    "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 5376, "intermediate_size": 21504,
    "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
    "query_pre_attn_scalar": 168, "sliding_window": 1024,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
  },
  "smollm2-135m": {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 100000,
    "initializer_range": 0.041666666666666664, "tie_word_embeddings": True,
  },
}  # fmt: skip


def preset(name: str) -> dict[str, Any]:
  """The config of a published model, for `build`.

  Raises:
    ValueError: an unknown name.

  >>> preset("smollm2-135m")["num_hidden_layers"]
  30
  >>> preset("llama-3-8")
  Traceback (most recent call last):
  ValueError: unknown model preset 'llama-3-8'; did you mean 'llama-3-8b'? Known: ...
  """
  if name not in CONFIGS:
    raise ValueError(unknown("model preset", name, CONFIGS))
  return copy.deepcopy(CONFIGS[name])
