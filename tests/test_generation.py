"""Generated texts: the tokens, where they end, and what is read in them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import evals, models, sharding
from merge_jax.evals import Merge, prompting, replies
from merge_jax.evals.options import Options, Shot
from merge_jax.evals.stopping import automaton
from merge_jax.evals.task_suite import TaskSuite
from merge_jax.search import Candidate, Point
from merge_jax.training import puzzles
from tests import pools
from tests.golden import cases

FAMILIES = ["llama3", "mistral", "qwen2_windows", "command_r7b", "qwen3_moe", "gemma2", "gemma3"]
VOCABULARY = cases.SHAPE["vocab_size"]
MOST, END = 6, 3
STARTS, LIMITS, STATES = (np.array(x, np.int32) for x in ([9, 4, 6, 5], [6, 6, 2, 6], [0, 0, 0, -1]))
PROMPTS = np.array(cases.TOKENS[0, :36].reshape(4, 9), np.int32)
MOVES = np.where(np.arange(VOCABULARY) == END, -1, 0)[None].astype(np.int32)


def built(name, **change):
  model = models.build(cases.config_of(name) | change)
  return model, cases.parameters({n: s.shape for n, s in model.specs.items()})


def told(apply, prompts, made):
  """The most likely tokens along what was generated, by one ordinary forward pass, and the second ones."""
  rows = np.zeros((len(prompts), PROMPTS.shape[1] + MOST), np.int32)
  for row, start, prompt, new in zip(rows, STARTS, prompts, np.maximum(made, 0), strict=True):
    row[:start], row[start : start + MOST] = prompt[:start], new
  logits = apply(jnp.asarray(rows), jnp.asarray(STARTS[:, None] - 1 + np.arange(MOST)))
  return np.asarray(logits)


def check(made, logits, slack=0.0):
  """Every token is the most likely one after those before it, and texts end where they should."""
  for row, limit, state, scores in zip(np.asarray(made), LIMITS, STATES, logits, strict=True):
    count = int((row >= 0).sum())
    assert (row[count:] == -1).all()
    assert count == 0 if state < 0 else count == limit or row[count - 1] == END
    assert END not in row[: count - 1]
    for token, score in zip(row[:count], scores, strict=False):
      assert score[token] >= score.max() - slack


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_what_a_forward_pass_finds_most_likely(name):
  model, params = built(name)
  made = jax.jit(model.generate, static_argnums=6)(params, PROMPTS, STARTS, STATES, LIMITS, MOVES, MOST)
  check(made, told(lambda *x: jax.jit(model.apply)(params, *x), PROMPTS, made))


def test_padding_stretches_no_dynamic_rotations():
  """A batch of long prompts and long limits has more columns than any row, and than the model's length."""
  length = PROMPTS.shape[1] + 2
  dynamic = {"rope_type": "dynamic", "factor": 8.0}
  model, params = built("llama3", max_position_embeddings=length, rope_parameters=dynamic)
  plain, _ = built("llama3", max_position_embeddings=length, rope_parameters={"rope_type": "default"})
  limits = np.minimum(LIMITS, length - STARTS)
  made = [
    jax.jit(one.generate, static_argnums=6)(params, PROMPTS, STARTS, STATES, limits, MOVES, MOST)
    for one in (model, plain)
  ]
  assert length < PROMPTS.shape[1] + MOST and (made[0] >= 0).any()
  np.testing.assert_array_equal(*made)


def test_an_end_of_several_tokens_ends_a_text():
  model, params = built("llama3")
  generate = jax.jit(model.generate, static_argnums=6)
  free = np.asarray(generate(params, PROMPTS, STARTS, STATES, LIMITS, 0 * MOVES, MOST))
  first, second = free[0, 1:3]
  moves = np.zeros((2, VOCABULARY), np.int32)
  moves[:, first], moves[1, second] = 1, -1
  made = np.asarray(generate(params, PROMPTS, STARTS, STATES, LIMITS, moves, MOST))
  pairs = list(zip(free[0], free[0, 1:], strict=False))
  assert (made[0] >= 0).sum() == pairs.index((first, second)) + 2
  low = jax.jit(model.generate, static_argnums=(6, 7))
  made = low(params, PROMPTS, STARTS, STATES, LIMITS, MOVES, MOST, jnp.bfloat16)
  check(made, told(lambda *x: model.apply(params, *x, dtype=jnp.bfloat16), PROMPTS, made), slack=0.5)


