"""Training: what is drawn, what a step computes, states, and the job."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import checkpoints, errors, evals, host, models, sharding
from merge_jax.training import (
  Diverged,
  Recipe,
  Stopped,
  begin,
  continued,
  corpus,
  loop,
  puzzles,
  read_recipe,
  states,
  train,
)
from merge_jax.training.corpus import batch, batches
from merge_jax.training.recipe import shares
from tests import pools
from tests.further import further
from tests.test_launch import ENVIRONMENT, ROOT, launch, start

SMALL = {
  "mixture": {"short": 1.0, "long": 3.0},
  "steps": 45,
  "learning_rate": 1e-3,
  "batch_size": 4,
  "seed": 7,
}
LIMITS = {"max_length": 256, "vocabulary": 97}


@pytest.fixture(autouse=True)
def standard_promotion():
  """Optax promotes step counts to floats."""
  with jax.numpy_dtype_promotion("standard"):
    yield


def make_tasks(longest):
  """One task of short rows, one whose rows reach `longest` characters."""
  generator = np.random.default_rng(0)

  def text(length):
    return "".join(generator.choice(list("abcdefgh"), length))

  short = [evals.Example(f"{i}:" + text(4), (text(2),)) for i in range(30)]
  long = [
    evals.Example(f"{i}:" + text(int(n)), (text(3),)) for i, n in enumerate(np.linspace(5, longest, 50))
  ]
  choices = [evals.Example("pick", (text(3), text(20), text(5)), i % 3) for i in range(10)]
  pairs = {"short": short, "long": long, "choose": choices}
  return [evals.Task(name, "loss", tuple(examples)) for name, examples in pairs.items()]


def make_corpus(longest=20):
  return corpus(make_tasks(longest), evals.Tokens(puzzles.tokenizer(), 1), **LIMITS)


def apply(params, tokens, asked):
  """Logits from the token alone, through one hidden layer: compiled in no time."""
  hidden = jnp.tanh(params["embed"][jnp.take_along_axis(tokens, asked, 1)])
  return hidden @ params["head"]


@pytest.fixture
def params():
  a, b = jax.random.split(jax.random.key(0))
  return {"embed": jax.random.normal(a, (97, 8)), "head": jax.random.normal(b, (8, 97))}


def equal(a, b):
  left, right = (jax.tree.leaves((x.params, x.optimizer)) for x in (a, b))
  return all(np.array_equal(x, y) for x, y in zip(left, right, strict=True)) and a.losses == b.losses


@pytest.mark.parametrize("longest", [20, 200])
def test_a_batch_holds_the_rows_and_nothing_else(longest):
  tasks, tokens = make_tasks(longest), evals.Tokens(puzzles.tokenizer(), 1)
  data = corpus(tasks, tokens, **LIMITS)
  texts = [(e.prompt, e.targets[e.answer]) for task in tasks for e in task.examples]
  rows = np.array([[0, 3], [len(texts) - 1, 35]])
  bucket = batch(data, rows)
  for at in np.ndindex(rows.shape):
    (prompt,), (target,) = (
      f([x]) for f, x in zip((tokens.prompts, tokens.targets), texts[rows[at]], strict=True)
    )
    row, count = prompt + target, len(target)
    np.testing.assert_array_equal(bucket.tokens[at][: len(row) - 1], row[:-1])
    np.testing.assert_array_equal(bucket.targets[at][:count], target)
    np.testing.assert_array_equal(bucket.positions[at][:count], np.arange(len(prompt) - 1, len(row) - 1))
    np.testing.assert_array_equal(bucket.mask[at], np.arange(bucket.mask.shape[-1]) < count)
    assert not bucket.tokens[at][len(row) - 1 :].any()


def test_uneven_rows_have_few_shapes_and_little_padding():
  data = make_corpus(200)
  assert len(make_corpus(20).shapes) == 1 and 2 <= len(data.shapes) <= 4
  stacks = list(batches(data, Recipe(**SMALL | {"steps": 40}), 0))
  shapes = {bucket.tokens.shape for bucket, _ in stacks}
  assert len(shapes) > 1 and {shape[-1] for shape in shapes} <= {size for size, _ in data.shapes}
  read, padded = sum(tokens for _, tokens in stacks), sum(bucket.tokens.size for bucket, _ in stacks)
  assert padded < 2 * read < 40 * 4 * data.shapes[-1][0] * 2  # all rows in one shape were that many


@pytest.mark.parametrize("longest", [20, 200])
def test_examples_are_drawn_by_their_shares(longest):
  data = make_corpus(longest)
  recipe = Recipe(**SMALL | {"steps": 300})
  rows = np.concatenate(
    [bucket.tokens.reshape(-1, bucket.tokens.shape[-1])[:, :8] for bucket, _ in batches(data, recipe, 0)]
  )
  known = {tuple(batch(data, np.array([i])).tokens[0][:8]): i for i in range(len(data.lengths))}
  counts = np.bincount([known[tuple(row)] for row in rows], minlength=len(data.lengths))
  share = shares(recipe.mixture, data.names)
  np.testing.assert_allclose(np.add.reduceat(counts, data.first) / counts.sum(), share, atol=0.03)
  assert counts[:80].min() > 0 and counts[80:].sum() == 0


@pytest.mark.parametrize(("longest", "most"), [(20, 20), (20, 1), (200, 20)])
def test_what_is_drawn_does_not_depend_on_where_it_begins(longest, most):
  data, recipe = make_corpus(longest), Recipe(**SMALL)
  whole = [bucket for bucket, _ in batches(data, recipe, 0, most)]
  later = [bucket for bucket, _ in batches(data, recipe, 20, most)]
  steps = np.cumsum([bucket.tokens.shape[0] for bucket in whole])
  for a, b in zip(whole[int(np.searchsorted(steps, 20)) + 1 :], later, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_step_is_adamw_on_the_mean_over_target_tokens():
  """float64 numpy of one step: softmax cross entropy of a table of logits, clipped, Adam's first update."""
  recipe = Recipe(**SMALL | {"steps": 1, "warmup": 0, "weight_decay": 0.1, "clip": 0.05})
  data = make_corpus()
  ((bucket, tokens),) = batches(data, recipe, 0)
  table = np.random.default_rng(0).normal(size=(97, 97))
  targets, mask = bucket.targets[0], bucket.mask[0].astype(bool)
  inputs = np.take_along_axis(bucket.tokens[0], bucket.positions[0], 1)
  gradient, loss = np.zeros((97, 97)), 0.0
  for x, y in zip(inputs[mask], targets[mask], strict=True):
    p = np.exp(table[x]) / np.exp(table[x]).sum()
    loss -= np.log(p[y]) / mask.sum()
    gradient[x] += (p - np.eye(97)[y]) / mask.sum()
  gradient *= min(1.0, recipe.clip / np.linalg.norm(gradient))
  expected = table - recipe.learning_rate * (gradient / (np.abs(gradient) + 1e-8) + 0.1 * table)

  def apply(params, tokens, asked):
    return params["table"][jnp.take_along_axis(tokens, asked, 1)]

  trained = train(apply, begin({"table": jnp.array(table, jnp.float32)}, recipe), data, recipe)
  np.testing.assert_allclose(trained.losses, [loss], rtol=1e-5)
  touched = np.abs(gradient) > 1e-6
  np.testing.assert_allclose(trained.params["table"][touched], expected[touched], rtol=1e-5, atol=1e-6)
  assert trained.tokens == tokens == int((bucket.tokens > 0).sum())


