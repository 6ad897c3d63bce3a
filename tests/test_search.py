"""The search on known functions: replay, proposers, baselines, front, analyses, final choice."""

import itertools
import json

import msgspec
import numpy as np
import pytest

from merge_jax import search, storage
from merge_jax.evals.objective import Evaluation
from merge_jax.search import analysis, baselines, final, model_based, proposers
from merge_jax.search.journal import Journal, Record
from merge_jax.search.point import Candidate, Point
from tests.further import beyond, further

TASKS = ("a", "b", "c")
BEST = np.array([0.5, 0.3, 0.4, -0.1])


def evaluate(candidate):
  """Three smooth tasks with different optima; all together are best at BEST."""
  w = candidate.point.array
  shifts = (np.array([0.2, 0, 0, 0]), np.array([0, 0.2, 0, 0]), np.array([-0.2, -0.2, 0, 0]))
  scores = {t: float(1 - ((w - BEST - s) ** 2).sum()) for t, s in zip(TASKS, shifts, strict=True)}
  return Evaluation(scores, {t: 2 - v for t, v in scores.items()})


def fitness(**options):
  return search.Fitness(TASKS, (1.0,) * 3, source="metric", **options)


class Objective:
  """Scores one by one; keeps what it was asked for."""

  def __init__(self, function=evaluate, batch=1):
    self.function, self.batch, self.calls = function, batch, []

  def evaluate(self, candidates, split):
    assert len(candidates) <= self.batch
    self.calls += [(split, candidate) for candidate in candidates]
    return [self.function(candidate) for candidate in candidates]


def options(name="free", **more):
  return search.Options("task_arithmetic", search.space(name, 4), fitness(), 4, **more)


def run(proposer="cma_es", budget=60, journal=None, evaluate=evaluate, known=True, batch=1, **more):
  chosen = options(**more)
  objective = evaluate if isinstance(evaluate, Objective) else Objective(evaluate, batch)
  return search.search(
    search.proposer(proposer, chosen, known=known), objective, journal or Journal(), chosen.fitness,
    search.Budget(budget),
  )  # fmt: skip


def plain(records):
  return [msgspec.structs.replace(r, seconds=0.0) for r in records]


def record(index, kind, weights, scores, **more):
  filled = {
    "split": "search",
    "generation": 0,
    "method": "linear",
    "losses": None,
    "fitness": 0.0,
    "seconds": 0.0,
  }
  return Record(**(filled | more), index=index, kind=kind, point=Point(weights), scores=scores)


def arrays(records):
  return [r.point.array for r in records]


@pytest.mark.parametrize("proposer", ["cma_es", "line_search"])
def test_finds_the_optimum(proposer):
  result = run(proposer, 400)
  best = max(result.records, key=lambda r: r.fitness)
  np.testing.assert_allclose(best.point.weights, BEST, atol=0.03)
  assert len(result.records) == 400


@pytest.mark.parametrize("metric", [None, further(np.diag([1.0, 2.0, 0.5, 1.0]))])
@pytest.mark.parametrize("proposer", ["gaussian_process", "response_surface"])
def test_models_of_the_fitness_need_few_evaluations(proposer, metric):
  found = [run(proposer, 25, metric=metric, seed=seed).records for seed in range(3)]
  best = [max(records, key=lambda r: r.fitness).point.weights for records in found]
  assert np.median(np.abs(np.array(best) - BEST).max(axis=1)) < 0.03
  cold = run(proposer, 25, known=False, name="simplex", metric=metric)
  assert len(cold.records) == 25 and cold.records[0].point.weights == (0.25,) * 4


@pytest.mark.parametrize("metric", [np.zeros((4, 4)), np.diag([1e30, 1.0, 1.0, 1.0])])
def test_models_of_the_fitness_see_past_equal_and_spoilt_checkpoints(metric):
  best = max(run("gaussian_process", 30, metric=metric).records, key=lambda r: r.fitness)
  np.testing.assert_allclose(best.point.weights[1:], BEST[1:], atol=0.1)


def test_merges_tell_of_a_rule_that_depends_on_weights_as_theirs_does():
  told = enumerate([("linear", 1.0), ("ties", 1.0), ("ties", None)])
  records = [
    record(i, "x", (1.0, 0.0), dict.fromkeys(TASKS, value), method=method) for i, (method, value) in told
  ]
  for method, expected in (("linear", [0]), ("task_arithmetic", [0]), ("ties", [1])):
    options = search.Options(method, search.space("free", 2), fitness(), 2)
    assert np.flatnonzero(options.usable(records)).tolist() == expected


