"""Trains a checkpoint on a mixture of task files.

python -m launch.train --tasks=code.jsonl,math.jsonl --init=base --output_dir=expert
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from merge_jax import checkpoints, evals, models, storage
from merge_jax.evals import tasks as task_files
from merge_jax.training import Recipe, corpus, pool, puzzles, train

from . import _common

_CONFIG = _common.define_config("train")
_TASKS = flags.DEFINE_list("tasks", [], "Training examples, as task files.")
_INIT = flags.DEFINE_string("init", "", "Checkpoint to start from; none: random parameters.")
_OUTPUT = flags.DEFINE_string("output_dir", None, "Folder to write; must not exist.", required=True)


def main() -> None:
  """Loads, trains, writes a Hugging Face folder."""
  target, config = Path(_OUTPUT.value), _CONFIG.value.to_dict()
  storage.refuse_filled(target)
  if not _TASKS.value:
    raise ValueError("There is nothing to train on; give --tasks=a.jsonl,b.jsonl.")
  tasks = task_files.load_all(_TASKS.value)
  model_config, tokenizer, params = start(config.pop("model"), config["seed"])
  config["mixture"] = task_files.shares(config["mixture"]) or {task.name: 1.0 for task in tasks}
  config["schedule_steps"] = config["schedule_steps"] or None
  recipe = Recipe(**config)
  tokens = evals.Tokens(puzzles.Tokenizer.from_str(tokenizer), model_config.get("eos_token_id"))
  model, bar = models.build(model_config), _common.Progress(recipe.steps, "steps")
  trained = train(
    model.apply, params, corpus(tasks, tokens), recipe,
    progress=lambda done, _, loss: bar(done, f"loss {loss:.3f}"),
  )  # fmt: skip
  bar.close()
  pool.save(target, trained.params, model_config, tokenizer, pool.describe(recipe, trained))
  print(f"loss {trained.losses[-1]:.4f} after {trained.steps} steps, {trained.tokens:,} tokens: {target}")


def start(model_config: dict[str, Any], seed: int) -> tuple[dict[str, Any], str, dict[str, jax.Array]]:
  """Config, tokenizer and first parameters: of `--init`, or of a fresh model."""
  if not _INIT.value:
    return model_config, puzzles.tokenizer().to_str(), models.build(model_config).init(jax.random.key(seed))
  first = checkpoints.open(_INIT.value)
  if first.config is None or not (first.path / "tokenizer.json").is_file():
    raise ValueError(f"{first.path} needs a config.json and a tokenizer.json to train from.")
  # A step of Adam is smaller than bfloat16 can hold.
  params = {name: value.astype(jnp.float32) for name, value in first.load().items()}
  return dict(first.config), (first.path / "tokenizer.json").read_text(), params


if __name__ == "__main__":
  _common.run(main)
