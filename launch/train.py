"""Trains a checkpoint on a mixture of task files.

python -m launch.train --tasks=code.jsonl,math.jsonl --init=base --output_dir=expert
python -m launch.train --tasks=code.jsonl --init=base --output_dir=adapter --config.lora_rank=8 --save_adapter
python -m launch.train --tasks=quiz.jsonl --init=expert --output_dir=preferring --config.dpo_beta=0.1
"""

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from absl import flags
from jax import Array
from jax.sharding import Mesh
from ml_collections import config_flags

from merge_jax import checkpoints, decoding, evals, models, preflight, sharding, storage
from merge_jax.evals import tasks as task_files
from merge_jax.training import (
  Recipe,
  State,
  corpus,
  pool,
  puzzles,
  read_recipe,
  refuse_written,
  result,
  shares,
  train_into,
)

from . import _common, _config

_CONFIG = _config.define_config("train")
_TASKS = flags.DEFINE_list("tasks", [], "Training examples, as task files.")
_INIT = flags.DEFINE_string("init", "", "Checkpoint to start from; none: random parameters.")
_OUTPUT = flags.DEFINE_string("output_dir", None, "Folder to write; must not exist.", required=True)
_ADAPTER = flags.DEFINE_bool("save_adapter", False, "With config.lora_rank: write the adapter, not merged.")

_common.define_mesh()
_common.define_deterministic()
_common.define_distributed()


class Saving(msgspec.Struct, frozen=True):
  """When states and checkpoints are written; see `configs/train.py`."""

  save_every: Annotated[int, msgspec.Meta(ge=0)] = 0
  keep_every: Annotated[int, msgspec.Meta(ge=0)] = 0


class Start(NamedTuple):
  """What training starts from, on which mesh, and how it is written: `write(folder, params, about=…)`.

  `told` is the model's config as text, which a training that goes on must share.
  """

  mesh: Mesh
  model: models.Model
  tokens: evals.Tokens
  params: dict[str, Array]
  write: Callable[..., None]
  told: str


def main() -> None:
  """Loads, trains, writes a Hugging Face folder."""
  overrides = config_flags.get_override_values(flags.FLAGS["config"])
  if _INIT.value and (own := [key for key in overrides if key.startswith("model.")]):
    raise ValueError(f"config.{own[0]} is of a new model, and --init brings its own; leave one of them out.")
  target, config = storage.disk_destination(_OUTPUT.value, "--output_dir"), _config.config_values(_CONFIG)
  inputs = [*map(task_files.path_of, _TASKS.value), *([storage.path(_INIT.value)] if _INIT.value else [])]
  storage.refuse_inside(target, inputs, "--output_dir")
  given = {name: config.pop(name) for name in Saving.__struct_fields__ if name in config}
  saving = decoding.convert(given, Saving, "config")
  refuse_written(target, going_on=saving.keep_every > 0)
  if not _TASKS.value:
    raise ValueError("There is nothing to train on; give --tasks=a.jsonl,b.jsonl.")
  tasks = task_files.load_all(_TASKS.value)
  model_config, mixture = config.pop("model", None), config.get("mixture")
  if model_config is None and not _INIT.value:
    raise ValueError("config.model is missing: give the config of a new model there, or --init.")
  if isinstance(mixture, str):
    mixture = task_files.shares(mixture, "config: mixture")
  config["mixture"] = mixture or {task.name: 1.0 for task in tasks}
  recipe = read_recipe(config, "config")
  shares(recipe.mixture, [task.name for task in tasks])  # or the model would be read in vain
  if _ADAPTER.value and not (recipe.lora_rank and _INIT.value):
    raise ValueError(
      "--save_adapter is for LoRA on a checkpoint; give --config.lora_rank and --init as well."
    )
  settings = msgspec.to_builtins(recipe) | given | {"model": None if _INIT.value else model_config}
  _common.refuse_another(
    _common.told(("save_adapter", "mesh"))
    | {"--output_dir": str(target.resolve())}
    | {f"config.{name}": value for name, value in settings.items()},
    {spec: task_files.path_of(spec) for spec in _TASKS.value},
    (checkpoints.open(storage.path(path)) for path in [_INIT.value] if path),
  )
  mesh = sharding.make_mesh(flags.FLAGS.mesh)
  start = (
    trained_on(storage.path(_INIT.value), mesh) if _INIT.value else fresh(model_config, recipe.seed, mesh)
  )
  if not _ADAPTER.value:  # or all of the training would be lost
    storage.require_space(target, sum(value.nbytes for value in start.params.values()))
  shape = start.model.config
  data = corpus(
    tasks, start.tokens,
    max_length=shape.max_positions, vocabulary=shape.vocab_size, paired=recipe.dpo_beta > 0,
  )  # fmt: skip
  bar = _common.Progress(recipe.steps, "steps")

  def write(state: State, path: Path) -> None:
    about = pool.describe(recipe, state)
    if _ADAPTER.value:
      pool.save_adapter(path, state.params, recipe, _INIT.value, about)
    else:
      start.write(path, result(state, recipe), about=about)

  trained = train_into(
    target, write, start.model.apply, start.params, data, recipe,
    save_every=saving.save_every, keep_every=saving.keep_every,
    mesh=start.mesh, give=True, told=start.told, stop=_common.StopFlag(), progress=shown_on(bar, recipe),
  )  # fmt: skip
  bar.close()
  print(f"loss {trained.final_loss:.4f} after {trained.step} steps, {trained.tokens:,} tokens: {target}")