def test_parameters_that_are_given_are_overwritten(params):
  data, recipe = make_corpus(), Recipe(**SMALL)
  copies = {name: jnp.array(value) for name, value in params.items()}
  whole = train(apply, begin(params, recipe), data, recipe)
  given = train(apply, begin(copies, recipe, give=True), data, recipe)
  assert given.losses == whole.losses
  assert all(x.is_deleted() for x in copies.values()) and not any(x.is_deleted() for x in params.values())


def test_parameters_that_are_given_are_let_go_of_where_a_training_goes_on(params, tmp_path):
  data, recipe = make_corpus(), Recipe(**SMALL)
  with pytest.raises(errors.Stopped):
    continued(apply, params, data, recipe, tmp_path, stop=lambda: True)
  copies = {name: jnp.array(value) for name, value in params.items()}
  continued(apply, copies, data, recipe, tmp_path, give=True)
  assert all(x.is_deleted() for x in copies.values()) and not any(x.is_deleted() for x in params.values())


@pytest.mark.parametrize("longest", [20, 200])
@pytest.mark.parametrize("small", [0, loop.SMALL])
def test_a_stopped_training_continues_bit_for_bit(params, tmp_path, monkeypatch, longest, small):
  monkeypatch.setattr(loop, "SMALL", small)
  data, recipe = make_corpus(longest), Recipe(**SMALL)
  whole = train(apply, begin(params, recipe), data, recipe)
  calls = []

  def fail_at(count):
    def progress(state):
      calls.append(state.step)
      if len(calls) == count:
        raise KeyError("power cut")

    return progress

  with states(tmp_path / "x") as folder, pytest.raises(KeyError):
    continued(apply, params, data, recipe, folder, save_every=1, progress=fail_at(3))
  with states(tmp_path / "x") as folder, pytest.raises(Stopped, match="same command continues"):
    continued(apply, params, data, recipe, folder, stop=lambda: True)
  first = len(calls)
  with states(tmp_path / "x") as folder:
    assert len(list(folder.glob("step-*"))) == 1
    again = continued(apply, params, data, recipe, folder, progress=fail_at(-1))
    assert calls[first] > 0
  assert equal(whole, again) and whole.tokens == again.tokens
  assert (tmp_path / ".x.training").is_dir()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"recipe": Recipe(**SMALL | {"seed": 8})}, "other values of the settings"),
    ({"data": make_corpus(21)}, "other values of the examples"),
    ({"params": None}, "other values of the parameters to start from"),
  ],
)
def test_a_state_of_another_training_is_refused(params, tmp_path, change, message):
  given = {"params": params, "data": make_corpus(), "recipe": Recipe(**SMALL)}
  with states(tmp_path / "x") as folder:
    with pytest.raises(Stopped):
      continued(apply, **given, folder=folder, stop=lambda: True)
    other = given | change
    other["params"] = other["params"] or {name: value + 1 for name, value in params.items()}
    with pytest.raises(ValueError, match=message):
      continued(apply, **other, folder=folder)


