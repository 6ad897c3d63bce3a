"""The folder of a run: what it wrote, and nothing else, is ever replaced or removed.

A marker names the run and lists its files before they are written. A folder without one is somebody's.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from merge_jax import storage
from merge_jax.errors import shown
from merge_jax.recycle import manifest as manifests
from merge_jax.recycle.manifest import Manifest

MARKER, SCRATCH, ANSWERS = ".merge_jax.json", ".merge_jax_candidates", ".merge_jax_answers"
JOURNAL, RESULT, REPORT, FIGURES, MERGED = "journal.jsonl", "result.json", "report.html", "figures", "merged"
ITEMS, PROFILE = "items.jsonl", "profile"
OUTPUTS = (manifests.NAME, JOURNAL, ITEMS, RESULT, REPORT, FIGURES, MERGED)
NAMES = (*OUTPUTS, PROFILE, MARKER, SCRATCH, ANSWERS)
"""Whatever a run may write."""
FOLDERS = (FIGURES, MERGED, PROFILE)
DERIVED = (REPORT, *FOLDERS)
"""What result and journal do without."""


class Refused(ValueError):
  """The output folder holds something that this job must not continue or replace."""


class Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """The content of the marker.

  Attributes:
    run: identity of the run, from its first manifest.
    wrote: files that the run wrote or was about to, relative to the folder.
    result: SHA-256 of `result.json`, or "" while there is none.
  """

  run: str
  wrote: tuple[str, ...] = ()
  result: str = ""


class RunFolder:
  """One output folder, as it is when it is opened; opening changes nothing.

  Raises:
    Refused: a file, or a marker that is not a run's.
  """

  def __init__(self, path: Path):
    self.path = path
    if path.exists() and not path.is_dir():
      raise Refused(f"{path} is a file; expected the folder of a run.")
    self._marker = None
    if (path / MARKER).exists():
      self._marker = storage.read_json(path / MARKER, Marker)
      for name in self._marker.wrote:
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
          raise Refused(
            f"{path / MARKER}: lists {shown(name)}, which is no file of a run; restore it or remove it."
          )

  @property
  def known(self) -> bool:
    """Whether a run wrote here."""
    return self._marker is not None

  def refuse_foreign(self, inputs: Iterable[Path]) -> None:
    """Raises Refused if the folder holds anything but a run's files, hidden ones and the job's own inputs."""
    if self.known or not self.path.is_dir():
      return
    if (self.path / manifests.NAME).exists() and storage.has_lines(self.path / JOURNAL):
      raise Refused(
        f"{self.path} holds a run of an older merge_jax, without {MARKER}; choose another --output_dir."
      )
    sources = [path.resolve() for path in inputs]
    for entry in sorted(self.path.iterdir()):
      holds_input = any(source.is_relative_to(entry.resolve()) for source in sources)
      if not entry.name.startswith(".") and not holds_input:
        raise Refused(
          f"{self.path} is not empty (holds {entry.name!r}) and not of this job; choose another --output_dir."
        )

  def refuse_changed(self, new: Manifest, *, versions: bool, topology: bool) -> None:
    """Raises Refused if the run that is here was started otherwise, or lost what it cannot go on without."""
    if not self.known:
      return
    old = manifests.read(self.path)
    for name, missing in (
      (manifests.NAME, old is None and self._has(JOURNAL)),
      (JOURNAL, self._concluded and not self._has(JOURNAL)),
    ):
      if missing:
        raise Refused(
          f"{self.path / name} of the run is missing; restore it, or begin anew with --overwrite."
        )
    changed = [] if old is None else manifests.changes(old, new, versions=versions, topology=topology)
    if old is not None and changed and self._begun:
      where = f" (in {old.elsewhere})" if old.elsewhere else ""
      lines = "\n  ".join([f"{self.path} holds a run that was started otherwise{where}:", *changed])
      raise Refused(
        f"{lines}\nStart it the same way to resume, use --overwrite to begin anew, or choose another "
        "--output_dir. A change of versions or kinds of devices alone is allowed by "
        "--config.allow_version_change, of the mesh or the number of processes by --allow_topology_change."
      )

  @property
  def _begun(self) -> bool:
    """Whether there is something that other settings would not have made."""
    return self._concluded or bool(storage.read_lines(self.path / JOURNAL))

  @property
  def _concluded(self) -> bool:
    return self._marker is not None and MERGED in {Path(name).parts[0] for name in self._marker.wrote}

  def finished(self, new: Manifest, but: Collection[str] = ()) -> bool:
    """Whether the run is complete, with this budget, and all it wrote is there but for these outputs."""
    marker = self._marker
    if marker is None or not marker.result:
      return False
    if not all(self._has(name) for name in marker.wrote if Path(name).parts[0] not in but):
      return False
    if (old := manifests.read(self.path)) is None:
      return False
    now = manifests.continued(old, new)
    return (
      old == msgspec.structs.replace(now, topologies=old.topologies)
      and _digest((self.path / RESULT).read_bytes()) == marker.result
    )

  def _has(self, name: str) -> bool:
    file = self.path / name
    if name == ITEMS:  # nothing can make it again, and what is finished does not need it
      return True
    return storage.has_lines(file) if name == JOURNAL else file.is_file()

  def claim(self, manifest: Manifest) -> None:
    """Marks the folder as a run's and writes its manifest, or that of a larger budget; needs the lock."""
    begun = self._begun
    text = manifests.text(manifests.continued(manifests.read(self.path) if begun else None, manifest))
    marker = self._marker or Marker("")
    run = marker.run if begun else _digest(text.encode())[:16]
    self._mark(msgspec.structs.replace(marker, run=run, result=""))
    self.add([JOURNAL])
    self.write(manifests.NAME, text)

  def clear(self) -> None:
    """Removes what the run wrote, its folders where they are empty then, and its marker at last."""
    marker = self._marker
    if marker is None:
      return
    storage.remove_tree(self.path / SCRATCH)
    storage.remove_tree(self.path / ANSWERS)
    for name in marker.wrote:
      file = self.path / name
      if file.parent.resolve().is_relative_to(self.path.resolve()):  # never through a user's link
        storage.remove_lines(file) if name in (JOURNAL, ITEMS) else file.unlink(missing_ok=True)
    for name in FOLDERS:
      folder = self.path / name
      if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    (self.path / MARKER).unlink()
    self._marker = None

  def write(self, name: str, text: str) -> None:
    """Writes a file, whole or not at all."""
    self.add([name])
    storage.write_text(self.path / name, text)

  def conclude(self, text: str) -> None:
    """Writes `result.json`: it says that the run is complete."""
    self.add([RESULT], result=_digest(text.encode()))
    storage.write_text(self.path / RESULT, text)

  @contextlib.contextmanager
  def new_folder(self, name: str) -> Iterator[Path]:
    """Yields a folder to fill; it then takes the place of the run's earlier one."""
    old = [] if self._marker is None else self._marker.wrote
    owned = [str(Path(file).relative_to(name)) for file in old if Path(file).parts[0] == name]
    with storage.new_folder(self.path / name, owned=owned) as partial:
      yield partial
      self.add([str(Path(name) / file) for file in storage.names(partial)])

  def add(self, names: Iterable[str], *, result: str | None = None) -> None:
    """Lists files before they are written."""
    marker = self._marker or Marker("")
    wrote = tuple(dict.fromkeys((*marker.wrote, *names)))
    new = Marker(marker.run, wrote, marker.result if result is None else result)
    if new != marker:
      self._mark(new)

  def _mark(self, marker: Marker) -> None:
    storage.write_json(self.path / MARKER, msgspec.to_builtins(marker))
    self._marker = marker


def refuse_own(path: Path, output: Path, flag: str) -> None:
  """Raises ValueError for an output among the files of the run in `path`, which a larger budget replaces."""
  for name in NAMES:
    if output.resolve().is_relative_to((path / name).resolve()):
      raise ValueError(f"{flag}: {output} is where the run keeps its {name}; choose another place.")


def completed(path: Path, but: Collection[str] = ()) -> Manifest:
  """The manifest of a finished run.

  Args:
    path: its folder.
    but: outputs that may be gone.

  Raises:
    Refused: there is no run, or it is not finished.
    storage.Locked: another process works there.
  """
  run = RunFolder(path)
  if not run.known:
    if (path / manifests.NAME).is_file():
      raise Refused(f"{path}: {MARKER} is missing; copy the run with its hidden files.")
    raise Refused(f"{path} holds no recycle run; expected the output folder of launch.recycle.")
  storage.refuse_locked(path)
  manifest = manifests.read(path)
  if manifest is None or not run.finished(manifest, but):
    raise Refused(
      f"{path}: the run is not finished, or files of it are gone or changed; run launch.recycle there first."
    )
  return manifest


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
