"""States of a training on disk, so that a killed one continues where it was."""

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from jax import Array
from jax.sharding import Mesh

from merge_jax import checkpoints, errors, host, sharding, storage
from merge_jax.training import along, saving
from merge_jax.training.corpus import Corpus
from merge_jax.training.loop import Diverged, State, begin, train
from merge_jax.training.recipe import Recipe


class Stopped(errors.Stopped):
  """The training was asked to stop; its state is on disk."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """`state.json`: what lies beside the tensors of a state."""

  recipe: Recipe
  data: str
  start: str
  losses: list[float]
  tokens: int
  keep_every: int | None = None


def continued(
  apply: Callable[..., Array],
  params: Mapping[str, Array],
  data: Corpus,
  recipe: Recipe,
  folder: Path,
  *,
  save_every: int = 0,
  keep_every: int = 0,
  keep: Callable[[State], None] = lambda state: None,
  stop: Callable[[], bool] = lambda: False,
  progress: Callable[[State], None] | None = None,
  mesh: Mesh | None = None,
  give: bool = False,
  told: str = "",
) -> State:
  """Trains as `train` does, from the newest state in a folder; the result is the same bit for bit.

  Args:
    apply, params, data, recipe, mesh: of `train` and `begin`.
    folder: of the states `step-N`; see `states`.
    save_every: least steps from state to state; 0 saves when it is asked to stop alone.
    keep_every: `keep` is called at multiples of this step but the last, once the state is saved; 0: never.
    keep: writes a state as a checkpoint (see `along.keep`); it gets a saved one again when that continues.
    stop: asked after each call of steps but the last; true saves the state and ends with `Stopped`.
    progress: called with the state at the start and after each call of steps.
    give: the parameters are the training's, which overwrites them: a quarter less memory.
    told: what else the start consists of, such as a config: it goes on from the same alone.

  Raises:
    ValueError: the states are of another recipe, of other examples or of another start.
    Diverged: see `train`; the states, which lead there, are removed.
    Stopped: see `stop`.
  """
  about = _Record(recipe, data.digest(), digest(params, told.encode()), [], 0, keep_every)
  state = begin(params, recipe, mesh, give=give)
  newest = host.broadcast(next((path.name for path in reversed(_saved(folder))), None))
  if newest is not None:  # of several processes all go on from it, or none
    state = _restore(folder / newest, state, about)
  last = state.step

  def is_kept(state: State) -> bool:
    return keep_every > 0 and 0 < state.step < recipe.steps and state.step % keep_every == 0

  def after(state: State) -> None:
    nonlocal last
    if progress is not None:
      progress(state)
    stopping = state.step < recipe.steps and host.broadcast(stop())  # of several processes all stop, or none
    if stopping or is_kept(state) or (save_every and state.step - last >= save_every):
      _save(folder, state, about)
      last = state.step
    if is_kept(state):
      keep(state)
    if stopping:
      raise Stopped(f"Stopped after {state.step} steps; the same command continues.")

  if progress is not None:
    progress(state)
  if is_kept(state):
    keep(state)
  try:
    return train(apply, state, data, recipe, progress=after, every=keep_every, mesh=mesh)
  except Diverged:
    _remove(_saved(folder))
    raise


def train_into(
  target: Path,
  write: Callable[[State, Path], None],
  apply: Callable[..., Array],
  params: Mapping[str, Array],
  data: Corpus,
  recipe: Recipe,
  *,
  keep_every: int = 0,
  **options: Any,
) -> State:
  """Trains, and writes the checkpoint `target` with those along the run in it.

  Args:
    target: the folder, see `refuse_written`.
    write: writes a state as a new folder; all processes call it together.
    apply, params, data, recipe, keep_every, options: of `continued`.

  Raises:
    ValueError: the training was begun with another `keep_every`; see `continued` for others.
  """

  def keep(state: State) -> None:
    along.keep(target, state.step, functools.partial(write, state))

  with states(target) as folder:
    if (saved := _saved(folder)) and (kept := _record(saved[-1]).keep_every) not in (keep_every, None):
      raise ValueError(
        f"{folder} holds a training that keeps a model every {kept} steps, not {keep_every} (0: none); "
        "repeat its command to continue, or remove the folder to begin anew."
      )
    last = continued(apply, params, data, recipe, folder, keep_every=keep_every, keep=keep, **options)
    if keep_every:
      along.finish(target, functools.partial(write, last))
    else:
      write(last, target)
  return last


@contextlib.contextmanager
def states(target: Path) -> Iterator[Path]:
  """A hidden folder beside a checkpoint to be, for its states; gone when it is written, or there are none.

  Raises:
    storage.Locked: another process trains the same checkpoint.
  """
  folder = _folder(target)
  if not host.is_lead():
    host.barrier("the lead")
    yield folder
    return
  with storage.locked(folder):
    host.barrier("the lead")
    try:
      yield folder
    finally:
      if not _saved(folder) or _written(target):
        shutil.rmtree(folder)


def refuse_written(target: Path, going_on: bool = False) -> None:
  """As `storage.refuse_taken`; removes states that a kill left beside a checkpoint that was written.

  Args:
    target: of the checkpoint.
    going_on: checkpoints along the run may be there (see `along`), if its states are.
  """
  if host.broadcast(_written(target)):
    with states(target):
      pass
  if host.is_lead() and not (going_on and _saved(_folder(target)) and along.is_unfinished(target)):
    storage.refuse_taken(target)
  host.barrier("an output that is free")


def _folder(target: Path) -> Path:
  return target.with_name(f".{target.name}.training")


def _written(target: Path) -> bool:
  return (target / "training.json").is_file()


def reached(folder: Path) -> int:
  """The step of the newest state in a folder; 0 if there is none."""
  return int(_saved(folder)[-1].name.removeprefix("step-")) if _saved(folder) else 0


def _saved(folder: Path) -> list[Path]:
  return sorted(folder.glob("step-*"))


def _save(folder: Path, state: State, about: _Record) -> None:
  path, before = folder / f"step-{state.step:09d}", _saved(folder)
  if path in before:
    return
  with saving.new_folder(path) as partial:
    if partial is not None:
      record = msgspec.structs.replace(about, losses=state.losses, tokens=state.tokens)
      (partial / "state.json").write_bytes(msgspec.json.encode(record))
    saving.write(partial, _named(state))
  _remove(before)
  host.barrier("the state")


def _remove(folders: Sequence[Path]) -> None:
  for folder in folders if host.is_lead() else ():
    shutil.rmtree(folder)


def _restore(path: Path, like: State, about: _Record) -> State:
  record = _record(path)
  changed = {
    "recipe": "the settings",
    "data": "the examples",
    "start": "the parameters to start from, or their config",
  }
  for field, what in changed.items():
    if getattr(record, field) != getattr(about, field):
      raise ValueError(
        f"{path.parent} holds a training that began with other values of {what}; repeat its command to "
        "continue, or remove the folder to begin anew."
      )
  stored = checkpoints.open(path)

  def read(name: str, leaf: Array) -> Array:
    def copy(index: Any) -> np.ndarray:  # what a computation is given must not lie in a mapped file
      return np.array(stored.read(name, index))

    shape, sharding = leaf.shape, leaf.sharding
    leaf.delete()  # two of each would not fit where the training does
    return jax.make_array_from_callback(shape, sharding, copy)

  tree = jax.tree.structure((like.params, like.optimizer))
  params, optimizer = jax.tree.unflatten(tree, [read(*item) for item in _named(like).items()])
  return State(params, optimizer, record.losses, record.tokens, like.frozen)


def _record(path: Path) -> _Record:
  return storage.read_json(path / "state.json", _Record)


def _named(state: State) -> dict[str, Array]:
  """Parameters and the optimizer's arrays by path, in the order of the tree."""
  leaves, _ = jax.tree.flatten_with_path((state.params, state.optimizer))
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def digest(params: Mapping[str, Any], told: bytes = b"") -> str:
  """A SHA-256 of parameters, and of what is told before them."""
  total = hashlib.sha256(told)
  for name in sorted(params):
    value = np.ascontiguousarray(sharding.whole(params[name]))
    total.update(f"{name}\0{value.dtype}\0{value.shape}\0".encode())
    total.update(value.reshape(-1).view(np.uint8).data)
  return total.hexdigest()
