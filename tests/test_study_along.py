"""Merges along a run of constant rate against real decays: what is trained, merged, chosen and reported."""

import json

import jax
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import checkpoints, evals, models, sharding
from merge_jax.recycle.settings import Evals
from merge_jax.study.judge import Judge
from merge_jax.study.trajectory import compare as along
from merge_jax.study.trajectory import run as along_run
from merge_jax.training import Stopped, begin, corpus, pool, puzzles, train
from tests import test_training
from tests.pools import TINY
from tests.test_training import apply

OPTIONS = {
  "recipe": {"mixture": {"up": 1.0, "down": 1.0}, "learning_rate": 3e-3, "warmup": 10, "batch_size": 8},
  "every": 20, "points": [60], "decay_steps": 40, "decays": ["linear", "minus_sqrt"], "windows": [2, 4],
  "schedules": ["uniform", "ema", "cosine"],
}  # fmt: skip
TOKENS = evals.Tokens(puzzles.tokenizer(), 1)
params, standard_promotion = test_training.params, test_training.standard_promotion


def read(**changes):
  return along_run.read(OPTIONS | changes)


def tasks(seed, names, count):
  """The letter after, or before, or three on."""
  generator = np.random.default_rng(seed)
  letters = "abcdefgh"

  def example(name):
    start, way = int(generator.integers(8)), {"up": 1, "down": -1}.get(name, 3)
    noise = "".join(generator.choice(list(letters), 3))
    return evals.Example(f"{name}{noise}{letters[start]}=", (letters[(start + way) % 8],))

  return [evals.Task(name, "loss", tuple(example(name) for _ in range(count))) for name in names]


@pytest.fixture(scope="module")
def data():
  return corpus(tasks(0, ["up", "down"], 50), TOKENS)


def equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"every": 0}, "every"),
    ({"points": [50]}, "50 is not a multiple of every"),
    ({"decay_steps": 50}, "along.decay_steps: 50"),
    ({"points": [80, 60]}, "increasing"),
    ({"points": []}, "points"),
    ({"windows": [1]}, "windows"),
    ({"decays": ["step"]}, "step"),
    ({"decays": ["linear", "linear"]}, "along.decays is .*expected different shapes"),
    ({"recipe": OPTIONS["recipe"] | {"dpo_beta": 0.1}}, "along.recipe.dpo_beta is set"),
    ({"recipe": OPTIONS["recipe"] | {"steps": 10}}, "along.recipe.steps is set"),
    ({"recipe": OPTIONS["recipe"] | {"warmup": 70}}, "within the warm-up"),
    ({"recipe": OPTIONS["recipe"] | {"learning_rat": 1.0}}, "learning_rate"),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    read(**changes)


def test_merges_end_where_decays_begin_and_end():
  options = read()
  found = along.candidates(options)
  names = list(along_run.names(options))
  assert names[:2] == ["step-000000020", "step-000000040"] and len(names) == 5 + 2
  for model in found:
    weights = dict(zip(names, model.weights, strict=True))
    assert np.isclose(sum(weights.values()), 1)
    used = [name for name, weight in weights.items() if weight]
    if model.kind == along.CONSTANT:
      assert used == [along_run.at(model.step)]
    elif model.kind.startswith(along.DECAY):
      assert used == [along_run.decayed(60, model.kind.split(":")[1], 40)] and model.step == 100
    else:
      window = int(model.kind.split(":")[2])
      steps = [model.step - 20 * i for i in range(window)][::-1]
      assert used == [along_run.at(step) for step in steps] and model.step in (60, 100)
  at_end = {m.kind: [w for w in m.weights if w] for m in found if m.step == 100}
  assert at_end["merge:from_linear:3"] == pytest.approx([0.25, 0.5, 0.25])  # mean rates ¾ and ¼
  assert len(at_end["merge:from_minus_sqrt:3"]) == 3 and "merge:uniform:4" in at_end
  assert not any(m.kind.endswith(":4") for m in found if m.step == 60)  # only three are there


def load(folder, name):
  return checkpoints.open(folder / name).load()


def test_checkpoints_and_decays_are_those_of_whole_runs(params, data, tmp_path):
  options = read()
  kept = along_run.trained(apply, params, data, options, tmp_path)
  constant = options.constant()
  equal(load(kept, along_run.at(100)), train(apply, begin(params, constant), data, constant).params)
  recipe = options.decayed(60, "minus_sqrt")
  assert recipe.steps == 100
  whole = train(apply, begin(params, recipe), data, recipe).params
  equal(load(kept, along_run.decayed(60, "minus_sqrt", 40)), whole)
  with pytest.raises(AssertionError):  # and it is no other one
    equal(load(kept, along_run.decayed(60, "linear", 40)), whole)


