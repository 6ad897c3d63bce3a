"""The search on known functions: replay, proposers, baselines, front, analyses, final choice."""

import dataclasses
import itertools

import numpy as np
import pytest

from merge_jax import search
from merge_jax.search import analysis, baselines, final, proposers
from merge_jax.search.journal import Candidate, Journal, Record
from merge_jax.search.loop import Evaluation

TASKS = ("a", "b", "c")
BEST = np.array([0.5, 0.3, 0.4, -0.1])


def evaluate(candidate):
  """Three smooth tasks with different optima; all together are best at BEST."""
  w = np.array(candidate.weights)
  shifts = (np.array([0.2, 0, 0, 0]), np.array([0, 0.2, 0, 0]), np.array([-0.2, -0.2, 0, 0]))
  scores = {t: float(1 - ((w - BEST - s) ** 2).sum()) for t, s in zip(TASKS, shifts, strict=True)}
  return Evaluation(scores, {t: 2 - v for t, v in scores.items()})


def fitness(**options):
  return search.Fitness(TASKS, (1.0,) * 3, source="metric", **options)


def setting(name="free", **options):
  return proposers.Setting(search.space(name), fitness(), 4, **options)


def run(proposer="cma_es", budget=60, journal=None, evaluate=evaluate, known=True, **options):
  chosen = setting(**options)
  return search.search(
    proposers.proposer(proposer, chosen, known=known), evaluate, journal or Journal(), chosen.fitness,
    search.Budget(budget),
  )  # fmt: skip


def plain(records):
  return [dataclasses.replace(r, seconds=0.0) for r in records]


@pytest.mark.parametrize("proposer", ["cma_es", "line_search"])
def test_finds_the_optimum(proposer):
  result = run(proposer, 400)
  best = max(result.records, key=lambda r: r.fitness)
  np.testing.assert_allclose(best.weights, BEST, atol=0.03)
  assert len(result.records) == 400


def test_simplex_stays_on_the_simplex_and_improves():
  result = run("cma_es", 150, name="simplex")
  searched = [r for r in result.records if r.method == "search"]
  for record in searched:
    assert min(record.weights) >= 0
    np.testing.assert_allclose(sum(record.weights), 1.0)
  known = max(r.fitness for r in result.records if r.method == "linear")
  assert max(r.fitness for r in searched) > known
  expected = np.maximum(BEST + (1 - BEST[:3].sum()) / 3, 0)  # projection, the last at its bound
  best = max(searched, key=lambda r: r.fitness)
  np.testing.assert_allclose(best.weights, np.append(expected[:3], 0), atol=0.05)


@pytest.mark.parametrize("space", ["simplex", "softmax", "free"])
def test_spaces_come_back(space):
  made = search.space(space)
  weights = np.array([0.5, 0.3, 0.15, 0.05])
  np.testing.assert_allclose(made.weights(made.point(weights)), weights, atol=1e-9)
  with pytest.raises(ValueError, match="did you mean"):
    search.space(space + "e")


def test_zero_on_the_simplex_is_uniform():
  np.testing.assert_allclose(search.space("simplex").weights(np.array([-1.0, -2.0])), 0.5)


@pytest.mark.parametrize("proposer", list(proposers.PROPOSERS))
@pytest.mark.parametrize("cut", [1, 4, 9, 23, 41])
def test_resume_is_replay(tmp_path, proposer, cut):
  """Another optimiser in between, and half of the values not finite now and then."""

  def sometimes(candidate):
    result = evaluate(candidate)
    broken = int(abs(candidate.weights[0]) * 1e6) % 7 == 0 and candidate.method == "search"
    return Evaluation(dict.fromkeys(TASKS, np.nan), None) if broken else result

  whole = run(proposer, 50, evaluate=sometimes)
  path = tmp_path / "journal.jsonl"
  first = run(proposer, cut, Journal(path), sometimes)
  run("cma_es", 30, seed=5)
  calls = []

  def counted(candidate):
    calls.append(candidate)
    return sometimes(candidate)

  second = run(proposer, 50, Journal(path), counted)
  assert plain(second.records) == plain(whole.records)
  assert len(calls) == 50 - len(first.records)
  assert second.mean == whole.mean


