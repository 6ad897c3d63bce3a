"""A folder of shards that is interrupted goes on after its last complete shard, with the same bytes."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from merge_jax import checkpoints, storage
from merge_jax.checkpoints.folder_writer import FolderWriter
from merge_jax.storage import behind

TENSORS = {f"w{i}": np.arange(25, dtype=np.float32) + i for i in range(9)} | {
  "empty": np.zeros((0, 2), np.float32),
  "scalar": np.float32(3),
}
LIMIT = 250  # two tensors a shard


def content(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
  with FolderWriter(tmp_path / "whole", TENSORS, max_shard_bytes=LIMIT) as writer:
    for name, value in TENSORS.items():
      writer.write(name, value)
  return content(tmp_path / "whole")


def interrupted(target, count, **options):
  """Writes `count` tensors and is stopped."""
  with (
    pytest.raises(KeyboardInterrupt),
    storage.new_folder(target, resume="job") as partial,
    FolderWriter(partial, TENSORS, max_shard_bytes=LIMIT, resume=True, **options) as writer,
  ):
    for name in list(TENSORS)[:count]:
      writer.write(name, TENSORS[name])
    raise KeyboardInterrupt


@pytest.mark.parametrize("count", range(12))
def test_an_interrupted_folder_goes_on_after_the_last_complete_shard(tmp_path, whole, count):
  target = tmp_path / "out" / "merged"
  interrupted(target, count)
  assert not target.exists()
  left = list(target.parent.iterdir())
  assert len(left) == (1 if count >= 2 else 0)  # without a complete shard nothing stays
  with storage.new_folder(target, resume="job") as partial:
    writer = checkpoints.writer(partial, TENSORS, max_shard_bytes=LIMIT, resume=True)
    names = list(TENSORS)
    assert writer.done() == set(names if count >= 11 else names[: min(count, 9) // 2 * 2])
    assert [partial] == left or not left
    with writer:
      for name in names:
        if name in writer.done():
          with pytest.raises(ValueError, match="was written before"):
            writer.write(name, TENSORS[name])
        else:
          writer.write(name, TENSORS[name])
  assert content(target) == whole and [*target.parent.iterdir()] == [target]


KILLED = """
import os, pathlib, signal, sys, time, threading
import numpy as np
from merge_jax import storage
from tests.test_folder_writer import LIMIT, TENSORS
from merge_jax.checkpoints.folder_writer import FolderWriter
left, real = int(sys.argv[2]), os.pwrite
def pwrite(*args):
  global left
  left -= 1
  if left < 0:
    real(args[0], args[1][:3], args[2])
    os.kill(os.getpid(), signal.SIGKILL)
  return real(*args)
os.pwrite = pwrite
with (storage.new_folder(pathlib.Path(sys.argv[1]), resume="job") as partial,
      FolderWriter(partial, TENSORS, max_shard_bytes=LIMIT, resume=True) as writer):
  for name in TENSORS:
    if name not in writer.done():
      writer.write(name, TENSORS[name])