def test_candidates_side_by_side_of_stacked_layers_on_a_mesh():
  model, params = built("qwen2_windows", num_hidden_layers=8)
  params = {n: 0.3 * x for n, x in params.items()}
  mesh = sharding.make_mesh("candidate:2,data:2,tensor:2")
  placed = sharding.shardings(models.stack_specs(model.specs, model.stacks), mesh, axes=model.axes)
  stacked = jax.device_put(models.stack(params, model.stacks), placed)

  def one(scale):
    scaled = {n: scale * x for n, x in stacked.items()}
    return model.generate(scaled, PROMPTS, STARTS, STATES, LIMITS, MOVES, MOST)

  with jax.set_mesh(mesh):
    made = jax.jit(jax.vmap(one, spmd_axis_name="candidate"))(jnp.array([2.0, 1.0]))
  check(made[1], told(lambda *x: jax.jit(model.apply)(params, *x), PROMPTS, made[1]), slack=1e-4)


@pytest.mark.parametrize("stops", [(), ("ab",), ("aab", "ba", "c\n"), ("b", "abc"), ("\0",), ("b\0",)])
def test_the_automaton_finds_strings_wherever_they_begin(stops):
  texts = ["a", "b", "c", "\n", "ab", "ba\n", "xa", "", "cc", "bab"]
  moves, (other, start) = automaton(texts, [("zz",), stops], [7])
  generator = np.random.default_rng(0)
  assert other != start and moves.dtype == np.int32
  for _ in range(200):
    state, text = start, ""
    for token in generator.integers(0, len(texts), 8):
      state, text = moves[state, token], text + texts[token]
      assert (state < 0) == (token == 7 or any(stop in text for stop in stops))
      if state < 0:
        break


def test_a_space_that_no_text_begins_with_stops_none():
  """A decoder drops the first space: the token " a" opens a text with "a", and a silent one opens nothing."""
  texts, openings = [" a", " ", "b", ""], ["a", "", "b", ""]
  moves, (start,) = automaton(texts, [(" ",)], [], openings)
  assert moves[start].tolist() == [0, 0, 0, start] and moves[0].tolist() == [-1, -1, 0, 0]
  assert len(automaton(texts, [(" ",)], [], texts)[0]) == 1


@pytest.mark.parametrize(
  ("text", "target", "options", "agrees"),
  [
    (" Paris.\n\nQuestion: b", "paris", {"stop": ("\n\n",)}, True),
    ("Paris and more", "Paris", {}, False),
    ("It costs $1,234.50 in all.", "1234.5", {"answer": "last_number"}, True),
    ("5-3 is 2", "#### 2.0", {"answer": "last_number"}, True),
    ("none", "2", {"answer": "last_number"}, False),
    ("a chance of .5", "0.50", {"answer": "last_number"}, True),
    ("a chance of .5", "5", {"answer": "last_number"}, False),
    ("so...5", "5", {"answer": "last_number"}, True),
    ("-0.0", "0", {"answer": "last_number"}, True),
    ("Answer: (b) since c", "b", {"answer": "regex", "pattern": r"\((\w)\)"}, True),
    ("x = 7", "7", {"answer": "regex", "pattern": r"\d+"}, True),
    ("so\n#### 18\nand", "reason #### 18", {"answer": "after", "pattern": "####"}, True),
    ("the answer is 18", "18", {"answer": "after", "pattern": "####"}, False),
    ("007", "7", {}, False),
    ("007", "7", {"answer": "last_number"}, True),
    ("It is .5", "0.5", {"answer": "last_number"}, True),
    ("It is .5", "5", {"answer": "last_number"}, False),
    ("x=-.50", "-0.5", {"answer": "last_number"}, True),
    ("see no.5", "5", {"answer": "last_number"}, True),
    ("-0.0", "0", {"answer": "last_number"}, True),
    ("so it is \u22125.", "-5", {"answer": "last_number"}, True),
    ("so it is \u22125.", "5", {"answer": "last_number"}, False),
    ("a loss: -$1,200.50", "-1200.5", {"answer": "last_number"}, True),
    ("[1000,200]", "200", {"answer": "last_number"}, True),
    ("about 1.5e-3 s", "0.0015", {"answer": "last_number"}, True),
    ("so 1e3", "1,000", {"answer": "last_number"}, True),
    ("2E+2.", "200", {"answer": "last_number"}, True),
    ("so 1e999999", "999999", {"answer": "last_number"}, True),
    ("block 3e4f", "4", {"answer": "last_number"}, True),
    ("[1,234567]", "234567", {"answer": "last_number"}, True),
  ],
)  # fmt: skip
def test_answers_are_read_and_compared(text, target, options, agrees):
  assert replies.agrees(text, target, Options(**options)) is agrees


