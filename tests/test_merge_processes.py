"""Merges by several processes: the bytes of one process, whatever happens to whom."""

import shutil
import signal
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests import merging, processes
from tests.further import further

TIES = "method: ties\nbase: base\nmodels: [a, b]\nparameters: {scope: model}\n"
STAGES = """
name: first
method: linear
models: [a, b]
---
method: task_arithmetic
base: base
models: {first: {path: first, weight: 0.5}, b: {path: b, weight: 0.2}}
"""
ARGV = (
  "-m",
  "merge_jax",
  "merge",
  "--recipe=recipe.yml",
  "--output_dir=out",
  "--heartbeat=3",
  *processes.FLAGS,
)
SHARDS = "--max_shard_gb=1e-5"


def make(folder, count):
  """A base and two models of `count` tensors, 2 KiB each."""
  for seed, model in enumerate(("base", "a", "b")):
    generator = np.random.default_rng(seed)
    tensors = {f"model.layers.{i}.w": generator.normal(size=(32, 32)) for i in range(count)}
    merging.save(folder / model, {n: x.astype(ml_dtypes.bfloat16) for n, x in tensors.items()})


def start(count, text, *flags):
  Path("recipe.yml").write_text(text)
  return processes.start(count, [*ARGV, *flags], folder=Path.cwd())


def run(*arguments):
  return processes.finish(start(*arguments))


def wait_for(shard):
  end = time.monotonic() + 60
  while not list(Path().glob(f".out.resume-*/{shard}")):
    assert time.monotonic() < end
    time.sleep(0.002)


@pytest.fixture
def world(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  ("count", "text", "shard"),
  [
    pytest.param(2, TIES, 1e-5, id="shards"),
    further(4, TIES, 5.0, id="one file"),
    further(2, STAGES, 1e-5, id="stages"),
  ],
)
def test_the_bytes_are_those_of_one_process(world, count, text, shard):
  make(world, 24)
  merging.run(text, max_shard_gb=shard)
  one = merging.content(world / "out")
  shutil.rmtree("out")
  for index, result in enumerate(run(count, text, f"--max_shard_gb={shard}", "--verify")):
    assert (result.status, result.errors) == (0, "") and bool(result.output) == (index == 0), result
  assert merging.content(world / "out") == one and not list(world.glob(".o*"))


@pytest.mark.parametrize(("victim", "other"), [further(0, 1, id="lead"), pytest.param(1, 3, id="follower")])
def test_a_killed_process_ends_the_other_and_any_number_goes_on(world, victim, other):
  make(world, 200)
  merging.run(TIES, "whole", max_shard_gb=1e-5)
  both = start(2, TIES, SHARDS, "--threads=1")
  wait_for("*-00030-of-00050.safetensors")  # the follower has those from 26
  both[victim].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  results = processes.finish(both)
  left = results[1 - victim]
  assert time.monotonic() - killed < 3 + 27 and not (world / "out").exists()
  if victim:
    assert left.status == 75 and "error: process 1 did not answer for 3 s" in left.errors, left
  else:  # the store is gone with it: JAX's words
    assert left.status in (-signal.SIGABRT, -signal.SIGSEGV), left  # threads of JAX's race to the end
    assert "leader task was preempted/died" in left.errors, left
  (folder,) = world.glob(".out.resume-*")
  kept = {file.name: file.stat().st_ino for file in folder.glob("*.safetensors")}
  for result in run(other, TIES, SHARDS):
    assert (result.status, result.errors) == (0, ""), result
  same = [name for name, inode in kept.items() if (world / "out" / name).stat().st_ino == inode]
  assert len(same) >= len(kept) - 2 and not list(world.glob(".out*"))
  one, out = merging.content(world / "whole"), merging.content(world / "out")
  assert one.keys() == out.keys()
  named = {"README.md", "merge_manifest.json"}  # they say `whole` and `out`
  assert {name for name in one if one[name] != out[name]} <= named


def test_a_follower_that_is_asked_to_stop_stops_all(world):
  make(world, 200)
  both = start(2, TIES, SHARDS, "--threads=1")
  wait_for("*-00030-of-00050.safetensors")
  both[1].send_signal(signal.SIGTERM)
  lead, follower = processes.finish(both)
  assert (lead.status, follower.status) == (75, 75) and not Path("out").exists()
  assert lead.errors.startswith("error: ") and "after the last complete shard" in lead.errors, lead
  assert follower.errors.startswith("process 1: error: Stopped; the same command continues"), follower


@pytest.mark.parametrize("tensor", [further(0, id="of the lead"), pytest.param(23, id="of the follower")])
def test_an_error_in_one_process_ends_all_with_its_sentence(world, tensor):
  make(world, 24)
  tensors = {f"model.layers.{i}.w": np.full((32, 32), np.nan if i == tensor else 1) for i in range(24)}
  merging.save(world / "a", {n: x.astype(ml_dtypes.bfloat16) for n, x in tensors.items()})
  results = run(2, TIES)
  said = f"Tensor 'model.layers.{tensor}.w' of a holds 1024 values that are NaN"
  for index, result in enumerate(results):
    owner = 0 if tensor == 0 else 1
    start = ("process 1: " * index) + "error: " + (f"process {owner}: " if index != owner else "") + said
    assert result.status == 1 and result.errors.startswith(start) and result.errors.count("\n") == 1, result
  assert not Path("out").exists()


def test_what_the_lead_refuses_and_what_followers_plan_otherwise(world):
  make(world, 2)
  (world / "out").mkdir()
  (world / "out" / "mine").write_text("x")
  for index, result in enumerate(run(2, TIES)):
    assert result.status == 1 and "out exists and is not empty" in result.errors, (index, result)
  for flags in (("--output_dir=other", "--seed={index}"), ("--output_dir=other{index}",)):
    for result in run(2, TIES, *flags):
      assert result.status == 1 and "has another job than the lead" in result.errors, result
  assert not list(world.glob(".o*")) and not list(world.glob("other*"))
