"""The tokenizer and chat template of a result, where a recipe asks for others than the base's."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from merge_jax.checkpoints import Checkpoint, hub, sidecars
from merge_jax.errors import shown
from merge_jax.preflight import structure
from merge_jax.recipes import configs
from merge_jax.recipes.schema import Model, Recipe

IGNORED = (sidecars.WITHOUT_EFFECT | {"vocab_size", "tie_word_embeddings", *configs.COUNTS}) - {
  "layer_types", "max_window_layers", "sliding_window", "use_sliding_window", "model_type",
}  # fmt: skip
"""Keys of configs in which models that merge may differ."""


class Vocabulary(NamedTuple):
  """What a recipe's tokenizer and chat template come to.

  Attributes:
    models: with the rows of their embeddings and heads in the order of the result's tokenizer.
    files: of the tokenizer, by name; None where those of the base or first model stay.
    config: what changes in `config.json`.
    source: the folder of a tokenizer that is none of the models'.
    notes: what was supposed, for people.
  """

  models: dict[Model, Checkpoint]
  files: Mapping[str, bytes] | None = None
  config: Mapping[str, Any] | None = None
  source: Path | None = None
  notes: tuple[str, ...] = ()


def resolve(
  recipe: Recipe, opened: dict[Model, Checkpoint], folder: Path, *, mergekit: bool = False
) -> Vocabulary:
  """Chooses tokenizer and chat template; reads side files, no weights.

  Args:
    recipe: what is asked.
    opened: its models.
    folder: that relative paths may be relative to, as in `models.open_all`.
    mergekit: whether the numbers are to be mergekit's.

  Raises:
    ValueError: as `tokenizers.plan`, `embeddings.remap` and `chat.choose`.
  """
  if recipe.tokenizer is None and recipe.chat_template is None:
    return Vocabulary(opened)
  from merge_jax.recipes import chat, embeddings, tokenizer_files, tokenizers  # slow to import

  labels = {str(model): checkpoint for model, checkpoint in opened.items()}
  models, changes, source = opened, None, None
  notes: tuple[str, ...] = ()
  first = next(iter(opened.values()))
  files, place = dict(tokenizer_files.of(first)), str(first.path)
  if recipe.tokenizer is not None:
    base = None if recipe.base is None else str(recipe.base)
    asked = recipe.tokenizer
    name, source = _source(asked.source, labels, folder)
    pairs = list(labels.items())
    plan = tokenizers.plan(name, asked.tokens, asked.pad_to_multiple_of, pairs, base, source, zeros=mergekit)
    models = {model: embeddings.remap(plan, str(model), labels) for model in opened}
    files, changes, notes = dict(plan.files), plan.config, plan.notes
    place = str(source or labels[plan.label].path)
  if recipe.chat_template is not None:
    template = chat.choose(recipe.chat_template, list(opened.values()))
    files = files if template is None else chat.put(template, files, place)
  return Vocabulary(models, files, changes, source, notes)


def _source(name: str, labels: Mapping[str, Checkpoint], folder: Path) -> tuple[str, Path | None]:
  """The label of the model that a tokenizer's source is, however it is spelled; or a folder of its own.

  Old recipes write `model:NAME`. A name of the hub is a folder of its cache.
  """
  name = name.removeprefix("model:")
  if name in ("base", "union", *labels):
    return name, None
  there = next((path for path in (Path(name).expanduser(), folder / name) if path.is_dir()), None)
  if there is None:
    if not hub.is_name(name):
      return name, None
    there = hub.resolve(name)
  same = (key for key, one in labels.items() if os.path.realpath(one.path) == os.path.realpath(there))
  label = next(same, None)
  return (name, there) if label is None else (label, None)


def differences(recipe: Recipe, opened: Mapping[Model, Checkpoint]) -> tuple[str, ...]:
  """What the models' configs and tokenizers say otherwise; the result has what the first one says."""
  (first, leader), *others = opened.items()
  found = []
  for model, checkpoint in others:
    a, b = leader.config or {}, checkpoint.config or {}
    for key in sorted(a.keys() & b.keys()):
      if key not in IGNORED and a[key] != b[key]:
        one, other = shown(a[key], 30), shown(b[key], 30)
        found.append(f"config: {key} is {one} in {first}, {other} in {model}; the result has the first")
  if recipe.tokenizer is None:
    for said in structure.tokens([(str(model), checkpoint) for model, checkpoint in opened.items()]):
      how = "; tokenizer_source: union would align them" if said.level == "error" else ""
      found.append(f"vocabulary: {said.detail}{how}")
  return tuple(found)


def configured(config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
  """A config with what the tokenizer changes in it."""
  if not vocabulary.config:
    return dict(config)
  from merge_jax.recipes import tokenizers

  return tokenizers.configured(config, vocabulary.config)


def write(folder: Path, vocabulary: Vocabulary) -> None:
  """Puts the tokenizer's files into a result, in place of those of the base or first model."""
  if vocabulary.files is None:
    return
  from merge_jax.recipes import tokenizer_files

  for name in tokenizer_files.names(folder):
    (folder / name).unlink()
  with contextlib.suppress(OSError):
    (folder / sidecars.TEMPLATES).rmdir()
  for name, content in vocabulary.files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
