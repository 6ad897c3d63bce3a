"""Three tiny models on disk, in bfloat16: `base`, `a`, and `b` in shards."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from merge_jax import checkpoints, recipes

SHARD = 1e-7  # GB: a few tensors a file
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 6, "tie_word_embeddings": False}
NORM = "model.norm.weight"
SHAPES = {"model.embed_tokens.weight": (6, 4), NORM: (4,), "lm_head.weight": (6, 4)} | {
  f"model.layers.{i}.{part}.weight": (4, 4) for i in range(2) for part in ("self_attn.o_proj", "mlp.up_proj")
}
LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"


def values(seed):
  generator = np.random.default_rng(seed)
  return {name: generator.normal(size=shape).astype(ml_dtypes.bfloat16) for name, shape in SHAPES.items()}


def save(folder, tensors, **options):
  with checkpoints.writer(folder, tensors, **options) as out:
    for name, value in tensors.items():
      out.write(name, value)
  (folder / "config.json").write_text(json.dumps(CONFIG))


def make(folder):
  for seed, name in enumerate(("base", "a", "b")):
    save(folder / name, values(seed), **({"max_shard_bytes": 100} if name == "b" else {}))


def adapt(folder):
  """An adapter of the models, of rank 2."""
  generator = np.random.default_rng(0)
  factors = {
    f"base_model.model.model.layers.{i}.mlp.up_proj.lora_{k}.weight": generator.normal(size=shape).astype(
      np.float32
    )
    for i in range(2)
    for k, shape in (("A", (2, 4)), ("B", (4, 2)))
  }
  Path(folder).mkdir(parents=True)
  safetensors.numpy.save_file(factors, Path(folder) / "adapter_model.safetensors")
  config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["up_proj"]}
  (Path(folder) / "adapter_config.json").write_text(json.dumps(config))


def content(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(text=LINEAR, output="out", **options):
  """Merges in the working directory."""
  Path("recipe.yml").write_text(text)
  return recipes.run("recipe.yml", output, **options)


def merge(text=LINEAR, output="out", **options):
  """The bytes of all tensor files of a merge, and their index."""
  run(text, output, **options)
  return {name: data for name, data in content(Path(output)).items() if "safetensors" in name}
