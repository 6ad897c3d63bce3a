"""`launch.merge` as a user starts it: exit statuses, one line of error, programs that are kept."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from merge_jax import checkpoints
from tests import merging

ROOT = Path(__file__).parent.parent
TIES = "method: ties\nbase: base\nmodels: [a, b]\n"


def start(world, text, *flags, cache="cache"):
  (world / "recipe.yml").write_text(text)
  environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
  environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(world / cache), "PYTHONPATH": str(ROOT)}
  words = [sys.executable, "-m", "merge_jax", "merge", "--recipe=recipe.yml", "--output_dir=out", *flags]
  return subprocess.Popen(
    words, cwd=world, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )


def launch(*arguments, **options):
  process = start(*arguments, **options)
  out, errors = process.communicate(timeout=300)
  return process.returncode, out, errors


@pytest.fixture
def world(tmp_path):
  merging.make(tmp_path)
  return tmp_path


def kept(folder):
  return sorted(path.name for path in folder.rglob("*-cache"))


def test_a_merge_keeps_its_programs_and_says_where_it_is(world):
  code, out, errors = launch(world, TIES)
  assert (code, errors) == (0, "") and re.search(r"7 tensors, .*: out\n$", out), (out, errors)
  first, programs = merging.content(world / "out"), kept(world / "cache" / "merge_jax" / "xla")
  assert programs
  for name in programs[:2]:  # of a job that was killed, or of a damaged disk
    file = world / "cache" / "merge_jax" / "xla" / name
    file.write_bytes(file.read_bytes()[:100])
  code, out, errors = launch(world, TIES, "--overwrite", "--verify")
  assert (code, errors) == (0, "") and kept(world / "cache") == programs
  assert merging.content(world / "out") == first


def test_a_flag_of_mergekits_is_told_what_is_here_instead(world):
  code, _, errors = launch(world, TIES, "--out-shard-size", "1B")
  assert (code, errors) == (
    1, "error: Unknown command line flag 'out-shard-size'; use --max_shard_gb, in 10^9 bytes.\n"
  )  # fmt: skip
  assert not (world / "out").exists()


def test_a_device_that_is_not_there_is_one_sentence(world):
  device = "rocm" if importlib.util.find_spec("libtpu") else "tpu"
  code, _, errors = launch(world, TIES, f"--device={device}")
  assert code == 1 and re.fullmatch(rf"error: .*{device}.*\n", errors), errors
  assert not (world / "out").exists()


@pytest.mark.parametrize("flags", [(), ("--compilation_cache=mine",)])
def test_programs_that_cannot_be_kept_do_not_matter(world, flags):
  (world / "cache").write_text("a file in the way")
  code, _, errors = launch(world, TIES, *flags)
  assert (code, errors) == (0, "") and bool(kept(world)) == ("--compilation_cache=mine" in flags)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (TIES.replace("ties", "tise"), "did you mean 'ties'"),
    (TIES.replace("[a,", "[recipe.yml,"), "recipe.yml: is a file"),
  ],
)
def test_an_error_is_one_line(world, text, words):
  code, out, errors = launch(world, text)
  assert (
    (code, out) == (1, "") and errors.startswith("error: ") and errors.count("\n") == 1 and words in errors
  )
  assert sorted(p.name for p in world.iterdir()) == ["a", "b", "base", "cache", "recipe.yml"] or not kept(
    world
  )


def test_a_polite_stop_has_its_own_status_and_the_same_command_goes_on(world):
  tensors = {f"model.layers.{i}.w": np.full((64, 64), i, np.float32) for i in range(400)}
  for name in ("base", "a", "b"):
    for file in (world / name).glob("model*"):
      file.unlink()
    merging.save(world / name, tensors)
  flags = ("--max_shard_gb=1e-5", "--threads=1")
  process = start(world, TIES, *flags)
  while process.poll() is None and not list(world.glob(".out.resume-*/*.safetensors")):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=300)
  if process.returncode:  # else it was faster
    assert (
      process.returncode == 75 and "the same command continues" in errors and not (world / "out").exists()
    )
    assert launch(world, TIES, *flags)[0] == 0
  got = checkpoints.open(world / "out")
  assert all((got.read(name) == value).all() for name, value in tensors.items())
