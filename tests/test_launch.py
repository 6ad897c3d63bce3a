"""The jobs as a user starts them: flags, exit statuses, messages, files."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.flax
import yaml
from ml_collections import ConfigDict

import merge_jax
from merge_jax import checkpoints
from merge_jax.recipes import own_methods, reading
from tests import pools
from tests.further import further
from tests.processes import JOBS

ROOT = Path(__file__).parent.parent
PACKAGE = Path(merge_jax.__file__).parent
CONFIGS = next(p for p in (ROOT / "configs", PACKAGE / "configs") if p.is_dir())  # a clone, the wheel
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def start(name, *arguments, devices=1, **options):
  words = [sys.executable, "-m", "merge_jax", name, *map(str, arguments)]
  environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)}
  return subprocess.Popen(
    words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
  )


def launch(name, *arguments, devices=1):
  process = start(name, *arguments, devices=devices)
  out, errors = process.communicate(timeout=300)
  return process.returncode, out, errors


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  return folder, pools.make_pool(folder / "pool", 3), pools.make_tasks(folder / "tasks")


def flags_of(world, output, *more):
  folder, paths, tasks = world
  return (
    f"--checkpoints={','.join(map(str, paths))}", f"--base={folder / 'pool' / 'base'}",
    f"--tasks={tasks[0]}:loss,{tasks[1]}", f"--output_dir={output}", "--budget=12",
    "--config.evals.max_shapes=1", *more,
  )  # fmt: skip


def test_recycle_then_report_then_again(world, tmp_path):
  output = tmp_path / "run"
  code, out, errors = launch("recycle", *flags_of(world, output))
  assert code == 0, errors
  assert "12/12 evaluations" in out and f"report: {output}/report.html" in out
  assert re.search(r"The (merge of (2 of )?3 checkpoints|single checkpoint m\d) scores .* against", out)
  page = (output / "report.html").read_bytes()
  (output / "report.html").unlink()
  (output / "figures" / "mine.png").write_text("years of work")
  code, out, errors = launch("report", f"--run={output}")
  assert code == 0, errors
  assert f"no such job had made lies in {output}/figures.before-1" in out
  assert (output / "figures.before-1" / "mine.png").read_text() == "years of work"
  assert (output / "report.html").read_bytes() == page
  bare = shutil.copytree(output, tmp_path / "bare", ignore=shutil.ignore_patterns(".*"))
  code, _, errors = launch("report", f"--run={bare}")
  assert code == 1 and errors.endswith(
    "bare: .merge_jax.json is missing; copy the run with its hidden files.\n"
  )
  code, out, _ = launch("recycle", *flags_of(world, output))
  assert code == 0 and "finished before" in out and "selected" in out
  code, out, errors = launch("recycle", *flags_of(world, output, "--config.search.seed=1"))
  assert code == 1 and "config.search.seed: 0 -> 1" in errors and "Traceback" not in errors
  code, out, errors = launch("select", f"--run={output}", "--task_weights=copy=2", "--at_least=choose=0")
  assert code == 0, errors
  folder = out.rstrip().rpartition("merged: ")[2]
  assert Path(folder).parent == output and checkpoints.open(folder).specs and "average" in out
  code, _, errors = launch("select", f"--run={output}", "--task_weights=cope=2")
  assert code == 1 and "did you mean 'copy'" in errors and errors.count("\n") == 1


def test_dry_run_writes_nothing(world, tmp_path):
  code, out, errors = launch("recycle", *flags_of(world, tmp_path / "x", "--dry_run"))
  assert code == 0, errors
  assert "12 candidates" in out and not (tmp_path / "x").exists()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_finishes_the_record_and_has_its_own_status(world, tmp_path, sent):
  output = tmp_path / "run"
  process = start("recycle", *flags_of(world, output, "--config.search.budget=100000", "--budget=0"))
  journal, deadline = output / "journal.jsonl", time.monotonic() + 120
  while not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.05)
  process.send_signal(sent)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 75 and "the same command continues" in errors and "Traceback" not in errors
  lines = journal.read_bytes().split(b"\n")
  assert lines[-1] == b"" and all(json.loads(line) for line in lines[:-1])


@pytest.mark.parametrize(
  ("name", "arguments", "message"),
  [
    ("recycle", ["--chekpoints=a"], "chekpoints"),
    ("recycle", ["--config.search.bugdet=3"], "config.search: unknown key 'bugdet'; did you mean 'budget'?"),
    ("train", ["--output_dir=x", "--config.recycle.nope=1"], "config: unknown key 'recycle';"),
    further("train", ["--output_dir=x", "--config.seed.nope=1"], "config.seed: unknown key 'nope';"),
    further("recycle", [f"--config={CONFIGS}/recycle.py:paper", "--noconfig.nope"], "unknown key 'nope'"),
    ("recycle", ["--config.search.budget=many"], "many"),
    ("recycle", ["--config=nowhere.py"], "nowhere.py"),
    ("evaluate", ["--checkpoints", "a", "b", "--tasks=t", "--output=x"], "Unexpected words: b. Lists are"),
    ("evaluate", ["--checkpoints=a", "--tasks=t", "--output="], "--output is empty"),
    ("evaluate", ["--checkpoints=a,b,a", "--tasks=t", "--output=x"], "--checkpoints: got a twice"),
    ("evaluate", ["--checkpoints=a,./a/", "--tasks=t", "--output=x"], "--checkpoints: got a twice"),
    ("plan", ["--config_json=x/config.json", "--output=x/config.json"], "config.json is the input"),
    ("recycle", ["--tasks=a.jsonl", "--output_dir=x"], "There is no checkpoint"),
    further("recycle", ["--checkpoints=a,,b", "--tasks=a.jsonl", "--output_dir=x"], "entry 2 of 3 is empty"),
    (
      "recycle",
      ["--checkpoints=a,b", "--tasks=a.jsonl", "--output_dir=x", "--budget=-1"],
      "search.budget is -1",
    ),
    ("recycle", [f"--config={CONFIGS}/recycle.py:cold"], "has no mode 'cold'"),
    ("study", ["--config=nope.py", "--output_dir=x"], "error: --config: nope.py: No such file or directory."),
    ("evaluate", ["--checkpoints=a", "--tasks=b", "--output=c", "--batch_tokens=0"], "batch_tokens"),
    (
      "statistics",
      ["--checkpoint=a", "--tasks=t", "--output=x", "--kind=gram", "--predictions=data"],
      "--predictions is for --kind=fisher; leave it out",
    ),
    further("check", [], "There is no checkpoint"),
    further(
      "recycle",
      ["--checkpoints=ftp://x/y,ftp://x/z", "--tasks=a.jsonl", "--output_dir=x"],
      "unknown scheme 'ftp'",
    ),
    (
      "train",
      ["--init=a", "--tasks=t", "--output_dir=x", "--config.model.hidden_size=64"],
      "config.model.hidden_size is of a new model",
    ),
    further("check", ["--checkpoints=/nonexistent"], "no such folder"),
    ("check", ["--recipe=x.yml", "--mesh=fsdp:1"], "--mesh is of a search, and no recipe has one; leave"),
    ("plan", ["--preset=llama-3-8b", "--tasks=a", "--length=9"], "--length is told by --tasks; leave it out"),
    further("plan", ["--preset=llama-3-8b", "--tokenizer=a"], "--tokenizer is for --tasks, and there"),
    ("statistics", ["--checkpoint=a", "--output=x", f"--seed={2**31}"], "is not an integer in the range"),
    ("chek", [], "did you mean 'check'"),
  ],
)
def test_bad_input_is_one_sentence(name, arguments, message):
  code, _, errors = launch(name, *arguments)
  assert code == 1 and message in errors
  assert "Traceback" not in errors or (name == "recycle" and "--config." in arguments[0])
  assert errors.count("\n") == 1 or name in ("recycle", "chek")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_config(:", "SyntaxError"),
    further("raise KeyError(3)", "KeyError"),
    further("x = 1", "get_config"),
    further("def get_config():\n  return {'a': 1}", "returned a dict"),
    ("def get_config():\n  return 1 / 0", "Zero"),
  ],
)
def test_a_config_file_that_fails_is_one_sentence(tmp_path, text, message):
  (tmp_path / "mine.py").write_text(text)
  code, _, errors = launch("recycle", f"--config={tmp_path}/mine.py")
  assert code == 1 and message in errors and "error: --config: " in errors
  assert "Traceback" not in errors


def test_a_platform_that_is_not_here_is_one_sentence(world, tmp_path):
  _, paths, tasks = world
  given = (f"--checkpoints={paths[0]}", f"--tasks={tasks[0]}", f"--output={tmp_path / 'x'}")
  words, nowhere = [sys.executable, "-m", "merge_jax", "evaluate", *given], {"CUDA_VISIBLE_DEVICES": ""}
  environment = ENVIRONMENT | nowhere | {"JAX_PLATFORMS": "cuda"}
  done = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True)
  said = re.fullmatch(r"error: .*JAX_PLATFORMS=.*\n", done.stderr)
  assert done.returncode == 1 and said, done.stderr


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ("c.experts = {}", "config.experts is empty"),
    ("c.experts = {'base': dict(c.base.learn)}", "config.experts: 'base' is no name of a folder beside"),
    further("c.experts = {'a/b': dict(c.base.learn)}", "config.experts: 'a/b' is no name"),
    ("c.seed = 2**31", "config: seed is 2147483648; expected a whole number <= 2147482"),
    ("c.recycle.search.proposer = 'cma'", "config: unknown search.proposer 'cma'; did you mean 'cma_es'?"),
    further("c.recycle.search.fitness = 'avg'", "config: unknown search.fitness 'avg'"),
    further("c.recycle.search.budget = 7", "config: search.budget is 7; expected at least 8"),
    further("c.recycle.search.method = 'slerp'", "config: search.method 'slerp' cannot be searched in space"),
  ],
)
def test_a_quickstart_that_cannot_be_is_refused_first(tmp_path, change, said):
  (tmp_path / "mine.py").write_text(f"""if True:
    import runpy
    def get_config():
      c = runpy.run_path({str(CONFIGS / "quickstart.py")!r})["get_config"]()
      with c.unlocked():
        {change}
      return c
    """)
  code, out, errors = launch("quickstart", f"--config={tmp_path}/mine.py", f"--output_dir={tmp_path / 'x'}")
  assert (code, out) == (1, "") and errors.startswith(f"error: {said}"), errors
  assert errors.count("\n") == 1 and not (tmp_path / "x").exists()


def test_configs_of_the_package_are_found_from_anywhere(tmp_path):
  words = [sys.executable, "-m", "merge_jax", "recycle", "--config=configs/recycle.py:paper"]
  environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(words, cwd=tmp_path, env=environment, text=True, capture_output=True)
  assert done.returncode == 1 and done.stderr.startswith("error: There is no checkpoint"), done


def test_check_has_an_exit_status(world, tmp_path):
  folder, paths, _ = world
  code, out, _ = launch("check", f"--checkpoints={','.join(map(str, paths))}", f"--base={folder}/pool/base")
  assert code == 0 and "common" not in out.lower() and "20 tensors" in out
  other = pools.make_pool(tmp_path, 1)[0]
  (other / "model.safetensors").unlink()
  checkpoints.write(other, {"x": pools.np.ones(3, "f")})
  code, out, _ = launch("check", f"--checkpoints={paths[0]},{other}")
  assert code == 1 and "ERROR" in out and "is missing in" in out


def test_evaluate_convert_and_train(world, tmp_path):
  """Convert to Orbax and back, train on, score: everything scores alike where it should."""
  _folder, paths, tasks = world
  orbax, back, trained = (tmp_path / name for name in ("orbax", "back", "trained"))
  for arguments in (
    ("convert", f"--input={paths[0]}", f"--output={orbax}", "--format=orbax"),
    ("convert", f"--input={orbax}", f"--output={back}", "--format=safetensors"),
    ("train", f"--tasks={tasks[0]}", f"--init={paths[0]}", f"--output_dir={trained}",
     f"--config={CONFIGS}/train.py:small", "--config.mixture=copy=1"),
  ):  # fmt: skip
    code, _, errors = launch(*arguments)
    assert code == 0, errors
  names = ",".join(map(str, (paths[0], orbax, back, trained)))
  output = tmp_path / "scores.json"
  code, _out, errors = launch(
    "evaluate", f"--checkpoints={names}", f"--tasks={tasks[0]}:loss,{tasks[1]}", f"--output={output}"
  )
  assert code == 0, errors
  scores = json.loads(output.read_text())
  assert list(scores) == names.split(",") and set(scores[str(orbax)]) == {"copy", "choose"}
  assert scores[str(paths[0])] == scores[str(orbax)] == scores[str(back)]
  assert scores[str(trained)]["copy"] < scores[str(paths[0])]["copy"] - 0.1
  code, _, errors = launch("convert", f"--input={orbax}", f"--output={back}", "--format=safetensors")
  assert code == 1 and "is not empty" in errors


def test_evaluate_checks_its_output_first(world, tmp_path):
  _, paths, tasks = world
  given = (f"--checkpoints={paths[0]}", f"--tasks={tasks[0]}")
  before = (paths[0] / "config.json").read_bytes()
  for output, message in (
    (paths[0] / "config.json", "lies in the input"), (paths[0] / "scores.json", "lies in the input"),
    (tasks[0], "is the input"), (tmp_path, "is a folder"), (tmp_path / "no" / "x.json", "there is no folder"),
  ):  # fmt: skip
    code, out, errors = launch("evaluate", *given, f"--output={output}")
    assert code == 1 and message in errors and out == ""
  assert (paths[0] / "config.json").read_bytes() == before and not (paths[0] / "scores.json").exists()
  linked, blob = tmp_path / "linked", tmp_path / "blob"  # as the cache of the hub lies
  shutil.copytree(paths[0], linked)
  (linked / "model.safetensors").rename(blob)
  (linked / "model.safetensors").symlink_to(blob)
  for words in (
    ["evaluate", f"--checkpoints={linked}", given[1]],
    ["statistics", f"--checkpoint={linked}", given[1], "--kind=gram"],
  ):
    code, out, errors = launch(*words, f"--output={blob}")
    assert code == 1 and "is the input" in errors and out == ""


def test_evaluate_gives_all_devices_something_to_do(world, tmp_path):
  _, paths, tasks = world
  given = (f"--checkpoints={paths[0]}", f"--tasks={tasks[0]}", f"--output={tmp_path / 'x'}")
  code, _, errors = launch("evaluate", *given, "--mesh=fsdp:2,candidate:2", devices=4)
  assert code == 1 and "one checkpoint is scored at a time, so that candidate has to be 1" in errors
  code, out, errors = launch("evaluate", *given, "--mesh=fsdp:2", devices=3)
  assert code == 0 and "note: --mesh=fsdp:2 leaves 1 of 3 devices idle\n" in out, errors


def test_flags_for_tasks_of_lm_eval_are_refused_where_there_are_none(world, tmp_path):
  _, paths, tasks = world
  given = (f"--checkpoints={paths[0]}", f"--tasks={tasks[0]}", f"--output={tmp_path / 'x'}")
  code, _, errors = launch("evaluate", *given, "--lm_eval_shots=2")
  assert (code, errors) == (
    1, "error: --lm_eval_shots is for tasks lm_eval:NAME, and there is none; leave it out.\n"
  )  # fmt: skip


def test_logs_of_lm_eval_are_not_lost_on_a_store(world, tmp_path):
  _, paths, _ = world
  given = (f"--checkpoints={paths[0]}", "--tasks=lm_eval:x", f"--output={tmp_path / 'x'}")
  code, _, errors = launch("evaluate", *given, "--lm_eval_logs=gs://bucket/logs")
  assert code == 1 and "gs://bucket" in errors  # whether the store's package is there or not


def test_a_head_that_a_config_ties_away_is_refused(world, tmp_path):
  _, paths, tasks = world
  pool, tensors = tmp_path / "m", dict(checkpoints.open(paths[0]).load())
  shutil.copytree(paths[0], pool, ignore=shutil.ignore_patterns("*.safetensors*"))
  head = {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]}
  safetensors.flax.save_file(tensors | head, pool / "model.safetensors")
  for name, given in (("evaluate", f"--checkpoints={pool}"), ("train", f"--init={pool}")):
    output = f"--output{'_dir' * (name == 'train')}={tmp_path / name}"
    code, _, errors = launch(name, given, f"--tasks={tasks[0]}:loss", output)
    assert code == 1 and "config ties lm_head.weight to model.embed_tokens.weight" in errors


def test_evaluate_scores_each_as_recycle_does(world, tmp_path):
  """A broken checkpoint is null beside the scores of the others; each has its own end-of-text token."""
  _, paths, tasks = world
  broken, other = tmp_path / "broken", tmp_path / "other"
  for copy in (broken, other):
    shutil.copytree(paths[0], copy)
  tensors = checkpoints.open(broken).load()
  checkpoints.write(
    broken, {name: pools.np.full_like(value, pools.np.nan) for name, value in tensors.items()}
  )
  for name in ("config.json", "generation_config.json"):
    text = json.loads((other / name).read_text()) | {"eos_token_id": 5}
    (other / name).write_text(json.dumps(text))
  output = tmp_path / "scores.json"
  pool = ",".join(map(str, (paths[0], broken, other)))
  code, _, errors = launch(
    "evaluate", f"--checkpoints={pool}", f"--tasks={tasks[0]}:loss", f"--output={output}"
  )
  assert code == 0, errors
  scores = json.loads(output.read_text())
  assert scores[str(broken)] == {"copy": None}
  assert scores[str(other)] != scores[str(paths[0])] and scores[str(paths[0])]["copy"] > 0


def test_evaluate_asks_each_by_its_own_chat_template(world, tmp_path):
  _, paths, tasks = world
  asked, output = tmp_path / "asked.jsonl", tmp_path / "scores.json"
  asked.write_text('{"options": {"metric": "loss", "chat": true}}\n' + tasks[0].read_text())
  pool = [tmp_path / name for name in ("a", "b", "c")]
  for copy, ending in zip(pool, ("=", "A:", "="), strict=True):
    shutil.copytree(paths[0], copy)
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}" + ending)
  code, _, errors = launch(
    "evaluate", f"--checkpoints={','.join(map(str, pool))}", f"--tasks={asked}", f"--output={output}"
  )
  assert code == 0, errors
  a, b, c = (one["asked"] for one in json.loads(output.read_text()).values())
  assert a == c != b


def test_the_readme_examples_run():
  text = (ROOT / "README.md").read_text()
  names: dict = {}
  for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
    exec(code, names)
  assert names["many"]["w"].shape == (5, 4) and names["clipped"]["w"].shape == (4,)
  recipes = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
  read = [reading.parse(yaml.safe_load(recipe), "README.md") for recipe in recipes]
  assert [(one.origin, one.method) for one in read] == [
    ("own", "ties"),
    ("mergekit", "dare_ties"),
    ("own", "fisher"),
  ]
  assert [name for name in own_methods.OWN if hasattr(merge_jax, name) and f"`{name}`" not in text] == []


def test_help_names_the_flags_that_jobs_share():
  _, out, _ = launch("train", "--help")
  assert all(f"--{flag}: " in out for flag in ("config", "mesh", "[no]distributed", "init"))


def test_jobs_are_listed():
  done = subprocess.run(
    [sys.executable, "-m", "merge_jax", "--help"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0
  for name in (
    "recycle",
    "evaluate",
    "train",
    "check",
    "convert",
    "report",
    "select",
    "benchmark",
    "quickstart",
  ):
    assert name in done.stdout


@pytest.mark.parametrize(
  "module",
  [
    "merge_jax", "merge_jax.search", "merge_jax.checkpoints", "merge_jax.storage", "merge_jax.models",
    "merge_jax.recipes, merge_jax.streaming, merge_jax.preflight",
  ],
)  # fmt: skip
def test_imports_stay_light(module):
  """Start-up time is half of a small merge."""
  heavy = ["flax", "orbax", "matplotlib", "cma", "scipy", "tokenizers", "moocore", "optax", "absl.flags"]
  if module != "merge_jax":
    heavy.remove("absl.flags")
  code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_no_key_of_a_config_is_a_method(path):
  """An override of such a key would go to the method of `ConfigDict`."""

  def keys(config):
    return {*config.keys()}.union(*(keys(one) for one in config.values() if isinstance(one, ConfigDict)))

  if make := runpy.run_path(str(path)).get("get_config"):
    assert not keys(make()) & {*dir(ConfigDict())}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_first_seconds_is_one_line(sent):
  code = f"""if True:
    import os, signal, sys, time
    sys.argv[0] = "-m"
    signal.signal({int(sent)}, signal.SIG_DFL)  # whoever runs the tests may ignore it, as nohup does
    import {JOBS}
    os.kill(os.getpid(), {int(sent)})
    time.sleep(60)"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (75, "error: interrupted; the same command continues.\n")


