"""How the end of one process becomes that of all: failures, and polite stops."""

import contextlib
from collections.abc import Iterator

from merge_jax.errors import Stopped, sentence
from merge_jax.host import job

INTERRUPTED = "interrupted; the same command continues."


@contextlib.contextmanager
def reporting() -> Iterator[None]:
  """Tells the other processes of an error in the block, before this one tidies up.

  A program that fails while it talks to other devices may do so because a process is gone: then the job waits
  until that is known, or sure not to be, and ends for that reason.
  """
  try:
    yield
  except BaseException as error:
    if job.current is not None and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
      job.current.await_loss()
    if job.current is not None and job.current.failure is None:
      interrupted = isinstance(error, KeyboardInterrupt)
      status = Stopped.status if interrupted else getattr(error, "status", 1)
      text = INTERRUPTED if interrupted else sentence(error)
      job.current.fail(status, f"process {job.current.index}: {text}")
    raise


def cause(error: BaseException) -> BaseException:
  """What ended the job: this error, or that of another process, of which it may be a consequence."""
  failure = None if job.current is None else job.current.failure
  if job.current is None or failure is None or (failure.process == job.current.index and not failure.gone):
    return error
  return failure.error()


def ask_to_stop() -> None:
  """Makes `stopping` true in all processes; safe in a signal handler."""
  if job.current is not None:
    job.current.asked.set()


def stopping() -> bool:
  """Whether a process was asked to stop; ask between units of work.

  Raises:
    Ended, Stopped: another process failed, or ended early.
  """
  if job.current is None:
    return False
  job.current.check()
  return job.current.asked.is_set() or job.current.stop.is_set()


def leave(status: int) -> None:
  """Ends this process of a job that failed, when the others know or are late; does nothing for one alone."""
  if job.current is not None:
    job.current.leave(status)
