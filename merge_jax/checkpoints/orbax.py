"""Orbax directories: Flax and NNX states, and plain trees. The one module that imports Orbax."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from orbax import checkpoint as legacy
from orbax.checkpoint import v1 as ocp

from merge_jax import host, storage
from merge_jax.checkpoints import sidecars
from merge_jax.checkpoints.base import Checkpoint, Index, Writer, narrowed
from merge_jax.operators import naming

_TREE = "_METADATA"
_STEP = "_CHECKPOINT_METADATA"
_ITEM = "state"  # as `ocp.save` calls it
_MARKS = (
  _STEP,
  "commit_success.txt",
  "orbax.checkpoint",
  _TREE,
  "_sharding",
  "manifest.ocdbt",
)


@dataclasses.dataclass(frozen=True)
class Tree(Checkpoint):
  """An Orbax directory.

  `read` restores one leaf alone, whole, and cuts a slice out of it; `load` with shardings restores
  each device's part alone.

  Attributes:
    treedef: structure of the stored tree.
    stored: all of its leaves by name, tied ones included, in the tree's order.
    root: what Orbax opens: the directory, or the step that it is an item of.
    item: name of the item that holds the tree, or None where it lies in `root` itself.
  """

  format = "orbax"
  treedef: Any
  stored: Mapping[str, jax.ShapeDtypeStruct]
  root: Path
  item: str | None

  @property
  def flat(self) -> bool:
    """Whether the tree lies in the directory itself."""
    return self.root / (self.item or "") == self.path

  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    spec = self.stored[name]
    return np.asarray(self._restore({name: np.empty(spec.shape, spec.dtype)})[name])[index or ()]

  def load_some(self, shardings: Mapping[str, jax.sharding.Sharding | None]) -> dict[str, Any]:
    """The tensors that are named, in one restore; see `Checkpoint.load_some`."""
    targets: dict[str, Any] = {}
    for name, sharding in shardings.items():
      spec = self.specs[name]
      if sharding is None or narrowed(spec.dtype):
        targets[name] = np.empty(spec.shape, spec.dtype)
      else:
        targets[name] = jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
    values = self._restore(targets) if targets else {}
    return {
      n: jax.device_put(v) if shardings[n] is None and not narrowed(self.specs[n].dtype) else v
      for n, v in values.items()
    }

  def load_stack(self, names: Sequence[str], sharding: jax.sharding.Sharding) -> jax.Array:
    """Restores the slices, each device's part alone, and joins them there; see `Checkpoint.load_stack`."""
    if not isinstance(sharding, NamedSharding):
      return super().load_stack(names, sharding)
    own = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    values = self.load_some(dict.fromkeys(names, own))
    there = NamedSharding(sharding.mesh, sharding.spec)  # jax 0.10.0 compiles nothing into pinned memory
    return jax.device_put(jax.jit(lambda *x: jnp.stack(x), out_shardings=there)(*values.values()), sharding)

  def _restore(self, targets: Mapping[str, Any]) -> dict[str, Any]:
    tree = jax.tree.unflatten(self.treedef, [targets.get(name, ocp.PLACEHOLDER) for name in self.stored])
    with _one_sentence(self.path, "read"):
      loaded = ocp.load(self.root, tree, checkpointable_name=self.item)
    leaves = jax.tree.leaves(loaded, is_leaf=lambda x: x is ocp.PLACEHOLDER)
    values = dict(zip(self.stored, leaves, strict=True))
    return {name: values[name] for name in targets}

  def files(self) -> tuple[Path, ...]:
    """Files of the tree and the side files."""
    return (*_tree_files(self.path), *sidecars.sidecars(self.path))

  def writer(self, folder: Path, specs: Mapping[str, Any], **options: Any) -> Writer:
    """A writer of the same tree and layout, with this one's side files; see `TreeWriter`.

    A tied tensor is written in all its places.

    Raises:
      ValueError: the tree has other tensors than `specs`.
    """
    return TreeWriter(folder, specs, self, tree=self, **options)

  def refuse_place(self, folder: Path) -> None:
    """Object stores are refused."""
    _refuse_store(folder)


def _refuse_store(folder: Path) -> None:
  """Saving replaces the folder, with what tells there that it is not whole yet."""
  if isinstance(folder, storage.Remote):
    raise ValueError(
      f"{folder}: Orbax checkpoints are not written to object stores; write to a disk and copy, or convert "
      "the inputs to safetensors: python -m merge_jax convert."
    )