def test_a_journal_of_another_search_is_refused(tmp_path):
  path = tmp_path / "journal.jsonl"
  run(budget=30, journal=Journal(path))
  with pytest.raises(ValueError, match="cannot be continued at evaluation"):
    run(budget=40, journal=Journal(path), seed=1)
  stored = Journal()
  stored.stored = [
    dataclasses.replace(r, weights=tuple(w + 1e-13 for w in r.weights)) for r in Journal(path).stored
  ]
  with pytest.raises(ValueError, match="last digits"):
    run(budget=40, journal=stored)


def test_numpys_global_generator_is_left_alone():
  np.random.seed(0)
  before = np.random.get_state()[1].copy()
  run(budget=40)
  np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_known_points_come_first_and_once():
  records = run(budget=16).records
  assert [r.kind for r in records[:6]] == ["single"] * 4 + ["uniform", "merge_best"]
  assert all(r.method == "linear" for r in records if r.kind != "cma_es")
  weights = [r.weights for r in records if r.method == "linear"]
  assert len(weights) == len(set(weights))
  values = fitness().of(records)
  np.testing.assert_allclose(values, [r.fitness for r in records])


def test_greedy_soup_follows_the_recipe():
  """Against a direct run of the recipe, on random quality landscapes."""
  for seed in range(20):
    generator = np.random.default_rng(seed)
    optimum = generator.dirichlet(np.ones(5) * 0.7)

    def score(weights, optimum=optimum):
      return float(-((np.array(weights) - optimum) ** 2).sum())

    one = search.Fitness(("a",), (1.0,), source="metric")
    result = search.search(
      lambda records, one=one: baselines.known_points(records, one, 5),
      lambda c, score=score: Evaluation({"a": score(c.weights)}), Journal(), one, search.Budget(99),
    )  # fmt: skip
    singles = [score(baselines.one_hot(i, 5)) for i in range(5)]
    order = sorted(range(5), key=lambda i: -singles[i])
    members, best = [order[0]], singles[order[0]]
    for i in order[1:]:
      value = score(baselines.mean_of([*members, i], 5))
      if value > best:
        members, best = [*members, i], value
    assert baselines.greedy_members(result.records, one, 5) == members
    assert len(result.records) <= 11


def test_duplicates_in_merge_best_count_once():
  scores = [(0.9, 0.8, 0.1), (0.2, 0.1, 0.9), (0.1, 0.1, 0.1)]
  records = [
    Record(i, 0, "single", "linear", baselines.one_hot(i, 3), dict(zip("abc", s, strict=True)), None, 0.0, 0)
    for i, s in enumerate(scores)
  ]
  assert baselines.merge_best(records, fitness(), 3) == (0.5, 0.5, 0.0)
  assert baselines.best_on(records, fitness(), "c") == 1


def test_a_small_budget_is_kept_and_said():
  for budget in (1, 3, 5):
    assert len(run(budget=budget).records) == budget
  result = search.search(
    proposers.proposer("cma_es", setting()), evaluate, Journal(), fitness(), search.Budget(10**6, 1e-9)
  )
  assert len(result.records) == 1


def test_failed_candidates_are_never_best():
  def failing(candidate):
    if candidate.kind == "single":
      return evaluate(candidate)
    return Evaluation(dict.fromkeys(TASKS, np.inf))

  records = run(budget=40, evaluate=failing).records
  rows = final.rows(records, fitness(), 4, None)
  assert rows["search_best"].kind == "single"
  assert all(r.scores == dict.fromkeys(TASKS) for r in records if r.kind != "single")


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({}, [0.4, -0.2, 0.15]),
    ({"weights": (("a", 3.0),)}, [0.65, 0.0, 0.225]),
    ({"aggregate": "normalized"}, [1.0, 0.0, (1 / 7 + 1.2) / 2]),
    ({"aggregate": "worst"}, [1.0, 0.0, 1 / 7]),
  ],
)
def test_fitness_by_hand(options, expected):
  """Task a is an accuracy, task b a loss; the first two records are the single checkpoints."""
  made = search.Fitness(("a", "b"), (1.0, -1.0), source="metric", **options)
  values = [(0.9, 0.1), (0.2, 0.6), (0.3, 0.0)]
  records = [
    Record(i, 0, "single" if i < 2 else "x", "linear", (1.0,), {"a": a, "b": b}, None, None, 0.0)
    for i, (a, b) in enumerate(values)
  ]
  np.testing.assert_allclose(made.of(records), expected, atol=1e-12)