def test_a_model_of_the_fitness_of_another_rule_begins_with_merges_of_its_own():
  """The linear soups that are known score best at another place."""
  chosen = search.Options("ties", search.space("free", 4), fitness(), 4)
  known = [record(i, "uniform", (0.1 * i, 0.9, 0.0, 0.0), dict.fromkeys(TASKS, 99.0)) for i in range(6)]
  steps = model_based.gaussian_process(known, chosen)
  (first,) = next(steps).candidates
  assert first.method == "ties"
  for i in range(4):
    scores = dict.fromkeys(TASKS, float(i))
    asked = steps.send([record(9 + i, first.kind, first.point.weights, scores, method="ties")]).candidates
    first = asked[0]
  assert np.isfinite(first.point.array).all()


def test_relative_fitness_is_not_told_of_single_checkpoints():
  """It refers to all of them, and the journal keeps what is known at the time."""
  chosen = search.Options("linear", search.space("free", 4), fitness(aggregate="normalized"), 4)
  journal = Journal()
  proposer, budget = search.proposer("cma_es", chosen), search.Budget(9)
  found = search.search(proposer, Objective(), journal, chosen.fitness, budget)
  singles = [one.fitness for one in found.records if one.kind == "single"]
  assert singles == [None] * 4 and all(one.fitness is not None for one in found.records[4:])
  assert found.records[4].fitness == pytest.approx(chosen.fitness.of(found.records)[4])


def test_soce_takes_the_experts_of_weakly_correlated_tasks_and_ends():
  scores = [{"a": 3.0, "b": 1.0, "c": 1.1}, {"a": 2.0, "b": 2.0, "c": 2.1}, {"a": 2.5, "b": 3.0, "c": 2.9}]

  def scored(candidate):
    weights = candidate.point.array[:3] / candidate.point.array.sum()
    return Evaluation({t: float(sum(w * s[k] for w, s in zip(weights, scores, strict=True)))
                       for t, k in zip(TASKS, "abc", strict=True)}, None)  # fmt: skip

  chosen = search.Options("linear", search.space("simplex", 3), fitness(), 3)
  result = search.search(
    search.proposer("soce", chosen, known=False), Objective(scored), Journal(), chosen.fitness,
    search.Budget(100),
  )  # fmt: skip
  points = [r.point.weights for r in result.records if r.kind == "soce"]
  assert len(result.records) == 3 + 9 and {w[1] for w in points} == {0.0}
  assert sorted(w[0] for w in points) == pytest.approx([i / 10 for i in range(1, 10)])
  more = {"most": 1}
  alone = search.Options("linear", search.space("simplex", 3), fitness(), 3, extra=more)
  ended = search.search(
    search.proposer("soce", alone, known=False), Objective(scored), Journal(), alone.fitness,
    search.Budget(100),
  )  # fmt: skip
  assert len(ended.records) == 4
  with pytest.raises(ValueError, match="unknown argument of soce 'mots'; did you mean 'most'"):
    search.proposer("soce", search.Options("linear", search.space("simplex", 3), fitness(), 3,
                                           extra={"mots": 1}))  # fmt: skip


def test_simplex_stays_on_the_simplex_and_improves():
  result = run("cma_es", 150, name="simplex")
  searched = [r for r in result.records if r.kind == "cma_es"]
  for weights in arrays(searched):
    assert min(weights) >= 0
    np.testing.assert_allclose(sum(weights), 1.0)
  known = max(r.fitness for r in result.records if r.method == "linear")
  assert max(r.fitness for r in searched) > known
  expected = np.maximum(BEST + (1 - BEST[:3].sum()) / 3, 0)  # projection, the last at its bound
  best = max(searched, key=lambda r: r.fitness)
  np.testing.assert_allclose(best.point.weights, np.append(expected[:3], 0), atol=0.05)


@pytest.mark.parametrize("space", ["simplex", "softmax", "free"])
def test_spaces_come_back(space):
  made = search.space(space, 4)
  weights = (0.5, 0.3, 0.15, 0.05)
  assert made.size == 4 and made.decode(made.encode(Point(weights))).near(Point(weights), 1e-9)
  with pytest.raises(ValueError, match="did you mean"):
    search.space(space + "e", 4)


