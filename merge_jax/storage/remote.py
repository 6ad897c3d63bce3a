"""Paths on object stores, `gs://bucket/…` and `s3://bucket/…`, through fsspec.

A store holds whole objects by name. There are no folders but as common beginnings of names, no appending, no
renaming and no links; an object appears in one moment, when the whole of it has come. Nothing is cached here:
others write, too.
"""

import contextlib
import errno
import fnmatch
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from merge_jax.errors import unknown

T = TypeVar("T")
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
"""Which package reads and writes a scheme; all of them are in the extra `remote`."""
PART, SIDE_BY_SIDE = 1 << 24, 16  # bytes of one request, requests at once
_VERSIONS = ("generation", "etag", "ETag", "mtime", "LastModified", "created")
"""What stores tell that changes when an object is written again, the surest first."""


def path(text: str | Path) -> Path:
  """A path as a user names it: a local one, `~` expanded, or one on an object store.

  Raises:
    ValueError: an unknown scheme, no bucket, "..", a scheme whose package is not installed, or `~` of a user
      that does not exist.

  >>> path("runs/x")
  PosixPath('runs/x')
  >>> path("ftp://host/x")
  Traceback (most recent call last):
  ValueError: ftp://host/x: unknown scheme 'ftp'; Known: gs, s3.
  """
  match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)", str(text))
  if isinstance(text, Remote):
    return text
  if match is None:
    head, slash, _ = str(text).partition(":/")
    if slash and head in PACKAGES:  # what `Path` makes of a store's path, too
      raise ValueError(f"{text}: has one slash behind {head}:; expected {head}://bucket/folder, as text.")
    try:
      return Path(text).expanduser()
    except RuntimeError:
      raise ValueError(f"{text}: there is no such user, whose home `~` would be.") from None
  if match[1] not in PACKAGES:
    raise ValueError(unknown("scheme", match[1], PACKAGES, str(text)))
  if not match[2]:
    raise ValueError(f"{text}: names no bucket; expected {match[1]}://bucket/folder.")
  if ".." in str(text).split("/"):
    raise ValueError(f"{text}: a store has no folders to go up from; write the path without '..'.")
  try:
    import fsspec  # slow to import, and most paths are local

    fsspec.get_filesystem_class(match[1])
  except ImportError:
    raise ValueError(
      f"{text}: {match[1]}:// needs the package {PACKAGES[match[1]]}; pip install 'merge-jax[remote]'."
    ) from None
  return Remote(str(text))


