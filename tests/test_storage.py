"""Whole-or-nothing files, one writer, journals that survive a cut and no change."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from merge_jax import storage
from merge_jax.search.journal import Journal, Record
from merge_jax.search.point import Point
from merge_jax.storage import space


def record(index):
  point = Point((1.0, 0.0), {"density": 0.1})
  return Record("search", index, 0, "single", "linear", point, {"a": 0.5, "b": None}, None, None, 0.25)


def test_journal_reads_back_what_it_wrote(tmp_path):
  path = tmp_path / "journal.jsonl"
  journal = Journal(path)
  for i in range(3):
    journal.append(record(i))
  assert Journal(path).records == [record(i) for i in range(3)]


RECORDS = [{"index": i, "name": "ä\u2028\ud800", "score": 0.1 * i, "big": 2**70} for i in range(4)] + [{}]


@pytest.fixture
def path(tmp_path):
  lines = storage.Lines(tmp_path / "journal.jsonl")
  for line in RECORDS:
    lines.append(line)
  return tmp_path / "journal.jsonl"


def test_lines_read_back_what_they_wrote(path):
  assert storage.read_lines(path) == storage.Lines(path).records == RECORDS
  assert storage.read_lines(path.with_name("none")) == []


@pytest.mark.parametrize("cut", [1, 5, 25])
def test_a_line_cut_short_is_dropped_and_overwritten(path, cut):
  whole = path.read_bytes()
  os.truncate(path, len(whole) - cut)
  assert storage.read_lines(path) == RECORDS[:-1]
  assert path.stat().st_size == len(whole) - cut  # reading alone changes nothing
  lines = storage.Lines(path)
  assert lines.records == RECORDS[:-1]
  lines.append(RECORDS[-1])
  assert path.read_bytes() == whole


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x: [x[0], x[1].replace(b'"index": 1', b'"index": 2'), *x[2:]], ":2: does not fit"),
    (lambda x: [x[0], x[1].replace(b": ", b":"), *x[2:]], ":2: does not fit"),
    (lambda x: [x[0], b"\xef\xbb\xbf" + x[1], *x[2:]], ":2: "),
    (lambda x: [*x[:3], x[3].replace(b"0.3", b"0.9"), x[4]], ":4: does not fit"),
    (lambda x: [x[0], x[2], *x[3:]], ":2: does not fit"),
    (lambda x: [x[0], x[2], x[1], *x[3:]], ":2: does not fit"),
    (lambda x: [x[0], x[0], *x[1:]], ":2: does not fit"),
    (lambda x: x[1:], ":1: does not fit"),
    (lambda x: [*x, b'{"index": 9, "check": 3}'], ":6: does not fit"),
    (lambda x: [*x, b'{"index": Infinity, "check": "0"}'], ":6: does not fit"),
    (lambda x: [*x, b'{"index": 9}'], ":6: has no checksum, as lines written by an older"),
    (lambda x: [*x, b"[]"], ":6: has no checksum"),
    (lambda x: [*x, b"not json"], ":6: not valid JSON"),
    (lambda x: [*x, b"\xff"], ":6: not valid JSON"),
    (lambda x: [*x, b"[" * 100_000], ":6: not valid JSON"),
  ],
)
def test_a_line_that_was_tampered_with_is_named(path, change, message):
  path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
  content = path.read_bytes()
  for read in (storage.read_lines, storage.Lines):
    with pytest.raises(ValueError, match=f"{path.name}{message}"):
      read(path)
  assert path.read_bytes() == content


def test_what_a_full_disk_refuses_names_the_file(tmp_path):
  lines = storage.Lines(tmp_path / "x")
  (tmp_path / "x").symlink_to("/dev/full")
  with pytest.raises(OSError, match=r"/x: the disk is full \(No space left on device\); make room"):
    lines.append({"n": 0})


def test_lines_hold_no_nan(path):
  content = path.read_bytes()
  with pytest.raises(ValueError, match="JSON"):
    storage.Lines(path).append({"score": float("nan")})
  assert path.read_bytes() == content


def test_text_replaces_whole(tmp_path):
  path = tmp_path / "x.json"
  storage.write_json(path, {"a": 1})
  with pytest.raises(ValueError, match="JSON"):
    storage.write_json(path, {"a": float("nan")})
  assert json.loads(path.read_text()) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_two_writers_of_one_file_leave_each_other_alone(tmp_path):
  path = tmp_path / "x.json"
  with storage.new_file(path) as first:
    storage.write_text(path, "second")
    assert path.read_text() == "second"
    first.write_text("first")
  assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_file_stays_and_its_file_is_written(tmp_path, there):
  link, file = tmp_path / "link", tmp_path / "sub" / "file"
  file.parent.mkdir()
  if there:
    file.write_text("old")
  link.symlink_to(file)
  storage.refuse_unwritable(link)
  storage.write_text(link, "new")
  assert link.is_symlink() and files(tmp_path)["sub/file"] == "new" and len(list(tmp_path.rglob("*"))) == 3


def test_what_is_no_file_is_not_replaced(tmp_path):
  os.mkfifo(tmp_path / "fifo")
  (tmp_path / "link").symlink_to(tmp_path / "fifo")
  for name in ("fifo", "link"):
    for write in (storage.refuse_unwritable, lambda path: storage.write_text(path, "x")):
      with pytest.raises(ValueError, match=f"{name}: is a fifo; expected a regular file"):
        write(tmp_path / name)
  assert (tmp_path / "fifo").is_fifo() and len(list(tmp_path.iterdir())) == 2


def test_folder_appears_whole_or_not_at_all(tmp_path):
  target = tmp_path / "merged"
  with pytest.raises(RuntimeError, match="half"), storage.new_folder(target) as partial:
    (partial / "a").write_text("1")
    assert not target.exists()
    raise RuntimeError("half way")
  assert list(tmp_path.iterdir()) == []
  with storage.new_folder(target) as partial:
    (partial / "a").write_text("1")
  assert (target / "a").read_text() == "1"
  with pytest.raises(FileExistsError, match="not empty"), storage.new_folder(target):
    pass
  with storage.new_folder(target, owned=["a", "gone"]) as partial:
    (partial / "b").write_text("2")
  assert files(tmp_path) == {"merged/b": "2"} and len(list(tmp_path.iterdir())) == 1


def files(folder):
  paths = (p for p in sorted(folder.rglob("*")) if p.is_file())
  return {p.relative_to(folder).as_posix(): p.read_text() for p in paths}


def test_what_is_not_owned_is_kept_beside(tmp_path):
  target, outside = tmp_path / "merged", tmp_path / "outside"
  for folder in (target / "sub", outside):
    folder.mkdir(parents=True)
    (folder / "ours").write_text("1")
  (target / "ours").write_text("1")
  (target / "theirs").write_text("2")
  (target / "link").symlink_to(outside)
  owned = ["ours", "sub/ours", "link/ours", "../outside/ours", str(outside / "ours")]
  for _ in range(2):  # the second finds nothing that is not owned
    with storage.new_folder(target, owned=owned) as partial:
      (partial / "ours").write_text("3")
  assert (tmp_path / "merged.before-1" / "link").is_symlink()
  assert not (tmp_path / "merged.before-1" / "sub").exists()
  assert files(tmp_path) == {
    "merged/ours": "3", "merged.before-1/theirs": "2", "outside/ours": "1",
  }  # fmt: skip
  (target / "more").write_text("4")
  with storage.new_folder(target, owned=owned):
    pass
  assert files(tmp_path / "merged.before-2") == {"more": "4"}


def test_a_folder_filled_meanwhile_is_not_lost(tmp_path):
  target = tmp_path / "merged"
  with pytest.raises(FileExistsError, match="not empty"), storage.new_folder(target) as partial:
    (partial / "a").write_text("1")
    target.mkdir()
    (target / "theirs").write_text("2")
  assert files(tmp_path) == {"merged/theirs": "2"}


def test_a_link_to_an_empty_folder_is_filled_and_stays(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "merged").symlink_to(tmp_path / "disk")
  with storage.new_folder(tmp_path / "merged") as partial:
    (partial / "a").write_text("1")
  assert (tmp_path / "merged").is_symlink() and files(tmp_path / "disk") == {"a": "1"}


KILLED = """
import os, pathlib, signal, sys
from merge_jax import storage
left = int(sys.argv[2])
def step(event, args):
  global left
  if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
    left -= 1
    if left < 0:
      os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(step)
