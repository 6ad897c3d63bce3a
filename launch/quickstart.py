"""Trains a small real pool, recycles it, and ends with the path of a report.

./launch/quickstart [--output_dir=runs/quickstart] [--overwrite] [--config.seed=1]
"""

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from absl import flags
from msgspec import Meta

from merge_jax import decoding, evals, recycle, storage
from merge_jax.errors import shown, unknown
from merge_jax.evals import tasks as task_files
from merge_jax.recycle.settings import Settings, from_mapping
from merge_jax.training import Recipe, corpus, pool, puzzles, read_recipe

from . import _common, _config

_CONFIG = _config.define_config("quickstart")
_OUTPUT = flags.DEFINE_string("output_dir", "runs/quickstart", "Folder to write into.")
_common.define_mesh()
_common.define_deterministic()
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove what an earlier quickstart wrote there.")

# reasoning-gym's item i depends on seed + i: runs, tasks and splits are spaced wider than they draw.
RUN, TASK, HELD_BACK = 10**8, 10**7, 5 * 10**6


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """What `configs/quickstart.py` holds."""

  seed: Annotated[int, Meta(ge=0, le=2**31 // 1000 - 1)]  # each recipe has one of a thousand
  tasks: list[str]
  train_examples: Annotated[int, Meta(ge=1)]
  task_examples: Annotated[int, Meta(ge=1)]
  model: dict[str, Any]
  base: dict[str, dict[str, Any]]
  experts: dict[str, dict[str, Any]]
  recycle: dict[str, Any]


def main() -> None:
  """Data, pool, search, report."""
  folder = storage.disk_destination(_OUTPUT.value, "--output_dir")
  plain = json.loads(json.dumps(_config.config_values(_CONFIG)))
  config = decoding.convert(plain, Config, "config")
  for name in config.tasks:
    if name not in puzzles.PUZZLES:
      raise ValueError(unknown("task", name, puzzles.PUZZLES, "config.tasks"))
  refuse_names(config.experts)
  base, experts = recipes(config)
  job = search_job(folder, config)
  recycle.check(job)
  with storage.locked(folder / "tasks"):
    claim(folder, plain, config)
    train_paths = make_data(folder, config)
    make_pool(folder, config, train_paths, base, experts)
  _common.recycle_and_show(job, overwrite=_OVERWRITE.value)


def search_job(folder: Path, config: Config) -> Settings:
  """The search of the pool that is going to be trained."""
  placement = dict(config.recycle.get("placement", {})) | {"mesh": flags.FLAGS.mesh}
  return from_mapping(
    config.recycle
    | {
      "checkpoints": [str(folder / "pool" / name) for name in config.experts],
      "base": str(folder / "pool" / "base"),
      "tasks": [str(task_file(folder, name)) for name in config.tasks],
      "output_dir": str(folder),
      "placement": placement,
    }
  )


def refuse_names(experts: Collection[str]) -> None:
  """Raises ValueError if there is no expert, or one whose folder is not its own."""
  if not experts:
    raise ValueError("config.experts is empty; there must be at least one to recycle.")
  for name in experts:
    if name == "base" or Path(name).name != name:
      raise ValueError(
        f"config.experts: {shown(name)} is no name of a folder beside pool/base; give it another one."
      )


def recipes(config: Config) -> tuple[list[Recipe], dict[str, Recipe]]:
  """Of the base's stages, and of the experts by name; each has a seed of its own."""
  stages = {f"base.{name}": recipe for name, recipe in config.base.items()}
  further = {f"experts.{name}": recipe for name, recipe in config.experts.items()}
  read = [
    read_recipe(recipe | {"seed": 1000 * config.seed + i}, f"config.{where}")
    for i, (where, recipe) in enumerate((stages | further).items())
  ]
  return read[: len(stages)], dict(zip(config.experts, read[len(stages) :], strict=True))


def claim(folder: Path, plain: dict[str, Any], config: Config) -> None:
  """Refuses a folder of another quickstart; `--overwrite` removes what that one wrote."""
  path = folder / "tasks" / "quickstart.json"
  if path.is_file() and _OVERWRITE.value:
    earlier = storage.read_json(path, Config)
    for entry in outputs(folder, earlier):
      if entry.is_dir():
        shutil.rmtree(entry)
      else:
        entry.unlink(missing_ok=True)
    path.unlink()  # last: until then the same command removes the rest
  if not path.is_file():
    for entry in outputs(folder, config):
      storage.refuse_filled(entry)
    storage.write_json(path, plain)
  elif of_pool(storage.read_json(path, dict[str, Any])) != of_pool(plain):
    raise ValueError(
      f"{folder} holds a quickstart of another config; use --overwrite or another --output_dir."
    )


def of_pool(config: dict[str, Any]) -> dict[str, Any]:
  """What data and pool are made from; the recycle job has a manifest of its own, and may grow."""
  return {name: value for name, value in config.items() if name != "recycle"}


def outputs(folder: Path, config: Config) -> Iterator[Path]:
  """Files and folders that a quickstart of this config writes before it searches."""
  for name in config.tasks:
    yield task_file(folder, name, "train")
    yield task_file(folder, name)
  for name in ("base", *config.experts):
    yield folder / "pool" / name


def task_file(folder: Path, name: str, kind: str = "") -> Path:
  """Examples of a task: those that are searched and tested on, or with `kind="train"` those to learn from."""
  return folder / "tasks" / kind / f"{name}.jsonl"


def make_data(folder: Path, config: Config) -> list[Path]:
  """Writes task and training examples, without a prompt in both; returns the files to train on."""
  for i, name in enumerate(config.tasks):
    seed = config.seed * RUN + i * TASK
    train_path, task_path = task_file(folder, name, "train"), task_file(folder, name)
    if not task_path.is_file() or not train_path.is_file():
      train = puzzles.generate(name, config.train_examples, seed)
      seen = {record["prompt"] for record in train}
      more = puzzles.generate(name, 2 * config.task_examples, seed + HELD_BACK)
      held_back = [record for record in more if record["prompt"] not in seen]
      puzzles.write_jsonl(train_path, train)
      puzzles.write_jsonl(task_path, held_back[: config.task_examples])
  print(f"tasks: {', '.join(config.tasks)}", flush=True)
  return [task_file(folder, name, "train") for name in config.tasks]


def make_pool(
  folder: Path, config: Config, train_paths: list[Path], base: list[Recipe], experts: dict[str, Recipe]
) -> None:
  """Trains the base and the checkpoints that are not there yet."""
  tokenizer = puzzles.tokenizer()
  tokens = evals.Tokens(tokenizer, config.model["eos_token_id"])
  data = corpus([task_files.load(str(path)) for path in train_paths], tokens)

  def say(line: str) -> None:
    print(line, flush=True)

  pool.make(folder / "pool", config.model, tokenizer.to_str(), data, base, experts, say=say)


if __name__ == "__main__":
  _common.run(main)