def test_fitness_sources():
  scores, losses = {"a": 0.9}, {"a": 2.0}
  one = search.Fitness(("a",), (1.0,), source="auto")
  assert one.values(scores, losses).tolist() == [-2.0]
  assert one.values(scores, None).tolist() == [0.9]
  with pytest.raises(ValueError, match="gives scores alone"):
    search.Fitness(("a",), (1.0,), source="loss").values(scores, None)
  with pytest.raises(ValueError, match="did you mean 'worst'"):
    search.Fitness(("a",), (1.0,), "worse")
  with pytest.raises(ValueError, match="unknown task"):
    search.Fitness(("a",), (1.0,), weights=(("b", 1.0),))


def test_front_and_hypervolume_by_brute_force():
  generator = np.random.default_rng(0)
  for tasks in (1, 2, 3, 4):
    points = generator.integers(0, 5, (40, tasks)).astype(float)
    expected = [
      not any((q >= p).all() and (q > p).any() for q in points) for p in points
    ]  # fmt: skip
    assert search.front(points).tolist() == expected
    cells = list(itertools.product(range(5), repeat=tasks))  # volume in unit cells above the origin
    covered = sum(any((p > np.array(cell)).all() for p in points) for cell in cells)
    assert search.hypervolume(points, np.zeros(tasks)) == pytest.approx(covered)
  with_nan = np.array([[1.0, np.nan], [0.5, 0.5]])
  assert search.front(with_nan).tolist() == [False, True]
  assert search.hypervolume(with_nan, [0.0, 0.0]) == 0.25
  assert search.hypervolume([[0.0, 1.0]], [0.0, 0.0]) == 0.0
  with pytest.raises(ValueError, match="expected"):
    search.front([1.0, 2.0])


def test_task_correlation_is_spearman():
  points = np.array([[1, 4, 1], [2, 3, 1], [3, 2, 1], [4, 1, 1]], float)
  assert search.task_correlation(points) == [
    [1.0, -1.0, None],
    [-1.0, 1.0, None],
    [None, None, 1.0],
  ]


def test_analyses_of_a_search():
  records = run(budget=80).records
  made = analysis.analyse(records, fitness())
  assert len(made["fitness_by_evaluation"]) == 80
  assert len(made["top_weights"]) == 5
  best = max(records, key=lambda r: r.fitness)
  assert made["top_weights"][0] == list(best.weights)
  assert made["nonzero_weights"]["top"][0] == int(np.sum(np.abs(best.weights) > 0.015))
  assert made["fitness_slope"]["slope"] > 0
  assert analysis.slope(np.array([1.0, np.nan])) is None


def test_the_answer_is_chosen_on_validation():
  records = run(budget=40).records
  rows = final.rows(records, fitness(), 4, (0.5, 0.3, 0.4, -0.1))
  assert {"best_single", "best_on_a", "uniform", "greedy", "search_best", "search_mean"} <= set(rows)
  assert rows["search_mean"] == Candidate("search_mean", (0.5, 0.3, 0.4, -0.1))
  names = final.finalists(rows)
  assert not any(name.startswith("best_on_") for name in names)

  def scored(winner):
    return {
      name: {"scores": dict.fromkeys(TASKS, 0.9 if name == winner else 0.1), "losses": None} for name in names
    }

  for winner in names:
    assert final.select(scored(winner), fitness(), records) == winner
  with pytest.raises(ValueError, match="No finalist"):
    nothing = {"uniform": {"scores": dict.fromkeys(TASKS), "losses": None}}
    final.select(nothing, fitness(), records)


def test_unknown_names_are_told():
  with pytest.raises(ValueError, match="did you mean 'cma_es'"):
    proposers.proposer("cmaes", setting())
  with pytest.raises(ValueError, match="unknown start"):
    proposers.proposer("cma_es", setting(start="cold"))
