"""From a YAML file to recipes, whichever format each document is written in."""

import graphlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from merge_jax import storage
from merge_jax.errors import shown
from merge_jax.recipes import mergekit, own, yaml_reader
from merge_jax.recipes.schema import Recipe

FOREIGN = {
  "experts": "mergekit-moe's, for mixtures of experts made of dense models; merge_jax does not make them",
  "genome": "mergekit-evolve's, for a search of weights; that is launch.recycle here, with flags",
  "layer_slices": "bakllama's; write slices: with merge_method: passthrough instead",
}
"""What else people call recipes, by a key that it alone has."""


def read(path: str | Path) -> list[Recipe]:
  """The recipes of a YAML file, in an order in which each one's models are there; the last is the result.

  Raises:
    FileNotFoundError, ValueError: no such file, or not recipes; one sentence with file and place.
  """
  file = storage.path(path)
  if isinstance(file, storage.Remote):
    raise ValueError(f"{file}: recipes are read from disks; copy it to one.")
  documents = yaml_reader.read(file)
  if not documents:
    raise ValueError(f"{file}: is empty; expected a recipe.")
  written, found = file.read_text("utf-8-sig"), []
  for number, raw in enumerate(documents, 1):
    where = str(file) if len(documents) == 1 else f"{file}: document {number}"
    text = written if len(documents) == 1 else yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    found.append(parse(raw, where, text))
  *stages, last = _ordered(found, file)
  return [*stages, last._replace(text=written)]


def parse(raw: Any, where: str, text: str = "") -> Recipe:
  """A recipe of either format; ValueError if it is of none."""
  for key, what in FOREIGN.items() if isinstance(raw, Mapping) else ():
    if key in raw:
      raise ValueError(f"{where}: holds {key}:, so its format is {what}.")
  for reader in (mergekit, own):
    if reader.detect(raw):
      return reader.read(raw, where, text)
  got = list(raw) if isinstance(raw, Mapping) else raw
  raise ValueError(f"{where}: got {shown(got)}; expected method: (our format) or merge_method: (mergekit's).")


def _is_word(name: str) -> bool:
  return name.isprintable() and Path(name).name == name != ".." and 0 < len(name.encode()) <= 200


def _ordered(recipes: Sequence[Recipe], file: Path) -> list[Recipe]:
  """Recipes after those whose names they use as models; the result is last.

  It has no name, or where all have one, it is the only one that no other uses.
  """
  if len(recipes) == 1:
    return list(recipes)
  names = [recipe.name for recipe in recipes]
  if names.count(None) > 1:
    raise ValueError(f"{file}: {names.count(None)} documents have no name; expected one, the result.")
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"{file}: two documents are called {name!r}; expected a name for each.")
    if name is not None and not _is_word(name):
      raise ValueError(f"{file}: the name {shown(name)} is no plain word, as a folder may be called.")
  by_name = {recipe.name: recipe for recipe in recipes}
  graph: dict[str | None, set[str | None]]
  graph = {r.name: {m.path for m in r.models() if m.path in by_name} for r in recipes}
  used = set[str | None]().union(*graph.values())
  ends = [None] if None in names else [name for name in names if name not in used]
  if len(ends) > 1:
    raise ValueError(
      f"{file}: {ends[0]!r} and {ends[1]!r} are used by no document; leave out the name of the result."
    )
  for last in ends:
    graph[last] |= set(names) - {last}
  try:
    return [by_name[name] for name in graphlib.TopologicalSorter(graph).static_order()]
  except graphlib.CycleError as error:
    raise ValueError(f"{file}: the recipes {error.args[1]} are made from each other.") from None
