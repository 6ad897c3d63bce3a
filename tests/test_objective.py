"""Candidates side by side score as they do alone, on one device and on a mesh; suites have one face."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import evals, models, sharding
from merge_jax.evals import Merge
from merge_jax.evals.function_suite import FunctionSuite
from merge_jax.evals.task_suite import TaskSuite
from merge_jax.search import Candidate, Point
from merge_jax.training import puzzles
from tests import pools

MODEL = models.build(pools.CONFIG | {"num_hidden_layers": 1})
BASE = MODEL.init(jax.random.key(0))
EXPERTS = [
  {name: value + 0.05 * jax.random.normal(jax.random.key(i), value.shape) for name, value in BASE.items()}
  for i in (1, 2, 3)
]
PATTERNS = (r".*mlp.*", r".*")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
  tasks = [evals.load(str(path)) for path in pools.make_tasks(tmp_path_factory.mktemp("tasks"), 12)]
  splits = {"search": tasks, "test": tasks[:1]}
  return TaskSuite(splits, MODEL.apply, evals.Tokens(puzzles.tokenizer(), 1), vocabulary=97, max_shapes=1)


def combine(prepared, weights, numbers):
  weights = mj.Weights(weights, PATTERNS) if weights.ndim == 2 else weights
  return mj.combine(prepared, weights)


def scaled(source, weights, numbers):
  """A number of the operator is part of the point."""
  base, experts = source
  return mj.merge(mj.task_arithmetic(scaling=numbers["scaling"]), experts, weights, base=base)


def merges(*names, place=lambda tree: tree):
  base, experts = place(BASE), [place(tree) for tree in EXPERTS]
  made = {
    "linear": Merge(combine, mj.prepare(mj.linear(normalize=False), experts)),
    "task_arithmetic": Merge(combine, mj.prepare(mj.task_arithmetic(), experts, base=base)),
    "ties": Merge(combine, mj.prepare(mj.ties(0.5), experts, base=base)),
    "scaled": Merge(scaled, (base, experts)),
  }
  return {name: made[name] for name in names or made}


def shard(tree):
  mesh = sharding.make_mesh({"fsdp": 4})
  return {name: jax.device_put(tree[name], rule) for name, rule in sharding.shardings(tree, mesh).items()}


CANDIDATES = [
  Candidate("a", "linear", Point((0.2, 0.3, 0.5))),
  Candidate("b", "task_arithmetic", Point((1.0, -0.5, 0.2))),
  Candidate("c", "linear", Point((0.0, 1.0, 0.0))),
  Candidate("d", "ties", Point((1.0, 0.5, 2.0))),
  *[Candidate("e", "task_arithmetic", Point((0.1 * i, 0.5, 0.2))) for i in range(5)],
  *[Candidate("f", "scaled", Point((1.0, 1.0, 0.5), {"scaling": 0.2 * i})) for i in range(3)],
]


def assert_same(made, expected):
  for one, other in zip(made, expected, strict=True):
    for a, b in ((one.scores, other.scores), (one.losses, other.losses)):
      np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one.examples.values, other.examples.values, rtol=1e-5, atol=1e-5)


def test_a_batch_scores_as_single_candidates(suite):
  pool = merges()
  one, four = suite.objective(pool), suite.objective(pool, batch=4)
  assert (one.batch, four.batch) == (1, 4)
  expected = [one.evaluate([candidate], "search")[0] for candidate in CANDIDATES]
  for size in (4, 3, len(CANDIDATES), 4):  # no call traces again, whatever the number of candidates
    assert_same(four.evaluate(CANDIDATES[:size], "search"), expected[:size])


def test_a_batch_on_a_mesh_scores_as_single_candidates(suite):
  candidates = [c for c in CANDIDATES if c.method == "task_arithmetic"][:4]
  sharded, whole = merges("task_arithmetic", place=shard), merges("task_arithmetic")
  expected = [suite.objective(whole).evaluate([c], "search")[0] for c in candidates]
  four = suite.objective(sharded, batch=4)
  assert_same(four.evaluate(candidates, "search"), expected)
  assert_same(four.evaluate(candidates[:3], "search"), expected[:3])


def test_weights_by_group_are_a_batch_too(suite):
  pool = merges("linear")
  points = [Point(((0.2, 0.3, 0.5), (1.0, 0.0, 0.0))), Point(((0.0, 1.0, 0.0), (0.4, 0.4, 0.2)))]
  candidates = [Candidate("x", "linear", point) for point in points]
  one, two = suite.objective(pool), suite.objective(pool, batch=2)
  for candidate, made in zip(candidates, two.evaluate(candidates, "search"), strict=True):
    params = mj.merge(
      mj.linear(), EXPERTS, mj.Weights(jnp.array(candidate.point.array, jnp.float32), PATTERNS)
    )
    alone = suite.objective({"itself": Merge(lambda p, w, n: p, params)})
    expected = alone.evaluate([Candidate("x", "itself", Point((1.0,)))], "search")[0]
    for other in (made, one.evaluate([candidate], "search")[0]):
      np.testing.assert_allclose(list(other.losses.values()), list(expected.losses.values()), rtol=1e-6)


def test_a_program_that_would_compile_again_is_an_error(suite):
  objective = suite.objective(merges("linear", "task_arithmetic", "ties"))
  objective.evaluate(CANDIDATES[:4], "search")  # two methods of one class are two programs
  with pytest.raises(RuntimeError, match=r"'linear' on split 'search' was traced twice"):
    objective.evaluate([Candidate("x", "linear", Point((0.2, 0.3, 0.5), {"t": 1.0}))], "search")


def test_other_sources_use_the_same_programs(suite):
  objective = suite.objective(merges("linear"))
  other = mj.prepare(mj.linear(normalize=False), EXPERTS[::-1])
  reverse = objective.on({"linear": other})
  a = objective.evaluate([Candidate("a", "linear", Point((0.2, 0.3, 0.5)))], "search")
  b = reverse.evaluate([Candidate("a", "linear", Point((0.5, 0.3, 0.2)))], "search")
  np.testing.assert_allclose(list(a[0].losses.values()), list(b[0].losses.values()), rtol=1e-5)


def test_suites_have_one_face(suite):
  mine = FunctionSuite({"norm": -1.0, "mean": 1.0}, lambda params, split: {
    "norm": float(jnp.linalg.norm(params["model.norm.weight"])), "mean": len(split),
  })  # fmt: skip
  pool = merges()
  (made,) = mine.objective(pool, batch=4).evaluate(CANDIDATES[:1], "search")
  merged = mj.merge(mj.linear(), EXPERTS, CANDIDATES[0].point.weights)["model.norm.weight"]
  np.testing.assert_allclose(made.scores["norm"], np.linalg.norm(merged), rtol=1e-6)
  assert made.scores["mean"] == 6 and made.losses is None and made.examples is None
  for one in (suite, mine):
    assert len(one.names) == len(one.signs) == len(one.tasks) and one.describe()
    assert one.tokens(one.splits[0]) >= 0 and isinstance(one.sizes(one.splits[0]), dict)
  assert suite.signs == (1.0, 1.0) and mine.signs == (-1.0, 1.0)
  assert suite.losses and not mine.losses
  short = FunctionSuite({"norm": 1.0, "mean": 1.0}, lambda params, split: {"norm": 1.0})
  with pytest.raises(ValueError, match="function gave no 'mean' on search, but norm; expected a score"):
    short.objective(pool).evaluate(CANDIDATES[:1], "search")


def test_an_apply_of_params_and_tokens_alone(tmp_path):
  tasks = [evals.load(path) for path in pools.make_tasks(tmp_path, 4)]
  tokens, params = evals.Tokens(puzzles.tokenizer(), 1), {"itself": Merge(lambda p, w, n: p, BASE)}

  def evaluation(apply, **options):
    made = TaskSuite({"search": tasks}, apply, tokens, vocabulary=97, max_shapes=1, **options)
    return made.objective(params).evaluate([Candidate("x", "itself", Point((1.0,)))], "search")

  expected = evaluation(MODEL.apply)
  assert_same(evaluation(lambda params, tokens: MODEL.apply(params, tokens), selects=False), expected)
  rounded = evaluation(MODEL.apply, dtype=jnp.bfloat16)
  typed = evaluation(lambda p, t, dtype: MODEL.apply(p, t, dtype=dtype), selects=False, dtype=jnp.bfloat16)
  np.testing.assert_allclose(typed[0].examples.values, rounded[0].examples.values, rtol=0.02, atol=0.02)
  with pytest.raises(ValueError, match=r"apply\(params, tokens, positions\): .*; .* selects=False for"):
    evaluation(lambda params, tokens: 0.0)
  with pytest.raises(ValueError, match=r"apply\(params, tokens, dtype=\): .*; .* no dtype= if it takes none"):
    evaluation(lambda params, tokens: 0.0, selects=False, dtype="bfloat16")


def test_methods_and_splits_that_an_objective_does_not_have(suite):
  mine = FunctionSuite({"a": 1.0}, lambda params, split: {"a": 0.0})
  for objective in (suite.objective(merges("ties")), mine.objective(merges("ties"))):
    with pytest.raises(ValueError, match=r"^objective: unknown method 'linear'; Known: ties\.$"):
      objective.evaluate(CANDIDATES[:1], "search")
  with pytest.raises(ValueError, match="unknown split 'tests'; did you mean 'test'"):
    suite.objective(merges("linear")).evaluate(CANDIDATES[:1], "tests")


@pytest.mark.parametrize("tasks", [{"a": 0}, {"a": "max"}, {"a": 2.0}, ["a"]])
def test_signs_of_a_function_are_one_or_minus_one(tasks):
  with pytest.raises(ValueError, match=r"^tasks is .*; expected \+1 or -1 by name"):
    FunctionSuite(tasks, lambda params, split: {"a": 1.0})


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (None, "gave None on search; expected a score of each task"), (0.5, "gave 0.5 on search"),
    ([0.5], r"gave \[0.5\] on search"), ({"a": None}, "gave None for 'a' on search; expected a number"),
    ({"a": "x"}, "gave 'x' for 'a'"), ({"a": [1.0, None]}, r"gave \[1.0, None\] for 'a'"),
  ],
)  # fmt: skip
def test_what_is_no_score_is_named(given, message):
  suite = FunctionSuite({"a": 1.0}, lambda params, split: given)
  with pytest.raises(ValueError, match=f"^The suite's function {message}"):
    suite.objective(merges("linear")).evaluate(CANDIDATES[:1], "search")


def test_lists_of_a_function_are_what_examples_scored():
  scores = [{"a": np.array([1.0, 0.0, 0.5]), "b": [True]}, {"a": [1, 2, np.nan], "b": [0.0]}]
  function = FunctionSuite({"a": 1.0, "b": -1.0}, lambda params, split: scores.pop(0)).objective(merges())
  first, second = (function.evaluate(CANDIDATES[:1], "search")[0] for _ in range(2))
  assert first.scores == {"a": 0.5, "b": 1.0} and first.losses is None and np.isnan(second.scores["a"])
  assert first.examples.counts == (3, 1) and first.examples.average() == -0.25
  scores += [{"a": [1.0], "b": [1.0]}, {"a": 1.0, "b": [1.0]}, {"a": [], "b": []}]
  for split, message in (
    ("search", "a, b have 1, 1 examples in one evaluation, 3, 1 in another; every merge must be scored"),
    ("search", "'a' is one number, that of 'b' a list"),
    ("test", "a, b have 0, 0 examples"),
  ):
    with pytest.raises(ValueError, match=message):
      function.evaluate(CANDIDATES[:1], split)
