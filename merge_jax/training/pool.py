"""Writes trained parameters as Hugging Face folders or adapters, one by one or a whole pool."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
import safetensors.numpy
from jax import Array

from merge_jax import checkpoints, models, sharding
from merge_jax.training import lora, saving
from merge_jax.training.corpus import Corpus
from merge_jax.training.loop import State, begin, result, train
from merge_jax.training.recipe import Recipe


def save(
  folder: Path,
  params: Mapping[str, Array],
  config: Mapping[str, Any],
  tokenizer: str,
  about: Mapping[str, Any],
) -> None:
  """Writes a checkpoint that `transformers` loads, whole or not at all.

  Args:
    folder: to write; must not exist.
    params: by Hugging Face name.
    config: content of `config.json`.
    tokenizer: content of `tokenizer.json`.
    about: content of `training.json`; `tokens` is what training read, padding not counted.
  """
  config = dict(config) | {"dtype": str(np.dtype(next(iter(params.values())).dtype))}
  with saving.new_folder(folder) as partial:
    if partial is not None:
      _write_sidecars(partial, config, tokenizer)
      write_object(partial / "training.json", about)
    saving.write(partial, params)


def _write_sidecars(folder: Path, config: Mapping[str, Any], tokenizer: str) -> None:
  write_object(folder / "config.json", config)
  eos = config.get("eos_token_id")
  write_object(
    folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": config.get("pad_token_id")}
  )
  (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
  names = {token["id"]: token["content"] for token in json.loads(tokenizer)["added_tokens"]}
  special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": names.get(eos),
             "pad_token": names.get(config.get("pad_token_id"))}  # fmt: skip
  write_object(folder / "tokenizer_config.json", {k: v for k, v in special.items() if v is not None})


def save_like(
  folder: Path, params: Mapping[str, Array], like: checkpoints.Checkpoint, about: Mapping[str, Any]
) -> None:
  """Writes a checkpoint with the config, tokenizer and chat template of another, whole or not at all.

  Args:
    folder, params, about: as in `save`.
    like: what it was trained from.
  """
  with saving.new_folder(folder) as partial:
    saving.write(partial, params, like)
    if partial is not None:
      write_object(partial / "training.json", about)


def save_adapter(
  folder: Path, factors: Mapping[str, Array], recipe: Recipe, base: str, about: Mapping[str, Any]
) -> None:
  """Writes a PEFT adapter, whole or not at all; `checkpoints.with_adapter` reads it with its base.

  Args:
    folder, about: as in `save`.
    factors: the parameters of a state that is trained with `lora_rank`.
    recipe: of the training.
    base: name or folder of the model that it adapts.
  """
  with saving.new_folder(folder) as partial:
    own = {lora.peft_name(name): np.ascontiguousarray(sharding.whole(x)) for name, x in factors.items()}
    if partial is not None:
      safetensors.numpy.save_file(own, partial / "adapter_model.safetensors", {"format": "pt"})
      write_object(partial / "adapter_config.json", lora.config(factors, recipe, base))
      write_object(partial / "training.json", about)


def write_object(path: Path, value: Mapping[str, Any]) -> None:
  """Writes a JSON file in a folder that is not complete yet."""
  path.write_text(json.dumps(value, indent=2) + "\n")


def make(
  folder: Path,
  config: Mapping[str, Any],
  tokenizer: str,
  data: Corpus,
  base: Sequence[Recipe],
  experts: Mapping[str, Recipe],
  *,
  say: Callable[[str], None] = print,
) -> list[Path]:
  """Trains a base and checkpoints from it; what is there already is kept.

  Args:
    folder: of the pool; `base` and every expert become folders in it.
    config, tokenizer: of the model.
    data: training examples.
    base: recipes of the base, one stage after the other; the first seed also draws the parameters.
    experts: recipes by name.

  Returns:
    The experts' folders, in order.
  """
  model = models.build(config)
  if not (folder / "base").is_dir():
    params, tokens = model.init(jax.random.key(base[0].seed)), 0
    for recipe in base:
      trained = train(model.apply, begin(params, recipe), data, recipe)
      params, tokens = dict(result(trained, recipe)), tokens + trained.tokens
      say(f"base: loss {trained.final_loss:.3f} after {trained.step} steps")
    about = {"tokens": tokens, "stages": msgspec.to_builtins(base)}
    save(folder / "base", params, config, tokenizer, about)
  start = checkpoints.open(folder / "base").load()
  for name, recipe in experts.items():
    if not (folder / name).is_dir():
      trained = train(model.apply, begin(start, recipe), data, recipe)
      save(folder / name, result(trained, recipe), config, tokenizer, describe(recipe, trained))
      say(f"{name}: loss {trained.final_loss:.3f} after {trained.step} steps at {recipe.learning_rate:g}")
  return [folder / name for name in experts]


def describe(recipe: Recipe, trained: State) -> dict[str, Any]:
  """What `training.json` holds: the recipe, and what came of it."""
  return {
    "tokens": trained.tokens,
    "steps": trained.step,
    "final_loss": trained.final_loss,
    "recipe": msgspec.to_builtins(recipe),
    "curve": curve(trained.losses),
  }


def curve(losses: Sequence[float], most: int = 100) -> list[list[float]]:
  """Pairs of a step and the mean loss of the steps since the pair before, evenly spaced.

  >>> curve([4.0, 2.0, 1.0], 2)
  [[2, 3.0], [3, 1.0]]
  """
  every = max(1, -(-len(losses) // most))
  starts = range(0, len(losses), every)
  means = [float(f"{np.mean(losses[i : i + every]):.6g}") for i in starts]
  return [[min(i + every, len(losses)), mean] for i, mean in zip(starts, means, strict=True)]
