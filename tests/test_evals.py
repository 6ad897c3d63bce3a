"""Packing, scores and their errors, against plain one-by-one references."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import evals, models
from merge_jax.evals import batching, metrics, uncertainty
from merge_jax.training import puzzles
from tests import pools

MODEL = models.build(pools.CONFIG)
APPLY = jax.jit(MODEL.apply)
PARAMS = jax.tree.map(lambda x: 8 * x, MODEL.init(jax.random.key(3)))
TOKENS = evals.Tokens(puzzles.tokenizer(), 1)


@pytest.fixture
def loaded(tmp_path):
  return [evals.load(str(path)) for path in pools.make_tasks(tmp_path)]


@functools.cache
def nll(prompt, target, append_eos=True):
  """Sum of negative log-likelihoods, tokens and greedy match of one target, without any padding."""
  (first,), (second,) = TOKENS.prompts([prompt]), TOKENS.targets([target], append_eos)
  logits = APPLY(PARAMS, jnp.array([first + second]))[0]
  rows = np.asarray(jax.nn.log_softmax(logits))[len(first) - 1 : -1]
  picked = rows[np.arange(len(second)), second]
  return -picked.sum(), len(second), bool((rows.argmax(-1) == second).all())


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize(("max_shapes", "batch_tokens"), [(1, 10**6), (3, 10**6), (3, 200)])
@pytest.mark.parametrize("selects", [True, False])
def test_scores_are_those_of_single_examples(loaded, max_shapes, batch_tokens, append_eos, selects):
  copy, choose = loaded
  named = [
    copy,
    evals.Task("copy_loss", "loss", copy.examples),
    choose,
    evals.Task("normalized", "choice_accuracy_normalized", choose.examples),
    evals.Task("characters", "choice_accuracy_per_character", choose.examples),
    evals.Task("choose_loss", "loss", choose.examples),
  ]
  rows = evals.encode(named, TOKENS, append_eos=append_eos)
  batches = evals.pack(rows, max_shapes=max_shapes, batch_tokens=batch_tokens)
  assert len(batches.buckets) <= max_shapes
  apply = MODEL.apply if selects else lambda params, tokens: MODEL.apply(params, tokens)
  scorer = evals.make_scorer(apply, named, batches, selects=selects)
  examples = scorer.read(jax.jit(scorer.function)(PARAMS, scorer.batches))
  scores, losses = examples.scores(), examples.scores(loss=True)
  single = [nll(e.prompt, e.targets[0], append_eos) for e in copy.examples]
  assert scores["copy"] == np.mean([hit for _, _, hit in single])
  mean_loss = sum(x[0] for x in single) / sum(x[1] for x in single)
  np.testing.assert_allclose([scores["copy_loss"], losses["copy"]], mean_loss, rtol=1e-5)
  table = [[nll(e.prompt, t, append_eos) for t in e.targets] for e in choose.examples]
  answers = [e.answer for e in choose.examples]
  plain = [int(np.argmin([c[0] for c in row])) == a for row, a in zip(table, answers, strict=True)]
  normal = [int(np.argmin([c[0] / c[1] for c in row])) == a for row, a in zip(table, answers, strict=True)]
  assert scores["choose"] == np.mean(plain)
  assert scores["normalized"] == np.mean(normal)
  characters = [
    int(np.argmin([c[0] / len(t) for c, t in zip(row, e.targets, strict=True)])) == e.answer
    for row, e in zip(table, choose.examples, strict=True)
  ]
  assert scores["characters"] == np.mean(characters)
  right = [row[a] for row, a in zip(table, answers, strict=True)]
  expected = sum(x[0] for x in right) / sum(x[1] for x in right)
  np.testing.assert_allclose([losses["choose"], scores["choose_loss"]], expected, rtol=1e-5)


def test_a_large_vocabulary_bounds_the_positions_of_a_pass(loaded):
  rows = evals.encode(loaded, TOKENS)
  batches = evals.pack(rows, max_shapes=2, vocabulary=batching.LOGITS // 50)
  for bucket in batches.buckets:
    _, height, asked = bucket.positions.shape
    assert height == 1 or height * asked <= 50
  scorer = evals.make_scorer(MODEL.apply, loaded, batches)
  whole = evals.make_scorer(MODEL.apply, loaded, evals.pack(rows))
  a, b = (s.read(jax.jit(s.function)(PARAMS, s.batches)).values for s in (scorer, whole))
  np.testing.assert_allclose(a, b, rtol=1e-5)


def test_exact_match_is_greedy_decoding(loaded):
  """Trains nothing: targets are taken from the model's own greedy continuation, then spoiled."""
  (prompt,) = TOKENS.prompts(["copy abc="])
  ids = list(prompt)
  for _ in range(4):
    ids.append(int(APPLY(PARAMS, jnp.array([ids]))[0, -1].argmax()))
  continuation = TOKENS.tokenizer.decode(ids[len(prompt) :])
  examples = (evals.Example("copy abc=", (continuation,)), evals.Example("copy abc=", (continuation + "#",)))
  task = evals.Task("greedy", "exact_match", examples)
  scorer = evals.make_scorer(MODEL.apply, [task], evals.pack(evals.encode([task], TOKENS, append_eos=False)))
  values = scorer.read(jax.jit(scorer.function)(PARAMS, scorer.batches)).of(0)[0]
  after = int(APPLY(PARAMS, jnp.array([ids]))[0, -1].argmax())
  assert values.tolist() == [1.0, float(after == TOKENS.tokenizer.token_to_id("#"))]