def test_zero_on_the_simplex_is_uniform():
  assert search.space("simplex", 2).decode(np.array([-1.0, -2.0])) == Point((0.5, 0.5))


def test_points_have_rows_or_not():
  grouped = Point.of(np.arange(6.0).reshape(2, 3), {"density": 0.2})
  assert grouped.array.shape == (2, 3) and grouped.mean_weights.tolist() == [1.5, 2.5, 3.5]
  for point in (grouped, Point((1.0, 2.0))):
    assert msgspec.json.decode(msgspec.json.encode(point), type=Point) == point
  with pytest.raises(ValueError, match="different lengths"):
    Point(((1.0, 2.0), (1.0,)))
  with pytest.raises(ValueError, match="different lengths"):
    Point(((1.0, 2.0), 1.0))


@pytest.mark.parametrize(
  "proposer",
  beyond(
    ("line_search", "cma_es", "random", "soce"),
    (name for name, kind in proposers.PROPOSERS.items() if not kind.foresees),
  ),
)
@pytest.mark.parametrize("cut", beyond((4, 23), (1, 4, 9, 23, 41)))
def test_resume_is_replay(tmp_path, proposer, cut):
  """Another optimiser in between, and half of the values not finite now and then."""

  def sometimes(candidate):
    result = evaluate(candidate)
    broken = int(abs(candidate.point.weights[0]) * 1e6) % 7 == 0 and candidate.kind not in baselines.KINDS
    return Evaluation(dict.fromkeys(TASKS, np.nan), None) if broken else result

  whole = run(proposer, 50, evaluate=sometimes)
  path = tmp_path / "journal.jsonl"
  first = run(proposer, cut, Journal(path), sometimes)
  run("cma_es", 30, seed=5)
  objective = Objective(sometimes)
  second = run(proposer, 50, Journal(path), objective)  # a budget that grew
  assert plain(second.records) == plain(whole.records)
  assert len(objective.calls) == len(whole.records) - len(first.records)
  assert second.mean == whole.mean


@pytest.mark.parametrize("cut", [5, 18, 27])
def test_a_batch_that_was_cut_is_the_same_batch_again(tmp_path, cut):
  path = tmp_path / "journal.jsonl"
  whole = run(budget=40, journal=Journal(path), batch=4)
  assert plain(whole.records) == plain(run(budget=40).records)
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:cut]))
  objective, before = Objective(batch=4), whole.records[:cut]
  again = run(budget=40, journal=Journal(path), evaluate=objective)
  assert plain(again.records) == plain(whole.records)
  repeated = [c for _, c in objective.calls if c in [r.candidate for r in before]]
  assert len(repeated) < 4 and len(objective.calls) - len(repeated) == 40 - cut


def test_a_journal_of_another_search_is_refused(tmp_path):
  path = tmp_path / "journal.jsonl"
  run(budget=30, journal=Journal(path))
  with pytest.raises(ValueError, match="cannot be continued at evaluation"):
    run(budget=40, journal=Journal(path), seed=1)
  moved = Journal()
  for one in Journal(path).records:
    moved.append(msgspec.structs.replace(one, point=Point.of(one.point.array + 1e-13)))
  with pytest.raises(ValueError, match="last digits"):
    run(budget=40, journal=moved)


def test_journals_that_were_changed_are_refused(tmp_path):
  """A flipped index, better scores, a line left out or moved: one sentence with the line."""
  path = tmp_path / "journal.jsonl"
  run(budget=12, journal=Journal(path))
  lines = path.read_bytes().splitlines(keepends=True)
  changes = {
    "index": [*lines[:5], lines[5].replace(b'"index": 5', b'"index": 6'), *lines[6:]],
    "scores": [*lines[:11], lines[11].replace(b'"a": 0.', b'"a": 1.')],
    "left out": [*lines[:5], *lines[6:]],
    "moved": [*lines[:5], lines[6], lines[5], *lines[7:]],
    "old": [b'{"index": 0, "generation": 0, "kind": "single", "method": "linear", "weights": [1.0]}\n'],
    "no object": [*lines[:5], b"[]\n"],
  }
  for name, changed in changes.items():
    assert changed != lines, name
    path.write_bytes(b"".join(changed))
    with pytest.raises(ValueError, match=r"journal\.jsonl:\d+: .*\.$"):
      Journal(path)
  path.write_bytes(b"".join(lines)[:-9])  # cut short by a kill
  assert len(Journal(path).records) == 11


