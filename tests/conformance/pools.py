"""Tiny models of three architectures, the same on every machine, without torch.

`write(root)` makes `root/llama/base`, `root/llama/x1`, …: configs, weights and tokenizers that
`transformers`, mergekit and merge_jax all open. Values are multiples of 2^-17 below 8: differences of models
are exact in float32, so that all see the same, and their magnitudes hardly ever tie.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from merge_jax import checkpoints

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY = 16, 24, 2, 3, 48
EXPERTS = ("x1", "x2", "x3")

_COMMON = {"bos_token_id": 0, "eos_token_id": 1}
_DECODER = _COMMON | {
  "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
  "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
  "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
  "hidden_act": "silu", "vocab_size": VOCABULARY,
}  # fmt: skip
_LLAMA = _DECODER | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
CONFIGS: dict[str, dict[str, Any]] = {
  "llama": _LLAMA | {"tie_word_embeddings": False},
  "tied": _LLAMA | {"tie_word_embeddings": True},
  "qwen2": _DECODER
  | {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True,
    "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2,
    "layer_types": ["full_attention", "full_attention", "sliding_attention"],
  },
  "gpt2": _COMMON
  | {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": HIDDEN, "n_head": HEADS,
    "n_layer": LAYERS, "n_positions": VOCABULARY, "n_inner": INNER, "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
  },
}  # fmt: skip


def shapes(architecture: str, rows: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
  """Shape of every tensor, by name."""
  if architecture == "gpt2":
    layer: dict[str, tuple[int, ...]] = {
      "ln_1.weight": (HIDDEN,), "ln_1.bias": (HIDDEN,), "ln_2.weight": (HIDDEN,), "ln_2.bias": (HIDDEN,),
      "attn.c_attn.weight": (HIDDEN, 3 * HIDDEN), "attn.c_attn.bias": (3 * HIDDEN,),
      "attn.c_proj.weight": (HIDDEN, HIDDEN), "attn.c_proj.bias": (HIDDEN,),
      "mlp.c_fc.weight": (HIDDEN, INNER), "mlp.c_fc.bias": (INNER,),
      "mlp.c_proj.weight": (INNER, HIDDEN), "mlp.c_proj.bias": (HIDDEN,),
    }  # fmt: skip
    outside = {"wte.weight": (rows, HIDDEN), "wpe.weight": (VOCABULARY, HIDDEN)}
    outside |= {"ln_f.weight": (HIDDEN,), "ln_f.bias": (HIDDEN,)}
    prefix, layers = "transformer.", "transformer.h"
  else:
    layer = {
      "input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,),
      "self_attn.q_proj.weight": (HIDDEN, HIDDEN), "self_attn.k_proj.weight": (HIDDEN, HIDDEN),
      "self_attn.v_proj.weight": (HIDDEN, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
      "mlp.gate_proj.weight": (INNER, HIDDEN), "mlp.up_proj.weight": (INNER, HIDDEN),
      "mlp.down_proj.weight": (HIDDEN, INNER),
    }  # fmt: skip
    if architecture == "qwen2":
      layer |= {f"self_attn.{x}_proj.bias": (HIDDEN,) for x in "qkv"}
    outside = {"embed_tokens.weight": (rows, HIDDEN), "norm.weight": (HIDDEN,)}
    prefix, layers = "model.", "model.layers"
  tensors = {prefix + name: shape for name, shape in outside.items()}
  tensors |= {f"{layers}.{i}.{name}": shape for i in range(LAYERS) for name, shape in layer.items()}
  if not CONFIGS[architecture]["tie_word_embeddings"]:
    tensors["lm_head.weight"] = (rows, HIDDEN)
  return tensors


def tensors(architecture: str, model: str, rows: int = VOCABULARY) -> dict[str, np.ndarray]:
  """Weights of a model: the base's (deviation 0.8), plus a difference (0.2)."""
  result = {}
  for name, shape in shapes(architecture, rows).items():
    value = _draw(f"{architecture}/base/{name}", shape)
    if model != "base":
      value = value + _draw(f"{architecture}/{model}/{name}", shape) // 4
    result[name] = value.astype(np.float32) / 2**17
  return result


def _draw(label: str, shape: tuple[int, ...]) -> np.ndarray:
  """Integers, nearly Gaussian with deviation 1.07e5: sums of eight uniform ones, alike in every numpy."""
  bits = np.random.Philox(key=zlib.crc32(label.encode())).random_raw(8 * int(np.prod(shape)))
  return ((bits >> np.uint64(47)).astype(np.int64) - 2**16).reshape(8, *shape).sum(0)


LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]
MERGES = ["ab", "cd", "ef", "gh", "Ġa", "Ġb", "th", "er"]
SPECIALS = ["<s>", "</s>"]


def tokenizer(words: list[str], specials: list[str], first: bool = True) -> dict[str, Any]:
  """`tokenizer.json` of a byte-level BPE; special tokens are its first, or added behind it."""
  plain = [*LETTERS, "Ġ", *words]
  order = [*specials, *plain] if first else [*plain, *specials]
  flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
  return {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [{"id": order.index(text), "content": text} | flags for text in specials],
    "pre_tokenizer": level, "post_processor": None, "decoder": level,
    "model": {
      "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
      "vocab": {text: i for i, text in enumerate(order) if first or text not in specials},
      "merges": [[text[0], text[1:]] for text in words],
    },
  }  # fmt: skip


TOKENIZERS = {  # 37 tokens of 48 rows; the same; three tokens more; another order, one less, two more
  "base": tokenizer(MERGES, SPECIALS),
  "x1": tokenizer(MERGES, SPECIALS),
  "x2": tokenizer([*MERGES, "in", "on"], [*SPECIALS, "<|tool|>"]),
  "x3": tokenizer([*MERGES[:4:-1], *MERGES[:4], "in"], ["</s>", "<s>", "<|user|>"], first=False),
}


def vocabulary(spec: dict[str, Any]) -> dict[str, int]:
  """Id of every token of a `tokenizer.json`."""
  return spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec["added_tokens"]}


def write(
  folder: Path, architecture: str, model: str, *, dtype: Any = np.float32, rows: int = VOCABULARY,
  tokenizer: dict[str, Any] | None = None, template: str | None = None,
) -> None:  # fmt: skip
  """Writes one model's folder."""
  values = {n: v.astype(dtype) for n, v in tensors(architecture, model, rows).items()}
  checkpoints.write(folder, values)
  config = CONFIGS[architecture] | {"vocab_size": rows, "torch_dtype": str(np.dtype(dtype))}
  _json(folder / "config.json", config)
  if tokenizer is not None:
    _json(folder / "tokenizer.json", tokenizer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"model_max_length": 64, "clean_up_tokenization_spaces": False}
    _json(folder / "tokenizer_config.json", settings | ({"chat_template": template} if template else {}))


def write_all(root: Path) -> None:
  """Writes every model that the recipes name."""
  for architecture in ("llama", "qwen2", "gpt2"):
    for model in ("base", *EXPERTS):
      write(root / architecture / model, architecture, model, tokenizer=TOKENIZERS["base"])
  for model in ("base", *EXPERTS):
    write(root / "bfloat16" / model, "llama", model, dtype=ml_dtypes.bfloat16, tokenizer=TOKENIZERS["base"])
  for architecture, kind in (("llama", "words"), ("tied", "tied")):
    for model, spec in TOKENIZERS.items():
      size = VOCABULARY if model in ("base", "x1") else len(vocabulary(spec))
      write(root / kind / model, architecture, model, rows=size, tokenizer=spec)


def _json(path: Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