def test_a_process_that_does_not_see_the_leads_state_begins_nothing(params, tmp_path, monkeypatch):
  monkeypatch.setattr(host, "broadcast", lambda value: "step-000000007")
  with pytest.raises(FileNotFoundError, match=r"step-000000007/state\.json"):
    continued(apply, params, make_corpus(), Recipe(**SMALL), tmp_path)


@pytest.mark.parametrize("rate", [3e38, float("nan")])
def test_a_loss_that_is_not_finite_ends_the_training(params, tmp_path, rate):
  recipe = Recipe(**SMALL | {"learning_rate": rate, "warmup": 1})
  with (
    states(tmp_path / "x") as folder,
    pytest.raises(Diverged, match=r"step \d+ is (nan|inf); there is no result"),
  ):
    continued(apply, params, make_corpus(), recipe, folder, save_every=1)
  assert list(tmp_path.iterdir()) == []


def test_parameters_that_are_not_finite_are_not_a_result():
  def apply(params, tokens, asked):
    return jnp.zeros((*asked.shape, 97)) + params["x"][None, None]

  recipe = Recipe(**SMALL | {"steps": 1, "warmup": 0, "learning_rate": 3e38, "weight_decay": 10.0})
  with pytest.raises(Diverged, match="not finite after step 1"):
    train(apply, begin({"x": jnp.ones(97)}, recipe), make_corpus(), recipe)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"steps": 0}, "steps is 0; expected an? whole number >= 1"),
    ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ({"learning_rate": float("inf")}, "learning_rate is inf"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number > 0"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
    ({"warmup": -1}, "warmup is -1"),
    ({"warmup": 45}, "warmup is 45; expected fewer than the 45 steps"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 2.5}, "batch_size is 2.5"),
    ({"b2": 1.0}, "b2 is 1.0"),
    ({"clip": 0.0}, "clip is 0.0"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ({"until_loss": -1.0}, "until_loss is -1.0"),
    ({"seed": 2**31}, "seed is 2147483648"),
    ({"seed": -1}, "seed is -1"),
    ({"mixture": {"a": -1.0}}, "mixture.* is .*-1.0"),
    ({"mixture": {"a": float("nan")}}, "mixture.* is .*nan"),
    ({"lerning_rate": 1.0}, "unknown field 'lerning_rate'; did you mean 'learning_rate'"),
  ],
)
def test_numbers_of_a_recipe_are_checked(change, message):
  with pytest.raises(ValueError, match=f"^config: .*{message}"):
    read_recipe(SMALL | change, "config")


@pytest.mark.parametrize(
  ("mixture", "message"),
  [
    ({"a": 1.0, "d": 1.0}, "unknown task 'd'"),
    ({"a": 0.0}, "needs a positive share"),
    ({}, "needs a positive"),
  ],
)
def test_shares_name_known_tasks(mixture, message):
  with pytest.raises(ValueError, match=message):
    shares(mixture, ["a", "b"])


