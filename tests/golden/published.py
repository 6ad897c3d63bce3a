"""What the `config.json` of published models says, in its older and newer spellings."""

CONFIGS = {
  "SmolLM2-135M": {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "rope_theta": 100000,
    "rope_scaling": None, "rope_interleaved": False, "is_llama_config": True, "pretraining_tp": 1,
    "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "use_cache": True,
    "initializer_range": 0.041666666666666664, "rms_norm_eps": 1e-05, "tie_word_embeddings": True,
    "transformers.js_config": {"dtype": {"q4": "q4"}}, "bos_token_id": 0, "eos_token_id": 0,
  },
  "Llama-3.1-8B-Instruct": {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "max_position_embeddings": 131072, "eos_token_id": [128001, 128008, 128009], "mlp_bias": False,
  },
  "Mistral-7B-v0.1": {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "rope_theta": 10000.0,
    "sliding_window": 4096, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
  },
  "Qwen2.5-7B-Instruct": {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "rope_theta": 1000000.0,
    "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "use_mrope": False,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
  },
  "Qwen3-0.6B": {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "attention_bias": False, "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False,
    "layer_types": ["full_attention"] * 28,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
  },
  "c4ai-command-r-plus": {
    "model_type": "cohere", "hidden_size": 12288, "intermediate_size": 33792, "num_hidden_layers": 64,
    "num_attention_heads": 96, "num_key_value_heads": 8, "vocab_size": 256000, "rope_theta": 75000000.0,
    "logit_scale": 0.8333333333333334, "use_qk_norm": True, "layer_norm_eps": 1e-05, "hidden_act": "silu",
    "max_position_embeddings": 8192, "model_max_length": 131072, "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 5, "eos_token_id": 255001, "pad_token_id": 0,
    "architectures": ["CohereForCausalLM"], "torch_dtype": "float16", "use_cache": True,
  },
  "gemma-2-9b": {
    "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
    "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096, "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "cache_implementation": "hybrid",
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
    "max_position_embeddings": 8192, "attention_bias": False, "bos_token_id": 2, "torch_dtype": "float32",
  },
  "gemma-3-27b-it (text)": {
    "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
    "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 262208,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    "query_pre_attn_scalar": 168,
  },
}  # fmt: skip
