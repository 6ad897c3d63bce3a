"""Scores from a program: what it may write, and that nothing of it outlives its call or its job."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from merge_jax.evals.external import Command, ScorerError

SCORER = "{python} {script} {{model_dir}} {{scores_json}} {{split}}"

PROLOGUE = """
import json, os, pathlib, signal, subprocess, sys, time
model, out, split = sys.argv[1:]
def note(name, value): pathlib.Path(model, name).write_text(str(value))
def score(text): pathlib.Path(out).write_text(text)
"""
GOOD = 'score(\'{"a": 1, "b": 2}\')\n'


def command(tmp_path, body, **options):
  script = tmp_path / "score.py"
  script.write_text(PROLOGUE + body)
  return Command(SCORER.format(python=sys.executable, script=script), ("a", "b"), **options)


def test_external_scores(tmp_path):
  body = "pathlib.Path(out).write_text(json.dumps({'a': len(split), 'b': None, 'c': 'extra'}))"
  scores = command(tmp_path, body)(tmp_path, "search")
  assert scores["a"] == 6.0 and np.isnan(scores["b"])
  body = "pathlib.Path(out).write_text(json.dumps({'a': [True, 0.5, None], 'b': []}))"
  scores = command(tmp_path, body)(tmp_path, "search")
  np.testing.assert_array_equal(scores["a"], [1.0, 0.5, np.nan])
  assert scores["b"] == []
  body = "pathlib.Path(out).write_text(json.dumps({'a': float('nan'), 'b': [1, float('nan')]}))"
  scores = command(tmp_path, body)(tmp_path, "search")
  assert np.isnan(scores["a"]) and np.isnan(scores["b"]).tolist() == [False, True]


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("sys.exit('no such model')", "status 1: no such model"),
    ("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.exit(2)", "status 2: \N{REPLACEMENT CHARACTER}"),
    ("os.kill(os.getpid(), 9)", "status -9: no output"),
    ("import shutil; shutil.rmtree(os.path.dirname(out)); sys.exit(3)", "status unknown"),
    ("os.killpg(0, 9)", "status unknown: no output"),
    ("pass", "wrote no scores.json"),
    ("os.mkfifo(out)", "wrote no scores.json"),
    ("score('{')", "not valid JSON"),
    ("pathlib.Path(out).write_bytes(b'\\xff')", "not valid JSON"),
    ("score('[1, 2]')", "expected an object"),
    ("score('{\"a\": 1}')", "has no score of task 'b'"),
    ("score('{\"a\": true, \"b\": 1}')", "task 'a': the content is True; expected a number or a list"),
    ("score('{\"a\": [1, \"x\"], \"b\": 1}')", r"task 'a': \[1\] is 'x'; expected"),
    *[(f"score('{{\"a\": {number}, \"b\": 1}}')", "scores.json.*(not valid JSON|out of range)")
      for number in ("1e400", "1" + "0" * 400, "-Infinity")],
  ],
)  # fmt: skip
def test_external_failures(tmp_path, body, message):
  with pytest.raises(ScorerError, match=message):
    command(tmp_path, body, retries=0)(tmp_path, "search")


def test_an_executable_that_is_not_there(tmp_path):
  with pytest.raises(ScorerError, match="status 127: no_such_program cannot be run: No such file"):
    Command("no_such_program {model_dir} {scores_json}", ("a",), retries=0)(tmp_path, "search")


def test_a_failure_may_count_as_the_worst(tmp_path):
  scores = command(tmp_path, "sys.exit(1)", nan="worst")(tmp_path, "search")
  assert np.isnan([scores["a"], scores["b"]]).all()


@pytest.mark.parametrize(
  "flaw", ["sys.exit('flaky')", 'score(\'{"a": NaN, "b": 1e400}\')', "os.write(1, b'\\xff'); sys.exit(1)"]
)
def test_external_retries(tmp_path, flaw):
  body = f"""
if not pathlib.Path(model, 'tried').exists():
  note('tried', 1); {flaw}
