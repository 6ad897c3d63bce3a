"""Cells: the independent pieces of a study. Each is known by all that it depends on, and is done once."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from merge_jax import decoding, errors, storage

Result = dict[str, Any]
"""What a cell gives: plain data, as JSON gives it back."""


class Cell(NamedTuple):
  """A piece of a study.

  Attributes:
    kind: what is done, such as "train".
    name: for people.
    spec: plain data, all that the result depends on; a model that was trained is named by its cell's key.
    run: does it.
    needs: keys of the cells that have to be done before.
    made: a file that it leaves for those that need it.
  """

  kind: str
  name: str
  spec: Mapping[str, Any]
  run: Callable[[], Result]
  needs: tuple[str, ...] = ()
  made: Path | None = None

  @property
  def key(self) -> str:
    """Digest of kind and spec."""
    text = json.dumps([self.kind, self.spec], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Group(NamedTuple):
  """Cells that are quicker together.

  Attributes:
    cells: of the group.
    run: does some of them, and gives their results in order.
  """

  cells: tuple[Cell, ...]
  run: Callable[[Sequence[Cell]], Sequence[Result]]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  kind: str
  name: str
  spec: dict[str, Any]
  result: Result
  digest: str


def _digest(result: Result) -> str:
  return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


class Store:
  """Results in a folder, one JSON file a cell, whole or absent."""

  def __init__(self, folder: Path):
    self._folder = folder

  def has(self, key: str) -> bool:
    """Whether a cell is done."""
    return self._path(key).is_file()

  def get(self, key: str) -> Result | None:
    """The result of a cell that is done.

    Raises:
      ValueError: a file that was damaged.
    """
    path = self._path(key)
    if not path.is_file():
      return None
    where = f"{path} (remove it, and it is made again)"
    found = decoding.decode(path.read_bytes(), _File, where)
    if found.digest != _digest(found.result):
      raise ValueError(f"{where}: the result is not the one that was written there.")
    return found.result

  def put(self, cell: Cell, result: Result) -> None:
    """Keeps a result."""
    path = self._path(cell.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"kind": cell.kind, "name": cell.name, "spec": cell.spec, "result": result}
    storage.write_json(path, about | {"digest": _digest(json.loads(json.dumps(result)))})

  def forget(self, key: str) -> None:
    """Takes a result out."""
    self._path(key).unlink(missing_ok=True)

  def _path(self, key: str) -> Path:
    return self._folder / f"{key}.json"


class Outcome(NamedTuple):
  """Results by key, and sentences about the cells that failed by name."""

  results: dict[str, Result]
  failed: dict[str, str]


def run(
  work: Iterable[Cell | Group],
  store: Store,
  *,
  stop: Callable[[], bool] = lambda: False,
  progress: Callable[[int, str], None] = lambda done, name: None,
) -> Outcome:
  """Does the cells that are not in the store, in order.

  A cell that fails does not stop those that do not need it; the same command tries it again.

  Args:
    work: in an order in which each comes after those that it needs.
    store: holds what is done, and gets what is done here.
    stop: asked before each cell or group.
    progress: told how many cells are through, and the name of the last one.

  Raises:
    errors.Stopped: `stop` said so.
  """
  outcome, keys, done = Outcome({}, {}), set[str](), 0
  for item in work:
    group, missing = _group(item), []
    for cell in group.cells:
      if (known := store.get(cell.key)) is not None:
        outcome.results[cell.key] = known
      elif keys.intersection(cell.needs):
        keys.add(cell.key)
        outcome.failed[cell.name] = "it needs a cell that failed."
      else:
        missing.append(cell)
    if missing and stop():
      raise errors.Stopped(f"Stopped after {done} cells; the same command continues.")
    for cell, result in _done(group, missing):
      if isinstance(result, str):
        keys.add(cell.key)
        outcome.failed[cell.name] = result
      else:
        store.put(cell, result)
        outcome.results[cell.key] = result
    done += len(group.cells)
    progress(done, group.cells[-1].name)
  return outcome


def forget_what_is_gone(cells: Sequence[Cell], store: Store, wanted: Iterable[str] = ()) -> None:
  """Forgets cells whose files are gone, so that they are done again: those that others still need.

  Args:
    cells: in an order in which each comes after those that it needs.
    store: holds what is done.
    wanted: keys of cells whose files are needed in any case.
  """
  needed = set(wanted)
  for cell in reversed(cells):
    if cell.key in needed and cell.made is not None and not cell.made.is_file():
      store.forget(cell.key)
    if not store.has(cell.key):
      needed.update(cell.needs)


def share(
  work: Iterable[Cell | Group], store: Store, claims: Path, *, stop: Callable[[], bool] = lambda: False
) -> None:
  """Does the cells that are ready and that no other process is at, until all are done or have failed here.

  Args:
    work: in the order in which this process would like to do it; others may like another.
    store: holds what is done by all.
    claims: a folder of all processes; what one is at lies there, locked.
    stop: asked before each cell or group.

  Raises:
    errors.Stopped: `stop` said so.
  """
  done, failed = set[str](), set[str]()

  def through(key: str) -> bool:
    if key not in done and key not in failed and store.has(key):
      done.add(key)
    return key in done or key in failed

  def ready(group: Group) -> bool:
    return all(through(key) for cell in group.cells for key in cell.needs)

  def do(group: Group, keys: Sequence[str]) -> bool:
    """Whether nobody was at it."""
    if stop():
      raise errors.Stopped("Stopped; the same command continues.")
    try:
      with storage.locked(claims / keys[0]):
        failed.update(
          key for cell, key in zip(group.cells, keys, strict=True) if failed.intersection(cell.needs)
        )
        missing = [cell for cell, key in zip(group.cells, keys, strict=True) if not through(key)]
        for cell, result in _done(group, missing):
          if isinstance(result, str):
            failed.add(cell.key)
          else:
            store.put(cell, result)
    except storage.Locked:
      return False
    return True

  groups = [(group, [cell.key for cell in group.cells]) for group in map(_group, work)]
  while groups := [(group, keys) for group, keys in groups if not all(map(through, keys))]:
    if not any(ready(group) and do(group, keys) for group, keys in groups):
      time.sleep(0.2)  # for what the others are at


def _group(item: Cell | Group) -> Group:
  return item if isinstance(item, Group) else Group((item,), lambda cells: [cells[0].run()])


def _done(group: Group, cells: Sequence[Cell]) -> list[tuple[Cell, Result | str]]:
  """Each cell's result, or the sentence of its error; a group that fails is done cell by cell."""
  if not cells:
    return []
  try:
    return list(zip(cells, group.run(cells), strict=True))
  except errors.Stopped:
    raise
  except Exception as error:  # whatever a cell may raise: the others are still worth their time
    if len(cells) == 1:
      return [(cells[0], f"{type(error).__name__}: {errors.sentence(error)}")]
    return [one for cell in cells for one in _done(group, [cell])]
