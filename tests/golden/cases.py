"""Tiny random configs of each family member, and their parameters from numpy alone."""

import numpy as np

SHAPE = {
  "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
  "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
LLAMA3 = {
  "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16, "rope_theta": 500000.0,
}  # fmt: skip
YARN = {
  "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0,
}  # fmt: skip

CASES = {
  "llama2": {"model_type": "llama", "num_key_value_heads": 4},
  "llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
  "llama_tied_biased": {
    "model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
  },
  "smollm": {"model_type": "llama", "tie_word_embeddings": True, "num_attention_heads": 8, "rope_theta": 1e5},
  "llama_linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
  "llama_dynamic": {
    "model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
  },
  "llama_yarn": {"model_type": "llama", "rope_parameters": YARN},
  "mistral": {"model_type": "mistral", "sliding_window": 7, "head_dim": 16},
  "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
  "qwen2_windows": {
    "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
  },
  "qwen3": {"model_type": "qwen3", "head_dim": 16},
  "command_r": {"model_type": "cohere", "logit_scale": 1.0, "rope_theta": 8e6},
  "command_r_plus": {
    "model_type": "cohere", "logit_scale": 0.8, "use_qk_norm": True, "attention_bias": True,
    "tie_word_embeddings": False,
  },
  "command_r7b": {
    "model_type": "cohere2", "logit_scale": 0.9, "sliding_window": 7, "sliding_window_pattern": 2,
  },
  "mixtral": {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7},
  "qwen3_moe": {
    "model_type": "qwen3_moe", "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3,
    "moe_intermediate_size": 24, "mlp_only_layers": [0],
  },
  "qwen3_moe_normed": {
    "model_type": "qwen3_moe", "head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3,
    "moe_intermediate_size": 24, "norm_topk_prob": True, "tie_word_embeddings": True,
  },
  "gemma": {"model_type": "gemma", "head_dim": 16},
  "gemma2": {
    "model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7,
    "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0,
  },
  "gemma3": {
    "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 7,
    "sliding_window_pattern": 2, "rope_theta": 5e5, "rope_local_base_freq": 1e3,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
  },
}  # fmt: skip

TOKENS = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (2, 72))  # beyond max positions


def config_of(name: str) -> dict:
  """The `config.json` of a case."""
  config = SHAPE | CASES[name]
  if config["model_type"].startswith("cohere"):
    config["layer_norm_eps"] = config.pop("rms_norm_eps")
  if config["model_type"].startswith("gemma"):
    config["hidden_activation"] = "gelu_pytorch_tanh"
    del config["hidden_act"]
  return config


def parameters(specs: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Random tensors, large enough that logits differ by several units."""
  generator = np.random.default_rng(1)
  result = {}
  for name in sorted(specs):
    value = generator.normal(size=specs[name])
    result[name] = (1 + 0.1 * value if name.endswith("norm.weight") else 0.3 * value).astype(np.float32)
  return result
