"""Outputs of evaluated merges, which a surrogate learns from: in memory, and in files beside the journal.

The files are a cache. What is missing or damaged is evaluated again, with the same numbers.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from merge_jax.search.journal import Record
from merge_jax.search.point import Candidate

Arrays = Mapping[str, np.ndarray]


class Outputs:
  """Arrays by name of each record of the search's split.

  Args:
    folder: where they are kept for a resumed search; None: in memory alone.
  """

  def __init__(self, folder: Path | None = None):
    self._folder = folder
    self._known: dict[str, Arrays] = {}

  def put(self, index: int, candidate: Candidate, arrays: Arrays) -> None:
    """Keeps the outputs of the record of that index."""
    key = _key(index, candidate)
    self._known[key] = arrays
    if self._folder is None:
      return
    content = io.BytesIO()
    np.savez(content, **dict[str, Any](arrays))
    self._folder.mkdir(parents=True, exist_ok=True)
    part = self._folder / f"{key}.part"
    part.write_bytes(content.getbuffer())
    part.replace(self._folder / f"{key}.npz")

  def has(self, index: int, candidate: Candidate) -> bool:
    """Whether they are there; reads them."""
    key = _key(index, candidate)
    if key not in self._known and self._folder is not None:
      try:
        content = io.BytesIO((self._folder / f"{key}.npz").read_bytes())
        with np.load(content, allow_pickle=False) as file:
          self._known[key] = {name: file[name] for name in file.files}
      except Exception:  # damage shows as errors of many kinds, zlib.error and NotImplementedError among them
        return False
    return key in self._known

  def of(self, record: Record) -> Arrays:
    """Those of a record.

    Raises:
      KeyError: they are not there.
    """
    if not self.has(record.index, record.candidate):
      raise KeyError(f"evaluation {record.index} has no outputs")
    return self._known[_key(record.index, record.candidate)]


def _key(index: int, candidate: Candidate) -> str:
  return f"{index:06}-{hashlib.sha256(msgspec.json.encode(candidate)).hexdigest()[:16]}"
