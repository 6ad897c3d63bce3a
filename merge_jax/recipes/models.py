"""Opens what recipes name: local folders and files, names on the hub, adapters on top of them."""

from collections.abc import Mapping
from pathlib import Path

from merge_jax import checkpoints, storage
from merge_jax.checkpoints import Checkpoint, hub
from merge_jax.recipes.schema import Model, Recipe


def open_all(recipe: Recipe, folder: Path, made: Mapping[str, Checkpoint]) -> dict[Model, Checkpoint]:
  """A checkpoint for each model of a recipe, its leader first; reads no weights.

  Args:
    recipe: whose models.
    folder: that relative paths may be relative to, after the working directory: the recipe's.
    made: results of earlier recipes by name.

  Raises:
    FileNotFoundError, ValueError: no such model, or one that cannot be read.
  """
  return {model: open_model(model, folder, made) for model in recipe.models()}


def open_model(model: Model, folder: Path, made: Mapping[str, Checkpoint]) -> Checkpoint:
  """One checkpoint; see `open_all`."""
  opened = made.get(model.path) or checkpoints.open(locate(model.path, model.revision, folder))
  if model.adapter is None:
    return opened
  return checkpoints.with_adapter(opened, locate(model.adapter, model.adapter_revision, folder))


def locate(text: str, revision: str | None, folder: Path) -> Path:
  """Where a model lies; one on the hub is taken to its cache."""
  beside = folder / text
  if revision is None and not storage.path(text).exists() and beside.exists():
    return beside
  return hub.resolve(text, revision)
