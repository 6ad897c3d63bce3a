"""The Recycle analyses: cells that stand alone, searches over some of a pool, and what is made of them."""

import json

import jax
import numpy as np
import pytest

from merge_jax import checkpoints, evals, models, search
from merge_jax.evals import tasks as task_files
from merge_jax.recycle import settings as recycle_settings
from merge_jax.recycle import suites
from merge_jax.search import Candidate, Point
from merge_jax.study import recycle_settings as ways
from merge_jax.study import recycling, searches
from merge_jax.study.bench import Bench, Members, Pool
from merge_jax.training import pool as writing
from merge_jax.training import puzzles

CONFIG = {
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 16,
  "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
  "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "eos_token_id": 1,
  "pad_token_id": 0, "bos_token_id": None,
}  # fmt: skip
TASKS = ("copy", "first", "other")
OPTIONS = {"settings": {"both": ["copy", "first"]}, "counts": [2, 8], "budgets": [6, 14], "seeds": [0, 1],
           "sigmas": [0.1], "batch": 2, "bootstrap": 100}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Five checkpoints around a base, and three tasks scored by loss: chance separates them."""
  folder = tmp_path_factory.mktemp("pool")
  base = {name: np.asarray(v) for name, v in models.build(CONFIG).init(jax.random.key(0)).items()}
  text = puzzles.tokenizer().to_str()
  writing.save(folder / "base", base, CONFIG, text, {"tokens": 9000})
  for i in range(5):
    generator = np.random.default_rng(i)
    params = {name: v + 0.05 * generator.standard_normal(v.shape, np.float32) for name, v in base.items()}
    about = {"tokens": 1000 + i, "steps": 10, "recipe": {"batch_size": 4}}
    writing.save(folder / f"m{i}", params, CONFIG, text, about)
  generator = np.random.default_rng(0)
  for task in TASKS:
    words = ["".join(generator.choice(list("abcdefgh"), 4)) + str(i) for i in range(40)]
    lines = [{"prompt": f"{task} {w}=", "target": w[:2]} for w in words]
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  names = tuple(f"m{i}" for i in range(5))
  stages = {"m0": "sft", "m1": "po"}
  return Pool(names, tuple(folder / name for name in names), folder / "base", stages, {"m4": 77})


@pytest.fixture(scope="module")
def suite(world):
  tasks = task_files.load_all([f"{world.base.parent / task}.jsonl:loss" for task in TASKS])
  splits = evals.split(tasks, (0.4, 0.2, 0.4)).tasks
  opened = [checkpoints.open(path) for path in world.folders]
  return suites.task_suite(splits, opened, recycle_settings.Evals(max_shapes=1))


@pytest.fixture(scope="module")
def found(world, suite):
  cells = recycling.cells(world, suite, ways.read(OPTIONS))
  return cells, [json.loads(json.dumps(cell.run(), allow_nan=False)) for cell in cells]


def test_x(found):
  cells, results = found
  print(len(cells))
  for c in cells:
    print(c.name)
  print(json.dumps(results[0])[:500])
  from merge_jax.study import recycle_summary

  s = recycle_summary.summary(results, 100)
  print(json.dumps(s, indent=1)[:9000])
