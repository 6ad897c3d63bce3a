"""Files that go to the disk while they are still being written."""

import contextlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

EVERY = 1 << 25  # bytes

_flush = getattr(os, "fdatasync", os.fsync)  # macOS has fsync alone


class WriteBehind:
  """A file of a known size, written by several threads at once, and flushed by one more after every 32 MiB.

  So `sync` has little to wait for. A hint to the kernel (sync_file_range) does not do: what lies in the
  disk's own cache it leaves there, and to flush that was .2 s of a merge of 220 MB.

  Args:
    file: made, or opened.
    size: of the whole file, in bytes.
    new: the file must not be there yet; or else other processes may write it, too.

  Raises:
    OSError: from every method, what the disk refuses, also while it was flushed.
  """

  def __init__(self, file: Path, size: int, *, new: bool):
    how = os.O_EXCL if new else os.O_NOFOLLOW
    self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | how, 0o666)
    try:
      os.truncate(self._descriptor, size)
    except OSError:
      os.close(self._descriptor)
      if new:
        file.unlink()
      raise
    self._pool = ThreadPoolExecutor(1, "flush")
    self._lock = threading.Lock()
    self._flushed: Future[None] | None = None
    self._unflushed = 0

  def write(self, content: memoryview, at: int) -> None:
    """Writes bytes into their place."""
    length = len(content)
    while len(content):  # one call takes at most 2 GiB
      count = os.pwrite(self._descriptor, content, at)
      content, at = content[count:], at + count
    with self._lock:
      self._unflushed += length
      if self._unflushed >= EVERY and (self._flushed is None or self._flushed.done()):
        self._refused()
        with contextlib.suppress(RuntimeError):  # no thread is to be had: `sync` does it
          self._flushed, self._unflushed = self._pool.submit(_flush, self._descriptor), 0

  def sync(self) -> None:
    """Returns when all that was written is on the disk."""
    self._refused()
    os.fsync(self._descriptor)

  def _refused(self) -> None:
    """Raises what the last flush met: the system tells it once."""
    if self._flushed is not None:
      self._flushed.result()

  def close(self) -> None:
    try:
      self._pool.shutdown()
    finally:
      os.close(self._descriptor)