def test_a_broken_model_scores_nan(loaded):
  broken = PARAMS | {"model.norm.weight": jnp.full(32, jnp.nan)}
  scorer = evals.make_scorer(MODEL.apply, loaded, evals.pack(evals.encode(loaded, TOKENS)))
  examples = scorer.read(jax.jit(scorer.function)(broken, scorer.batches))
  assert all(np.isnan(v) for v in (*examples.scores().values(), *examples.scores(True).values()))


def test_packing_is_optimal_and_tight():
  generator = np.random.default_rng(0)
  for _ in range(20):
    lengths = np.sort(generator.integers(1, 12, 9))
    for shapes in (1, 2, 3):
      ends = batching.cuts(lengths, np.zeros(9, int), shapes)
      cost = sum((b - a) * lengths[b - 1] for a, b in zip([0, *ends], ends, strict=False))
      best = min(
        sum((b - a) * lengths[b - 1] for a, b in zip((0, *cut, 9), (*cut, 9), strict=False) if b > a)
        for cut in np.ndindex(*(10,) * (shapes - 1)) if list(cut) == sorted(cut)
      )  # fmt: skip
      assert ends[-1] == 9 and len(ends) <= shapes and cost == best


def test_errors_are_those_of_the_mean():
  generator = np.random.default_rng(0)
  hits = (generator.random((2, 500)) < np.array([[0.3], [0.8]])).astype(float)
  ones = np.ones(500)
  values = np.stack([hits.reshape(-1), np.ones(1000), np.zeros(1000), np.ones(1000)])
  examples = evals.Examples(("a", "b"), (1.0, 1.0), (500, 500), values)
  errors = uncertainty.standard_errors(examples)
  exact = [np.sqrt(h.var() / 500) for h in hits]
  np.testing.assert_allclose([errors["a"], errors["b"]], exact, rtol=0.002)
  np.testing.assert_allclose(errors["average"], np.hypot(*exact) / 2, rtol=0.002)
  gain, error = uncertainty.paired_difference(examples, examples)
  assert gain == 0.0 and error == 0.0
  worse = values.copy()
  worse[0, :500] = ones * 0
  other = evals.Examples(examples.tasks, examples.signs, examples.counts, worse)
  gain, error = uncertainty.paired_difference(examples, other)
  np.testing.assert_allclose(gain, hits[0].mean() / 2)
  np.testing.assert_allclose(error, exact[0] / 2, rtol=0.002)


def test_losses_count_less_as_better():
  values = np.array([[2.0, 4.0], [1.0, 1.0], [2.0, 4.0], [1.0, 1.0]])
  low = evals.Examples(("a",), (-1.0,), (2,), values)
  high = evals.Examples(("a",), (-1.0,), (2,), values * 2)
  assert uncertainty.paired_difference(low, high)[0] == 0.0  # a ratio of sums
  high = evals.Examples(("a",), (-1.0,), (2,), values * np.array([[2.0], [1], [2], [1]]))
  assert uncertainty.paired_difference(low, high)[0] == 3.0


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("scale", [1.0, 0.0, np.nan, np.inf])
def test_what_is_undefined_is_nan_without_a_warning(count, scale):
  values = np.ones((4, count))
  values[0] = scale * np.arange(1, count + 1)
  values[1] = scale != 0.0
  examples = evals.Examples(("a",), (1.0,), (count,), values)
  (score,) = examples.scores().values()
  errors = uncertainty.standard_errors(examples)
  gain, error = uncertainty.paired_difference(examples, examples)
  defined = scale == 1.0 and count > 0
  assert np.isfinite([score, gain]).tolist() == [defined] * 2
  known = defined and count > 1
  assert np.isfinite([errors["a"], errors["average"], error]).tolist() == [known] * 3


def test_errors_are_the_same_from_a_journal():
  generator = np.random.default_rng(0)
  values = generator.random((2, 4, 30))
  values[0, 0, 3] = np.nan
  signs = {"b": -1.0, "a": 1.0, "c": 1.0}
  live = [evals.Examples(tuple(signs), tuple(signs.values()), (10, 12, 8), v, smooth=v[3]) for v in values]
  stored = [json.loads(json.dumps(e.to_plain(), allow_nan=False, sort_keys=True)) for e in live]
  read = [evals.Examples.from_plain(plain, signs) for plain in stored]
  np.testing.assert_equal([e.scores() for e in read], [e.scores() for e in live])
  np.testing.assert_equal([e.smoothed().scores() for e in read], [e.smoothed().scores() for e in live])
  some = np.arange(30) % 3 > 0
  np.testing.assert_equal(live[1].only(some).smoothed().scores(), live[1].smoothed().only(some).scores())
  np.testing.assert_equal(*[[uncertainty.standard_errors(e) for e in x] for x in (read, live)])
  np.testing.assert_equal(uncertainty.paired_difference(*read), uncertainty.paired_difference(*live))
  assert np.isnan(list(read[0].scores(loss=True).values())).all()


