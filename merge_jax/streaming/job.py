"""What makes one tensor of a result: where its inputs are, and how they are merged."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import Array

from merge_jax.checkpoints import Checkpoint, nbytes
from merge_jax.operators import naming, planning
from merge_jax.operators.core import Leaf, Operator
from merge_jax.operators.naming import Axes
from merge_jax.streaming import blocks
from merge_jax.streaming.blocks import Block


class Readable(Protocol):
  """A tensor that can be read, again and from several threads; `str` says where it is from."""

  @property
  def spec(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype as it is read."""

  def read(self) -> np.ndarray:
    """The tensor, on the host."""

  def release(self) -> None:
    """Lets go of what reading took; it can be read again."""


class Source(NamedTuple):
  """A tensor of a checkpoint."""

  checkpoint: Checkpoint
  name: str

  @property
  def spec(self) -> jax.ShapeDtypeStruct:
    """Shape and dtype as it is read."""
    names = self.checkpoint.aliases
    return self.checkpoint.specs[names.get(self.name, self.name)]

  def read(self) -> np.ndarray:
    """The tensor, on the host."""
    return self.checkpoint.read(self.name)

  def release(self) -> None:
    """Lets go of what reading took; it can be read again."""
    self.checkpoint.release(self.name)

  def __str__(self) -> str:
    return f"{self.name!r} of {self.checkpoint.where}"


class Job(NamedTuple):
  """One tensor of the result; jobs are plain data and may be split over workers in any way.

  Attributes:
    name: in the result.
    spec: shape and dtype in the result.
    operator: the rule with this tensor's numbers; rules that differ in numbers alone are compiled once.
    experts: the tensors that are merged.
    base: what task vectors are taken from, or None for rules without one.
    weights: one for each expert; None takes the rule's own.
    models: a name for each expert: random keys go by it and the tensor's name in the result.
    statistics: what was measured of each expert, or None of it, for rules that need it.
    group: whole-model statistics cover the jobs of one group.
    axes: what the tensor's axes mean.
    copied: the result is the first expert, in the dtype of `spec`, whatever the rule: what one model with
      weight 1 gives. Its bytes stay, also those of the smallest numbers, which arithmetic flushes to 0.
  """

  name: str
  spec: jax.ShapeDtypeStruct
  operator: Operator
  experts: tuple[Readable, ...]
  base: Readable | None = None
  weights: tuple[float, ...] | None = None
  models: tuple[str, ...] = ()
  statistics: tuple[Readable | None, ...] | None = None
  group: int = 0
  axes: Axes = Axes()
  copied: bool = False

  @property
  def sources(self) -> tuple[Readable, ...]:
    """All that is read."""
    measured = (one for one in self.statistics or () if one is not None)
    return (*self.experts, *(() if self.base is None else (self.base,)), *measured)

  @property
  def merged(self) -> bool:
    """Whether it is computed; integer, boolean, empty and copied tensors are carried over."""
    floating = planning.merges(self.experts[0].spec.dtype, f"Tensor {self.name!r}")
    return floating and self.spec.size > 0 and not self.copied

  @property
  def nbytes(self) -> int:
    """Memory that it takes: its inputs as they are stored, in float32, and the result."""
    stored = sum(nbytes(source.spec) for source in self.sources)
    size = min(self.spec.size, blocks.LONGEST) if self.split else self.spec.size
    wide = 4 * size * (len(self.experts) + 2) if self.merged else 0
    return stored + wide + nbytes(self.spec)

  @property
  def split(self) -> bool:
    """Whether it is merged block by block; see `blocks.py`."""
    return self.block_shape(blocks.LONGEST) is not None

  def block_shape(self, length: int) -> tuple[int, ...] | None:
    """The shape of its blocks, of about this length; None if it is merged whole."""
    if self.merged and self.operator.elementwise and self.axes.stack is None:
      return blocks.shape_of(self.spec.shape, length, rows=False)
    if self.merged and self.operator.rowwise and self.axes == Axes():
      return blocks.shape_of(self.spec.shape, length, rows=True)
    return None

  def blocks(self, key: Array | None, length: int) -> list[Block]:
    """The inputs, read; in blocks of about this length, or whole.

    Raises:
      ValueError: one that cannot be read; a random rule without a key.
    """
    leaf = self._leaf(key, lambda source: source.read())
    return blocks.split(leaf, self.axes, self.block_shape(length))

  def nothing(self, key: Array | None, length: int) -> list[Block]:
    """One block as of `blocks`, of zeros and without reading: enough to compile for."""
    shape = self.block_shape(length) or self.spec.shape
    leaf = self._leaf(key, lambda source: np.zeros(shape, source.spec.dtype))
    return blocks.split(leaf, self.axes, self.block_shape(length))

  def _leaf(self, key: Array | None, read: Callable[[Readable], np.ndarray]) -> Leaf:
    keys = None
    if self.operator.needs_key:
      if key is None:
        raise ValueError(f"{type(self.operator).__name__} is random: give a key.")
      keys = tuple(naming.words_of(key, self.models, self.name))

    def each(sources: Sequence[Readable | None]) -> Any:
      return tuple(None if one is None else read(one) for one in sources)

    statistics = None if self.statistics is None else each(self.statistics)
    return Leaf(each(self.experts), each([self.base])[0], keys, statistics)
