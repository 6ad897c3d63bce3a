"""Checkpoints along a run: `run/step-500`, `run/step-1000`, … beside the last one, in `run` itself.

Each is a folder of its own that appears whole or not at all, after the state from which the run would
continue is on the disk: what lies there belongs to the states beside it.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from merge_jax import host, storage

LAST = ".last"
_OURS = re.compile(rf"step-\d+|\.(step-\d+|{re.escape(LAST[1:])})\.{storage.PARTIAL}")

Write = Callable[[Path], None]
"""Writes a checkpoint as a new folder; all processes call it together."""


def keep(target: Path, step: int, write: Write) -> None:
  """Writes `target/step-N` unless it is there."""
  folder = target / f"step-{step}"
  if not host.broadcast(folder.is_dir()):
    write(folder)


def finish(target: Path, write: Write) -> None:
  """Writes the last checkpoint beside those along the run.

  It is written in a hidden folder; then its files move up, those that tell what the tensors are before the
  tensors, and `training.json`, the mark of a finished run, at the very end. Who is killed meanwhile begins
  this anew.
  """
  last = target / LAST
  if host.is_lead() and last.is_dir():
    shutil.rmtree(last)
  write(last)
  if host.is_lead():
    files = sorted(last.iterdir(), key=lambda file: (".safetensors" in file.name, file.name))
    for file in sorted(files, key=lambda file: file.name == "training.json"):
      file.rename(target / file.name)
      storage.sync(target)
    last.rmdir()
  host.barrier("the last checkpoint")


def is_unfinished(target: Path) -> bool:
  """Whether a folder holds nothing but what a run that was interrupted left there."""
  names = [path.name for path in target.iterdir()] if target.is_dir() else []
  return LAST in names or all(map(_OURS.fullmatch, names))
