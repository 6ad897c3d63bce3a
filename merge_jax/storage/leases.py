"""One writer a folder of an object store, as far as a store can tell: an object that says who is at work.

It protects from a second job that is started by mistake. The holder renews it; without a renewal for `LIFE`
seconds, as after a kill, anybody may take it over. A holder that was cut off from the store for so long may
still be at work then, and two that take over the same moment can miss each other: what must not be mixed up
is therefore created, never replaced (`Lines`), or asks `require` again before it counts (`commits`).
"""

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from merge_jax import decoding
from merge_jax.errors import Stopped
from merge_jax.storage.remote import Remote

NAME = ".lock"
LIFE, BEAT = 120.0, 20.0  # seconds; the clocks of machines may differ by less than a minute


class Locked(Stopped):
  """Another process writes into the folder, or did a moment ago and was killed: later the command goes on."""


class Holder(msgspec.Struct, frozen=True):
  """The content of the object.

  Attributes:
    machine, pid, block: who holds it; one process may hold several.
    beat: seconds since the epoch, when it was written.
  """

  machine: str
  pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
  block: str
  beat: float

  @property
  def age(self) -> float:
    """Seconds since the last sign of life."""
    return max(0.0, time.time() - self.beat)

  @property
  def dead(self) -> bool:
    """Whether it gave no sign of life for too long, or was a process of this machine that has ended."""
    return self.age > LIFE or (self.machine == _machine() and not _runs(self.pid))


@contextlib.contextmanager
def leased(folder: Remote) -> Iterator[Holder]:
  """Holds a folder, and renews that until the block ends.

  Raises:
    Locked: somebody else holds it.
  """
  file, ended = folder / NAME, threading.Event()
  mine = Holder(_machine(), os.getpid(), uuid.uuid4().hex, time.time())
  _take(file, mine)

  def renew() -> None:
    while not ended.wait(BEAT):
      with contextlib.suppress(OSError, ValueError, Locked):  # the next beat may be luckier
        require(folder, mine)
        file.write_bytes(_json(msgspec.structs.replace(mine, beat=time.time())))

  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  try:
    yield mine
  finally:
    ended.set()
    thread.join(BEAT)
    with contextlib.suppress(OSError, ValueError, Locked):  # a lease that is left ends by itself
      require(folder, mine)
      file.unlink()


def require(folder: Remote, mine: Holder) -> None:
  """Raises Locked if another one has taken the folder over."""
  holder = _holder(folder / NAME)
  if holder is None or holder.block != mine.block:
    raise Locked(
      f"{folder} was taken over by another job, as it was silent for {LIFE:.0f} s; stop one of them."
    )


def refuse(folder: Remote) -> bool:
  """Raises Locked if somebody holds the folder; only looks. True if a lease that ended lies there."""
  holder = _holder(folder / NAME)
  if holder is not None and not holder.dead:
    raise Locked(
      f"{folder} is in use by process {holder.pid} of {holder.machine}, which gave a sign of life "
      f"{holder.age:.0f} s ago; wait for it or stop it. {LIFE:.0f} s after the last sign it is free."
    )
  return holder is not None


def _take(file: Remote, mine: Holder) -> None:
  if refuse(file.parent):
    file.unlink(missing_ok=True)
  try:
    file.create(_json(mine))
  except FileExistsError:
    holder = _holder(file)
    if holder is None or holder.block != mine.block:  # else the request was sent twice and came through twice
      raise Locked(f"{file.parent} was taken by another job this moment; wait for it or stop it.") from None


def _holder(file: Remote) -> Holder | None:
  try:
    return decoding.decode(file.read_bytes(), Holder, str(file))
  except FileNotFoundError:
    return None


def _json(holder: Holder) -> bytes:
  return msgspec.json.encode(holder)


def _machine() -> str:
  """Where process ids mean the same: containers may share a machine's name and address."""
  with contextlib.suppress(OSError):
    return f"{platform.node()}/{uuid.getnode():x}/{Path('/proc/self/ns/pid').readlink()}"
  return f"{platform.node()}/{uuid.getnode():x}"


def _runs(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # somebody else's
    return True
  return True
