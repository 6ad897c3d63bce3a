"""The names of one model's tensors, as exports of different ages and classes spell them.

`gpt2` of the hub has `h.0.ln_1.weight`, what was trained from it `transformer.h.0.ln_1.weight`; old exports
of BERT call a norm's weight `gamma`, and its bias `beta`.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merge_jax.checkpoints import Checkpoint, Index, Writer
from merge_jax.checkpoints.folder_writer import FolderWriter
from merge_jax.checkpoints.views import View
from merge_jax.recipes import layers
from merge_jax.recipes.schema import Model

OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclasses.dataclass(frozen=True)
class Renamed(View):
  """A checkpoint whose tensors have other names.

  Attributes:
    stored: the names in `source`, by those here.
  """

  stored: Mapping[str, str]

  def result_dtype(self, name: str) -> np.dtype:
    """That of the source."""
    return self.source.result_dtype(self.stored.get(name, name))

  def release(self, name: str) -> None:
    """That of the source."""
    self.source.release(self.stored.get(name, name))

  def writer(self, folder: Path, specs: Mapping[str, Any], **options: Any) -> Writer:
    """A writer of tensors of these names; of formats that have a structure that of the source."""
    if self.format == "safetensors":
      return FolderWriter(folder, specs, self, **options)
    return self.source.writer(folder, specs, **options)

  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    return self.source._stored(self.stored.get(name, name), index)


def aligned(opened: Mapping[Model, Checkpoint]) -> tuple[dict[Model, Checkpoint], tuple[str, ...]]:
  """The models with the names of their tensors in one spelling, the longest and newest; and notes."""
  names = {model: [*one.specs, *one.aliases] for model, one in opened.items()}
  flat = [model for model, one in opened.items() if one.format != "orbax"]  # a tree may have a container
  found, notes = dict(opened), list[str]()
  for model, (new, said) in spelled(names, flat or opened).items():
    if said:
      notes += [f"{model}: {one}" for one in said]
      found[model] = _renamed(opened[model], dict(zip(names[model], new, strict=True)))
  return found, tuple(notes)


def stored(checkpoint: Checkpoint, name: str) -> str:
  """The name of a tensor in the model's own files."""
  return checkpoint.stored.get(name, name) if isinstance(checkpoint, Renamed) else name


def _renamed(one: Checkpoint, new: Mapping[str, str]) -> Renamed:
  specs = {new[name]: spec for name, spec in one.specs.items()}
  aliases = {new[alias]: new[name] for alias, name in one.aliases.items()}
  return Renamed(one.path, specs, aliases, one.config, one, {name: old for old, name in new.items()})


def spelled(
  names: Mapping[Model, Collection[str]], leading: Collection[Model] = ()
) -> dict[Model, tuple[list[str], list[str]]]:
  """The names of all models in one spelling, and what is done to each for it.

  Args:
    names: of each model.
    leading: models whose longest spelling counts, all if there are none; what others have before it is the
      container of a tree, such as `params.`.

  >>> old, new = ([f"{prefix}h.{i}.w" for i in (0, 1)] for prefix in ("", "transformer."))
  >>> spelled({"a": old, "b": new})["a"]
  (['transformer.h.0.w', 'transformer.h.1.w'], ['tensors are read with transformer. before their names'])
  """
  found = {model: (list(own), list[str]()) for model, own in names.items()}
  if len({frozenset(own) for own in names.values()}) < 2:
    return found
  roots = {model: next((one.prefix for one in layers.stacks(own)), "") for model, own in names.items()}
  longest = max((roots[model] for model in leading or names), key=len)
  there = {_renewed(name) for model in names if roots[model] == longest for name in names[model]}
  for model, (own, said) in found.items():
    root = roots[model]
    before, behind = longest.removesuffix(root), root.removesuffix(longest)
    if root and before.endswith(".") and before + root == longest:
      inner = f"{root}."
      own[:] = [before + n if n.startswith(inner) or _renewed(before + n) in there else n for n in own]
      said.append(f"tensors are read with {before} before their names")
    elif longest and behind.endswith(".") and behind + longest == root:
      own[:] = [name.removeprefix(behind) for name in own]
      said.append(f"tensors are read without {behind} before their names")
  every = {name for own, _ in found.values() for name in own}
  for own, said in found.values():
    have = set(own)
    if any(_renewed(name) in every - have for name in own):
      own[:] = [name if _renewed(name) in have else _renewed(name) for name in own]
      said.append("LayerNorm.gamma and beta are read as weight and bias")
  return found


def _renewed(name: str) -> str:
  for old, new in OLD.items():
    if name.endswith(old):
      return name.removesuffix(old) + new
  return name