def test_an_interrupted_run_continues_bit_for_bit(params, data, tmp_path, monkeypatch):
  options, made, write = read(), [], along_run.saving.write

  def interrupted(*args):
    write(*args)
    made.append(args)
    if len(made) == 5:
      raise KeyboardInterrupt

  whole = along_run.trained(apply, params, data, options, tmp_path / "whole")
  monkeypatch.setattr(along_run.saving, "write", interrupted)
  for most in (1, 2, 7):  # stopped after each, and in the middle of the decays
    with pytest.raises((Stopped, KeyboardInterrupt)):
      along_run.trained(
        apply, params, data, options, tmp_path / "parts", stop=lambda most=most: len(made) >= most
      )
  kept = along_run.trained(apply, params, data, options, tmp_path / "parts")
  for name in along_run.names(options):
    equal(load(whole, name), load(kept, name))
  assert sorted(p.name for p in kept.iterdir()) == sorted(along_run.names(options))  # no states any more

  def never(*_):
    raise AssertionError("trained again")

  along_run.trained(never, params, data, options, tmp_path / "parts")
  other = {"recipe": OPTIONS["recipe"] | {"seed": 1}}
  with pytest.raises(AssertionError, match="trained again"):
    along_run.trained(never, params, data, read(**other), tmp_path / "parts")


@pytest.mark.parametrize("changed", [{"every": 10}, {"points": [20, 60]}])
def test_a_run_that_goes_on_with_other_settings_keeps_what_these_ask_for(params, data, tmp_path, changed):
  calls = iter(range(100))
  with pytest.raises(Stopped):
    along_run.trained(apply, params, data, read(), tmp_path, stop=lambda: next(calls) == 2)
  kept = along_run.trained(apply, params, data, read(**changed), tmp_path)
  assert all((kept / name).is_dir() for name in along_run.names(read(**changed)))


def test_results_are_scores_of_merges_chosen_on_validation(data, tmp_path):
  model = models.build(TINY)
  init = model.init(jax.random.key(0))
  pool.save(tmp_path / "base", init, TINY, puzzles.tokenizer().to_str(), {})
  splits = {"validation": tasks(1, ["up", "down"], 12), "test": tasks(2, ["up", "down", "skip"], 12)}
  judge = Judge([tmp_path / "base"], splits, Evals(max_shapes=1), sharding.make_mesh("fsdp:1"))
  options = read(decays=["linear"])
  with pytest.raises(ValueError, match="no validation examples of the held-in task 'skip'"):
    along.along(model.apply, init, data, judge, options, ["skip"], tmp_path)
  result = along.along(model.apply, init, data, judge, options, ["up", "down"], tmp_path)
  kept = along_run.trained(model.apply, init, data, options, tmp_path)
  result = json.loads(json.dumps(result, allow_nan=False))
  scored = {(row["step"], row["kind"], row["split"]): row["value"] for row in result["points"]}
  assert len(scored) == len(result["points"]) == 3 * len(along.candidates(options))
  assert {split for *_, split in scored} == {"validation", "test", "heldout"}
  weights = {along_run.at(step): 0.25 for step in (40, 60, 80, 100)}
  merged = mj.merge(mj.linear(), [load(kept, name) for name in weights], list(weights.values()))
  test = judge.suite.scorers()["test"]
  scores = test.read(jax.jit(test.function)(merged, test.batches)).scores()
  np.testing.assert_allclose(
    scored[100, "merge:uniform:4", "test"], -(scores["up"] + scores["down"]) / 2, rtol=1e-5
  )
  np.testing.assert_allclose(scored[100, "merge:uniform:4", "heldout"], -scores["skip"], rtol=1e-5)
  rows = {name: values for name, *values in result["best_of_windows"]}
  assert rows["decay:linear from 60 to 100"] == [
    scored[100, "decay:linear", split] for split in ("validation", "test", "heldout")
  ]
  for step in (60, 100):
    for split, words in (("validation", "chosen on validation"), ("test", "optimum on test")):
      merges = {k: v for (s, k, which), v in scored.items() if (s, which) == (step, split) and "merge" in k}
      best = max(merges, key=merges.get)
      (name,) = (name for name in rows if name.startswith(f"{best} at {step}") and words in name)
      assert rows[name][("validation", "test").index(split)] == merges[best]
  for gain in result["gains"]:
    of = scored[gain["step"], gain["merge"], gain["split"]] - scored[100, "decay:linear", gain["split"]]
    np.testing.assert_allclose(gain["gain"], of, rtol=1e-6)
    assert gain["stderr"] > 0
  assert {(gain["tokens"], gain["step"]) for gain in result["gains"]} == {("equal", 100), ("fewer", 60)}
