"""The smoke study from end to end: trained, merged, searched and judged; and again after kills."""

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from merge_jax import sharding
from merge_jax.study import job, settings
from tests.test_study import plain

pytest.importorskip("reasoning_gym")
pytestmark = pytest.mark.thorough
KILLS = int(os.environ.get("MERGE_JAX_STUDY_KILLS", "0"))


def values(folder):
  from configs.study_smoke import get_config

  return {**get_config().to_dict(), "output_dir": str(folder)}


def study(folder, progress):
  given = settings.from_mapping(values(folder))
  with jax.numpy_dtype_promotion("standard"):  # optax's schedules promote
    return job.study(given, mesh=sharding.make_mesh("fsdp:1"), say=lambda line: None, progress=progress)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("smoke") / "run"
  said = []
  result = study(folder, lambda what, done, total, name: said.append((what, done, total)))
  return folder, result, said


def test_everything_is_done_and_judged(done):
  folder, result, said = done
  assert not result["failed"]
  assert [claim["id"] for claim in result["claims"]] == [
    *(f"W{i}" for i in range(1, 9)), *(f"R{i}" for i in range(1, 14))
  ]  # fmt: skip
  assert {"curves", "multitask", "experts", "gate", "learning"} <= {k for k, v in result.items() if v}
  assert result["along"]["points"] and result["recycle"]["settings"]
  assert {what for what, *_ in said} == {"cells", "searches"}
  assert all(max(d for w, d, t in said if w == what) == next(t for w, d, t in said if w == what)
             for what in ("cells", "searches"))  # fmt: skip
  assert json.loads((folder / "result.json").read_text()) == result
  assert (folder / "report.html").stat().st_size > 10_000


def test_trainings_of_one_shape_share_a_program(done):
  cells = [json.loads(path.read_text()) for path in (done[0] / "cells").iterdir()]
  shapes = {str(cell["spec"]["shapes"]) for cell in cells if cell["kind"] == "train"}
  assert len(shapes) == 1


def test_the_table_is_tidy(done):
  folder, result, _ = done
  rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
  names = {task["name"] for task in result["tasks"]}
  of_model = {}
  for row in rows:
    key = tuple(
      row[c] for c in ("role", "size", "kind", "seed", "method", "count", "subset", "members", "tuned")
    )
    of_model.setdefault(key, []).append(row["task"])
  assert all(sorted(tasks) == sorted(names) for tasks in of_model.values())
  assert all(0 <= float(row["score"]) <= 1 for row in rows)


def test_what_is_there_is_not_made_again(done):
  folder, result, _ = done
  before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
  again = study(folder, lambda *said: None)
  assert plain(again) == plain(result)
  assert before == {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def test_models_that_are_gone_are_trained_again(done):
  folder, result, _ = done
  before = {path.name for path in (folder / "models").iterdir()}
  shutil.rmtree(folder / "models")
  assert plain(study(folder, lambda *said: None)) == plain(result)
  again = {path.name for path in (folder / "models").iterdir()}
  assert again and again <= before


@pytest.mark.skipif(not KILLS, reason="minutes: MERGE_JAX_STUDY_KILLS=10 ./launch/test --all")
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_change_nothing(tmp_path, workers):
  """By SIGKILL at random moments of the command, against one that ran through."""

  def start(folder):
    command = [
      sys.executable,
      "-m",
      "merge_jax",
      "study",
      "--config=configs/study_smoke.py",
      f"--config.workers={workers}",
      f"--output_dir={folder}",
    ]
    root = Path(__file__).parent.parent
    return subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

  began = time.monotonic()
  assert start(tmp_path / "whole").wait() == 0
  took, generator = time.monotonic() - began, random.Random(0)
  for _ in range(KILLS):
    process = start(tmp_path / "killed")
    time.sleep(generator.uniform(5, 5 + took / 3))
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert start(tmp_path / "killed").wait() == 0
  one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed"))
  assert plain(one) == plain(other)
