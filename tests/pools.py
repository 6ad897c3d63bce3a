"""Tiny pools and tasks on disk, made in a second."""

import json
from pathlib import Path

import jax
import numpy as np

from merge_jax import models
from merge_jax.training import pool, puzzles

CONFIG = {
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip
TINY = CONFIG | {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def make_pool(folder: Path, count: int = 3, scale: float = 0.005) -> list[Path]:
  """Random checkpoints around a random base, in `folder/base`, `folder/m0`, …."""
  model = models.build(CONFIG)
  base = {name: np.asarray(v) for name, v in model.init(jax.random.key(0)).items()}
  text = puzzles.tokenizer().to_str()
  pool.save(folder / "base", base, CONFIG, text, {"tokens": 1000})
  paths = []
  for i in range(count):
    generator = np.random.default_rng(i + 1)
    params = {
      name: (value + scale * generator.normal(size=value.shape)).astype(np.float32)
      for name, value in base.items()
    }
    about = {"tokens": 500, "steps": 10, "recipe": {"batch_size": 4}}
    pool.save(folder / f"m{i}", params, CONFIG, text, about)
    paths.append(folder / f"m{i}")
  return paths


def make_tasks(folder: Path, count: int = 40) -> list[Path]:
  """One task with targets, one with choices."""
  folder.mkdir(parents=True, exist_ok=True)
  generator = np.random.default_rng(0)
  letters = np.array(list("abcdefgh"))
  words = ["".join(generator.choice(letters, 4)) + str(i) for i in range(count)]
  copy = [{"prompt": f"copy {w}=", "target": w[:2]} for w in words]
  choose = [{"prompt": f"pick {w}:", "choices": [w[0], "zz", "yyy"], "answer": i % 3}
            for i, w in enumerate(words)]  # fmt: skip
  paths = [folder / "copy.jsonl", folder / "choose.jsonl"]
  for path, records in zip(paths, (copy, choose), strict=True):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
  return paths
