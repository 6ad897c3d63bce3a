"""Tasks, splits, packing and scores, against plain one-by-one references."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import processors

from merge_jax import evals, models
from merge_jax.evals import batching, tasks, uncertainty
from merge_jax.evals.external import Command, ScorerError
from merge_jax.training import puzzles
from tests import pools

MODEL = models.build(pools.CONFIG)
PARAMS = jax.tree.map(lambda x: 8 * x, MODEL.init(jax.random.key(3)))
TOKENS = evals.Tokens(puzzles.tokenizer(), 1)


@pytest.fixture
def loaded(tmp_path):
  return [evals.load(str(path)) for path in pools.make_tasks(tmp_path)]


def nll(prompt, target, append_eos=True):
  """Sum of negative log-likelihoods, tokens and greedy match of one target, without any padding."""
  (first,), (second,) = TOKENS.prompts([prompt]), TOKENS.targets([target], append_eos)
  logits = MODEL.apply(PARAMS, jnp.array([first + second]))[0]
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
    ids.append(int(MODEL.apply(PARAMS, jnp.array([ids]))[0, -1].argmax()))
  continuation = TOKENS.tokenizer.decode(ids[len(prompt) :])
  examples = (evals.Example("copy abc=", (continuation,)), evals.Example("copy abc=", (continuation + "#",)))
  task = evals.Task("greedy", "exact_match", examples)
  scorer = evals.make_scorer(MODEL.apply, [task], evals.pack(evals.encode([task], TOKENS, append_eos=False)))
  values = scorer.read(jax.jit(scorer.function)(PARAMS, scorer.batches)).of(0)[0]
  after = int(MODEL.apply(PARAMS, jnp.array([ids]))[0, -1].argmax())
  assert values.tolist() == [1.0, float(after == TOKENS.tokenizer.token_to_id("#"))]


def test_a_broken_model_scores_nan(loaded):
  broken = PARAMS | {"model.norm.weight": jnp.full(32, jnp.nan)}
  scorer = evals.make_scorer(MODEL.apply, loaded, evals.pack(evals.encode(loaded, TOKENS)))
  examples = scorer.read(jax.jit(scorer.function)(broken, scorer.batches))
  assert all(np.isnan(v) for v in (*examples.scores().values(), *examples.scores(True).values()))


def test_special_tokens_go_on_the_prompt():
  tokenizer = puzzles.tokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<|pad|> $A", special_tokens=[("<|pad|>", 0)]
  )
  tokens = evals.Tokens(tokenizer, 1)
  assert tokens.prompts(["a"])[0][0] == 0
  assert tokens.targets(["a"]) == [[tokenizer.token_to_id("a"), 1]]
  assert tokens.targets(["a"], append_eos=False) == [[tokenizer.token_to_id("a")]]


def test_packing_is_optimal_and_tight():
  generator = np.random.default_rng(0)
  for _ in range(20):
    lengths = np.sort(generator.integers(1, 12, 9))
    for shapes in (1, 2, 3):
      ends = batching._cuts(lengths, shapes)
      cost = sum((b - a) * lengths[b - 1] for a, b in zip([0, *ends], ends, strict=False))
      best = min(
        sum((b - a) * lengths[b - 1] for a, b in zip((0, *cut, 9), (*cut, 9), strict=False) if b > a)
        for cut in np.ndindex(*(10,) * (shapes - 1)) if list(cut) == sorted(cut)
      )  # fmt: skip
      assert ends[-1] == 9 and len(ends) <= shapes and cost == best


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("", r":2: the line is empty"),
    ("{", r":2: not valid JSON"),
    ("[1]", r":2: expected a JSON object, got list"),
    ('{"prompt": "a"}', r":2: expected either 'target'"),
    ('{"prompt": "a", "target": ""}', r":2: 'target' is ''"),
    ('{"prompt": 1, "target": "b"}', r":2: 'prompt' is 1"),
    ('{"promt": "a", "target": "b"}', r":2: unknown field 'promt'; did you mean 'prompt'"),
    ('{"prompt": "a", "choices": ["b"], "answer": 0}', r":2: 'choices' is"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', r":2: 'answer' is 2"),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": 1}', r":2: a task has either choices or"),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  path = tmp_path / "t.jsonl"
  path.write_text('{"prompt": "x", "target": "y"}\n' + line + "\n")
  with pytest.raises(ValueError, match=message):
    evals.load(str(path))


def test_metrics_are_chosen_by_name(tmp_path):
  copy, choose = pools.make_tasks(tmp_path)
  assert evals.load(str(copy)).metric == "exact_match"
  assert evals.load(str(choose)).metric == "choice_accuracy"
  assert evals.load(f"{copy}:loss").metric == "loss"
  for spec, message in (
    (f"{copy}:los", "did you mean 'loss'"), (f"{copy}:choice_accuracy", "needs choices"),
    (f"{choose}:exact_match", "needs targets"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      evals.load(spec)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    evals.load(str(tmp_path / "none.jsonl"))
  (tmp_path / "empty.jsonl").write_text("")
  with pytest.raises(ValueError, match="no examples"):
    evals.load(str(tmp_path / "empty.jsonl"))
  with pytest.raises(ValueError, match="Two task files"):
    tasks.load_all([str(copy), f"{copy}:loss"])


def test_splits_are_disjoint_whatever_the_task_or_order():
  examples = tuple(evals.Example(f"q{i}", (str(i),)) for i in range(400))
  a = evals.Task("a", "exact_match", examples)
  b = evals.Task("b", "exact_match", (*examples[::-1][:200], examples[0], examples[0]))
  made = evals.split([a, b], (0.5, 0.2, 0.3))
  where = {}
  for name in evals.SPLITS:
    for task in made.tasks[name]:
      for example in task.examples:
        assert where.setdefault(example.prompt, name) == name
  assert len(where) == 400 and made.duplicates == 1 and made.shared == 201
  sizes = [len(made.tasks[name][0].examples) for name in evals.SPLITS]
  assert sum(sizes) == 400 and 160 < sizes[0] < 240
  limited = evals.split([a], (0.5, 0.2, 0.3), limits=(10, 5, None))
  assert [len(limited.tasks[n][0].examples) for n in evals.SPLITS] == [10, 5, sizes[2]]
  assert set(limited.tasks["search"][0].examples) <= set(made.tasks["search"][0].examples)
  with pytest.raises(ValueError, match="none of its 1"):
    evals.split([evals.Task("c", "exact_match", examples[:1])])
  with pytest.raises(ValueError, match="fractions"):
    evals.split([a], (0.5, 0.5, 0.5))


def test_rows_that_cannot_be_scored():
  task = evals.Task("t", "exact_match", (evals.Example("", ("a",)),))
  with pytest.raises(ValueError, match="prompt without tokens"):
    evals.encode([task], TOKENS)
  long = evals.Task("t", "exact_match", (evals.Example("a" * 70, ("a",)),))
  with pytest.raises(ValueError, match="72 tokens, the model takes 64"):
    evals.encode([long], TOKENS, max_length=64)


def test_bootstrap_errors_are_those_of_the_mean():
  generator = np.random.default_rng(0)
  hits = (generator.random((2, 500)) < np.array([[0.3], [0.8]])).astype(float)
  ones = np.ones(500)
  values = np.stack([hits.reshape(-1), np.ones(1000), np.zeros(1000), np.ones(1000)])
  examples = evals.Examples(("a", "b"), ("exact_match", "exact_match"), (500, 500), values)
  errors = uncertainty.standard_errors(examples)
  exact = [np.sqrt(h.var() / 500) for h in hits]
  np.testing.assert_allclose([errors["a"], errors["b"]], exact, rtol=0.1)
  np.testing.assert_allclose(errors["average"], np.hypot(*exact) / 2, rtol=0.1)
  gain, error = uncertainty.paired_difference(examples, examples)
  assert gain == 0.0 and error == 0.0
  worse = values.copy()
  worse[0, :500] = ones * 0
  other = evals.Examples(examples.tasks, examples.metrics, examples.counts, worse)
  gain, error = uncertainty.paired_difference(examples, other)
  np.testing.assert_allclose(gain, hits[0].mean() / 2)
  np.testing.assert_allclose(error, exact[0] / 2, rtol=0.1)


def test_losses_count_less_as_better():
  values = np.array([[2.0, 4.0], [1.0, 1.0], [2.0, 4.0], [1.0, 1.0]])
  low = evals.Examples(("a",), ("loss",), (2,), values)
  high = evals.Examples(("a",), ("loss",), (2,), values * 2)
  assert uncertainty.paired_difference(low, high)[0] == 0.0  # a ratio of sums
  high = evals.Examples(("a",), ("loss",), (2,), values * np.array([[2.0], [1], [2], [1]]))
  assert uncertainty.paired_difference(low, high)[0] == 3.0


SCORER = "{python} {script} {{model_dir}} {{scores_json}} {{split}}"


def command(tmp_path, body, **options):
  script = tmp_path / "score.py"
  script.write_text("import json, sys, pathlib, time\nmodel, out, split = sys.argv[1:]\n" + body)
  import sys

  return Command(SCORER.format(python=sys.executable, script=script), ("a", "b"), **options)


def test_external_scores(tmp_path):
  body = "pathlib.Path(out).write_text(json.dumps({'a': len(split), 'b': None, 'c': 'extra'}))"
  scores = command(tmp_path, body)(tmp_path, "search")
  assert scores["a"] == 6.0 and np.isnan(scores["b"])


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("sys.exit('no such model')", "status 1: no such model"),
    ("pass", "wrote no scores.json"),
    ("pathlib.Path(out).write_text('{')", "not valid JSON"),
    ("pathlib.Path(out).write_text('{\"a\": 1}')", "'b' is 'missing'"),
    ("time.sleep(30)", "longer than 1 seconds"),
  ],
)
def test_external_failures(tmp_path, body, message):
  with pytest.raises(ScorerError, match=message):
    command(tmp_path, body, timeout=1.0, retries=0)(tmp_path, "search")
  scores = command(tmp_path, body, timeout=1.0, retries=0, nan="worst")(tmp_path, "search")
  assert all(np.isnan(value) for value in scores.values())


def test_external_retries(tmp_path):
  body = (
    "flag = pathlib.Path(model) / 'tried'\n"
    "if not flag.exists():\n  flag.touch(); sys.exit('flaky')\n"
    "pathlib.Path(out).write_text(json.dumps({'a': 1, 'b': 2}))"
  )
  assert command(tmp_path, body, retries=1)(tmp_path, "search") == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(
  ("template", "message"),
  [("eval {scores_json}", "no {model_dir}"), ("eval {model_dir} {scores_json} {x}", "cannot be filled")],
)
def test_external_templates_are_checked(template, message):
  with pytest.raises(ValueError, match=message):
    Command(template, ("a",)).check()


def test_tokenizers_are_found_beside_the_model(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no tokenizer.json"):
    evals.Tokens.from_folder(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(ValueError, match="is not a tokenizer"):
    evals.Tokens.from_folder(tmp_path)
  (tmp_path / "tokenizer.json").write_text(puzzles.tokenizer().to_str())
  assert evals.Tokens.from_folder(tmp_path).eos is None
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
  assert evals.Tokens.from_folder(tmp_path).eos == 1
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
  assert evals.Tokens.from_folder(tmp_path).eos == 5