LINE = json.dumps({"prompt": "a", "target": "b"})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_token": 3}, "t.jsonl:1: unknown field in options 'max_token'; did you mean 'max_tokens'"),
    ({"metric": "generate_mach"}, "t.jsonl:1: unknown metric 'generate_mach'; did you mean 'generate_match'"),
    ({"metric": "generate_match", "max_tokens": 0}, r"t.jsonl:1: options.max_tokens is 0; expected .* >= 1"),
    ({"metric": "generate_match", "stop": [""]}, r"t.jsonl:1: options.stop\[0\] is ''"),
    ({"metric": "generate_match", "answer": "regexp"}, "t.jsonl:1: unknown options.answer 'regexp'; did you"),
    ({"metric": "generate_match", "answer": "regex"}, "t.jsonl:1: answer is 'regex', which needs a pattern"),
    ({"metric": "generate_match", "pattern": "a"}, "t.jsonl:1: answer is 'text', which takes no pattern"),
    ({"metric": "generate_match", "answer": "regex", "pattern": "("}, "t.jsonl:1: pattern is no regular exp"),
    (
      {"metric": "generate_match", "answer": "regex", "pattern": "a{99999999999999999999}"},
      "t.jsonl:1: pattern is no regular exp",
    ),
    ({"stop": ["\n"]}, 't.jsonl:1: stop is for generated text; add "metric": "generate_match"'),
    ({"system": "be brief"}, "t.jsonl:1: system is a message of a chat"),
    ({"separator": "\n"}, "t.jsonl:1: separator follows shots, and there are none"),
    ({"separator": "\n", "shots": [{"prompt": "p", "target": "t"}], "chat": True}, "and a chat has turns"),
    ({"shots": [{"prompt": "a ", "target": "b"}]}, "t.jsonl:2: the prompt is one of the shots"),
    ({"metric": "choice_accuracy"}, "metric 'choice_accuracy' needs choices; the lines have targets"),
  ],
)
def test_options_that_cannot_be(tmp_path, options, message):
  path = tmp_path / "t.jsonl"
  path.write_text(json.dumps({"options": options}) + "\n" + LINE + "\n")
  with pytest.raises(ValueError, match=message):
    evals.load(str(path))


def test_options_are_the_first_line(tmp_path):
  path = tmp_path / "t.jsonl"
  header = json.dumps({"options": {"metric": "generate_match", "stop": ["\n"]}})
  path.write_text("\n".join([header, LINE, LINE]))
  task = evals.load(str(path))
  assert (task.metric, len(task.examples), task.options.stop) == ("generate_match", 2, ("\n",))
  assert evals.load(f"{path}:loss").metric == "loss"
  path.write_text("\n".join([header, LINE, "{"]))
  with pytest.raises(ValueError, match=":3: not valid JSON"):
    evals.load(str(path))
  path.write_text("\n".join([LINE, header]))
  with pytest.raises(ValueError, match=":2: "):
    evals.load(str(path))
  path.write_text(header)
  with pytest.raises(ValueError, match="no examples"):
    evals.load(str(path))


def test_prompts_have_shots_or_are_messages(tmp_path):
  options = Options(shots=(Shot("1+1=", "2"),), separator=";")
  task = evals.Task("t", "exact_match", (evals.Example("2+2=", ("4",)),), options)
  tokens = evals.Tokens(puzzles.tokenizer(), 1)
  assert prompting.prompts(task, tokens) == tokens.prompts(["1+1=2;2+2="])
  chat = evals.Task("t", "exact_match", task.examples, Options(shots=options.shots, chat=True, system="s"))
  with pytest.raises(ValueError, match="has no chat template, which tasks"):
    prompting.prompts(chat, tokens)
  (tmp_path / "tokenizer.json").write_text(puzzles.tokenizer().to_str())
  settings = {"eos_token": {"content": puzzles.END}, "chat_template": "x"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  (tmp_path / "chat_template.jinja").write_text(
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token if m.role == 'assistant' }}\n"
    "{% endfor %}{% if messages|length > 9 %}{{ raise_exception('too long') }}{% endif %}"
    "{% if add_generation_prompt %}a:{% endif %}{% if tools is not none %}t{% endif %}"
  )
  tokens = evals.Tokens.from_folder(tmp_path)
  written = f"s:s\nu:1+1=\na:2{puzzles.END}\nu:2+2=\na:"
  assert tokens.chat([("system", "s"), ("user", "1+1="), ("assistant", "2"), ("user", "2+2=")]) == written
  assert prompting.prompts(chat, tokens) == tokens.prompts([written], special=False)
  assert tokens.ends == (1,)
  with pytest.raises(ValueError, match=r"cannot write .*too long"):
    tokens.chat([("user", "x")] * 10)


