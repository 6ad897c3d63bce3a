"""What a merge was made from and what came of it: `merge_manifest.json`."""

import importlib.metadata
import platform
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

import merge_jax
from merge_jax import storage
from merge_jax.recipes.built import Built

NAME = "merge_manifest.json"
LIBRARIES = ("jax", "jaxlib", "numpy")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """The content of `merge_manifest.json`.

  Attributes:
    recipe: as it was written.
    semantics, seed: what decides the numbers beside it.
    versions: of libraries and Python, by name.
    inputs: a digest of every model, file of statistics and tokenizer of its own, by the name that the recipe
      has for it.
    outputs: a digest of every file of the result, by name.
  """

  recipe: str
  semantics: str
  seed: int
  versions: dict[str, str]
  inputs: dict[str, str]
  outputs: dict[str, str]


def make(built: Built, seed: int) -> Manifest:
  """The manifest of a merge that has no result yet; reads a few blocks of each input."""
  versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
  own = {"merge_jax": merge_jax.__version__, "python": platform.python_version()}
  return Manifest(built.recipe.text, built.semantics, seed, own | versions, _inputs(built), {})


def _inputs(built: Built) -> dict[str, str]:
  with ThreadPoolExecutor() as pool:  # reading and hashing, both beside Python
    digests = pool.map(lambda checkpoint: checkpoint.digest(), built.origins.values())
    inputs = dict(zip(map(str, built.origins), digests, strict=True))
  for stage in built.stages:
    inputs = _inputs(stage) | inputs
  inputs |= {name: digest([file.path]) for name, file in built.measurements.items()}
  if (folder := built.vocabulary.source) is not None:
    from merge_jax.recipes import tokenizer_files  # slow to import

    files = [folder / name for name in (*tokenizer_files.names(folder), "config.json")]
    inputs[f"tokenizer of {folder}"] = digest(file for file in files if storage.lexists(file))
  return inputs


def digest(files: Iterable[Path]) -> str:
  """One digest of the files of an input, wherever they lie; see `storage.digest`."""
  listed = list(files)
  folders = [file.parent for file in listed] or [Path()]
  roots = (folders[0], *folders[0].parents)
  shared = (root for root in roots if all(folder.is_relative_to(root) for folder in folders))
  return storage.digest(listed, next(shared, folders[0]))  # of a store and a disk nothing is shared


def outputs(folder: Path) -> dict[str, str]:
  """A digest of every file of a finished folder, but for the manifest."""
  files = sorted(folder / name for name in storage.names(folder))
  ours = [file for file in files if file.name != NAME and not file.name.startswith(".")]
  return {file.relative_to(folder).as_posix(): storage.digest([file], folder) for file in ours}


def write(folder: Path, manifest: Manifest) -> None:
  """Writes it, the digests of the folder's files included."""
  complete = msgspec.structs.replace(manifest, outputs=outputs(folder))
  content: dict[str, Any] = msgspec.to_builtins(complete)
  storage.write_json(folder / NAME, content)


def matches(folder: Path, manifest: Manifest) -> bool:
  """Whether a folder is what this manifest would make, with all of its files."""
  path = folder / NAME
  if not storage.is_filled(folder) or not path.is_file():
    return False
  found = storage.read_json(path, Manifest)
  return msgspec.structs.replace(found, outputs={}) == manifest and found.outputs == outputs(folder)


def owned(folder: Path) -> list[str] | None:
  """The files of a folder that an earlier merge made; None if there is nothing to replace.

  Raises:
    FileExistsError: a folder with other content.
    ValueError: a manifest that cannot be read.
  """
  if not storage.is_filled(folder):
    return None
  path = folder / NAME
  if not path.is_file():
    raise FileExistsError(
      f"{folder} holds no {NAME}, so no merge made it; choose another folder or remove it."
    )
  return [*storage.read_json(path, Manifest).outputs, NAME]
