"""Orbax directories: Flax and NNX states, and plain trees. The one module that imports Orbax."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from merge_jax.checkpoints import base
from merge_jax.checkpoints.base import Checkpoint
from merge_jax.operators import naming


def open_folder(folder: Path) -> Checkpoint:
  """Opens a directory that `ocp.save` wrote; reads metadata alone.

  Raises:
    ValueError: not an Orbax checkpoint of arrays.
  """
  folder = folder.resolve()  # Orbax refuses relative paths
  try:
    tree = ocp.metadata(folder).metadata
  except Exception as error:  # Orbax raises many kinds
    raise ValueError(f"{folder}: Orbax cannot read it ({error}).") from None
  flat, treedef = naming.flatten(tree)
  for name, leaf in flat.items():
    if not hasattr(leaf, "shape"):
      raise ValueError(f"{folder}: leaf {name!r} is a {type(leaf).__name__}, not an array.")
  entries = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for n, leaf in flat.items()}
  config = base.read_config(folder)
  aliases = base.tied(config, entries)

  def reader(names: Iterable[str]) -> dict[str, np.ndarray]:
    wanted = {aliases.get(name, name) for name in names}
    target = [
      np.empty(spec.shape, spec.dtype) if name in wanted else ocp.PLACEHOLDER
      for name, spec in entries.items()
    ]
    loaded = ocp.load(folder, jax.tree.unflatten(treedef, target))
    leaves = jax.tree.leaves(loaded, is_leaf=lambda x: x is ocp.PLACEHOLDER)
    values = dict(zip(entries, leaves, strict=True))
    return {name: np.asarray(values[aliases.get(name, name)]) for name in names}

  specs = {name: spec for name, spec in entries.items() if name not in aliases}
  structure = (treedef, tuple(entries), aliases)
  return Checkpoint(folder, "orbax", specs, aliases, config, structure, reader)


def write_folder(folder: Path, tensors: Mapping[str, Any], structure: Any = None) -> None:
  """Saves tensors as a tree of this structure, or as a flat dict.

  Args:
    folder: must not exist yet, or be empty.
    tensors: arrays by canonical name.
    structure: `Checkpoint.structure` of an Orbax checkpoint with these tensors.
  """
  tree: Any = {name: _array(value) for name, value in tensors.items()}
  if structure is not None:
    treedef, names, aliases = structure
    tree = jax.tree.unflatten(treedef, [tree[aliases.get(name, name)] for name in names])
  ocp.save(folder.resolve(), tree, overwrite=True)


def _array(value: Any) -> Any:
  return value if isinstance(value, jax.Array) else np.asarray(value)
