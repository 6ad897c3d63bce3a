"""What is known of input files: that they are files, which ones they are, and that outputs spare them."""

import hashlib
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from merge_jax import decoding
from merge_jax.storage.remote import Remote, side_by_side

T = TypeVar("T")

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


def lexists(path: Path) -> bool:
  """Whether there is anything of this name, a link to nothing included."""
  return path.is_symlink() or path.exists()


def read_bytes(path: Path) -> bytes:
  """The content of a regular file; errors as `refuse_special`."""
  refuse_special(path)
  try:
    return path.read_bytes()
  except OSError as error:  # of a bad disk: a failed read does not say of what
    error.filename = error.filename or str(path)
    raise


def read_json(path: Path, kind: type[T]) -> T:
  """The content of a JSON file as `kind`; errors as of `read_bytes` and `decoding.decode`."""
  return decoding.decode(read_bytes(path), kind, str(path))


def read_ranges(path: Path, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
  """The bytes of ranges (start, end) of a file, in order, and nothing else of it; maybe in smaller pieces."""
  if isinstance(path, Remote):
    yield from path.chunks(ranges)
    return
  with path.open("rb") as stream:
    for start, end in ranges:
      stream.seek(start)
      yield stream.read(end - start)


def copy_file(source: Path, target: Path) -> None:
  """Copies the content of a file to another place, which may be of another kind."""
  if isinstance(source, Remote) or isinstance(target, Remote):
    target.write_bytes(source.read_bytes())
  else:
    shutil.copyfile(source, target)


def digest(paths: Iterable[Path], root: Path) -> str:
  """A SHA-256 of names, sizes and up to 64 evenly spaced blocks of 64 KiB of files.

  A pool of terabytes is told apart in seconds; a file up to 4 MiB is read whole.

  Args:
    paths: the files, in any order.
    root: a folder that names are relative to; those of files that lie elsewhere are whole.
  """
  total = hashlib.sha256()
  for file in sorted(paths):
    size = file.stat().st_size
    name = file.relative_to(root) if file.is_relative_to(root) else file
    total.update(f"{name}\0{size}\0".encode())
    starts = [i * (size - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS)]
    ranges = [(0, size)] if size <= BLOCK * BLOCKS else [(start, start + BLOCK) for start in starts]
    for content in read_ranges(file, ranges):
      total.update(content)
  return total.hexdigest()


def fingerprint(paths: Iterable[Path]) -> dict[str, list[int]]:
  """Size, modification time in nanoseconds and inode by path; as JSON gives it back.

  Of an object on a store: size, 0 and a number for its version.

  It reads no content: unequal fingerprints tell that a file was rewritten while a job ran. Use
  `digest` to compare files across copies and machines.
  """
  listed = list(paths)
  stats = zip(listed, side_by_side(lambda path: path.stat(), listed), strict=True)
  return {path.as_posix(): [s.st_size, s.st_mtime_ns, s.st_ino] for path, s in stats}


def refuse_around(output: Path, inputs: Iterable[Path], what: str = "--output") -> None:
  """Raises ValueError if an input lies in an output that is written anew; links are followed.

  >>> refuse_around(Path("/runs/a"), [Path("/runs/a/pool/m0")], "--output_dir")
  Traceback (most recent call last):
  ValueError: --output_dir: the input /runs/a/pool/m0 lies where /runs/a is written; choose another place.
  """
  target = output.expanduser().resolve()
  for path in inputs:
    if path.expanduser().resolve().is_relative_to(target):
      raise ValueError(f"{what}: the input {path} lies where {output} is written; choose another place.")


def refuse_inside(output: Path, inputs: Iterable[Path], what: str = "--output") -> None:
  """Raises ValueError if an output is an input or lies in one; links are followed.

  An input may lie in an output *folder*: see `refuse_around` for what is written there.

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