else:
  {GOOD}"""
  assert command(tmp_path, body, retries=1)(tmp_path, "search") == {"a": 1.0, "b": 2.0}


def test_messages_are_bounded(tmp_path):
  body = "sys.stderr.write('x' * 10_000_000 + '\\nthe end'); sys.exit(1)"
  with pytest.raises(ScorerError) as caught:
    command(tmp_path, body, retries=0)(tmp_path, "search")
  assert len(str(caught.value)) <= 2300 and str(caught.value).endswith("the end")


def test_calls_use_the_folder_they_are_given(tmp_path):
  (tmp_path / "calls").mkdir()
  command(tmp_path, "note('out', out)\n" + GOOD)(tmp_path, "search", tmp_path / "calls")
  assert Path((tmp_path / "out").read_text()).parents[1] == tmp_path / "calls"
  assert not any((tmp_path / "calls").iterdir())


CHILD = "note('child', subprocess.Popen(['sleep', '600']).pid)\n"


def lives(pid):
  """Whether a process runs; a zombie does not."""
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except (FileNotFoundError, ProcessLookupError):
    return False


def until(condition):
  for _ in range(1200):
    if condition():
      return
    time.sleep(0.05)
  raise AssertionError("waited in vain")


def test_a_child_that_holds_the_output_does_not_delay_success(tmp_path):
  scores = command(tmp_path, CHILD + GOOD, timeout=60.0, retries=0)(tmp_path, "search")
  assert scores == {"a": 1.0, "b": 2.0}
  until(lambda: not lives((tmp_path / "child").read_text()))


def test_nothing_lives_after_a_time_out(tmp_path):
  body = (
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + CHILD + "note('scorer', os.getpid())\ntime.sleep(600)"
  )
  with pytest.raises(ScorerError, match="took longer than 3 seconds"):
    command(tmp_path, body, timeout=3.0, retries=0)(tmp_path, "search")
  for name in ("child", "scorer"):
    until(lambda name=name: not lives((tmp_path / name).read_text()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_scorer_does_not_outlive_its_job(tmp_path, number):
  scorer = command(tmp_path, CHILD + "note('scorer', os.getpid())\nnote('ready', 1)\ntime.sleep(600)")
  call = f"Command({scorer.template!r}, ('a',))({str(tmp_path)!r}, 'search')"
  job = subprocess.Popen(
    [sys.executable, "-c", f"from merge_jax.evals.external import Command; {call}"], stderr=subprocess.DEVNULL
  )
  until((tmp_path / "ready").exists)
  pids = [(tmp_path / name).read_text() for name in ("child", "scorer")]
  assert all(lives(pid) for pid in pids)
  job.send_signal(number)
  job.wait()
  until(lambda: not any(lives(pid) for pid in pids))


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("eval {scores_json}", "no {model_dir}"), ("", "no {model_dir}"),
    ("eval {{model_dir}} {scores_json}", "no {model_dir}"),
    ("eval {model_dir} {scores_json} {x}", "cannot be filled in at 'x'"),
    ("eval {model_dir.x} {scores_json}", "cannot be filled in at 'model_dir.x'"),
    ("eval {model_dir[0]} {scores_json}", "cannot be filled in"),
    ("eval {model_dir:>9} {scores_json}", "cannot be filled in"),
    ("eval {model_dir!r} {scores_json}", "cannot be filled in"),
    ("eval {} {scores_json}", "cannot be filled in at ''"), ("eval {0} {scores_json}", "cannot be filled in"),
    ("eval {model_dir} {scores_json} {", "cannot be read: Single '{'"),
    ("eval '{model_dir} {scores_json}", "cannot be read: No closing quotation"),
    ("eval \ud800 {model_dir} {scores_json}", "cannot be read"),
  ],
)  # fmt: skip
def test_external_templates_are_checked(template, message):
  with pytest.raises(ValueError, match=message):
    Command(template, ("a",)).check()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"timeout": 0.0}, "timeout is 0.0; expected a number > 0"), ({"timeout": -1.0}, "timeout is -1.0"),
    ({"timeout": float("nan")}, "timeout is nan"), ({"timeout": float("inf")}, "expected a finite number"),
    ({"retries": -1}, "retries is -1; expected a whole number >= 0"), ({"retries": 1.5}, "retries is 1.5"),
    ({"nan": "wurst"}, "unknown NaN policy 'wurst'; did you mean 'worst'"), ({"nan": None}, "nan is None"),
    ({"tasks": ()}, "needs the names"), ({"tasks": ("",)}, "cannot be called ''"),
    ({"tasks": ("a", "b", "a")}, "two are called 'a'"), ({"tasks": ("average",)}, "'average'"),
    ({"tasks": ("a\n",)}, "expected a printable name"),
  ],
)  # fmt: skip
def test_external_options_are_checked(options, message):
  scorer = Command("eval {model_dir} {scores_json}", ("$a",))
  scorer.check()
  with pytest.raises(ValueError, match=message):
    scorer._replace(**options).check()
