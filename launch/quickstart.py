"""Trains a small real pool, recycles it, and ends with the path of a report.

./launch/quickstart [--output_dir=runs/quickstart] [--overwrite] [--config.seed=1]
"""

import json
import shutil
from pathlib import Path
from typing import Any

from absl import flags

from merge_jax import evals, storage
from merge_jax.evals import tasks as task_files
from merge_jax.recycle import settings
from merge_jax.training import Recipe, corpus, pool, puzzles

from . import _common

_CONFIG = _common.define_config("quickstart")
_OUTPUT = flags.DEFINE_string("output_dir", "runs/quickstart", "Folder to write into.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove what an earlier quickstart wrote there.")

# reasoning-gym's item i depends on seed + i: runs, tasks and splits are spaced wider than they draw.
RUN, TASK, HELD_BACK = 10**8, 10**7, 5 * 10**6


def main() -> None:
  """Data, pool, search, report."""
  config, folder = _CONFIG.value.to_dict(), Path(_OUTPUT.value)
  with storage.locked(folder / "pool"):
    claim(folder, config)
    task_paths, train_paths = make_data(folder, config)
    checkpoint_paths = make_pool(folder, config, train_paths)
  job = settings.from_mapping(
    config["recycle"]
    | {
      "checkpoints": tuple(map(str, checkpoint_paths)),
      "base": str(folder / "pool" / "base"),
      "tasks": tuple(map(str, task_paths)),
      "output_dir": str(folder),
    }
  )
  _common.recycle_and_show(job, overwrite=False)


def claim(folder: Path, config: dict[str, Any]) -> None:
  """Refuses a folder of another quickstart; `--overwrite` empties it."""
  path, plain = folder / "pool" / "quickstart.json", json.loads(json.dumps(config))
  if path.is_file() and _OVERWRITE.value:
    for entry in [e for e in folder.iterdir() if e.name != "pool"]:
      shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in [e for e in (folder / "pool").iterdir() if e.name != ".lock"]:
      shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
  if not path.is_file():
    storage.write_json(path, plain)
  elif json.loads(path.read_text()) != plain:
    raise ValueError(
      f"{folder} holds a quickstart of another config; use --overwrite or another --output_dir."
    )


def make_data(folder: Path, config: dict[str, Any]) -> tuple[list[Path], list[Path]]:
  """Writes task and training examples, without a prompt in both."""
  task_paths, train_paths = [], []
  for i, name in enumerate(config["tasks"]):
    seed = config["seed"] * RUN + i * TASK
    train_path, task_path = (
      folder / "pool" / "train" / f"{name}.jsonl",
      folder / "tasks" / f"{name}.jsonl",
    )
    if not task_path.is_file() or not train_path.is_file():
      train = puzzles.generate(name, config["train_examples"], seed)
      seen = {record["prompt"] for record in train}
      more = puzzles.generate(name, 2 * config["task_examples"], seed + HELD_BACK)
      held_back = [record for record in more if record["prompt"] not in seen]
      puzzles.write_jsonl(train_path, train)
      puzzles.write_jsonl(task_path, held_back[: config["task_examples"]])
    task_paths.append(task_path)
    train_paths.append(train_path)
  print(f"tasks: {', '.join(config['tasks'])}", flush=True)
  return task_paths, train_paths


def make_pool(folder: Path, config: dict[str, Any], train_paths: list[Path]) -> list[Path]:
  """Trains the base and the checkpoints that are not there yet."""
  tokenizer, seed = puzzles.tokenizer(), config["seed"]
  tokens = evals.Tokens(tokenizer, config["model"]["eos_token_id"])
  data = corpus([task_files.load(str(path)) for path in train_paths], tokens)
  base = [Recipe(**recipe, seed=1000 * seed + i) for i, recipe in enumerate(config["base"].values())]
  experts = {
    name: Recipe(**recipe, seed=1000 * seed + i)
    for i, (name, recipe) in enumerate(config["experts"].items(), len(base))
  }

  def say(line: str) -> None:
    print(line, flush=True)

  return pool.make(folder / "pool", config["model"], tokenizer.to_str(), data, base, experts, say=say)


if __name__ == "__main__":
  _common.run(main)
