"""What every checkpoint and every writer of one offers, whatever its format."""

import abc
import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from merge_jax import storage
from merge_jax.checkpoints import sidecars
from merge_jax.checkpoints.safetensors_file import nbytes
from merge_jax.errors import unknown

Index = tuple[slice, ...]
"""A slice an axis, as `jax.make_array_from_callback` asks for them."""


@dataclasses.dataclass(frozen=True)
class Checkpoint(abc.ABC):
  """A checkpoint that is open: its tensors are known, none is read.

  Attributes:
    path: its folder, or its one file.
    specs: shape and stored dtype by canonical name; a tied tensor appears once.
    aliases: tied names that were left out, to their canonical ones.
    config: content of `config.json`, or None.
  """

  path: Path
  specs: Mapping[str, jax.ShapeDtypeStruct]
  aliases: Mapping[str, str]
  config: Mapping[str, Any] | None

  @property
  @abc.abstractmethod
  def format(self) -> str:
    """A name in `FORMATS`."""

  @property
  def name(self) -> str:
    """The folder's name; `org/name` of a snapshot in the cache of the Hugging Face hub."""
    home = self.path.parent
    cached = home.name == "snapshots" and home.parent.name.startswith("models--")
    return home.parent.name.removeprefix("models--").replace("--", "/") if cached else self.path.name

  @property
  def nbytes(self) -> int:
    """Bytes of all tensors in their stored dtypes."""
    return sum(map(nbytes, self.specs.values()))

  @property
  def parameters(self) -> int:
    """Number of elements of all floating tensors."""
    inexact = (s for s in self.specs.values() if jax.numpy.issubdtype(s.dtype, np.inexact))
    return sum(spec.size for spec in inexact)

  @property
  def where(self) -> str:
    """Where its tensors are from, for people."""
    return str(self.path)

  def result_dtype(self, name: str) -> np.dtype:
    """What a merge of this tensor is written in unless the user says otherwise: its stored dtype.

    It differs from the dtype in `specs` where a tensor is computed when it is read: of an adapted model
    it is that of the unadapted one, of block-scaled float8 that of the config.
    """
    return np.dtype(self.specs[self.aliases.get(name, name)].dtype)

  def digest(self) -> str:
    """A SHA-256 of the files that are read; see `storage.digest`."""
    return storage.digest(self.files(), self.path)

  def read(self, name: str, index: Index | None = None) -> np.ndarray:
    """A tensor, or a slice of it, on the host and in its stored dtype, 64 bits included.

    Raises:
      ValueError: there is no such tensor, or its bytes cannot be read.
    """
    if name not in self.specs and name not in self.aliases:
      raise ValueError(unknown("tensor", name, self.specs, str(self.path)))
    return self._stored(self.aliases.get(name, name), index)

  def release(self, name: str) -> None:  # noqa: B027 (nothing to do where nothing is kept)
    """Lets go of the memory that reading a tensor took, where it is mapped; it can be read again."""

  def read_alias(self, alias: str) -> np.ndarray:
    """A tied tensor as it is stored itself, to compare with its canonical one."""
    return self._stored(alias, None)

  @abc.abstractmethod
  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    """A tensor by the name that it is stored under."""

  def load(self, shardings: Mapping[str, jax.sharding.Sharding] | None = None) -> dict[str, Any]:
    """All tensors on the devices: sharded by name, or whole on the default one.

    Of a sharded tensor the part that this process's devices need is read, once. What JAX would narrow (64
    bits without `jax_enable_x64`) stays on the host, a numpy array in its stored dtype. See also `place`.
    """
    return self.load_some({name: None if shardings is None else shardings[name] for name in self.specs})

  def load_some(self, shardings: Mapping[str, jax.sharding.Sharding | None]) -> dict[str, Any]:
    """The tensors that are named, as `load` has them; None is the default device."""
    return {name: self._load(name, sharding) for name, sharding in shardings.items()}

  def load_stack(self, names: Sequence[str], sharding: jax.sharding.Sharding) -> jax.Array:
    """Equal tensors as one array, stacked along a first axis that the sharding does not cut."""
    spec = self.specs[names[0]]
    shape = (len(names), *spec.shape)
    spans = [_spans(shape, index) for index in sharding.addressable_devices_indices_map(shape).values()]
    parts = {span: np.empty([end - start for start, end in span], spec.dtype) for span in spans}
    box = _box([own for _, *own in spans])
    for i, name in enumerate(names):
      value = self.read(name, box)
      for (_, *own), part in parts.items():
        part[i] = value[_inside(own, box)]
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[_spans(shape, index)])

  def _load(self, name: str, sharding: jax.sharding.Sharding | None) -> Any:
    spec = self.specs[name]
    if narrowed(spec.dtype):
      return self.read(name)
    if sharding is None:
      return jax.device_put(self.read(name))
    indices = sharding.addressable_devices_indices_map(spec.shape).values()
    box = _box([_spans(spec.shape, index) for index in indices])
    part = self.read(name, box)
    return jax.make_array_from_callback(
      spec.shape, sharding, lambda index: part[_inside(_spans(spec.shape, index), box)]
    )

  @property
  def places(self) -> tuple[Path, ...]:
    """The folders, or files, that it is read from."""
    return (self.path,)

  @abc.abstractmethod
  def files(self) -> tuple[Path, ...]:
    """Exactly the files that are read: of the tensors, and those beside them."""

  @abc.abstractmethod
  def writer(self, folder: Path, specs: Mapping[str, Any], **options: Any) -> "Writer":
    """A writer of the same format and structure, with this one's side files and the format's options."""

  def refuse_place(self, folder: Path) -> None:  # noqa: B027 (most formats can be written anywhere)
    """Raises ValueError if a checkpoint of this format cannot be written to that place."""

  def copy_sidecars(self, folder: Path) -> None:
    """Copies the config, tokenizer and chat template files that there are."""
    sidecars.copy(self.path, folder)