def test_lines_that_are_no_records_are_refused(tmp_path):
  path = tmp_path / "journal.jsonl"
  good = msgspec.to_builtins(record(0, "single", (1.0,), {"a": 1.0}))
  for change in (
    {"index": -1}, {"index": "0"}, {"point": {"weights": []}}, {"point": [1]}, {"scores": None}, {"extra": 1},
    {"seconds": -1}, {"fitness": "best"}, {"split": 3},
  ):  # fmt: skip
    path.unlink(missing_ok=True)
    storage.Lines(path).append(good | change)
    with pytest.raises(ValueError, match=r"journal\.jsonl:1: .*\.$"):
      Journal(path)


def test_other_splits_are_measured_once(tmp_path):
  path, objective = tmp_path / "journal.jsonl", Objective(batch=2)
  found = run(budget=14, journal=Journal(path), evaluate=objective)
  candidates = [r.candidate for r in found.records[:5]]
  first = search.measure(candidates[:3], "validation", objective, Journal(path))
  objective.calls.clear()
  both = search.measure([*candidates, candidates[0]], "validation", objective, Journal(path))
  assert plain(both[:3]) == plain(first) and both[5] == both[0]
  assert [c for _, c in objective.calls] == candidates[2:]  # a batch whose half is known is run whole
  assert [r.index for r in both[:5]] == [0, 1, 2, 3, 4] and all(r.fitness is None for r in both)
  again = run(budget=20, journal=Journal(path))  # the search goes on after other splits
  assert plain(again.records) == plain(run(budget=20).records)


def test_numpys_global_generator_is_left_alone():
  np.random.seed(0)
  before = np.random.get_state()[1].copy()
  run(budget=40)
  np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_known_points_come_first_and_once():
  records = run(budget=16).records
  assert [r.kind for r in records[:6]] == ["single"] * 4 + ["uniform", "merge_best"]
  assert {(r.kind == "cma_es", r.method) for r in records} == {(True, "task_arithmetic"), (False, "linear")}
  weights = [r.point.weights for r in records if r.method == "linear"]
  assert len(weights) == len(set(weights))
  values = fitness().of(records)
  np.testing.assert_allclose(values, [r.fitness for r in records])


def test_greedy_soup_follows_the_recipe():
  """Against a direct run of the recipe, on random quality landscapes."""
  for seed in range(20):
    generator = np.random.default_rng(seed)
    optimum = generator.dirichlet(np.ones(5) * 0.7)

    def score(point, optimum=optimum):
      return float(-((point.array - optimum) ** 2).sum())

    one = search.Fitness(("a",), (1.0,), source="metric")
    result = search.search(
      lambda one=one: baselines.known_points(one, 5),
      Objective(lambda c, score=score: Evaluation({"a": score(c.point)})), Journal(), one, search.Budget(99),
    )  # fmt: skip
    singles = [score(baselines.one_hot(i, 5)) for i in range(5)]
    order = sorted(range(5), key=lambda i: -singles[i])
    members, best = [order[0]], singles[order[0]]
    for i in order[1:]:
      value = score(baselines.soup([*members, i], 5))
      if value > best:
        members, best = [*members, i], value
    assert baselines.greedy(result.records, one, 5) == baselines.soup(members, 5)
    assert len(result.records) <= 11


def test_duplicates_in_merge_best_count_once():
  scores = [(0.9, 0.8, 0.1), (0.2, 0.1, 0.9), (0.1, 0.1, 0.1)]
  records = [
    record(i, "single", baselines.one_hot(i, 3).weights, dict(zip("abc", s, strict=True)))
    for i, s in enumerate(scores)
  ]
  assert baselines.merge_best(records, fitness(), 3) == Point((0.5, 0.5, 0.0))
  assert baselines.best_on(records, fitness(), "c") == records[1]


def test_a_small_budget_is_kept_and_said():
  for budget in (1, 3, 5):
    assert len(run(budget=budget).records) == budget
  for least, made in ((0, 1), (4, 4)):  # seconds end no comparison of the single checkpoints
    budget = search.Budget(10**6, 1e-9, least)
    result = search.search(search.proposer("cma_es", options()), Objective(), Journal(), fitness(), budget)
    assert len(result.records) == made


