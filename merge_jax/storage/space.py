"""Room in memory and on a disk, asked before it is used, and one sentence for what a disk refuses."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from merge_jax.storage.remote import Remote

_REFUSED = {
  errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up",
  errno.EFBIG: "the file is too large", errno.EROFS: "the disk is read-only",
  errno.EACCES: "it cannot be written", errno.EPERM: "it cannot be written", errno.EIO: "the disk fails",
  errno.ENAMETOOLONG: "the name is too long", errno.ENOENT: "there can be no such folder",
}  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)


def require_space(folder: Path, nbytes: int) -> None:
  """Raises OSError if the disk of a folder, there or not, has less room than `nbytes` and 5 % take.

  An object store has room.
  """
  if isinstance(folder, Remote):
    return
  there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  free = shutil.disk_usage(there).free
  need = int(nbytes * 1.05) + (64 << 20)
  if free < need:
    have = f"the disk has {gib(free)} free, and should have {gib(need)}"
    raise OSError(f"{folder}: the result takes about {gib(nbytes)}; {have}.")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Says in one sentence, as an OSError, what a disk refuses while `path` is written."""
  try:
    yield
  except OSError as error:
    if error.errno not in _REFUSED:
      raise
    reason = f"{_REFUSED[error.errno]} ({os.strerror(error.errno)})"
    how = "make room there, or choose another place" if error.errno in _FULL else "choose another place"
    raise OSError(f"{path}: {reason}; {how}.") from None


def gib(count: float) -> str:
  """Bytes for people.

  >>> gib(3 << 30)
  '3.0 GiB'
  """
  return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 29 else f"{count / (1 << 20):.1f} MiB"


def cores(processes: int = 1) -> int:
  """How many cores this process may use, of a machine that so many processes share."""
  there = os.cpu_count() or 1
  own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
  return min(own, max(1, there // processes))


def available_memory() -> int:
  """Bytes that are free in the host's memory, and that its container or batch job leaves this process."""
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
  except (OSError, StopIteration):
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return max(0, min([free, *_left_by_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _left_by_groups(listed: Path, root: Path) -> Iterator[int]:
  """What limits leave: of a process's control groups, of either version, and of those around them.

  Files in their caches count as used, and give way.
  """
  for line in listed.read_text().splitlines() if listed.exists() else ():
    _, kinds, name = line.split(":", 2)
    home, limit, used, prefix = root, "memory.max", "memory.current", ""
    if kinds:
      home, limit, used, prefix = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
    group = home / name.lstrip("/")
    for folder in (group, *group.parents) if not kinds or "memory" in kinds.split(",") else ():
      with contextlib.suppress(OSError, ValueError, KeyError):  # none here, or no limit
        told = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        known = {key: int(value) for key, value in told}
        cached = known[f"{prefix}active_file"] + known[f"{prefix}inactive_file"]
        yield int((folder / limit).read_text()) - int((folder / used).read_text()) + cached