@pytest.mark.parametrize(
  ("plain", "message"),
  [
    ([], "^j:3: the content is"),
    ({}, r"^j:3: examples of the tasks \[\]; expected \['a'\]"),
    ({"a": {"sums": [1.0], "counts": []}}, "^j:3: task 'a' has 1 sums and 0 counts"),
    ({"a": {"sums": ["x"], "counts": [1]}}, "^j:3: .* is .*'x'"),
    ({"a": {"sums": [1.0], "counts": [1.0], "smooth": []}}, "^j:3: task 'a' has 1 sums and 0 smooth"),
  ],
)
def test_stored_examples_are_typed(plain, message):
  with pytest.raises(ValueError, match=message):
    evals.Examples.from_plain(plain, {"a": 1.0}, "j:3")


@pytest.mark.parametrize("metric", evals.METRICS.values(), ids=lambda metric: metric.name)
def test_every_metric_is_a_whole_row(metric):
  """Two examples of one model that is right in the first and broken in the second."""
  given = metrics.Likelihoods(
    losses=jnp.array([[2.0, 3.0], [jnp.nan, 1.0]]), tokens=jnp.array([[1.0, 1.0], [1.0, 1.0]]),
    exact=jnp.array([[1.0, 0.0], [jnp.nan, 0.0]]), exists=jnp.array([[True, True], [True, False]]),
    right=jnp.array([[0], [0]]), sizes=jnp.array([[1.0, 1.0], [1.0, 1.0]]),
  )  # fmt: skip
  top, bottom = jax.jit(metric.compute)(given)
  assert top.shape == bottom.shape == (2,) and top.dtype == jnp.float32
  assert np.isfinite(top[0]) and np.isnan(top[1]) and (bottom == 1).all()
  assert metric.sign in (1.0, -1.0) and metric.needs in ("targets", "choices", "either")
  assert float(format(0.25, metric.format)) == 0.25 and "\n" not in metric.description
  assert evals.METRICS[metric.name] is metrics.named(metric.name) is metric


def test_a_metric_is_added_by_one_row(monkeypatch, loaded):
  def compute(given):
    tokens = given.of_right(given.tokens)
    return tokens, jnp.ones_like(tokens)

  def even(params, tokens, asked):
    return jnp.zeros((*asked.shape, 97))

  row = evals.Metric("length", "tokens of the target", -1.0, "either", ".1f", compute)
  monkeypatch.setitem(metrics.METRICS, "length", row)
  task = evals.Task("lengths", "length", loaded[1].examples)
  scorer = evals.make_scorer(even, [task], evals.pack(evals.encode([task], TOKENS)))
  examples = scorer.read(jax.jit(scorer.function)(None, scorer.batches))
  assert examples.signs == (-1.0,)
  expected = np.mean([len(e.targets[e.answer]) + 1 for e in task.examples])
  assert examples.scores()["lengths"] == expected


@pytest.mark.parametrize("multiple", [1, 8, 64])
@pytest.mark.parametrize("batch_tokens", [50, 1000, 10**6])
def test_rows_divided_over_many_devices_are_not_padded_with_passes(multiple, batch_tokens):
  rows = batching.Rows([np.zeros(101, np.int32)] * 100, [90] * 100)
  (bucket,) = evals.pack(rows, batch_tokens=batch_tokens, multiple=multiple).buckets
  chunks, height, _ = bucket.tokens.shape
  assert height % multiple == 0 and height - multiple < max(1, batch_tokens // 100)
  assert (chunks - 1) * height < 100 <= chunks * height


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_shapes": 0}, "^max_shapes is 0; expected 1 or more"),
    ({"batch_tokens": -5}, "^batch_tokens is -5; expected 1 or more"),
    ({"vocabulary": 0}, "^vocabulary is 0; expected 1 or more"),
  ],
)
def test_shapes_are_positive(loaded, options, message):
  rows = evals.encode(loaded, TOKENS)
  with pytest.raises(ValueError, match=message):
    evals.pack(rows, **options)
  with pytest.raises(ValueError, match="no examples"):
    evals.pack(evals.encode([], TOKENS))


def test_an_unknown_metric_is_named(loaded):
  task = evals.Task("copy", "exact_mach", loaded[0].examples)
  with pytest.raises(
    ValueError, match="Task 'copy': unknown metric 'exact_mach'; did you mean 'exact_match'"
  ):
    evals.make_scorer(MODEL.apply, [task], evals.pack(evals.encode([task], TOKENS)))