class Remote(pathlib.PosixPath):
  """A path on an object store, with those methods of a local one that make sense there.

  Names join and split as always. A path that a listing gave remembers whether it is a folder, as an
  `os.DirEntry` does. Errors of a store are OSErrors of one sentence.
  """

  _kind: str | None = None

  def __str__(self) -> str:
    scheme, *rest = self.parts or ("",)
    return f"{scheme}//{'/'.join(rest)}" if scheme[:-1] in PACKAGES else super().__str__()

  def __fspath__(self) -> str:
    return str(self)

  @property
  def _store(self) -> Any:
    import fsspec

    return fsspec.filesystem(self.parts[0][:-1], use_listings_cache=False)

  def expanduser(self) -> "Remote":
    """Itself: there is no home."""
    return self

  def absolute(self) -> "Remote":
    """Itself."""
    return self

  def resolve(self, strict: bool = False) -> "Remote":
    """Itself: there are no links."""
    return self

  def is_symlink(self) -> bool:
    """Never."""
    return False

  def exists(self, **_: Any) -> bool:
    """Whether there is an object of this name, or one below it."""
    return self._is("file", "directory")

  def is_file(self, **_: Any) -> bool:
    """Whether there is an object of this name."""
    return self._is("file")

  def is_dir(self, **_: Any) -> bool:
    """Whether there are objects below this name."""
    return self._is("directory")

  def _is(self, *kinds: str) -> bool:
    try:
      return (self._kind or self._info()["type"]) in kinds
    except FileNotFoundError:
      return False

  def _info(self) -> dict[str, Any]:
    with _asked(self, "be asked for"):
      return self._store.info(str(self))

  def stat(self, **_: Any) -> os.stat_result:
    """Kind and size; what a store tells of an object's version stands in for the inode."""
    info = self._info()
    mode = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
    version = next((f"{key} {info[key]}" for key in _VERSIONS if info.get(key)), "")
    number = int.from_bytes(hashlib.sha256(version.encode()).digest()[:6])
    times = {"st_atime_ns": 0, "st_mtime_ns": 0, "st_ctime_ns": 0}
    return os.stat_result((mode, number, 0, 1, 0, 0, info["size"] or 0, 0, 0, 0), times)

  def iterdir(self) -> Generator["Remote", None, None]:
    """What lies in the folder; FileNotFoundError if nothing does."""
    with _asked(self, "be listed"):
      entries = self._store.ls(str(self), detail=True)
    for entry in entries:
      name = self._below(entry["name"])
      if name:
        child = self / name
        child._kind = entry["type"]
        yield child

  def glob(self, pattern: str, **_: Any) -> Generator["Remote", None, None]:
    """What lies in the folder itself and has such a name."""
    with contextlib.suppress(FileNotFoundError):
      yield from (child for child in self.iterdir() if fnmatch.fnmatchcase(child.name, pattern))

  def rglob(self, pattern: str, **_: Any) -> Generator["Remote", None, None]:
    """All objects below the folder that have such a name."""
    for name in self.tree():
      child = self / name
      if fnmatch.fnmatchcase(child.name, pattern):
        child._kind = "file"
        yield child

  def tree(self) -> dict[str, int]:
    """Sizes of all objects below the folder, by relative name."""
    try:
      with _asked(self, "be listed"):
        found = self._store.find(str(self), detail=True)
    except FileNotFoundError:
      return {}
    named = {self._below(name): info["size"] for name, info in found.items()}
    return {name: size for name, size in sorted(named.items()) if name}

  def _below(self, name: str) -> str:
    """A name that the store gives, relative to the folder; "" for the folder's own placeholder."""
    home = "/".join(self.parts[1:]) + "/"
    name = name.strip("/")
    return name.removeprefix(home) if name.startswith(home) else ""

  def read_bytes(self) -> bytes:
    """The whole object."""
    with _asked(self, "be read"):
      return self._store.cat_file(str(self))

  def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
    """The whole object, in UTF-8 unless another encoding is given."""
    return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

  def chunks(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Ranges of bytes, one behind the other, in pieces of at most `PART`, several requests at once.

    Raises:
      ValueError: the object ends before.
    """
    parts = [(at, min(at + PART, end)) for start, end in ranges for at in range(start, end, PART)]
    for i in range(0, len(parts), SIDE_BY_SIDE):
      some = parts[i : i + SIDE_BY_SIDE]
      starts, ends = map(list, zip(*some, strict=True))
      with _asked(self, "be read"):
        found = self._store.cat_ranges([str(self)] * len(some), starts, ends, on_error="raise")
      for (start, end), content in zip(some, found, strict=True):
        if len(content) != end - start:
          raise ValueError(f"{self}: ends before byte {end}; the file changed after it was opened.")
        yield content

  def write_bytes(self, data: Any) -> int:
    """The object, whole or not at all; replaces what was there."""
    with _asked(self, "be written"):
      self._store.pipe_file(str(self), bytes(data))
    return len(data)

  def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
    """The object, whole or not at all; replaces what was there."""
    return self.write_bytes(data.encode(encoding or "utf-8"))

  def create(self, data: bytes) -> None:
    """The object, unless there is one: FileExistsError; of two writers the store lets one through."""
    with _asked(self, "be written"):
      self._store.pipe_file(str(self), data, mode="create")

  def upload(self, file: Path) -> None:
    """The object from a local file, which may be larger than memory."""
    with _asked(self, "be written"):
      self._store.put_file(str(file), str(self))

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes the object."""
    try:
      with _asked(self, "be removed"):
        self._store.rm_file(str(self))
    except FileNotFoundError:
      if not missing_ok:
        raise

  def mkdir(self, *_: Any, **__: Any) -> None:
    """Nothing to do: a folder is there when something is in it."""

  def rmdir(self) -> None:
    """Nothing to do: see `mkdir`."""


def side_by_side(function: Callable[[Path], T], files: Iterable[Path]) -> list[T]:
  """A function of each file, in order; of files on a store several at once, for each takes its time."""
  files = list(files)
  if not any(isinstance(file, Remote) for file in files):
    return [function(file) for file in files]
  with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
    return list(pool.map(function, files))


@contextlib.contextmanager
def _asked(where: Path, what: str) -> Iterator[None]:
  try:
    yield
  except FileNotFoundError:
    raise FileNotFoundError(errno.ENOENT, "No such object", str(where)) from None
  except FileExistsError:
    raise FileExistsError(errno.EEXIST, "There is an object already", str(where)) from None
  except Exception as error:  # of credentials, networks and servers: many kinds
    reason = " ".join(str(error).split())[:200]
    raise OSError(f"{where}: cannot {what} on its store ({type(error).__name__}: {reason}).") from None
