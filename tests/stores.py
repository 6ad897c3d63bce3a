"""An object store in memory behind `gs://`: whole objects alone, every request counted, deadly on demand."""

import itertools
import sys

from fsspec.spec import AbstractFileSystem

from merge_jax import storage


class Killed(BaseException):
  """The process ends at this request, as far as a test can tell: no later one comes through."""


class Store(AbstractFileSystem):
  """What both GCS and S3 can do, and no more: opening to append or write, renaming and copying are refused.

  Attributes:
    objects: content and version by name.
    read: (name, start, end) of every read.
    requests: names of all requests.
    die_at: number of the request that kills, from 1; 0 for none.
  """

  protocol = ("gs",)
  cachable = False
  objects: dict[str, tuple[bytes, int]] = {}  # noqa: RUF012
  read: list[tuple[str, int, int]] = []  # noqa: RUF012
  requests: list[str] = []  # noqa: RUF012
  die_at = 0
  versions = itertools.count(1)

  @classmethod
  def _strip_protocol(cls, path):
    return str(path).removeprefix("gs://").strip("/")

  def _asked(self, what, path):
    self.requests.append(f"{what} {path}")
    if 0 < Store.die_at <= len(self.requests):
      raise Killed(path)
    return self._strip_protocol(path)

  def info(self, path, **_):
    name = self._asked("info", path)
    if name in self.objects:
      return self._entry(name)
    if any(other.startswith(f"{name}/") for other in self.objects):
      return {"name": name, "size": 0, "type": "directory"}
    raise FileNotFoundError(path)

  def _entry(self, name):
    content, version = self.objects[name]
    return {"name": name, "size": len(content), "type": "file", "generation": version}

  def ls(self, path, detail=True, **_):
    name = self._asked("ls", path)
    below = [other.removeprefix(f"{name}/") for other in sorted(self.objects) if other.startswith(f"{name}/")]
    if not below:
      raise FileNotFoundError(path)
    entries = {}
    for one in below:
      head, slash, _ = one.partition("/")
      whole = f"{name}/{head}"
      entries[head] = {"name": whole, "size": 0, "type": "directory"} if slash else self._entry(whole)
    return list(entries.values()) if detail else [entry["name"] for entry in entries.values()]

  def find(self, path, detail=False, **_):
    name = self._asked("find", path)
    found = {n: self._entry(n) for n in sorted(self.objects) if n == name or n.startswith(f"{name}/")}
    return found if detail else list(found)

  def cat_file(self, path, start=None, end=None, **_):
    name = self._asked("read", path)
    if name not in self.objects:
      raise FileNotFoundError(path)
    content = self.objects[name][0][start:end]
    self.read.append((name, start or 0, (start or 0) + len(content)))
    return content

  def pipe_file(self, path, value, mode="overwrite", **_):
    name = self._asked("write", path)
    assert isinstance(value, bytes)
    if mode == "create" and name in self.objects:
      raise FileExistsError(path)
    self.objects[name] = (value, next(self.versions))

  def put_file(self, lpath, rpath, **_):
    with open(lpath, "rb") as file:  # noqa: PTH123
      self.pipe_file(rpath, file.read())

  def rm_file(self, path):
    if self._asked("remove", path) not in self.objects:
      raise FileNotFoundError(path)
    del self.objects[self._strip_protocol(path)]

  def _open(self, path, mode="rb", **_):
    raise AssertionError(f"{path} was opened as {mode!r}: a store has whole objects and ranges alone")

  def mv(self, path1, path2, **_):
    raise AssertionError(f"{path1} was renamed")

  cp_file = mv


def install(monkeypatch):
  """Puts an empty store behind `gs://` for one test."""
  monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", Store)
  for name, value in (("objects", {}), ("read", []), ("requests", []), ("die_at", 0)):
    monkeypatch.setattr(Store, name, value)
  return Store


def upload(folder, target):
  """Copies a local folder, as a user would."""
  for file in folder.rglob("*"):
    if file.is_file():
      (storage.path(target) / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def content(folder):
  """All objects below a folder but for those that tell of its writing."""
  there = storage.path(folder)
  names = [name for name in there.tree() if ".merge_jax_" not in name and not name.endswith(".lock")]
  return {name: (there / name).read_bytes() for name in names}