MODEL = models.build(pools.CONFIG | {"num_hidden_layers": 1})
TOKENS = evals.Tokens(puzzles.tokenizer(), 1)


def suite(tasks, **options):
  given = {"generate": MODEL.generate, "max_length": 64} | options
  return TaskSuite(
    {"search": tasks}, MODEL.apply, TOKENS, branches=True, vocabulary=97, max_shapes=2, **given
  )


def test_generated_matches_are_exact_matches():
  """Targets are the model's own words or others; two candidates side by side."""
  params = jax.tree.map(lambda x: 8 * x, MODEL.init(jax.random.key(3)))
  prompts = [f"copy {word}=" for word in ("ab", "cde", "f", "ghij", "kl", "mnop")]
  ids = TOKENS.prompts(prompts)
  stem = max(map(len, ids))
  padded, starts = np.array([one + [0] * (stem - len(one)) for one in ids]), np.array(list(map(len, ids)))
  moves, _ = automaton([""] * 97, [()], [1])
  rest = np.full(len(ids), 4, np.int32)
  own = jax.jit(MODEL.generate, static_argnums=6)(params, padded, starts, 0 * rest, rest, moves, 4)
  words = [TOKENS.text(row) for row in np.asarray(own)]
  examples = tuple(
    evals.Example(prompt, (word if i % 2 else word[::-1] + "#",))
    for i, (prompt, word) in enumerate(zip(prompts, words, strict=True))
    if word
  )
  exact = evals.Task("exact", "exact_match", examples)
  text = evals.Task("text", "generate_match", examples, Options(metric="generate_match", max_tokens=4))
  stop = evals.Task(
    "stop", "generate_match", tuple(e._replace(targets=(e.targets[0][:1],)) for e in examples),
    Options(metric="generate_match", max_tokens=8, stop=(words[1][1:2],)),
  )  # fmt: skip
  made = suite([text, exact, stop], append_eos=False)
  merge = Merge(lambda source, weights, _: {n: weights[0] * x for n, x in source.items()}, params)
  candidates = [Candidate("x", "scaled", Point((scale,))) for scale in (1.0, 0.5)]
  objective = made.objective({"scaled": merge}, batch=2)
  one, other = objective.evaluate(candidates, "search")
  top = [one.examples.of(i)[0] for i in range(3)]
  assert top[0].tolist() == top[1].tolist() and 0 < one.scores["text"] < 1
  assert top[2][0 if len(words[0]) == 0 else 1] == 1.0
  assert one.losses["text"] == pytest.approx(one.losses["exact"]) and other.examples.values.shape == (4, 18)
  lengths = sum(len(ids) for ids in TOKENS.prompts([e.prompt for e in examples]))
  assert made.tokens("search", ["text"]) == made.tokens("search", ["exact"]) + lengths + 4 * len(examples)
  broken = made.objective(
    {"scaled": merge._replace(source=params | {"model.norm.weight": np.full(32, np.nan)})}
  )
  assert np.isnan(broken.evaluate(candidates[:1], "search")[0].scores["text"])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"generate": None}, "Task 't' is scored by generate_match, which needs a built-in model"),
    ({}, r"Task 't': a prompt of 3 tokens and max_tokens 62 are more than the 64 that the model takes"),
  ],
)
def test_what_cannot_be_generated_is_said_at_once(options, message):
  task = evals.Task("t", "generate_match", (evals.Example("abc", ("d",)),), Options(max_tokens=62))
  with pytest.raises(ValueError, match=message):
    suite([task], **options)
  assert (
    suite([task], max_length=65).identity()
    != suite([evals.Task("t", "generate_match", task.examples, Options(max_tokens=61))]).identity()
  )
