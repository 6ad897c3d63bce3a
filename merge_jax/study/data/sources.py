"""Where a study's examples come from, by the name of the source."""

from pathlib import Path

from merge_jax.study.data import Data, from_files, puzzles, t0
from merge_jax.study.settings import Study


def generated(study: Study) -> bool:
  """Whether the source writes files."""
  return study.data.source != "files"


def find(study: Study, folder: Path) -> Data:
  """The data of a study.

  Args:
    study: its settings.
    folder: what is generated is written below it, or found there.

  Raises:
    ValueError, OSError: options that cannot be, files that are not there.
    ModuleNotFoundError: the source needs reasoning-gym (extra `data`).
  """
  if study.data.source == "puzzles":
    return puzzles.make(folder, study.data.options)
  if study.data.source == "t0":
    return t0.make(folder, study.data.options)
  return from_files(study.data.options)