def test_a_tokenizer_of_another_model_is_refused():
  with pytest.raises(ValueError, match="the model's vocabulary has 50"):
    corpus(make_tasks(20), evals.Tokens(puzzles.tokenizer(), 1), vocabulary=50)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  return folder, pools.make_pool(folder / "pool", 1)[0], pools.make_tasks(folder / "tasks")[0]


def test_a_killed_job_continues_and_ends_in_the_same_checkpoint(world, tmp_path):
  _, first, task = world
  words = [f"--tasks={task}", f"--init={first}", "--config.steps=120", "--config.batch_size=4"]
  code, out, errors = launch("train", *words, f"--output_dir={tmp_path / 'whole'}")
  assert code == 0 and "tokens a second" in out, errors
  for signals in (signal.SIGKILL, signal.SIGTERM):
    name = signals.name
    command = [
      sys.executable,
      "-m",
      "merge_jax",
      "train",
      *map(str, words),
      f"--output_dir={tmp_path / name}",
    ]
    options = {"cwd": ROOT, "env": ENVIRONMENT, "text": True, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, "--config.steps=120", "--config.save_every=20"], **options)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f".{name}.training/step-*")) and process.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.send_signal(signals)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signals, 75, 0), errors
    if process.returncode:
      assert not (tmp_path / name).exists()
      done = subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ | ENVIRONMENT, text=True)
      assert done.returncode == 0, done.stderr
    for file in ("model.safetensors", "training.json"):
      assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["SIGKILL", "SIGTERM", "whole"]


def test_a_training_goes_on_from_the_same_config_alone(params, tmp_path):
  data, recipe = make_corpus(), Recipe(**SMALL)
  with pytest.raises(errors.Stopped):
    continued(apply, params, data, recipe, tmp_path, stop=lambda: True, told="eps 1e-6")
  with pytest.raises(ValueError, match="the parameters to start from"):
    continued(apply, params, data, recipe, tmp_path, told="eps 1e-2")


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config.learning_rate=nan"], "config: learning_rate is nan; expected a number > 0"),
    further(["--config.save_every=-1"], "config: save_every is -1; expected a whole number >= 0"),
    further(["--config.keep_every=-1"], "config: keep_every is -1; expected a whole number >= 0"),
    (["--save_adapter"], "--save_adapter is for LoRA on a checkpoint"),
    further(["--config.mixture=copi=1"], "unknown task 'copi'; did you mean 'copy'"),
    (
      ["--config.learning_rate=1e30", "--config.warmup=1"],
      "; there is no result. Try a learning rate below",
    ),
    further(["--output_dir={init}/sub"], "lies in the input"),
    further(["--output_dir={tasks}"], "is the input"),
    (["--output_dir={init}/.."], "is not empty"),
    further(["--init={tasks}/.."], "there is no such folder"),
  ],
)
def test_a_refused_training_is_one_sentence_and_leaves_no_trace(world, tmp_path, words, message):
  folder, first, task = world
  before = sorted(folder.rglob("*"))
  given = [f"--tasks={task}", f"--init={first}", f"--output_dir={tmp_path / 'x'}"]
  more = [word.format(init=first, tasks=task) for word in words]
  code, _, errors = launch("train", *given, "--config.steps=40", *more)
  assert code == 1 and message in errors and errors.count("\n") == 1, errors
  assert list(tmp_path.iterdir()) == [] and sorted(folder.rglob("*")) == before


def test_a_disk_without_room_for_the_result_is_refused_before_the_training(world, tmp_path):
  _, first, task = world
  code = """import shutil, sys, types
shutil.disk_usage = lambda place: types.SimpleNamespace(free=1 << 20)
from merge_jax.__main__ import main
main()"""
  words = ["train", f"--tasks={task}", f"--init={first}", f"--output_dir={tmp_path / 'x'}"]
  done = subprocess.run(
    [sys.executable, "-c", code, *words], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE
  )
  assert done.returncode == 1 and b"the disk has 1.0 MiB free" in done.stderr, done
  assert list(tmp_path.iterdir()) == []


