"""Jobs: `python -m launch.NAME` from a clone, `merge-jax NAME` from the wheel."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

# Modules live as long as the process: to look for garbage every 700 objects was 4 % of a whole merge.
gc.set_threshold(50_000, 20, 20)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait in a loop; JAX does the arithmetic


def on_stop(handler: Callable[..., Any]) -> None:
  """Gives `handler` what asks a job to end, a closed terminal too, but for what is to be ignored (nohup)."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, handler)


def _leave(*_: Any) -> None:
  """Ends a job that still imports: a traceback through half a library tells nobody anything."""
  with contextlib.suppress(OSError):  # the terminal may be gone
    os.write(2, b"error: interrupted; the same command continues.\n")
  os._exit(75)


if sys.argv[0] == "-m" or sys.argv[0].startswith("merge-jax "):  # a job starts, nobody else imports this
  on_stop(_leave)
  gc.disable()  # until `_common.run`
  for _name, _mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
    if getattr(sys, _name) is None:  # closed by who starts it: no other file shall get its number
      setattr(sys, _name, open(os.devnull, _mode))  # noqa: PTH123, SIM115 (until the end of the process)