def open_folder(folder: Path) -> Tree:
  """Opens a directory that Orbax wrote; reads metadata alone.

  Args:
    folder: of `ocp.save` or a `StandardCheckpointer`, a step of a `CheckpointManager` that holds one tree, or
      one item of a step (`step/params`).

  Raises:
    ValueError: not an Orbax checkpoint of arrays, a step of several trees, or on a store that Orbax does not
      read.
  """
  if isinstance(folder, storage.Remote) and not str(folder).startswith("gs://"):
    raise ValueError(f"{folder}: Orbax reads disks and gs:// alone; copy the folder to one of them.")
  folder = folder.resolve()  # Orbax refuses relative paths
  root, item = _place(folder)
  for path in (*_tree_files(folder), *([root / _STEP] if root != folder else [])):
    storage.refuse_special(path)
  with _one_sentence(folder, "read"):
    tree = ocp.metadata(root, item).metadata
  flat, treedef = naming.flatten(tree)
  if not flat:
    raise ValueError(
      f"{folder}: Orbax finds no tensors in it; copy it again if files are missing or damaged, and save the "
      "parameters alone: a leaf that is True or False hides all others."
    )
  for name, leaf in flat.items():
    if not hasattr(leaf, "shape"):
      raise ValueError(
        f"{folder}: leaf {name!r} is of Python's type {type(leaf).__name__}, not an array; save the "
        "parameters alone, as in ocp.save(path, state.params): steps and optimizer states do not merge."
      )
  stored = {n: jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype)) for n, leaf in flat.items()}
  config = sidecars.read_config(folder)
  aliases = sidecars.tied(config, stored, folder)
  sidecars.sidecars(folder)
  specs = {name: spec for name, spec in stored.items() if name not in aliases}
  return Tree(folder, specs, aliases, config, treedef, stored, root, item)


def _place(folder: Path) -> tuple[Path, str | None]:
  """What Orbax opens, and the name of the item in it, if any."""
  if storage.lexists(folder / _TREE):  # Orbax refuses an item alone if it sees the step around it
    return (folder.parent, folder.name) if storage.lexists(folder.parent / _STEP) else (folder, None)
  items = sorted(path.name for path in folder.iterdir() if storage.lexists(path / _TREE))
  if len(items) > 1:
    raise ValueError(
      f"{folder}: holds the trees {', '.join(items)}; expected one: pass the item that is merged, as "
      f"{folder / items[-1]}."
    )
  return folder, items[0] if items else None


def _tree_files(folder: Path) -> list[Path]:
  nested = not storage.lexists(folder / _TREE)  # as `ocp.save` writes: the tree has a folder of its own
  homes = [p for p in folder.iterdir() if p.is_dir() and (not nested or storage.lexists(p / _TREE))]
  tree = (path for home in homes for path in home.rglob("*") if not path.is_dir())
  return sorted([*tree, *(folder / name for name in _MARKS if storage.lexists(folder / name))])


class TreeWriter(Writer):
  """Gathers the tensors, those of the host copied, those of devices by reference, and saves them at the end.

  Orbax can add to a checkpoint (`ocp.partial`), at a store of its own for every call; a model that does
  not fit the host's memory is better written as safetensors.

  Args:
    folder, specs, like: see `Writer`.
    tree: whose structure and layout are written: what lies in its folder itself, as a `StandardCheckpointer`
      writes it or as an item of a step, does so here, and an item of a step has the name that it has there.
      None for a flat dict, as `ocp.save` writes it.
  """

  def __init__(
    self, folder: Path, specs: Mapping[str, Any], like: Checkpoint | None = None, *, tree: Tree | None = None
  ):
    _refuse_store(folder)
    super().__init__(folder, specs, like)
    if tree is not None and (other := self._specs.keys() ^ tree.specs.keys()):
      raise ValueError(
        f"{folder}: tensor {min(other)!r} is not in both the result and the tree of {tree.path} that it is "
        "written like; write it as safetensors."
      )
    for name, spec in self._specs.items():
      if spec.size == 0:
        raise ValueError(f"{folder}: tensor {name!r} has no elements, which Orbax does not hold.")
    self._tree = tree
    self._values: dict[str, Any] = {}

  def _put(self, name: str, value: Any) -> None:
    self._values[name] = value if isinstance(value, jax.Array) else np.array(value)

  def _accompany(self) -> None:
    if host.is_lead():
      super()._accompany()
    host.barrier("all side files")

  def _complete(self) -> None:
    tree: Any = {name: self._values[name] for name in self._specs}
    if (like := self._tree) is not None:
      tree = jax.tree.unflatten(like.treedef, [tree[like.aliases.get(n, n)] for n in like.stored])
    together = host.count() > 1
    if together:  # Orbax waits for all only in the processes that still see a folder there
      host.barrier("all tensors")
      if host.is_lead():
        self.folder.rmdir()
      host.barrier("a free place")
    with _one_sentence(self.folder, "write"):
      place, item = self.folder.resolve(), (like and like.item) or _ITEM
      if like is not None and like.flat:
        with legacy.PyTreeCheckpointer() as checkpointer:
          checkpointer.save(place, tree, force=not together)
      else:
        ocp.save(place, tree, overwrite=not together, checkpointable_name=item)


@contextlib.contextmanager
def _one_sentence(folder: Path, what: str) -> Iterator[None]:
  said = logging.get_verbosity()
  logging.set_verbosity(min(said, logging.ERROR))  # Orbax warns of what it then does without
  try:
    yield
  except Exception as error:  # Orbax raises many kinds
    reason = " ".join(str(error).split())[:300]
    raise ValueError(f"{folder}: Orbax cannot {what} it ({type(error).__name__}: {reason}).") from None
  finally:
    logging.set_verbosity(said)