def test_the_result_keeps_what_lies_beside_the_first_checkpoint(world, tmp_path):
  """The end-of-text token that the generation config alone names is trained on, and found again."""
  _, first, task = world
  config = json.loads((first / "config.json").read_text()) | {"eos_token_id": None}
  other = tmp_path / "first"
  other.mkdir()
  for file in first.iterdir():
    (other / file.name).write_bytes(file.read_bytes())
  (other / "config.json").write_text(json.dumps(config))
  (other / "chat_template.jinja").write_text("{{ messages }}")
  code, _, errors = launch(
    "train", f"--tasks={task}", f"--init={other}", f"--output_dir={tmp_path / 'x'}", "--config.steps=21",
    "--config.batch_size=2",
  )  # fmt: skip
  assert code == 0, errors
  assert evals.Tokens.from_folder(tmp_path / "x").eos == 1
  assert (tmp_path / "x" / "chat_template.jinja").read_text() == "{{ messages }}"
  about = json.loads((tmp_path / "x" / "training.json").read_text())
  assert about["steps"] == 21 and 0 < about["tokens"] < 21 * 2 * 16
  assert set(checkpoints.open(tmp_path / "x").specs) == set(checkpoints.open(first).specs)


QUICK = """
from ml_collections import config_dict
from configs import quickstart

def get_config():
  c = quickstart.get_config()
  short = {"mixture": {"sort": 1.0}, "steps": 21, "learning_rate": 1e-3, "batch_size": 2}
  c.tasks, c.train_examples, c.task_examples = ("sort", "reverse"), 40, 40
  c.base = config_dict.ConfigDict({"learn": short})
  c.experts = config_dict.ConfigDict({"a": short, "b": short})
  c.recycle.search.budget = 8
  c.recycle.evals = config_dict.ConfigDict({"max_shapes": 1})
  return c
"""


@pytest.mark.thorough
def test_a_killed_quickstart_continues_and_its_pool_holds_checkpoints_alone(tmp_path):
  config, output = tmp_path / "quick.py", tmp_path / "run"
  config.write_text(
    QUICK.replace("from configs", "from configs" if (ROOT / "configs").is_dir() else "from merge_jax.configs")
  )
  words = [f"--config={config}", f"--output_dir={output}"]
  process = start("quickstart", *words)
  deadline = time.monotonic() + 120
  while not (output / "pool" / "base").exists():
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.01)
  process.kill()
  process.communicate(timeout=60)
  code, out, errors = launch("quickstart", *words)
  assert code == 0 and "b: loss" in out and "base: loss" not in out, errors
  assert sorted(path.name for path in (output / "pool").iterdir()) == ["a", "b", "base"]
  assert {len(checkpoints.open(path).specs) for path in (output / "pool").iterdir()} == {20}
  code, out, _ = launch("quickstart", *words)
  assert code == 0 and "finished before" in out
  code, _, errors = launch("quickstart", *words, "--config.seed=1")
  assert code == 1 and "a quickstart of another config" in errors
  (output / "pool" / "mine.txt").write_text("mine")
  code, _, errors = launch("quickstart", *words, "--config.seed=-1", "--overwrite")
  assert code == 1 and "config: seed is -1" in errors and (output / "pool" / "base").is_dir()


@pytest.mark.parametrize("mesh", ["fsdp:8", "data:2,fsdp:2,tensor:2"])
def test_a_mesh_trains_the_same_model_and_continues(tmp_path, mesh):
  """Losses equal but for last digits; a state is read back to where it lay."""
  model, data = models.build(pools.CONFIG | {"num_hidden_layers": 1}), make_corpus()
  recipe = Recipe(steps=24, learning_rate=1e-3, batch_size=8, warmup=2, mixture={"short": 1.0})
  made = sharding.make_mesh(mesh)
  placed = jax.jit(model.init, out_shardings=sharding.shardings(model.specs, made))(jax.random.key(0))
  whole = train(model.apply, begin(model.init(jax.random.key(0)), recipe), data, recipe)
  moments = jax.tree.leaves(begin(placed, recipe, made).optimizer)
  assert {x.sharding for x in moments if x.ndim > 1} == {x.sharding for x in placed.values() if x.ndim > 1}
  given = dict(params=placed, data=data, recipe=recipe, folder=tmp_path, mesh=made)
  with pytest.raises(Stopped):
    continued(model.apply, **given, stop=lambda: True)
  again = continued(model.apply, **given)
  np.testing.assert_allclose(again.losses, whole.losses, rtol=1e-4)
  for name, value in again.params.items():
    assert value.sharding == placed[name].sharding
    np.testing.assert_allclose(value, whole.params[name], atol=1e-4)