class Writer(abc.ABC):
  """Writes a checkpoint one tensor at a time, in any order; finished when the `with` block ends well.

  Several threads may write different tensors at once.

  Args:
    folder: made if need be, else empty.
    specs: shape and dtype by canonical name of all tensors that will come.
    like: whose side files are copied; `dtype` in its config then says what was written.

  Raises:
    ValueError: from every method, what the format cannot hold.
  """

  def __init__(self, folder: Path, specs: Mapping[str, Any], like: Checkpoint | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    self.folder = folder
    self._like = like
    self._specs = {n: jax.ShapeDtypeStruct(tuple(s.shape), np.dtype(s.dtype)) for n, s in specs.items()}
    self._left = dict.fromkeys(self._specs)
    self._lock = threading.Lock()

  def done(self) -> Set[str]:
    """Names of the tensors that an interrupted writer left complete here; they are not written again."""
    return frozenset()

  def write(self, name: str, value: Any) -> None:
    """Takes a tensor from the host or a device; one of the host may be changed or deleted afterwards.

    Raises:
      ValueError: it was not announced, comes twice, or has another shape or dtype.
    """
    with self._taken(name) as spec:
      self._require(name, spec, tuple(value.shape), value.dtype)
      self._put(name, value)

  def write_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
    """Takes a tensor in flat parts, one behind the other; errors as of `write`, and those of the parts."""
    with self._taken(name) as spec:
      self._put_parts(name, self._sized(name, spec, parts))

  def _sized(
    self, name: str, spec: jax.ShapeDtypeStruct, parts: Iterable[np.ndarray]
  ) -> Iterator[np.ndarray]:
    size = 0
    for part in parts:
      size += part.size
      shape = spec.shape if size <= spec.size else (size,)
      self._require(name, spec, shape, part.dtype)
      yield part
    self._require(name, spec, spec.shape if size == spec.size else (size,), spec.dtype)

  def _require(self, name: str, spec: jax.ShapeDtypeStruct, shape: tuple[int, ...], dtype: Any) -> None:
    if (shape, np.dtype(dtype)) != (spec.shape, spec.dtype):
      raise ValueError(
        f"{self.folder}: tensor {name!r} is {np.dtype(dtype)}{list(shape)}; expected "
        f"{spec.dtype}{list(spec.shape)}."
      )

  @contextlib.contextmanager
  def _taken(self, name: str) -> Iterator[jax.ShapeDtypeStruct]:
    """The tensor counts as written unless the block fails."""
    if name not in self._specs:
      raise ValueError(unknown("tensor", name, self._specs, str(self.folder)))
    with self._lock:
      if name not in self._left:
        raise ValueError(f"{self.folder}: tensor {name!r} was written before; expected each one once.")
      del self._left[name]
    try:
      yield self._specs[name]
    except BaseException:
      self._left[name] = None
      raise

  def finish(self) -> None:
    """Completes the checkpoint; all of it is on the disk when this returns.

    Raises:
      ValueError: a tensor is missing.
    """
    if self._left:
      raise ValueError(
        f"{self.folder}: tensor {next(iter(self._left))!r} and {len(self._left) - 1} more were never written."
      )
    self._complete()
    self._accompany()

  def _accompany(self) -> None:
    """Adds the side files, and sees to it that all is on the disk."""
    if self._like is not None:
      self._like.copy_sidecars(self.folder)
      sidecars.update_dtype(self.folder, (spec.dtype for spec in self._specs.values()))
    storage.sync_tree(self.folder)

  @abc.abstractmethod
  def _put(self, name: str, value: Any) -> None:
    """Stores a tensor that fits its spec."""

  def _put_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
    """Stores a tensor that comes in parts that fit its spec."""
    spec = self._specs[name]
    value, start = np.empty(spec.size, spec.dtype), 0
    for part in parts:
      value[start : start + part.size] = part
      start += part.size
    self._put(name, value.reshape(spec.shape))

  @abc.abstractmethod
  def _complete(self) -> None:
    """Makes what was stored a checkpoint."""

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    try:
      if error is None:
        self.finish()
    except BaseException:
      self.abandon()
      raise
    if error is not None:
      self.abandon()

  def abandon(self) -> None:  # noqa: B027 (there may be nothing to let go of)
    """Lets go of what is open; what is complete stays, for a writer that resumes."""


def _spans(shape: tuple[int, ...], index: Index | None) -> tuple[tuple[int, int], ...]:
  """Where a slice of a tensor starts and ends on each axis."""
  whole = (slice(None),) * len(shape)
  return tuple(part.indices(length)[:2] for part, length in zip(index or whole, shape, strict=True))


def _box(spans: Sequence[Sequence[tuple[int, int]]]) -> Index:
  """The smallest slice that holds all of these: what a process reads once for all of its devices."""
  return tuple(slice(min(s for s, _ in axis), max(e for _, e in axis)) for axis in zip(*spans, strict=True))


def _inside(spans: Sequence[tuple[int, int]], box: Index) -> Index:
  """Where they lie in what was read of the box."""
  return tuple(slice(s - whole.start, e - whole.start) for (s, e), whole in zip(spans, box, strict=True))


def narrowed(dtype: Any) -> bool:
  """Whether JAX would hold this dtype in fewer bits."""
  return jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype)