def test_failed_candidates_are_never_best():
  def failing(candidate):
    if candidate.kind == "single":
      return evaluate(candidate)
    return Evaluation(dict.fromkeys(TASKS, np.inf))

  records = run(budget=40, evaluate=failing).records
  rows = final.rows(records, fitness(), 4, "task_arithmetic", None)
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
    record(i, "single" if i < 2 else "x", (1.0,), {"a": a, "b": b}) for i, (a, b) in enumerate(values)
  ]
  np.testing.assert_allclose(made.of(records), expected, atol=1e-12)


def test_equal_models_have_one_fitness_wherever_they_stand():
  made = search.Fitness(tuple(map(str, range(40))), (1.0,) * 40)
  for count in range(2, 12):
    points = np.tile(np.random.default_rng(count).random(40), (count, 1))
    assert len(set(made.aggregated(points, points))) == 1


def test_fitness_sources():
  scores, losses = {"a": 0.9}, {"a": 2.0}
  one = search.Fitness(("a",), (1.0,), source="auto")
  assert one.values([scores], [losses]).tolist() == [[-2.0]]
  assert one.values([scores], [None]).tolist() == [[0.9]]
  with pytest.raises(ValueError, match="gives scores alone"):
    search.Fitness(("a",), (1.0,), source="loss").values([scores], [None])
  with pytest.raises(ValueError, match="did you mean 'worst'"):
    search.Fitness(("a",), (1.0,), "worse")
  for weights, message in (
    (("b", 1.0), "unknown task"),
    (("a", np.nan), "finite"),
    (("a", 0.0), "of all tasks"),
  ):
    with pytest.raises(ValueError, match=message):
      search.Fitness(("a",), (1.0,), weights=(weights,))
  with pytest.raises(ValueError, match="whatever weights"):
    search.Fitness(("a",), (1.0,), "worst", weights=(("a", 2.0),))


def test_chance_is_drawn_in_batches_and_the_same():
  one, four = (run("random", budget=30, batch=batch) for batch in (1, 4))
  many = search.search(
    search.proposer("random", options(batch=4)), Objective(batch=4), Journal(), fitness(), search.Budget(30)
  )
  assert [r.point for r in one.records] == [r.point for r in four.records] == [r.point for r in many.records]
  assert len({r.generation for r in many.records}) < len({r.generation for r in one.records})


def test_front_and_hypervolume_by_brute_force():
  generator = np.random.default_rng(0)
  for tasks in (1, 2, 3, 4, 5):
    points = generator.integers(0, 5, (40, tasks)).astype(float)
    expected = [
      not any((q >= p).all() and (q > p).any() for q in points) for p in points
    ]  # fmt: skip
    assert search.front(points).tolist() == expected
    cells = np.array(list(itertools.product(range(5), repeat=tasks)))  # unit cells above the origin
    covered = (points > cells[:, None]).all(axis=-1).any(axis=-1).sum()
    assert search.hypervolume(points, np.zeros(tasks)) == pytest.approx(covered)
  with_nan = np.array([[1.0, np.nan], [0.5, 0.5]])
  assert search.front(with_nan).tolist() == [False, True]
  assert search.hypervolume(with_nan, [0.0, 0.0]) == 0.25
  assert search.hypervolume([[0.0, 1.0]], [0.0, 0.0]) == 0.0
  assert search.hypervolume([[1.0, 0.5], [0.5, np.inf]], 0.0) == 0.5
  for function in (search.front, search.task_correlation, lambda points: search.hypervolume(points, [0.0])):
    with pytest.raises(ValueError, match=r"^points has shape \(2,\); expected \[points, tasks\].$"):
      function([1.0, 2.0])
  for reference in ([0.0], [0.0] * 3, [0.0, np.nan], np.inf):
    with pytest.raises(ValueError, match=r"^reference is .*; expected a finite number, or one for each of 2"):
      search.hypervolume([[1.0, 0.5]], reference)


def test_a_hypervolume_of_many_tasks_takes_seconds(monkeypatch):
  points = np.random.default_rng(0).normal(size=(60, 30))
  boxes = points - (reference := points.min(axis=0) - 0.01)
  volume = search.hypervolume(points, reference)  # exact, it would take years
  assert boxes.prod(axis=1).max() < volume < boxes.prod(axis=1).sum()
  assert search.hypervolume(points[[0, 0, 1]], reference) == pytest.approx(
    boxes[:2].prod(axis=1).sum() - boxes[:2].min(axis=0).prod(), rel=2e-3
  )
  few = points[:, :5]
  exact = search.hypervolume(few, reference[:5])
  monkeypatch.setattr("merge_jax.search.pareto.EXACT", 0)
  assert search.hypervolume(few, reference[:5]) == pytest.approx(exact, rel=0.02)


