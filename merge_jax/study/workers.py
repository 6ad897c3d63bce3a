"""Processes that work side by side, a thread each: models this small lose more by threads than they gain."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merge_jax import errors

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
POLL = 0.2
"""Seconds."""


def side_by_side(
  module: str,
  arguments: Sequence[str],
  workers: int,
  folder: Path,
  *,
  stop: Callable[[], bool],
  watch: Callable[[], None] = lambda: None,
) -> None:
  """Runs `python -m module argument` for each argument, at most `workers` at once, until all have ended.

  Args:
    module: ends with 0, with the status of `errors.Stopped`, or says on stderr what is wrong.
    arguments: one each.
    workers: processes at once.
    folder: they keep compiled programs in `folder/compiled`, all in one.
    stop: asked again and again; the processes are then told, and waited for.
    watch: called again and again.

  Raises:
    errors.Stopped: `stop` said so, or a process was stopped.
    RuntimeError: a process ended otherwise; those that ran were waited for, no other was started.
  """
  waiting, running, stopped = list(arguments), list[subprocess.Popen[bytes]](), False
  environment = dict(os.environ)
  environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
  environment |= {
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "OPENBLAS_NUM_THREADS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }  # fmt: skip
  broken: list[int] = []
  try:
    while waiting or running:
      while waiting and len(running) < workers and not stopped and not broken:
        command = [sys.executable, "-m", module, waiting.pop(0)]
        running.append(subprocess.Popen(command, env=environment))
      if not running:
        break
      if not stopped and stop():
        stopped = True
        for process in running:
          process.terminate()
      broken += [
        process.returncode for process in running if process.poll() is not None and process.returncode
      ]
      running = [process for process in running if process.poll() is None]
      watch()
      time.sleep(POLL)
  finally:
    for process in running:
      process.kill()
  if stopped or errors.Stopped.status in broken:
    raise errors.Stopped("Stopped; the same command continues.")
  if broken:
    raise RuntimeError(f"A worker ended with status {broken[0]}; what it said stands above.")


def told_to_stop() -> Callable[[], bool]:
  """Within a worker: whether it was told to stop, or whoever would have told it is gone."""
  asked, parent = [False], os.getppid()

  def ask(*_: Any) -> None:
    asked[0] = True

  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a terminal that closes tells all of a group
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, ask)
  return lambda: asked[0] or os.getppid() != parent
