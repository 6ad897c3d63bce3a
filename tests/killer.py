"""Runs a recycle job that kills itself at its n-th write: `python -m tests.killer SETTINGS N`.

Every file that counts is flushed with fsync before it is renamed or relied on, so a kill at each
fsync is a kill in the middle of each write. Half of the kills lose part of what was written last.
"""

import contextlib
import json
import os
import signal
import stat
import sys

import jax

from merge_jax import recycle
from merge_jax.recycle import settings


def arm(at: int) -> None:
  """Replaces fsync: the at-th call ends the process at once."""
  calls, fsync = [0], os.fsync

  def counting(descriptor: int) -> None:
    calls[0] += 1
    if calls[0] == at:
      if at % 2 and stat.S_ISREG(os.fstat(descriptor).st_mode):
        with contextlib.suppress(OSError):  # opened for reading
          os.ftruncate(descriptor, max(os.fstat(descriptor).st_size - 7, 0))
      os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

  os.fsync = counting


def main() -> None:
  jax.config.update("jax_platforms", "cpu")
  path, at = sys.argv[1:]
  with open(path) as file:  # noqa: PTH123
    job = settings.from_mapping(json.load(file))
  if int(at):
    arm(int(at))
  recycle.recycle(job, say=lambda line: None)


if __name__ == "__main__":
  main()
