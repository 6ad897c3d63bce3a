"""Checkpoints whose tensors are computed from those of another one when they are read."""

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merge_jax.checkpoints.base import Checkpoint, Writer


@dataclasses.dataclass(frozen=True)
class View(Checkpoint, abc.ABC):
  """What is not said otherwise is as in `source`.

  Attributes:
    source: whose tensors are read.
  """

  source: Checkpoint

  @property
  def format(self) -> str:
    """That of the source."""
    return self.source.format

  @property
  def name(self) -> str:
    """That of the source."""
    return self.source.name

  @property
  def where(self) -> str:
    """That of the source."""
    return self.source.where

  def result_dtype(self, name: str) -> np.dtype:
    """That of the source."""
    return self.source.result_dtype(name)

  def release(self, name: str) -> None:
    """That of the source."""
    self.source.release(name)

  @property
  def places(self) -> tuple[Path, ...]:
    """Those of the source."""
    return self.source.places

  def files(self) -> tuple[Path, ...]:
    """Those of the source."""
    return self.source.files()

  def digest(self) -> str:
    """That of the source."""
    return self.source.digest()

  def writer(self, folder: Path, specs: Mapping[str, Any], **options: Any) -> Writer:
    """That of the source."""
    return self.source.writer(folder, specs, **options)

  def refuse_place(self, folder: Path) -> None:
    """That of the source."""
    self.source.refuse_place(folder)

  def copy_sidecars(self, folder: Path) -> None:
    """Those of the source."""
    self.source.copy_sidecars(folder)
