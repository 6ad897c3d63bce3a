"""What processes say to one another. Each call has a number, so that the calls of all meet in order."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from merge_jax.errors import shown
from merge_jax.host import job
from merge_jax.host.ending import reporting
from merge_jax.host.job import Job

KEPT = 64  # broadcasts after which all meet, so that the store can forget them
_END = b"end"


def broadcast(value: Any = None, *, timeout: float | None = None) -> Any:
  """What the lead gives, at every process.

  Args:
    value: bytes, or what JSON holds; of the others it is ignored.
    timeout: seconds; None waits as long as the job lives.

  Raises:
    TimeoutError: the lead does not come in time.
    Ended, Stopped: another process failed, or ended early.

  >>> broadcast({"step": 1})
  {'step': 1}
  """
  return value if job.current is None else _unpacked(_broadcast(job.current, _packed(value), timeout))


def gather(value: Any, *, timeout: float | None = None) -> list[Any]:
  """What every process gives, in their order, at every process; arguments and errors as of `broadcast`.

  >>> gather("a")
  ['a']
  """
  if job.current is None:
    return [value]
  return list(map(_unpacked, _meet(job.current, "gather", _packed(value), timeout)))


def barrier(name: str, *, timeout: float | None = None) -> None:
  """Waits until all processes are here; the TimeoutError names those that are missing."""
  if job.current is not None:
    _meet(job.current, name, b"", timeout)


def refuse_another(told: Mapping[str, Any]) -> None:
  """Lets no process do its part of another job than the lead's; call it before they compute together.

  Args:
    told: all that decides the work, by name, as JSON holds it; what users write themselves comes first.

  Raises:
    ValueError: this process was told something else than the lead.
    Ended: another one was.
  """
  mine = json.loads(json.dumps(told))
  lead = broadcast(mine)
  for name in (*lead, *mine):
    if (theirs := lead.get(name)) != (own := mine.get(name)):
      raise ValueError(
        f"This process has another job than the lead: {name} is {shown(own, 200)} here and "
        f"{shown(theirs, 200)} there; start all alike."
      )
  barrier("the same job")


@contextlib.contextmanager
def leading() -> Iterator[Callable[[Any], None]]:
  """Gives the lead `send(value)`, which makes the `commands` of all followers yield the value.

  The end of the block ends the followers' loops; an error in it is raised in them, too.

  >>> with leading() as send:
  ...   send(["evaluate", [0.5, 0.5]])
  """

  def send(value: Any) -> None:
    broadcast(value)

  with reporting():
    yield send
    if job.current is not None:
      _broadcast(job.current, _END, None)


def commands() -> Iterator[Any]:
  """What the lead sends, at a follower, one after the other, until the lead's block ends.

  Raises:
    Ended, Stopped: the lead or another process failed, or ended early.
  """
  while job.current is not None and (packed := _broadcast(job.current, b"", None)) != _END:
    yield _unpacked(packed)


def _broadcast(mine: Job, packed: bytes, timeout: float | None) -> bytes:
  mine.calls += 1
  key = f"{mine.calls}/broadcast"
  if mine.index == 0:
    mine.check()
    mine.store.put(key, packed)
    mine.written.append(key)
  else:
    (packed,) = _wait(mine, "the lead", {0: key}, timeout)
  if mine.calls % KEPT == 0:
    _meet(mine, "broadcasts", b"", timeout)
  return packed


def _meet(mine: Job, name: str, packed: bytes, timeout: float | None) -> list[bytes]:
  mine.calls += 1
  keys = {i: f"{mine.calls}/{name}/{i}" for i in range(mine.count)}
  mine.store.put(keys[mine.index], packed)
  found = _wait(mine, name, keys, timeout)
  for key in mine.written:  # all have come here, so that all have read what was before
    mine.store.forget(key)
  mine.written = [keys[mine.index]]
  return found


def _wait(mine: Job, name: str, keys: Mapping[int, str], timeout: float | None) -> list[bytes]:
  found: dict[int, bytes] = {}
  end = None if timeout is None else time.monotonic() + timeout
  for i, key in keys.items():
    while (value := mine.store.get(key, job.LOOK)) is None:
      mine.check()
      if end is not None and time.monotonic() > end:
        missing = [j for j, k in keys.items() if j not in found and mine.store.get(k, 0) is None]
        if missing:
          raise TimeoutError(f"Waiting for {name}: {job.names(missing)} did not come within {timeout:g} s.")
    found[i] = value
  return list(found.values())


def _packed(value: Any) -> bytes:
  return b"b" + value if isinstance(value, bytes) else b"j" + json.dumps(value).encode()


def _unpacked(packed: bytes) -> Any:
  return packed[1:] if packed[:1] == b"b" else json.loads(packed[1:])
