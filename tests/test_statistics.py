"""Fisher information and Gram matrices, against single examples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import evals, models
from merge_jax.evals import statistics
from merge_jax.evals.statistics_file import About
from merge_jax.operators.contrib.fisher import fisher
from merge_jax.operators.contrib.regmean import regmean
from merge_jax.training import puzzles
from tests import pools

CONFIG = pools.CONFIG | {"num_hidden_layers": 1, "tie_word_embeddings": False}
MODEL = models.build(CONFIG)
PARAMS = jax.tree.map(lambda x: 4 * x, MODEL.init(jax.random.key(3)))
TOKENS = evals.Tokens(puzzles.tokenizer(), 1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  loaded = [evals.load(str(path)) for path in pools.make_tasks(tmp_path_factory.mktemp("tasks"), 5)]
  copy = loaded[0]
  longer = copy.examples[0]._replace(prompt=copy.examples[0].prompt * 2)
  return [dataclasses.replace(copy, examples=(*copy.examples, longer)), loaded[1]]


@jax.jit
def log_likelihood_and_gradient(params, tokens, start, end):
  return jax.value_and_grad(log_likelihood)(params, tokens, start, end)


def log_likelihood(params, tokens, start, end):
  logits = jax.nn.log_softmax(MODEL.apply(params, tokens[None])[0])
  taken = jnp.take_along_axis(logits[:-1], tokens[1:, None], axis=1)[:, 0]
  at = jnp.arange(1, tokens.size)
  return jnp.sum(jnp.where((at >= start) & (at < end), taken, 0.0))


@functools.cache
def row(prompt, target):
  (first,), (second,) = TOKENS.prompts([prompt]), TOKENS.targets([target])
  end = len(first + second)
  tokens = jnp.array(first + second + [7] * (40 - end))
  value, slope = log_likelihood_and_gradient(PARAMS, tokens, len(first), end)
  return float(value), {name: np.asarray(x, np.float64) for name, x in slope.items()}


def of_example(example, predictions):
  """(∂ log p(y|x))² in expectation over choices, or of the right target."""
  rows = [row(example.prompt, target) for target in example.targets]
  p = np.exp([value for value, _ in rows])
  p /= p.sum()
  result = {}
  for name in PARAMS:
    mean = sum(q * slope[name] for q, (_, slope) in zip(p, rows, strict=True))
    squares = [(slope[name] - (mean if len(rows) > 1 else 0)) ** 2 for _, slope in rows]
    shares = p if predictions == "model" else np.eye(len(rows))[example.answer]
    result[name] = sum(q * square for q, square in zip(shares, squares, strict=True))
  return result


@pytest.mark.parametrize(("which", "predictions"), [([1], "model"), ([0, 1], "data")])
def test_fisher_is_the_mean_of_single_examples(tasks, which, predictions):
  chosen = [tasks[i] for i in which]
  data = statistics.batches(chosen, TOKENS, batch_size=4)
  done = []
  found = statistics.fisher(MODEL.apply, PARAMS, data, predictions=predictions, progress=done.append)
  examples = [example for task in chosen for example in task.examples]
  each = [of_example(example, predictions) for example in examples]
  assert done[-1] == len(examples)
  for name, value in found.items():
    expected = sum(one[name] for one in each) / len(examples)
    np.testing.assert_allclose(value, expected, rtol=2e-3, atol=1e-5 * expected.max(), err_msg=name)


def test_drawn_predictions_give_the_fisher_information():
  """Of logits that do not depend on the prompt, F = p (1 - p) for each of two positions."""

  def apply(params, tokens, positions):
    return jnp.broadcast_to(params["w"][None, None, :], (*positions.shape, params["w"].size))

  params = {"w": jnp.array([0.0, 1.0, 2.0, -1.0])}
  task = evals.Task("t", "loss", tuple(evals.Example(f"a{i}", ("b",)) for i in range(400)))
  data = statistics.batches([task], TOKENS, batch_size=100)
  found = statistics.fisher(apply, params, data, key=jax.random.key(1))["w"]
  again = statistics.fisher(apply, params, data[::-1], key=jax.random.key(1))["w"]
  p = np.asarray(jax.nn.softmax(params["w"]))
  np.testing.assert_allclose(found, 2 * p * (1 - p), rtol=0.25)
  np.testing.assert_allclose(found, again, rtol=1e-5)  # draws go by example


def test_gram_matrices_are_those_of_real_tokens(tasks):
  data = statistics.batches(tasks, TOKENS, batch_size=4)
  found, owners = statistics.gram(MODEL.inputs, PARAMS, data)
  block = "model.layers.0.self_attn."
  assert owners[block + "k_proj.weight"] == owners[block + "v_proj.weight"] == block + "q_proj.weight"
  assert owners.keys() == {n for n, x in MODEL.specs.items() if x.ndim == 2} - {"model.embed_tokens.weight"}
  rows = []
  for example in (example for task in tasks for example in task.examples):
    (first,), (second,) = TOKENS.prompts([example.prompt]), TOKENS.targets([example.targets[example.answer]])
    rows.append((first + second)[:-1])
  length = max(map(len, rows))
  padded = np.array([row + [5] * (length - len(row)) for row in rows])
  mask = np.arange(length) < np.array([len(row) for row in rows])[:, None]
  inputs = jax.jit(MODEL.inputs)(PARAMS, jnp.asarray(padded))
  for name, x in inputs.items():
    x = np.asarray(x, np.float64)[mask]
    expected = x.T @ x / len(x)
    np.testing.assert_allclose(
      found[owners[name]], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max(), err_msg=name
    )


def test_padding_stretches_no_dynamic_rotations():
  """The longest row has 40 tokens, the model 48: padding to 64 would change its rotations."""
  model = models.build(
    CONFIG | {"rope_scaling": {"type": "dynamic", "factor": 8.0}, "max_position_embeddings": 48}
  )
  task = evals.tasks.Task("a", "loss", (evals.tasks.Example("a" * 30, ("b" * 10,)),))
  found, owners = statistics.gram(model.inputs, PARAMS, statistics.batches([task], TOKENS, max_length=48))
  (row,) = evals.batching.encode([task], TOKENS).ids
  for name, x in model.inputs(PARAMS, jnp.asarray(row[None, :-1])).items():
    x = np.asarray(x[0], np.float64)
    np.testing.assert_allclose(found[owners[name]], x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_files_give_back_what_merges_need(tasks, tmp_path):
  experts = [PARAMS, jax.tree.map(lambda x: 1.1 * x, PARAMS)]
  data = statistics.batches(tasks[:1], TOKENS, batch_size=4)
  values, owners = statistics.gram(MODEL.inputs, PARAMS, data)
  shared = {name: owner for name, owner in owners.items() if name != owner}
  about = About(kind="gram", tensors=list(PARAMS), shared=shared, made={"seed": 0})
  statistics.save(tmp_path / "gram.safetensors", values, about)
  loaded = statistics.load(tmp_path / "gram.safetensors")
  assert loaded.about == about and loaded["model.norm.weight"] is None
  name = "model.layers.0.mlp.up_proj.weight"
  np.testing.assert_array_equal(loaded[name], values[shared[name]])
  merged = mj.merge(regmean(), experts, statistics=[loaded] * 2)
  for name, value in merged.items():  # equal Gram matrices: the mean
    np.testing.assert_allclose(value, 1.05 * PARAMS[name], rtol=1e-4, atol=1e-5)
  squares = {name: jnp.ones_like(value) for name, value in PARAMS.items()}
  statistics.save(tmp_path / "f.safetensors", squares, About(kind="fisher", tensors=list(PARAMS)))
  merged = mj.merge(fisher(), experts, statistics=[statistics.load(tmp_path / "f.safetensors")] * 2)
  np.testing.assert_allclose(merged["lm_head.weight"], 1.05 * PARAMS["lm_head.weight"], rtol=1e-5)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["f.safetensors", "gram.safetensors"]


def test_files_keep_shapes(tmp_path):
  arrays = {"scale": np.float32(2.0), "rows": np.arange(6.0).reshape(2, 3).T}
  statistics.save(tmp_path / "f.safetensors", arrays, About(kind="fisher", tensors=list(arrays)))
  loaded = statistics.load(tmp_path / "f.safetensors")
  for name, value in arrays.items():
    np.testing.assert_array_equal(loaded[name], value, strict=True)


def test_a_sample_depends_on_prompts_and_seed(tasks):
  task = tasks[1]
  chosen = statistics.sample(task, 3).examples
  turned = dataclasses.replace(task, examples=task.examples[::-1])
  assert len(chosen) == 3 and chosen == statistics.sample(turned, 3).examples
  assert statistics.sample(task, 0) is task and statistics.sample(task, 99) is task
  assert any(statistics.sample(task, 3, seed).examples != chosen for seed in range(1, 5))


def test_errors(tasks, tmp_path):
  with pytest.raises(ValueError, match="batch_size is 0"):
    statistics.batches(tasks, TOKENS, batch_size=0)
  with pytest.raises(ValueError, match="no examples to measure"):
    statistics.batches([], TOKENS)
  data = statistics.batches(tasks[1:], TOKENS, batch_size=4)
  broken = PARAMS | {"lm_head.weight": PARAMS["lm_head.weight"].at[0, 0].set(jnp.nan)}
  with pytest.raises(ValueError, match=r"Tensor 'lm_head.weight' of the model holds NaN"):
    statistics.fisher(MODEL.apply, broken, data)
  large, seen = {name: 1e25 * x if "norm" in name else x for name, x in PARAMS.items()}, []
  for measure, what in (
    (lambda: statistics.fisher(MODEL.apply, large, data, progress=seen.append), "Fisher information"),
    (lambda: statistics.gram(MODEL.inputs, large, data, progress=seen.append), "Gram matrix"),
  ):
    with pytest.raises(ValueError, match=f"{what} of tensor .* is not finite, although the weights are"):
      measure()
  assert not seen  # the first batch tells
  with pytest.raises(ValueError, match="unknown predictions 'modle'; did you mean 'model'"):
    statistics.fisher(MODEL.apply, PARAMS, data, predictions="modle")
  with pytest.raises(FileNotFoundError, match="no such file"):
    statistics.load(tmp_path / "none.safetensors")
  (tmp_path / "text").write_text("text")
  with pytest.raises(ValueError, match="damaged, truncated or not safetensors"):
    statistics.load(tmp_path / "text")
  pools.make_pool(tmp_path / "pool", 0)
  with pytest.raises(ValueError, match="no file of statistics"):
    statistics.load(tmp_path / "pool" / "base" / "model.safetensors")
  lost = About(kind="gram", tensors=["a", "b"], shared={"b": "a"})
  statistics.save(tmp_path / "lost", {}, lost)
  with pytest.raises(ValueError, match="'a', which others share, is missing"):
    statistics.load(tmp_path / "lost")
  statistics.save(tmp_path / "named", {"a": np.zeros(2, np.float32)}, About(kind="fisher", tensors=["a"]))
  with pytest.raises(KeyError, match="unknown tensor 'aa'"):
    statistics.load(tmp_path / "named")["aa"]