def test_task_correlation_is_spearman():
  points = np.array([[1, 4, 1], [2, 3, 1], [3, 2, 1], [4, 1, 1]], float)
  assert search.task_correlation(points) == [
    [1.0, -1.0, None],
    [-1.0, 1.0, None],
    [None, None, 1.0],
  ]


def test_points_and_candidates_are_members_of_sets():
  points = [Point(((1.0, 0.0), (0.5, 0.5)), {"t": 1.0}), Point((1.0, 0.0)), Point((1.0, -0.0))]
  assert points[1] == points[2] and len(set(points)) == 2
  assert len({search.Candidate("a", "linear", point) for point in points}) == 2


def test_a_journal_is_opened_by_its_path_as_text(tmp_path):
  found = run(budget=4, journal=Journal(str(tmp_path / "journal.jsonl")))
  assert Journal(tmp_path / "journal.jsonl").records == found.records
  assert Journal.read(str(tmp_path / "journal.jsonl")) == found.records


def test_analyses_of_a_search():
  records = run(budget=80).records
  made = analysis.analyse(records, fitness())
  assert len(made["fitness_by_evaluation"]) == 80
  assert len(made["top_points"]) == 5
  best = max(records, key=lambda r: r.fitness)
  assert made["top_points"][0]["weights"] == best.point.weights
  assert made["nonzero_weights"]["top"][0] == int(np.sum(np.abs(best.point.array) > 0.015))
  by_part = [record(0, "uniform", (0.5, 0.5), {}), record(1, "x", ((1.0, 0.0), (0.5, 0.01)), {})]
  assert analysis.nonzero_weights(by_part, 2) == [4, 2]
  assert made["fitness_slope"]["slope"] > 0
  assert analysis.slope(np.array([1.0, np.nan])) is None


@pytest.mark.parametrize("aggregate", search.fitness.AGGREGATES)
@pytest.mark.parametrize("proposer", ["cma_es", "line_search"])
def test_a_constant_fitness_is_analysed(aggregate, proposer):
  """Accuracy 0 everywhere: what is not defined is None, never NaN."""
  chosen = fitness(aggregate=aggregate)
  constant = Objective(lambda candidate: Evaluation(dict.fromkeys(TASKS, 0.0)))
  found = search.search(
    search.proposer(proposer, search.Options("linear", search.space("simplex", 4), chosen, 4)), constant,
    Journal(), chosen, search.Budget(30),
  )  # fmt: skip
  json.dumps(analysis.analyse(found.records, chosen), allow_nan=False)
  rows = final.rows(found.records, chosen, 4, "linear", found.mean)
  assert {"best_single", "uniform", "search_best", "search_mean"} <= set(rows)


def test_the_answer_is_chosen_on_validation():
  records = run(budget=40).records
  mean = Point((0.5, 0.3, 0.4, -0.1))
  rows = final.rows(records, fitness(), 4, "ties", mean)
  assert {"best_single", "best_on_a", "uniform", "greedy", "search_best", "search_mean"} <= set(rows)
  assert rows["search_mean"] == Candidate("search_mean", "ties", mean)
  names = final.finalists(rows)
  assert not any(name.startswith("best_on_") for name in names)

  def scored(winner):
    scores = {name: dict.fromkeys(TASKS, 0.9 if name == winner else 0.1) for name in names}
    return {name: record(0, rows[name].kind, rows[name].point.weights, s) for name, s in scores.items()}

  for winner in names:
    assert final.select(scored(winner), fitness(), records).name == winner
  with pytest.raises(ValueError, match=r"No finalist.*Tasks 'a', 'b', 'c': null.*--overwrite"):
    nothing = {"uniform": record(0, "uniform", (1.0,), dict.fromkeys(TASKS))}
    final.select(nothing, fitness(), records)


def test_unknown_names_are_told():
  with pytest.raises(ValueError, match="did you mean 'cma_es'"):
    proposers.proposer("cmaes", options())
  with pytest.raises(ValueError, match="unknown start"):
    options(start="cold")
