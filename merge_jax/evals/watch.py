"""Runs a command that cannot outlive its job: `python watch.py STATUS_FILE WORD …`.

Started as the leader of a process group, with a pipe from the job as its input. When the command
ends, its exit status is written and the group is killed; when the pipe ends, because the job closed
it or is dead, the group gets SIGTERM, and SIGKILL after `GRACE` seconds. A process that only the
kernel could tell of its parent's death would need `preexec_fn`, which is unsafe beside threads.
"""

import os
import signal
import sys
import threading
import time

GRACE = 2.0


def main() -> None:
  """Ends by killing its own group."""
  status_file, *words = sys.argv[1:]
  signal.signal(signal.SIGTERM, lambda *_: None)  # stays to see how the command ends; not inherited
  threading.Thread(target=_end_with_the_job, daemon=True).start()
  status = _run(words)
  with open(status_file, "w") as file:  # noqa: PTH123
    file.write(str(status))
  os.killpg(0, signal.SIGKILL)


def _run(words: list[str]) -> int:
  no_input = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
  ignored_by_python = (signal.SIGPIPE, signal.SIGXFSZ)
  try:
    child = os.posix_spawnp(words[0], words, os.environ, file_actions=[no_input], setsigdef=ignored_by_python)
  except OSError as error:
    print(f"{words[0]} cannot be run: {error.strerror}.", file=sys.stderr, flush=True)
    return 127
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_with_the_job() -> None:
  os.read(0, 1)
  os.killpg(0, signal.SIGTERM)
  time.sleep(GRACE)
  os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
  main()
