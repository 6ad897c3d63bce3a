"""Whole-or-nothing files, one writer, journals that survive a cut."""

import json
import os
import subprocess
import sys

import pytest

from merge_jax import storage
from merge_jax.search.journal import Journal, Record


def record(index):
  return Record(index, 0, "single", "linear", (1.0, 0.0), {"a": 0.5, "b": None}, None, None, 0.25)


def test_journal_reads_back_what_it_wrote(tmp_path):
  path = tmp_path / "journal.jsonl"
  journal = Journal(path)
  for i in range(3):
    journal.append(record(i))
  assert Journal(path).stored == [record(i) for i in range(3)]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_short_is_dropped_and_overwritten(tmp_path, cut):
  path = tmp_path / "journal.jsonl"
  journal = Journal(path)
  for i in range(2):
    journal.append(record(i))
  os.truncate(path, path.stat().st_size - cut)
  journal = Journal(path)
  assert journal.stored == [record(0)]
  journal.append(record(1))
  assert Journal(path).stored == [record(0), record(1)]


def test_a_damaged_line_is_named(tmp_path):
  path = tmp_path / "journal.jsonl"
  path.write_text('{"a": 1}\nnot json\n')
  with pytest.raises(ValueError, match=r"journal.jsonl:2: not valid JSON"):
    storage.read_lines(path)


def test_text_replaces_whole(tmp_path):
  path = tmp_path / "x.json"
  storage.write_json(path, {"a": 1})
  with pytest.raises(ValueError, match="JSON"):
    storage.write_json(path, {"a": float("nan")})
  assert json.loads(path.read_text()) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


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
  with storage.new_folder(target, replace=True) as partial:
    (partial / "b").write_text("2")
  assert [p.name for p in target.iterdir()] == ["b"]


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path):
  left = tmp_path / ".merged.partial-abc"
  left.mkdir()
  (left / "a").write_text("1")
  (tmp_path / ".x.json.partial-abc").write_text("{")
  storage.write_json(tmp_path / "x.json", {})
  with storage.new_folder(tmp_path / "merged") as partial:
    (partial / "b").write_text("2")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["merged", "x.json"]


def test_one_writer_a_folder(tmp_path):
  code = (
    "import sys, time; from merge_jax import storage; import pathlib\n"
    "with storage.locked(pathlib.Path(sys.argv[1])):\n  print('held', flush=True); time.sleep(60)"
  )
  holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
  try:
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(storage.Locked, match=f"in use by process {holder.pid}"), storage.locked(tmp_path):
      pass
  finally:
    holder.kill()
    holder.communicate()
  with storage.locked(tmp_path):  # the kernel let go when the holder died
    pass