def fresh(config: Mapping[str, Any], seed: int, mesh: Mesh) -> Start:
  """A random model with a character tokenizer."""
  tokenizer, model = puzzles.tokenizer(), models.build(config, "config.model")
  write = functools.partial(pool.save, config=config, tokenizer=tokenizer.to_str())
  tokens = evals.Tokens(tokenizer, config.get("eos_token_id"))
  params = jax.jit(model.init, out_shardings=sharding.shardings(model.specs, mesh))(jax.random.key(seed))
  return Start(mesh, model, tokens, params, write, json.dumps(config, sort_keys=True))


def trained_on(folder: Path, mesh: Mesh) -> Start:
  """A checkpoint, with its own tokenizer and end-of-text token."""
  first, tokens = checkpoints.open(folder), evals.Tokens.from_folder(folder)
  if first.config is None:
    raise ValueError(f"--init: {folder} has no config.json; it is needed to build the model.")
  where = str(folder / "config.json")
  models.check(first.config, first.specs, where)
  preflight.require(list(preflight.ties([(str(folder), first)])))
  model = models.build(first.config, where)
  # A step of Adam is smaller than bfloat16 can hold.
  placed = checkpoints.place(first, sharding.shardings(first.specs, mesh))
  # Copied, and let go of one by one: what a computation overwrites must not lie in a mapped file.
  params = {name: jnp.array(placed.pop(name), jnp.float32) for name in [*placed] if name in model.specs}
  told = json.dumps(first.config, sort_keys=True)
  return Start(mesh, model, tokens, params, functools.partial(pool.save_like, like=first), told)


def shown_on(bar: _common.Progress, recipe: Recipe) -> Callable[[State], None]:
  """Shows steps, loss, and the real tokens a second since it began; a line each twentieth of the run."""
  begun: tuple[float, int] | None = None
  told: int | None = None

  def progress(state: State) -> None:
    nonlocal begun, told
    now, told = time.monotonic(), state.step if told is None else told
    began, before = begun = begun or (now, state.tokens)
    rate = (state.tokens - before) / max(now - began, 1e-9)
    bar(state.step, f"loss {state.final_loss:.3f}, {rate:,.0f} tokens a second" if state.losses else "")
    if state.step > told and (state.step - told >= recipe.steps / 20 or state.step == recipe.steps):
      bar.say(f"step {state.step}: loss {np.mean(state.losses[told:]):.4f}")
      told = state.step

  return progress


if __name__ == "__main__":
  _common.run(main)
