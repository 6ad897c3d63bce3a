"""Preferences: the loss, what a step does, states, and the job."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import checkpoints, evals
from merge_jax.training import Recipe, Stopped, begin, continued, corpus, loop, preference, puzzles, train
from tests import pools
from tests.test_launch import launch
from tests.test_training import LIMITS, SMALL, apply, equal, make_tasks, params, standard_promotion

__all__ = ["params", "standard_promotion"]  # fixtures

DPO = SMALL | {"mixture": {"choose": 1.0}, "dpo_beta": 0.5}


def make_pairs(longest=20):
  some = [task for task in make_tasks(longest) if task.name == "choose"]
  more = [evals.Example(f"pick {i}", (f"{i * i}", f"{i}xyz"), i % 2) for i in range(40)]
  tasks = [*some, evals.Task("more", "choice_accuracy", tuple(more))]
  return tasks, corpus(tasks, evals.Tokens(puzzles.tokenizer(), 1), **LIMITS, paired=True)


def reference_loss(params, first, bucket, beta):
  """In float64, from rows one by one."""

  def likelihood(own, row):
    total = 0.0
    for position, target, mask in zip(*(x[row] for x in bucket[1:4]), strict=True):
      hidden = np.tanh(np.asarray(own["embed"], np.float64)[bucket.tokens[row][position]])
      logits = hidden @ np.asarray(own["head"], np.float64)
      total += mask * (logits[target] - np.log(np.exp(logits).sum()))
    return total

  margins = [
    (likelihood(params, i) - likelihood(first, i)) - (likelihood(params, i + 1) - likelihood(first, i + 1))
    for i in range(0, len(bucket.tokens), 2)
  ]
  return float(np.mean(np.log1p(np.exp(-beta * np.array(margins)))))


def test_pairs_are_the_right_answer_and_each_wrong_one():
  tasks, data = make_pairs()
  assert data.paired and data.counts.tolist() == [20, 40] and len(data.lengths) == 120

  def answer(row):
    ids = data.ids[data.starts[row] : data.starts[row] + data.lengths[row]]
    return puzzles.tokenizer().decode(list(ids[data.prompts[row] :]))

  example = tasks[0].examples[1]
  assert [answer(row) for row in (2, 3)] == [example.targets[1]] * 2
  assert [answer(row) for row in (62, 63)] == [example.targets[0], example.targets[2]]


def test_the_loss_is_that_of_the_paper(params):
  _, data = make_pairs()
  recipe = Recipe(**DPO | {"steps": 1, "warmup": 0})
  ((bucket, _),) = loop.batches(data, recipe, 0)
  bucket = jax.tree.map(lambda x: x[0], bucket)
  assert len(bucket.tokens) == 2 * recipe.batch_size
  moved = {name: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape) for name, x in params.items()}
  policy, before = (
    preference.log_likelihoods(apply(p, bucket.tokens, bucket.positions), bucket) for p in (moved, params)
  )
  value = float(jnp.mean(preference.losses(policy, before, 0.5)))
  assert value == pytest.approx(reference_loss(moved, params, bucket, 0.5), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_goes_down_the_slope_and_prefers_what_is_right(params, parts):
  _, data = make_pairs()
  recipe = Recipe(**DPO | {"steps": 1, "warmup": 0, "clip": 1e9, "accumulate": parts})
  ((bucket, _),) = loop.batches(data, recipe, 0)
  bucket = jax.tree.map(lambda x: x[0], bucket)
  trained = train(apply, begin(params, recipe), data, recipe)
  assert trained.losses[0] == pytest.approx(np.log(2), abs=1e-6)
  step, values = 1e-3, {}
  for at in np.random.default_rng(0).integers(0, 97 * 8, 40):
    row, column = divmod(int(at), 97)
    for sign in (1, -1):
      head = np.asarray(params["head"], np.float64)
      head[row, column] += sign * step
      values[sign] = reference_loss(params | {"head": head}, params, bucket, 0.5)
    slope = (values[1] - values[-1]) / (2 * step)
    if abs(slope) > 1e-4:
      moved = trained.params["head"][row, column] - params["head"][row, column]
      np.testing.assert_allclose(moved, -1e-3 * np.sign(slope), rtol=1e-2)
  longer = train(apply, begin(params, Recipe(**DPO)), data, Recipe(**DPO))
  assert longer.final_loss < 0.67
  assert all(np.array_equal(longer.frozen[name], params[name]) for name in params)


@pytest.mark.parametrize("longest", [20, 200])
def test_a_stopped_one_continues_bit_for_bit(params, tmp_path, longest):
  _, data = make_pairs(longest)
  recipe = Recipe(**DPO)
  whole = train(apply, begin(params, recipe), data, recipe)
  calls = iter(range(100))
  with pytest.raises(Stopped):
    continued(apply, params, data, recipe, tmp_path, stop=lambda: next(calls) == 0)
  assert list(tmp_path.glob("step-*"))
  assert equal(continued(apply, params, data, recipe, tmp_path), whole)


def test_what_does_not_go_together_is_refused(params):
  tasks, data = make_pairs()
  recipe = Recipe(**DPO)
  with pytest.raises(ValueError, match="Task 'short' has targets; preferences"):
    corpus(make_tasks(20), evals.Tokens(puzzles.tokenizer(), 1), **LIMITS, paired=True)
  with pytest.raises(ValueError, match="pairs, and dpo_beta is 0"):
    train(apply, begin(params, Recipe(**DPO | {"dpo_beta": 0.0})), data, Recipe(**DPO | {"dpo_beta": 0.0}))
  plain_data = corpus(tasks, evals.Tokens(puzzles.tokenizer(), 1), **LIMITS)
  with pytest.raises(ValueError, match="right answers alone, and dpo_beta is"):
    train(apply, begin(params, recipe), plain_data, recipe)


def test_the_job_prefers_the_right_choices(tmp_path):
  first = pools.make_pool(tmp_path / "pool", 1)[0]
  lines = [{"prompt": f"q{i}=", "choices": [str(i % 7), "ab", str(i)], "answer": 1} for i in range(12, 40)]
  quiz = tmp_path / "quiz.jsonl"
  quiz.write_text("".join(json.dumps(line) + "\n" for line in lines))
  words = [f"--tasks={quiz}", f"--init={first}", "--config.steps=40", "--config.batch_size=4"]
  code, _, errors = launch("train", *words, "--config.dpo_beta=0.2", f"--output_dir={tmp_path / 'a'}")
  assert code == 0, errors
  about = json.loads((tmp_path / "a" / "training.json").read_text())
  assert about["recipe"]["dpo_beta"] == 0.2 and about["final_loss"] < np.log(2)
  assert checkpoints.open(tmp_path / "a").specs.keys() == checkpoints.open(first).specs.keys()