def test_a_job_stops_for_a_closed_terminal_and_not_for_what_it_is_to_ignore():
  code = f"""if True:
    import os, signal
    from {JOBS} import _common
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop = _common.StopFlag()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
      os.kill(os.getpid(), number)
      print(stop())"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.split() == ["False", "True", "True", "True"], done.stderr


@pytest.mark.parametrize(
  ("streams", "status"), [(">/dev/full 2>/dev/full", 1), ("2>&1 | true", 0), ("<&- >&- 2>&-", 0)]
)
def test_what_cannot_be_printed_costs_no_result(tmp_path, streams, status):
  """But a full disk, where somebody looks for it, is told by the status."""
  (tmp_path / "job.py").write_text(f"""if True:
    import pathlib, sys
    sys.argv[0] = "-m"
    from {JOBS} import _common
    def main():
      bar = _common.Progress(2, "steps", every=0)
      for done in range(3):
        print("error" * 5000, file=sys.stderr, flush=True)
        bar(done, "note" * 5000)
        bar.say("said" * 5000)
      pathlib.Path("result").write_text("whole")
    _common.run(main)
    """)
  shell = f"({sys.executable} job.py; echo $? > status) {streams}"
  environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(shell, shell=True, cwd=tmp_path, env=environment, text=True, capture_output=True)
  assert (done.stdout, done.stderr, (tmp_path / "status").read_text()) == ("", "", f"{status}\n")
  assert (tmp_path / "result").read_text() == "whole"


@pytest.mark.parametrize(("resumes", "again"), [(True, "continues"), (False, "begins again")])
def test_an_interrupted_job_says_what_the_same_command_does(resumes, again):
  """And leaves at once, whatever JAX's threads do."""
  code = f"""if True:
    import atexit, os, signal, sys, time
    sys.argv[0] = "-m"
    from {JOBS} import _common
    def main():
      print("so far")
      atexit.register(time.sleep, 60)
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    _common.run(main, resumes={resumes})"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
  said = f"error: interrupted; the same command {again}.\n"
  assert (done.returncode, done.stdout, done.stderr) == (75, "so far\n", said)


def test_garbage_is_looked_for_from_when_a_job_has_its_modules():
  code = f"""if True:
    import gc, sys
    sys.argv[0] = "-m"
    from {JOBS} import _common
    print(gc.isenabled())
    _common.run(lambda: print(gc.isenabled()))"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, "False\nTrue\n"), done.stderr


