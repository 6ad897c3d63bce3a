"""What a process knows of its job: that the others live, and why one of them does not."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from merge_jax.errors import Stopped
from merge_jax.host.store import Store

GRACE = 10.0  # seconds from a failure to the end of a process that does not look
LOOK = 0.5  # seconds between looks at the others


class Ended(RuntimeError):
  """Another process of the job failed; the sentence is its own."""


class Failure(msgspec.Struct, frozen=True):
  """Why a job ends: who says so, what to exit with, and which processes are gone without a word."""

  process: int
  status: int
  text: str
  gone: tuple[int, ...] = ()

  def error(self) -> RuntimeError:
    """What to raise in the other processes."""
    return (Stopped if self.status == Stopped.status else Ended)(self.text)


class Job:
  """One process's part in a job of several; a thread tells that it lives, and looks at the others.

  Attributes:
    index, count: which process this is, of how many.
    neighbours: how many are on this machine, this one included.
    calls: how often all have talked; a call's number is part of its keys, so that calls meet in order.
    written: keys of this process that others may not have read yet.
    failure: the first one of the job.
    asked, stop: this process, or any one, was asked to stop.
  """

  def __init__(self, heartbeat: float):
    self.store = Store()
    self.index, self.count, self._heartbeat = self.store.index, self.store.count, heartbeat
    self.calls, self.neighbours = 0, 1
    self.written: list[str] = []
    self.failure: Failure | None = None
    self.asked, self.stop, self._over = threading.Event(), threading.Event(), threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def fail(self, status: int, text: str, gone: Sequence[int] = ()) -> None:
    """Tells all why the job ends; who is first is heard."""
    with contextlib.suppress(RuntimeError):  # there is one already, or the lead is gone
      self.store.put("job/failure", msgspec.json.encode(Failure(self.index, status, text, tuple(gone))))
    with contextlib.suppress(RuntimeError):
      self._look()

  def await_loss(self) -> None:
    """Waits as long as it takes to miss a process, or until the job has failed."""
    end = time.monotonic() + self._heartbeat + 4 * LOOK
    while self.failure is None and time.monotonic() < end:
      time.sleep(LOOK / 5)

  def check(self) -> None:
    """Raises what ended the job."""
    if self.failure is not None:
      raise self.failure.error()

  def close(self) -> None:
    """Ends the watch."""
    self._over.set()
    self._thread.join()

  def leave(self, status: int) -> NoReturn:
    """Ends the process; the lead, in which the store lives, when the others have left or are late."""
    self._over.set()
    gone = set() if self.failure is None else set(self.failure.gone)
    try:
      if 0 not in gone:
        self.store.put(f"left/{self.index}", b"", again=True)
      others = {str(i) for i in range(1, self.count) if i not in gone}
      end = time.monotonic() + GRACE + 2 * LOOK
      while self.index == 0 and time.monotonic() < end and others - self.store.under("left").keys():
        time.sleep(LOOK / 10)
    finally:
      leave_now(status)  # JAX's own way out waits for all, and for programs that wait for a dead peer

  def _watch(self) -> None:
    beat, seen = 0, {str(i): (b"", time.monotonic()) for i in range(self.count)}
    while self.failure is None:
      if self._over.wait(LOOK):
        return
      beat += 1
      try:
        self.store.put(f"beat/{self.index}", b"%d" % beat, again=True)
        if self.asked.is_set():
          self.store.put("job/stop", b"", again=True)
        self._look()
        if self.index == 0:
          now = time.monotonic()
          seen |= {i: (n, now) for i, n in self.store.under("beat").items() if seen[i][0] != n}
          self._miss([int(i) for i, (_, at) in seen.items() if now - at > self._heartbeat])
      except RuntimeError:
        text = "process 0, the lead, does not answer: killed, or its machine is gone."
        self.failure = Failure(self.index, Stopped.status, text, (0,))
    if not self._over.wait(GRACE):
      with contextlib.suppress(OSError):
        print(f"process {self.index}: error: {self.failure.text}", file=sys.stderr)
      self.leave(self.failure.status)

  def _look(self) -> None:
    told = self.store.under("job")
    if "stop" in told:
      self.stop.set()
    if "failure" in told:
      self.failure = self.failure or msgspec.json.decode(told["failure"], type=Failure)

  def _miss(self, gone: Sequence[int]) -> None:
    if gone:
      text = f"{names(gone)} did not answer for {self._heartbeat:g} s: killed, or the machine is gone; "
      self.fail(Stopped.status, f"{text}the same command continues.", gone)


def leave_now(status: int) -> NoReturn:
  """Ends the process without a wait for anybody; what was printed before goes out if it can."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError, OSError, ValueError):  # None, nobody reads it, closed
      stream.flush()
  os._exit(status)


def names(processes: Sequence[int]) -> str:
  """What processes are called in sentences.

  >>> names([1, 2, 5])
  'processes 1, 2, 5'
  """
  return f"process{'es' if len(processes) > 1 else ''} {', '.join(map(str, processes))}"


current: Job | None = None
"""The job of this process, if it is one of several."""