with storage.new_folder(pathlib.Path(sys.argv[1]), owned=["a", "sub/b"]) as partial:
  (partial / "a").write_text("new")
"""


def test_a_kill_at_each_step_loses_nothing(tmp_path):
  old = {"a": "old", "sub/b": "old", "theirs": "mine"}
  states, step = [], 0
  while True:
    target = tmp_path / str(step) / "merged"
    (target / "sub").mkdir(parents=True)
    for name, text in old.items():
      (target / name).write_text(text)
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(step)], check=False)
    kept, there = files(target.with_name("merged.before-1")), files(target)
    if there == {"a": "new"}:
      assert kept.get("theirs") == "mine"
    else:
      assert there == old or (not target.exists() and kept == old)
    states.append((there, kept))
    with storage.new_folder(target, owned=["a", "sub/b"]) as partial:  # goes through after any kill
      (partial / "a").write_text("new")
    assert files(target) == {"a": "new"}
    assert not [p for p in target.parent.iterdir() if "partial" in p.name]
    if done.returncode == 0:
      break
    assert done.returncode == -signal.SIGKILL
    step += 1
  assert step > 4 and states[-1] == ({"a": "new"}, {"theirs": "mine"})


def test_leftovers_of_a_killed_writer_are_cleared_and_nothing_else(tmp_path):
  left = tmp_path / ".mer[g]ed.partial-abcdef_1"
  left.mkdir()
  (left / "a").write_text("1")
  (tmp_path / ".x.json.partial-abcdef_2").write_text("{")
  (tmp_path / ".x.json.partial-mine").write_text("kept")
  storage.write_json(tmp_path / "x.json", {})
  with storage.new_folder(tmp_path / "mer[g]ed") as partial:
    (partial / "b").write_text("2")
  assert sorted(p.name for p in tmp_path.iterdir()) == [".x.json.partial-mine", "mer[g]ed", "x.json"]


def test_one_writer_a_folder(tmp_path):
  folder = tmp_path / "run"
  storage.refuse_locked(folder)
  assert not folder.exists()  # it only looks
  code = (
    "import sys, time; from merge_jax import storage; import pathlib\n"
    "with storage.locked(pathlib.Path(sys.argv[1])):\n  print('held', flush=True); time.sleep(60)"
  )
  holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
  try:
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(storage.Locked, match=f"in use by process {holder.pid}"), storage.locked(folder):
      pass
    with pytest.raises(storage.Locked, match=f"in use by process {holder.pid}"):
      storage.refuse_locked(folder)
  finally:
    holder.kill()
    holder.communicate()
  storage.refuse_locked(folder)
  with storage.locked(folder):  # the kernel let go when the holder died
    pass


def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(storage.locks.fcntl, "flock", refuse)
  for hold in (storage.locked, storage.held):
    with (
      pytest.raises(OSError, match=r"does not lock files .Function not implemented.; mount"),
      hold(tmp_path),
    ):
      pass


def test_two_writers_of_one_folder_do_not_clear_each_other(tmp_path):
  with storage.new_folder(tmp_path / "x") as partial:
    (partial / "a").write_text("1")
    with pytest.raises(storage.Locked, match="is being filled"), storage.new_folder(tmp_path / "x"):
      pass
  assert files(tmp_path) == {"x/a": "1"}


@pytest.mark.parametrize(
  ("output", "message"),
  [
    ("m0", "is the input"), ("m0/config.json", "lies in the input"), ("m0/../m0/x/y", "lies in the input"),
    ("link/x", "lies in the input"), ("tasks.jsonl", "is the input"), (".", None), ("m00", None),
    ("run/merged", None), ("tasks", None),
  ],
)  # fmt: skip
def test_outputs_never_lie_on_or_in_an_input(tmp_path, output, message):
  inputs = [tmp_path / "m0", tmp_path / "run" / "pool" / "m1", tmp_path / "tasks.jsonl"]
  for folder in inputs[:2]:
    folder.mkdir(parents=True)
  inputs[2].write_text("")
  (tmp_path / "link").symlink_to(inputs[0])
  before = sorted(tmp_path.rglob("*"))
  if message is None:
    storage.refuse_inside(tmp_path / output, inputs)
  else:
    with pytest.raises(ValueError, match=f"^--output_dir: .*{message} .*choose another place"):
      storage.refuse_inside(tmp_path / output, inputs, "--output_dir")
  assert sorted(tmp_path.rglob("*")) == before


def test_home_is_expanded_before_outputs_are_compared():
  with pytest.raises(ValueError, match="lies in"):
    storage.refuse_inside(Path.home() / "m0" / "x", [Path("~/m0")])


def test_digests_and_fingerprints_tell_files_apart(tmp_path):
  big, small = tmp_path / "big", tmp_path / "sub" / "small"
  small.parent.mkdir()
  big.write_bytes(bytes(5 << 20))
  small.write_bytes(b"x")
  paths = [small, big]
  first, marks = storage.digest(paths, tmp_path), storage.fingerprint(paths)
  assert first == storage.digest(reversed(paths), tmp_path)
  assert json.loads(json.dumps(marks)) == marks == storage.fingerprint(paths)
  big.write_bytes(bytes((5 << 20) - 1) + b"x")  # the last block is always read
  assert storage.digest(paths, tmp_path) != first and storage.fingerprint(paths) != marks
  os.truncate(big, 5 << 20)
  with pytest.raises(FileNotFoundError):
    storage.fingerprint([tmp_path / "none"])


def test_special_files_are_refused_and_not_opened(tmp_path):
  os.mkfifo(tmp_path / "fifo")
  (tmp_path / "link").symlink_to(tmp_path / "fifo")
  (tmp_path / "device").symlink_to("/dev/zero")
  (tmp_path / "folder").mkdir()
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(tmp_path / "socket"))
  for name in ("fifo", "link", "device", "folder", "socket"):
    kind = "fifo" if name == "link" else name
    with pytest.raises(ValueError, match=f"{name}: is a {kind}; expected a regular file"):
      storage.read_bytes(tmp_path / name)
  with pytest.raises(FileNotFoundError, match="none: there is no such file"):
    storage.read_bytes(tmp_path / "none")
  with pytest.raises(ValueError, match="fifo: is a fifo; expected a regular file"):
    storage.read_lines(tmp_path / "fifo")


@pytest.mark.parametrize("resume", [None, "job"])
def test_a_name_with_no_room_beside_it_is_refused_before_the_work(tmp_path, resume):
  with storage.new_folder(tmp_path / ("ä" * 115), resume=resume):
    pass
  with pytest.raises(OSError, match="the name is too long; expected at most 230 bytes"):
    storage.refuse_taken(tmp_path / ("ä" * 115 + "x"))


def test_a_place_where_a_disk_is_mounted_is_refused_before_the_work(tmp_path, monkeypatch):
  """Renaming to it is refused by the system, at the end."""
  (tmp_path / "link").symlink_to(tmp_path / "disk")
  monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "disk")
  for name in ("disk", "link"):
    with pytest.raises(OSError, match=f"{name}: a disk is mounted there.*; name a folder in it"):
      storage.refuse_taken(tmp_path / name)
  with (
    pytest.raises(OSError, match="a disk is mounted there"),
    storage.new_folder(tmp_path / "disk", owned=()),
  ):
    pytest.fail("it was filled")


@pytest.mark.parametrize(
  ("listed", "folder", "names", "prefix"),
  [
    ("0::/job", "job", ("max", "current"), ""),
    ("0::/job/step", "job", ("max", "current"), ""),
    ("4:cpu,memory:/docker/1\n3:pids:/x\n0::/", "memory", ("limit_in_bytes", "usage_in_bytes"), "total_"),
  ],
)
def test_memory_is_what_a_container_or_batch_job_leaves(tmp_path, listed, folder, names, prefix):
  home, told = tmp_path / folder, tmp_path / "listed"
  home.mkdir(parents=True)
  told.write_text(listed)
  (home / "memory.stat").write_text(f"anon 5\n{prefix}active_file 20\n{prefix}inactive_file 10\n")
  for name, value in zip(names, ("1000", "400"), strict=True):
    (home / f"memory.{name}").write_text(f"{value}\n")
  assert list(space._left_by_groups(told, tmp_path)) == [1000 - 400 + 30]
  (home / f"memory.{names[0]}").write_text("max\n")
  assert list(space._left_by_groups(told, tmp_path)) == []
  assert list(space._left_by_groups(tmp_path / "none", tmp_path)) == []