def test_a_terminal_without_our_characters_costs_no_run():
  code = f"""if True:
    from {JOBS} import _common
    from merge_jax import reports
    _common.run(lambda: print(chr(177), "No claim" in reports.make_study({{}}).page))"""
  ascii = ENVIRONMENT | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ascii, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, "? True\n"), done.stderr


def test_configs_and_settings_have_the_same_fields():
  from merge_jax.recycle import methods, settings

  config = runpy.run_path(str(CONFIGS / "recycle.py"))
  made = settings.from_mapping(
    config["get_config"]().to_dict() | {"checkpoints": ("a", "b"), "tasks": ("t",), "output_dir": "o"}
  )
  default = settings.Settings(checkpoints=("a", "b"), tasks=("t",), output_dir="o")
  assert made == default
  paper = settings.from_mapping(
    config["get_config"]("paper").to_dict() | {"checkpoints": ("a", "b"), "tasks": ("t",), "output_dir": "o"}
  )
  methods.check(paper.search.method, paper.search.space)


def test_what_was_done_before_tells_no_rate():
  code = f"""if True:
    import time
    from {JOBS} import _common
    once, more = (_common.Progress(20, "tensors", every=0) for _ in range(2))
    once(20)
    more(12)
    time.sleep(0.5)
    more(13)"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  at_once, later = done.stdout.splitlines()
  assert at_once == "20/20 tensors" and 0 < float(later.split()[2]) <= 2


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".9"}),
    ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}),
    ({"XLA_CLIENT_MEM_FRACTION": ".5"}, {"XLA_CLIENT_MEM_FRACTION": ".5"}),  # JAX refuses both
  ],
)
def test_gpus_give_jobs_what_plans_count_on(given, expected):
  code = f"""if True:
    import os, {JOBS}.train
    from {JOBS} import _common
    from absl import flags
    flags.FLAGS(["train", "--deterministic", "--output_dir=x"])
    _common._start()
    print({{k: v for k, v in os.environ.items() if k.endswith("MEM_FRACTION")}})
    print(os.environ["XLA_FLAGS"], os.environ["XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"])"""
  environment = {k: v for k, v in os.environ.items() if not k.startswith("XLA")} | given
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  memory, others = done.stdout.splitlines()
  assert memory == str(expected) and re.fullmatch(r" --xla_gpu_deterministic_ops=true \d+", others)