"""


def test_a_kill_at_any_write_leaves_what_is_resumed(tmp_path, whole):
  target = tmp_path / "merged"
  for step in (2, 3):  # the header of a shard, a tensor of the next
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(step)], check=False)
    assert done.returncode == -signal.SIGKILL and not target.exists()
  done = subprocess.run([sys.executable, "-c", KILLED, str(target), "1000"], check=False)
  assert done.returncode == 0 and content(target) == whole
  assert {path.name for path in tmp_path.iterdir()} == {"merged", "whole"}


def test_another_job_begins_anew(tmp_path, whole):
  """Another job for the same folder, another size of shards, other tensors, a changed header."""
  target = tmp_path / "out" / "merged"
  for resume in ("other", None):
    interrupted(target, 5)
    with storage.new_folder(target, resume=resume, owned=()) as partial:
      assert list(partial.iterdir()) == [] and len(list(target.parent.iterdir())) == 1
      (partial / "x").write_text("")
    (target / "x").unlink()
    target.rmdir()
  interrupted(target, 5)
  with storage.new_folder(target, resume="job") as partial:
    writer = FolderWriter(partial, TENSORS, max_shard_bytes=LIMIT * 2, resume=True)
    assert writer.done() == set() and list(partial.iterdir()) == []
    with FolderWriter(partial, TENSORS, max_shard_bytes=LIMIT, resume=True) as writer:
      for name, value in TENSORS.items():
        writer.write(name, value)
  first = target / "model-00001-of-00005.safetensors"
  assert content(target) == whole
  for change in (lambda b: b.replace(b'"w0"', b'"w9"'), lambda b: b[:-1], lambda b: b"\0" * 8 + b[8:]):
    first.write_bytes(change(whole[first.name]))
    writer = FolderWriter(target, TENSORS, max_shard_bytes=LIMIT, resume=True)
    assert TENSORS.keys() - writer.done() == {"w0", "w1"} and not first.exists()
  with FolderWriter(target, TENSORS, max_shard_bytes=LIMIT) as writer:
    assert writer.done() == set()
    for name, value in TENSORS.items():
      writer.write(name, value)


def test_threads_write_different_tensors_at_once(tmp_path, whole):
  with (
    FolderWriter(tmp_path / "out", TENSORS, max_shard_bytes=LIMIT) as writer,
    ThreadPoolExecutor(8) as pool,
  ):
    for _ in pool.map(lambda name: writer.write(name, TENSORS[name]), reversed(TENSORS)):
      pass
  assert content(tmp_path / "out") == whole


def test_one_process_fills_a_folder(tmp_path):
  with storage.new_folder(tmp_path / "merged", resume="job"):
    for resume in ("job", "other"):
      with (
        pytest.raises(storage.Locked, match="is being filled by another process"),
        storage.new_folder(tmp_path / "merged", resume=resume),
      ):
        pass


def test_a_process_that_does_not_see_the_folder_writes_none_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setattr("merge_jax.host.is_lead", lambda: False)
  with pytest.raises(FileNotFoundError, match=r"out is not seen here; all processes must share"):
    FolderWriter(tmp_path / "out", TENSORS, together=True)
  assert not (tmp_path / "out").exists()


def fill(target):
  """What was there, of a block that writes the rest."""
  with (
    storage.new_folder(target, resume="job") as partial,
    FolderWriter(partial, TENSORS, max_shard_bytes=LIMIT, resume=True) as writer,
  ):
    for name in [name for name in TENSORS if name not in writer.done()]:
      writer.write(name, TENSORS[name])
  return writer.done()


@pytest.mark.parametrize(
  ("code", "message"),
  [
    (errno.ENOSPC, r"model-00002-of-00005.safetensors: the disk is full .*; make room there"),
    (errno.EDQUOT, "the quota is used up"),
    (errno.EROFS, "the disk is read-only"),
  ],
)
def test_a_disk_that_refuses_is_one_sentence_and_the_rest_resumes(
  tmp_path, whole, monkeypatch, code, message
):
  target, calls, real = tmp_path / "out" / "merged", iter(range(4)), os.pwrite

  def pwrite(*args):
    if next(calls, None) is None:
      raise OSError(code, os.strerror(code))
    return real(*args)

  monkeypatch.setattr(os, "pwrite", pwrite)
  with pytest.raises(OSError, match=message) as raised:
    fill(target)
  assert "\n" not in str(raised.value) and not target.exists()
  (partial,) = target.parent.iterdir()
  assert [path.name for path in partial.iterdir()] == ["model-00001-of-00005.safetensors"]
  monkeypatch.undo()
  assert fill(target) == {"w0", "w1"} and content(target) == whole


def test_what_a_disk_refuses_while_it_is_flushed_is_told_once_and_counts(tmp_path, whole, monkeypatch):
  flushed, refused = [], OSError(errno.EIO, os.strerror(errno.EIO))

  def flush(descriptor):
    flushed.append(descriptor)
    raise refused

  monkeypatch.setattr(behind, "EVERY", 1)
  monkeypatch.setattr(behind, "_flush", flush)
  with pytest.raises(OSError, match=r"model-00001-of-00005.safetensors: the disk fails"):
    fill(tmp_path / "out")
  assert flushed and not (tmp_path / "out").exists()
  monkeypatch.setattr(behind, "_flush", flushed.append)
  fill(tmp_path / "out")
  assert content(tmp_path / "out") == whole and len(flushed) > 5


def test_a_full_disk_is_found_before_a_byte_is_written(tmp_path):
  specs = {"w": np.broadcast_to(np.float32(0), (1 << 30, 1 << 20))}
  with pytest.raises(OSError, match=r"the result takes about .*; the disk has"):
    FolderWriter(tmp_path / "out", specs)
  assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "x")

  monkeypatch.setattr(storage.folders.tempfile, "mkdtemp", refuse)
  with (
    pytest.raises(OSError, match=f"{tmp_path}: the disk is read-only"),
    storage.new_folder(tmp_path / "out"),
  ):
    pass


def test_no_tensors_and_one_file(tmp_path):
  for specs in ({}, {"w": np.ones(3, np.float32)}):
    with FolderWriter(tmp_path / str(len(specs)), specs) as writer:
      for name, value in specs.items():
        writer.write(name, value)
    assert [path.name for path in (tmp_path / str(len(specs))).iterdir()] == ["model.safetensors"]
    assert checkpoints.open(tmp_path / str(len(specs))).specs.keys() == specs.keys()
