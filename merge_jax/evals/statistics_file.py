"""The file of a model's statistics: safetensors by tensor name, with what is shared in its metadata."""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from merge_jax import storage
from merge_jax.checkpoints import safetensors_file
from merge_jax.decoding import decode
from merge_jax.errors import unknown

Kind = Literal["fisher", "gram"]


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
  """What a file of statistics says of itself.

  Attributes:
    kind: what was measured.
    tensors: names of all tensors of the model, measured or not.
    shared: names to those that their statistic has in the file, where that is another one.
    made: how: tasks, examples, …
  """

  kind: Kind
  tensors: list[str]
  shared: dict[str, str] = {}
  made: dict[str, Any] = {}


class Statistics(Mapping[str, np.ndarray | None]):
  """Statistics by name of every tensor of the model; None where there is none. Read when asked for.

  Attributes:
    about: what the file says of itself.
  """

  def __init__(self, path: Path, about: About, entries: Mapping[str, safetensors_file.Entry]):
    self.path, self.about, self._entries = path, about, entries
    self._names = dict.fromkeys(about.tensors)
    self._maps: dict[Path, mmap.mmap] = {}

  def __getitem__(self, name: str) -> np.ndarray | None:
    found = self.find(name)
    return None if found is None else found.read()

  def find(self, name: str) -> "Measured | None":
    """The statistic of a tensor, not read yet; None where there is none. KeyError for other names."""
    if name not in self._names:
      raise KeyError(unknown("tensor", name, self._names, str(self.path)))
    stored = self.about.shared.get(name, name)
    entry = self._entries.get(stored)
    return None if entry is None else Measured(stored, entry, self._maps)

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


class Measured(NamedTuple):
  """The statistic of one tensor, by the name that it has in the file."""

  name: str
  entry: safetensors_file.Entry
  maps: dict[Path, mmap.mmap]

  @property
  def spec(self) -> jax.ShapeDtypeStruct:
    """Its shape and dtype."""
    return self.entry.spec

  def read(self) -> np.ndarray:
    """The statistic, as a view of its file."""
    return safetensors_file.view(self.name, self.entry, self.maps)

  def release(self) -> None:
    """Lets go of what reading took; it can be read again."""
    safetensors_file.release(self.entry, self.maps)

  def __str__(self) -> str:
    return f"{self.name!r} of {self.entry.file}"


def save(path: str | Path, values: Mapping[str, Any], about: About) -> None:
  """Writes a file of statistics, whole or not at all.

  Args:
    path: the file; one that is there is replaced.
    values: arrays by name.
    about: see there.
  """
  arrays = {name: np.asarray(value, order="C") for name, value in values.items()}
  with storage.new_file(Path(path)) as partial:
    safetensors.numpy.save_file(arrays, partial, {"statistics": msgspec.json.encode(about).decode()})


def load(path: str | Path) -> Statistics:
  """Opens a file of statistics for `mj.merge(…, statistics=)`; reads its header alone.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a file that is damaged, or of something else.
  """
  path = Path(path).expanduser()
  entries = safetensors_file.read_header(path)
  with safetensors.safe_open(path, "numpy") as opened:
    text = (opened.metadata() or {}).get("statistics")
  if text is None:
    raise ValueError(f"{path}: no file of statistics; make one with python -m merge_jax statistics.")
  about = decode(text.encode(), About, f"{path}: metadata")
  if lost := next((name for name in about.shared.values() if name not in entries), None):
    raise ValueError(f"{path}: the statistic {lost!r}, which others share, is missing; make the file again.")
  return Statistics(path, about, entries)
