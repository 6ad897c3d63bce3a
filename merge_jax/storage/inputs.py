"""What is known of input files: that they are files, which ones they are, and that outputs spare them."""

import hashlib
import stat
from collections.abc import Iterable
from pathlib import Path

BLOCK, BLOCKS = 1 << 16, 64


def refuse_special(path: Path) -> None:
  """Raises unless `path` is a regular file, or a link to one; opening a fifo would wait for ever.

  Raises:
    FileNotFoundError: there is nothing.
    ValueError: a folder, fifo, socket or device.
  """
  try:
    mode = path.stat().st_mode
  except FileNotFoundError:
    raise FileNotFoundError(f"{path}: there is no such file.") from None
  if not stat.S_ISREG(mode):
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(mode), "device")
    raise ValueError(f"{path}: is a {kind}; expected a regular file.")


def read_bytes(path: Path) -> bytes:
  """The content of a regular file; errors as `refuse_special`."""
  refuse_special(path)
  return path.read_bytes()


def digest(paths: Iterable[Path], root: Path) -> str:
  """A SHA-256 of names, sizes and up to 64 evenly spaced blocks of 64 KiB of files.

  A pool of terabytes is told apart in seconds; a file up to 4 MiB is read whole.

  Args:
    paths: the files, in any order.
    root: a folder that all of them lie in; names are relative to it.
  """
  total = hashlib.sha256()
  for file in sorted(paths):
    size = file.stat().st_size
    total.update(f"{file.relative_to(root)}\0{size}\0".encode())
    with file.open("rb") as stream:
      if size <= BLOCK * BLOCKS:
        total.update(stream.read())
        continue
      for i in range(BLOCKS):
        stream.seek(i * (size - BLOCK) // (BLOCKS - 1))
        total.update(stream.read(BLOCK))
  return total.hexdigest()


def fingerprint(paths: Iterable[Path]) -> dict[str, list[int]]:
  """Size, modification time in nanoseconds and inode by path; as JSON gives it back.

  It reads no content: unequal fingerprints tell that a file was rewritten while a job ran. Use
  `digest` to compare files across copies and machines.
  """
  stats = {path.as_posix(): path.stat() for path in paths}
  return {name: [s.st_size, s.st_mtime_ns, s.st_ino] for name, s in stats.items()}


def refuse_inside(output: Path, inputs: Iterable[Path], what: str = "--output") -> None:
  """Raises ValueError if an output is an input or lies in one; links are followed.

  An input may lie in an output *folder*: ask for each file that is written there.

  Args:
    output: file or folder to write, whether it is there or not.
    inputs: files and folders that are read.
    what: the flag or field that names the output, for the error.

  >>> refuse_inside(Path("/runs/a"), [Path("/runs/a/pool/m0"), Path("/runs/ab")])
  >>> refuse_inside(Path("/models/m0/x"), [Path("/models/m0")], "--output_dir")
  Traceback (most recent call last):
  ValueError: --output_dir: /models/m0/x lies in the input /models/m0; choose another place.
  """
  target = output.expanduser().resolve()
  for path in inputs:
    source = path.expanduser().resolve()
    if target.is_relative_to(source):
      how = "is" if target == source else "lies in"
      raise ValueError(f"{what}: {output} {how} the input {path}; choose another place.")
