"""Examples of external scorers: the server that stays, and what a search with it asks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merge_jax.evals.external import Command, ScorerError
from tests import pools

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are in the repository alone")

SCORER = """
import argparse, os, resident

def load(options):
  if options.name == "broken":
    raise SystemExit("no such thing")
  calls = 0
  def score(model_dir, split):
    nonlocal calls
    calls += 1
    if split == "test":
      raise ValueError("no test examples")
    return {"a": calls, "b": os.getpid(), "c": len(os.listdir(model_dir))}
  return score

parser = argparse.ArgumentParser()
parser.add_argument("--name", default="")
resident.main(parser, load)
"""

FAKE_VLLM = """
import pathlib, types

class SamplingParams:
  def __init__(self, temperature, max_tokens, stop):
    assert temperature == 0.0

class LLM:
  def __init__(self, model, **options):
    self.right = self.read(model)
  def read(self, folder):
    return (pathlib.Path(folder) / "answers").read_text()
  def collective_rpc(self, name, kwargs):
    assert name == "reload_weights"
    self.right = self.read(kwargs["weights_path"])
  def reset_prefix_cache(self):
    pass
  def generate(self, prompts, sampling):
    texts = [prompt[5:7] if self.right == "right" else "?" for prompt in prompts]
    return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text=text)]) for text in texts]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A folder for sockets of this test alone, and a scorer in it."""
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), str(tmp_path), str(EXAMPLES.parent)]))
  (tmp_path / "scorer.py").write_text(SCORER)
  (tmp_path / "model").mkdir()
  return tmp_path


def command(script, *options):
  words = " ".join([sys.executable, str(script), *options])
  return Command(f"{words} {{model_dir}} {{scores_json}} {{split}}", ("a", "b", "c"), 60.0, retries=0)


def test_one_server_answers_all_calls_and_ends(own):
  score = command(own / "scorer.py", "--idle=60")
  first, second = (score(own / "model", "search") for _ in range(2))
  assert (first["a"], second["a"]) == (1, 2) and first["b"] == second["b"]
  with pytest.raises(ScorerError, match="ValueError: no test examples"):
    score(own / "model", "test")
  assert score(own / "model", "search")["a"] == 4
  other = command(own / "scorer.py", "--idle=1")
  assert other(own / "model", "search")["b"] != first["b"]
  end = time.monotonic() + 60
  while len(list(own.rglob("*.sock"))) > 1 and time.monotonic() < end:
    time.sleep(0.1)
  assert len(list(own.rglob("*.sock"))) == 1  # the other one has ended
  os.kill(int(first["b"]), signal.SIGKILL)
  again = score(own / "model", "search")
  os.kill(int(again["b"]), signal.SIGKILL)
  assert again["a"] == 1  # in spite of the socket that the killed one has left


def test_a_server_that_does_not_start_says_why(own):
  with pytest.raises(ScorerError, match="did not start: no such thing"):
    command(own / "scorer.py", "--name=broken")(own / "model", "search")


def test_the_vllm_example_reloads_weights(own):
  (own / "vllm.py").write_text(FAKE_VLLM)
  task, _ = pools.make_tasks(own / "tasks")
  lines = task.read_text()
  task.write_text(json.dumps({"options": {"metric": "generate_match"}}) + "\n" + lines)
  script = EXAMPLES / "vllm_scorer.py"
  words = f"{sys.executable} {script} --idle=2 --tasks={task} {{model_dir}} {{scores_json}} {{split}}"
  score = Command(words, ("copy",), 120.0, retries=0)
  for text, expected in (("right", 1.0), ("wrong", 0.0)):
    (own / "model" / "answers").write_text(text)
    answers = score(own / "model", "search")["copy"]
    assert len(answers) > 1 and set(answers) == {expected}


def test_what_is_asked_wrongly(own):
  done = subprocess.run(
    [sys.executable, str(own / "scorer.py"), str(own)], capture_output=True, text=True, check=False
  )
  assert done.returncode == 2 and "expected {model_dir} {scores_json} {split}" in done.stderr
