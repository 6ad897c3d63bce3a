"""Weights by gradients: known optima, objectives from their formulas, one compilation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import merge_jax as mj
from merge_jax import evals, models, tuning
from merge_jax.evals import branches
from merge_jax.training import puzzles
from tests import pools

TOKENS = evals.Tokens(puzzles.tokenizer(), 1)
SIZE = 97
TASK = evals.Task("t", "loss", tuple(evals.Example(f"copy {w}=", (w,)) for w in ("ab", "cde", "f", "gh")))
ROWS = tuning.rows(evals.pack(evals.encode([TASK], TOKENS), max_shapes=1, batch_tokens=30))


def table(params, tokens, positions):
  """A model whose next token depends on the last one alone."""
  return params["table.w"][jnp.take_along_axis(tokens, positions, axis=1)] + params["bias"][None, None, :]


def tree(seed):
  generator = np.random.default_rng(seed)
  return {
    "table.w": jnp.asarray(generator.normal(size=(SIZE, SIZE)), jnp.float32),
    "bias": jnp.asarray(generator.normal(size=SIZE), jnp.float32),
  }


BASE, EXPERTS = tree(0), [tree(1), tree(2)]
PREPARED = mj.prepare(mj.task_arithmetic(), EXPERTS, base=BASE)


def each_position(batch, params):
  """Log-probabilities and the target, one real position after the other."""
  for row in range(len(batch.tokens)):
    for asked in np.flatnonzero(batch.mask[row]):
      token = batch.tokens[row, batch.positions[row, asked]]
      logits = np.asarray(params["table.w"], np.float64)[token] + np.asarray(params["bias"], np.float64)
      yield logits - np.log(np.sum(np.exp(logits))), batch.targets[row, asked], (row, asked)


def test_objectives_are_their_formulas():
  params, (teacher,) = EXPERTS[0], EXPERTS[1:]
  assert len(ROWS) == 2  # of one shape, the second with a row less to fill
  for batch in ROWS:
    both = zip(each_position(batch, params), each_position(batch, teacher), strict=True)
    logs = [(given[0], wanted[0], given[1]) for given, wanted in both]
    expected = {
      "entropy": np.mean([-np.sum(np.exp(p) * p) for p, _, _ in logs]),
      "loss": np.mean([-p[target] for p, _, target in logs]),
      "matching": np.mean([np.sum(np.exp(q) * (q - p)) for p, q, _ in logs]),
    }
    (pair,) = tuning.matched(table, [teacher], [[batch]])
    found = {
      "entropy": tuning.entropy(table, params, batch),
      "loss": tuning.loss(table, params, batch),
      "matching": tuning.matching(table, params, pair),
    }
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
  total = tuning.summed(tuning.loss)(table, params, tuple(ROWS))
  np.testing.assert_allclose(total, sum(tuning.loss(table, params, batch) for batch in ROWS), rtol=1e-6)


def test_matching_finds_the_weights_of_a_merge():
  """The teacher is a merge itself, with other weights for the table than for the bias."""
  wanted = mj.Weights(jnp.array([[0.7, 0.2], [0.1, 0.6]]), (r"table\..*", ".*"))
  teacher = mj.combine(PREPARED, wanted)
  batches = tuning.matched(table, [teacher], [tuning.unlabelled(TOKENS, ["copy abc=", "pick de:"])])
  init = mj.Weights(jnp.full((2, 2), 0.3), wanted.patterns)
  weights, history = tuning.tune(
    PREPARED, table, batches, tuning.matching, init=init, optimizer=optax.adam(2e-2), steps=400
  )
  assert weights.patterns == wanted.patterns and history.shape == (400,)
  assert history[-1] < 1e-5 < 1e-2 < history[0]
  np.testing.assert_allclose(weights.values, wanted.values, atol=0.02)


@pytest.mark.parametrize("objective", [tuning.entropy, tuning.loss])
def test_the_objective_falls_within_bounds_in_one_compilation(objective):
  traces = []

  def counted(apply, params, batch):
    traces.append(1)
    return objective(apply, params, batch)

  seen = []
  weights, history = tuning.tune(
    PREPARED, table, ROWS[:1], counted, init=[0.5, 0.2], clip=(0.1, 0.6), optimizer=optax.sgd(0.1), steps=20,
    progress=lambda step, value: seen.append((step, value)),
  )  # fmt: skip
  assert len(traces) == 1 and history[-1] < history[0]
  assert weights.values.shape == (1, 2) and jnp.all((weights.values >= 0.1) & (weights.values <= 0.6))
  assert seen == list(enumerate(history, 1))
  first = tuning.tune(PREPARED, table, ROWS[:1], objective, init=[0.5, 0.2], clip=None, steps=1)[1][0]
  merged = mj.combine(PREPARED, [0.5, 0.2])
  np.testing.assert_allclose([history[0], first], objective(table, merged, ROWS[0]), rtol=1e-6)


@pytest.mark.parametrize("objective", [tuning.entropy, tuning.matching])
def test_masked_logits_have_no_part_in_values_and_gradients(objective):
  def masked(*args):
    logits = table(*args)
    return jnp.where(jnp.arange(logits.shape[-1]) < 90, logits, -jnp.inf)

  def short(*args):
    return table(*args)[..., :90]

  def measured(apply):
    batches = tuning.matched(apply, EXPERTS, [ROWS] * len(EXPERTS)) if objective is tuning.matching else ROWS
    of = lambda weights: objective(apply, mj.combine(PREPARED, weights), batches[0])  # noqa: E731
    return jax.value_and_grad(of)(jnp.array([0.3, 0.5]))

  chex.assert_trees_all_close(measured(masked), measured(short), rtol=1e-5)


def test_what_is_matched_is_as_many_as_the_experts():
  with pytest.raises(ValueError, match="lists of batches end after 1"):
    tuning.matched(table, EXPERTS, [ROWS])
  with pytest.raises(ValueError, match="expected a list of them"):
    tuning.unlabelled(TOKENS, "abc")


def test_a_decoder_is_tuned_layer_by_layer():
  model = models.build(pools.CONFIG | {"num_hidden_layers": 1})
  base = model.init(jax.random.key(0))
  experts = [
    {name: value + 0.1 * jax.random.normal(jax.random.key(i), value.shape) for name, value in base.items()}
    for i in (1, 2)
  ]
  texts = ("copy abc=", "pick dcb:")
  prompts = [tuning.unlabelled(TOKENS, [text], last=True) for text in texts]
  for (one,), text in zip(prompts, texts, strict=True):
    assert one.positions.tolist() == [[len(TOKENS.prompts([text])[0]) - 1]]
  batches = tuning.matched(model.apply, experts, prompts)
  init = tuning.per_layer(base, [0.3, 0.3])
  names = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")
  assert [init.index(name) for name in names] == [0, 1]
  prepared = mj.prepare(mj.task_arithmetic(), experts, base=base)
  weights, history = tuning.tune(
    prepared, model.apply, batches, tuning.matching, init=init, steps=12,
    optimizer=optax.adam(5e-2),
  )  # fmt: skip
  assert weights.values.shape == (2, 2) and all(history[10:] < history[:2])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float8_e4m3fn, jnp.bfloat16])
def test_narrow_models_have_the_gradients_of_wide_ones(dtype):
  def squares(apply, params, batch):  # a gradient of 1e-9 for each parameter, below the least float16
    return jnp.mean((params["w"].astype(jnp.float32) - batch) ** 2) * 1e-4

  def found(dtype):
    trees = [jax.random.normal(jax.random.key(i), (256, 256)).astype(jnp.float8_e4m3fn) for i in range(4)]
    (base, *experts), target = [{"w": tree.astype(dtype)} for tree in trees[:3]], trees[3]
    prepared = mj.prepare(mj.task_arithmetic(), experts, base=base)
    options = dict(steps=8, optimizer=optax.adam(0.01))
    return tuning.tune(prepared, None, [target.astype(jnp.float32)], squares, **options)[0].values

  chex.assert_trees_all_close(found(dtype), found(jnp.float32), rtol=2e-3)


def test_first_weights_may_be_by_name():
  prepared = mj.prepare(mj.task_arithmetic(), dict(zip(("z", "a"), EXPERTS, strict=True)), base=BASE)
  weights, _ = tuning.tune(prepared, table, ROWS, tuning.loss, init={"a": 0.1, "z": 0.4}, steps=1)
  chex.assert_trees_all_close(weights.values, jnp.array([[0.4, 0.1]]), atol=2e-3)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    (dict(steps=0), ValueError, "0 steps and 2 batches"),
    (dict(batches=[]), ValueError, "500 steps and 0 batches"),
    (dict(steps=2.5), ValueError, "2.5 steps"),
    (dict(clip=(1.0, 0.0)), ValueError, "the lower bound first"),
    (dict(clip=1.0), ValueError, "clip=1.0; expected two numbers, or None"),
    (dict(clip=(0.0, None)), ValueError, "expected two numbers"),
    (dict(optimizer=0.1), ValueError, "optimizer is 0.1; expected one of optax"),
    (dict(batches=np.ones(3)), ValueError, "batches are ndarray; expected a list"),
    (dict(init={"a": 0.1, "b": 0.2}), ValueError, r"the models are \[0, 1\]"),
    (dict(objective=tuning.matching), ValueError, "make batches by `matched`"),
    (dict(batches=tuning.matched(table, EXPERTS[:1], [ROWS])), ValueError, "expected those of `rows`"),
    (dict(init=2.0), ValueError, r"not within clip=\(0.0, 1.0\)"),
    (dict(init=[0.1, 0.2, 0.3]), ValueError, "do not fit 2 models"),
    (dict(objective=lambda a, p, b: jnp.sum(p["bias"]) * jnp.nan), RuntimeError, "step 1 is nan"),
  ],
)
def test_errors(options, error, message):
  options = {"batches": ROWS, "objective": tuning.loss} | options
  with pytest.raises(error, match=message):
    tuning.tune(PREPARED, table, **options)


def test_rows_of_several_choices_are_refused():
  examples = tuple(evals.Example(f"pick {x}:", ("a", "b", "c")) for x in "def")
  rows = evals.encode([evals.Task("t", "choice_accuracy", examples)], TOKENS, append_eos=False)
  assert [len(one.tokens) for one in tuning.rows(evals.pack(rows, max_shapes=1))] == [9]
  packed = evals.pack(rows, groups=branches.groups(rows, branches=True))
  with pytest.raises(ValueError, match="hold several choices"):
    tuning.rows(packed)


def test_a_prompt_without_tokens_and_a_rule_without_weights_are_errors():
  with pytest.raises(ValueError, match="Prompt 2 of 2 has no tokens"):
    tuning.unlabelled(TOKENS, ["a", ""])
  prepared = mj.prepare(mj.uniform(), EXPERTS)
  with pytest.raises(ValueError, match="takes no weights"):
    tuning.tune(prepared, table, ROWS, tuning.loss)
