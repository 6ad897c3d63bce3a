"""The surrogate: answers read as scores, their slopes, what is foreseen, and searches that learn from it."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest

from merge_jax import evals, models, recycle, search
from merge_jax.evals import smoothing
from merge_jax.evals.answers import Answers
from merge_jax.evals.task_suite import TaskSuite
from merge_jax.operators import Leaf
from merge_jax.recycle import choice, metric, settings
from merge_jax.search import pareto, proposers
from merge_jax.search.options import Evidence, Options
from merge_jax.search.outputs import Outputs
from merge_jax.search.space import space
from merge_jax.search.surrogate import directions, leave_one_out, process, region, steps, surest, surrogate
from merge_jax.search.surrogate.model import learn
from merge_jax.search.surrogate.view import View
from merge_jax.training import puzzles
from tests import pools
from tests.further import further
from tests.test_recycle import job, journal_of, quiet, without_times

MODEL = models.build(pools.CONFIG | {"num_hidden_layers": 1})
METRICS = (
  "exact_match", "choice_accuracy", "choice_accuracy_normalized", "choice_accuracy_per_character", "loss"
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  return folder, pools.make_pool(folder / "pool", 3, 0.05), pools.make_tasks(folder / "tasks")


@pytest.fixture(scope="module")
def scored(world):
  """A scorer with outputs of all competitors, and what it says of five models."""
  copy, choose = world[2]
  specs = [f"{choose if 'choice' in metric else copy}:{metric}" for metric in METRICS]
  tasks = [evals.load(spec) for spec in specs]
  tasks = [type(task)(f"{task.metric}", task.metric, task.examples[:12]) for task in tasks]
  suite = TaskSuite({"search": tasks}, MODEL.apply, evals.Tokens(puzzles.tokenizer(), 1), vocabulary=97)
  scorer = suite.scorers(96, "search")["search"]
  program = jax.jit(scorer.function)
  found = []
  for i in range(5):
    params = jax.tree.map(lambda x: 3 * x, MODEL.init(jax.random.key(i)))
    values, details = program(params, scorer.batches)
    found.append((scorer.read(values), scorer.answers.read(details)))
  return suite, found


def table_of(scored, chosen=slice(None)):
  suite, found = scored
  return suite.answers.table([outputs for _, outputs in found][chosen])


def test_smoothed_scores_without_smoothing_are_the_scores(scored, monkeypatch):
  monkeypatch.setattr(smoothing, "SMOOTHING", 1e-4)
  monkeypatch.setattr(smoothing, "RELEVANT", 1e-30)
  table = table_of(scored)
  for row, (examples, _) in zip(table.values, scored[1], strict=True):
    smoothed = table.smoothed(row, np.zeros(len(METRICS)))
    np.testing.assert_allclose(smoothed.scores, list(examples.scores().values()), atol=2e-3)
  losses = scored[0].answers.table([outputs for _, outputs in scored[1]], losses=True)
  for row, (examples, _) in zip(losses.values, scored[1], strict=True):
    found = losses.smoothed(row, np.zeros(len(METRICS))).scores
    np.testing.assert_allclose(found, list(examples.scores(loss=True).values()), rtol=1e-5)


def test_programs_smooth_scores_as_answers_are_smoothed(scored, monkeypatch):
  """On the device from all logits, on the host from the competitors' gaps, which are kept in 16 bits."""
  monkeypatch.setattr(smoothing, "RELEVANT", 1e-30)
  table = table_of(scored)
  for row, (examples, _) in zip(table.values, scored[1], strict=True):
    expected = table.smoothed(row, np.zeros(len(METRICS))).scores
    np.testing.assert_allclose(list(examples.smoothed().scores().values()), expected, rtol=2e-3)
    assert examples.smoothed().scores()["exact_match"] != examples.scores()["exact_match"]


def test_only_what_is_asked_for_is_smoothed(world, scored):
  suite, _ = scored
  params = MODEL.init(jax.random.key(0))
  for smooth in ("", "validation"):
    scorer = suite.scorers(0, smooth)["search"]
    assert scorer.read(scorer.function(params, scorer.batches)).smooth is None


def test_paired_errors_of_sharp_answers_are_those_of_the_scores(scored, monkeypatch):
  monkeypatch.setattr(smoothing, "SMOOTHING", 1e-4)
  monkeypatch.setattr(smoothing, "RELEVANT", 1e-30)
  table = table_of(scored)
  (one, _), (other, _) = scored[1][:2]
  signs = np.array(one.signs)
  found, _ = table.paired_error(table.values[0], table.values[1], signs / len(signs))
  assert found == pytest.approx(evals.uncertainty.paired_difference(one, other)[1], rel=0.02)
  same, slope = table.paired_error(table.values[0], table.values[0], signs)
  assert same == 0 and not slope.any()


@pytest.mark.parametrize("variance", [0.0, 0.7])
def test_slopes_are_derivatives(scored, variance):
  table = table_of(scored)
  generator = np.random.default_rng(0)
  row, spread = table.values[0].astype(np.float64), np.full(len(METRICS), variance)
  found = table.smoothed(row, spread)
  for task in range(len(METRICS)):
    direction = np.where(table.tasks == task, generator.normal(size=row.shape), 0.0)
    ends = [table.smoothed(row + step * direction, spread).scores for step in (1e-4, -1e-4)]
    slope = (ends[0] - ends[1]) / 2e-4
    np.testing.assert_allclose(slope[task], (found.slopes * direction).sum(), rtol=1e-3, atol=1e-6)
    assert all(abs(slope[other]) < 1e-9 for other in range(len(METRICS)) if other != task)
  slopes = generator.normal(size=len(METRICS))
  _, by_column = table.paired_error(row, table.values[1], slopes)
  direction = generator.normal(size=row.shape)
  ends = [table.paired_error(row + step * direction, table.values[1], slopes)[0] for step in (1e-4, -1e-4)]
  np.testing.assert_allclose((ends[0] - ends[1]) / 2e-4, by_column @ direction, rtol=1e-3)
  up, down = (table.smoothed(row, spread + step).scores for step in (1e-3, -min(variance, 1e-3)))
  np.testing.assert_allclose((up - down) / (1e-3 + min(variance, 1e-3)), found.spread, rtol=0.02, atol=1e-5)


def test_competitors_of_different_models_are_aligned():
  """Each model keeps its strongest; what one lacks lies at its lowest kept gap."""
  generator = np.random.default_rng(0)
  full = generator.normal(size=(3, 50, 20)).astype(np.float16) - 1
  order = np.argsort(-full, axis=2)[:, :, :8]
  kept = [(np.take_along_axis(f, o, 1), o) for f, o in zip(full, order, strict=True)]
  values, positions, weights = smoothing.relevant(kept)
  assert (np.diff(positions) >= 0).all() and (weights > 0).all() and (weights <= 1).all()
  for position in range(50):
    columns = values[:, positions == position].astype(np.float16)
    for i in range(3):
      lowest = full[i, position, order[i, position, -1]]
      truth = {float(max(full[i, position, r], lowest)) for r in set(order[:, position].ravel())}
      assert {float(v) for v in columns[i]} <= truth
      assert float(full[i, position].max()) in {float(v) for v in columns[i]}


def test_positions_that_no_model_could_lose_are_left_out():
  sure = (np.full((2, 3), -50, np.float16), np.tile(np.arange(3), (2, 1)))
  unsure = (np.array([[-50, -50, -50], [1, 0, -50]], np.float16), sure[1])
  values, positions, weights = smoothing.relevant([sure, unsure])
  assert positions.tolist() == [1, 1] and values.tolist() == [[-50, -50], [1, 0]] and weights[0] > weights[1]


def test_process_foresees_what_is_linear_and_knows_what_it_does_not_know():
  generator = np.random.default_rng(0)
  points = generator.normal(size=(8, 3))
  outputs = points @ generator.normal(size=(3, 200))
  fitted = process.fit(points, outputs @ outputs.T / 200)
  new = np.array([0.3, -0.2, 0.5])
  coefficients, variance = fitted.at(new)
  truth = new @ np.linalg.lstsq(points, outputs, rcond=None)[0]
  assert np.abs(coefficients @ outputs - truth).max() < 0.05
  assert 0 <= variance < fitted.at(10 * new)[1]


def test_the_covariance_of_slopes_is_that_of_small_differences():
  generator = np.random.default_rng(1)
  points = generator.normal(size=(6, 3))
  outputs = np.sin(points @ generator.normal(size=(3, 40)))
  fitted = process.fit(points, outputs @ outputs.T / 40)
  ends = 1e-3 * np.concatenate([np.eye(3), -np.eye(3)])
  between = process._kernel(ends, points, fitted.theta)
  after = process._kernel(ends, ends, fitted.theta) - between @ fitted.inverse @ between.T
  half = np.concatenate([np.eye(3), -np.eye(3)]) / 2e-3
  np.testing.assert_allclose(fitted.slope_covariance(), half.T @ after @ half, rtol=1e-3, atol=1e-4)


def test_few_points_are_not_taken_for_unrelated():
  generator = np.random.default_rng(0)
  outputs = np.array([[1.0], [-1.0], [0.2]]) * generator.normal(size=200)
  outputs += 0.4 * generator.normal(size=(3, 200))
  outputs -= outputs.mean(axis=0)
  fitted = process.fit(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), outputs @ outputs.T / 200)
  coefficients, _ = fitted.at(np.array([0.5, 0.0]))
  assert coefficients[0] > 0.3 and coefficients[2] > 0.3


def test_slopes_of_a_process_are_derivatives():
  generator = np.random.default_rng(1)
  points = generator.normal(size=(6, 3))
  outputs = np.sin(points @ generator.normal(size=(3, 50)))
  fitted = process.fit(points, outputs @ outputs.T / 50)
  z, step = np.array([0.1, 0.4, -0.3]), 1e-5
  by_point, by_variance = fitted.slopes(z)
  for i in range(3):
    up, down = fitted.at(z + step * np.eye(3)[i]), fitted.at(z - step * np.eye(3)[i])
    np.testing.assert_allclose((up[0] - down[0]) / (2 * step), by_point[:, i], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose((up[1] - down[1]) / (2 * step), by_variance[i], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("aggregate", ["mean", "normalized"])
@pytest.mark.parametrize("source", ["metric", "loss"])
def test_foreseen_slopes_are_derivatives(scored, aggregate, source):
  names = tuple(METRICS)
  fitness = search.Fitness(names, (1.0, 1.0, 1.0, 1.0, -1.0), aggregate, source)
  table = scored[0].answers.table([outputs for _, outputs in scored[1]], source == "loss")
  signs = -np.ones(len(METRICS)) if source == "loss" else np.array(fitness.signs)
  singles = np.random.default_rng(2).normal(size=(3, len(METRICS)))
  points = np.random.default_rng(3).normal(size=(5, 2))
  model = learn(points, table, fitness, signs, singles)
  z, step = points[0] + 0.2, 1e-4
  for function in (model.at, lambda z: model.error(z, points[1])):
    found = function(z)
    for i in range(2):
      ends = [function(z + sign * step * np.eye(2)[i]).value for sign in (1, -1)]
      np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), found.slope[i], rtol=0.05, atol=1e-3)


def test_absurd_losses_of_a_model_are_learned_from(scored):
  table = scored[0].answers.table([outputs for _, outputs in scored[1]], True)
  spoilt = np.array(table.values)
  spoilt[-1] *= 1e30
  count = len(METRICS)
  fitness = search.Fitness(tuple(METRICS), (1.0, 1.0, 1.0, 1.0, -1.0), source="loss")
  points = np.random.default_rng(3).normal(size=(len(spoilt), 2))
  model = learn(points, table._replace(values=spoilt), fitness, -np.ones(count), np.zeros((0, count)))
  assert np.isfinite(model.scales).all() and np.isfinite(model.errors).all()
  assert np.isfinite(model.at(points[0]).value)


def test_highest_stays_in_its_region_and_on_the_simplex():
  gram = np.array([[1.0, 0.9], [0.9, 1.0]])
  around = region.Metric.of(gram, np.array([0.5, 0.5]))
  np.testing.assert_allclose(around.weights(around.z(np.array([0.2, 0.7]))), [0.2, 0.7])

  def up(z):  # towards the first model
    return float(around.weights(z)[0]), around.to_weights[0]

  free, value = region.highest(up, around, 0.3, [np.zeros(2)])
  assert abs(np.linalg.norm(free) - 0.3) < 1e-3 and value > 0.6
  bound, _ = region.highest(up, around, 10.0, [np.zeros(2)], sums=1)
  np.testing.assert_allclose(around.weights(bound), [1.0, 0.0], atol=1e-4)


def test_weights_that_change_no_model_stay():
  """Of a frozen part and of a model that is the base; the others are those of a metric of their own."""
  gram, live = np.zeros((6, 6)), [0, 2, 3, 5]
  own = np.array([[1.0, 0.5], [0.5, 1.0]])
  gram[np.ix_([0, 2], [0, 2])], gram[np.ix_([3, 5], [3, 5])] = own, 3 * own
  centre, weights = np.arange(6.0), np.array([0.5, -1, 0.5, 0.2, 7, 0.8])
  around = region.Metric.of(gram, centre)
  alone = region.Metric.of(gram[np.ix_(live, live)], centre[live])
  np.testing.assert_allclose(around.z(weights), alone.z(weights[live]))
  found = around.weights(around.z(weights))
  np.testing.assert_allclose(found[live], weights[live])
  assert around.size == 4 and (found[[1, 4]] == centre[[1, 4]]).all()
  assert region.Metric.of(np.zeros((2, 2)), np.zeros(2)).size == 2


def test_highest_on_a_simplex_of_which_a_part_is_frozen():
  gram = np.zeros((4, 4))
  gram[2:, 2:] = [[1.0, 0.5], [0.5, 1.0]]
  around = region.Metric.of(gram, np.full(4, 0.5))
  found, _ = region.highest(
    lambda z: (float(around.weights(z)[2]), around.to_weights[2]), around, 9.0, [np.zeros(2)], sums=2
  )
  np.testing.assert_allclose(around.weights(found), [0.5, 0.5, 1.0, 0.0], atol=1e-4)


def test_gram_is_that_of_task_vectors():
  generator = np.random.default_rng(0)
  base, *models_ = (generator.normal(size=(700, 900)).astype(np.float32) for _ in range(4))
  models_[1] = models_[0] + 0.1 * models_[1]
  found = metric.gram(
    [("w", Leaf(tuple(models_), base)), ("i", Leaf((np.arange(3),) * 3, np.arange(3)))], [".*"]
  )
  vectors = np.stack([(m - base).reshape(-1) for m in models_]).astype(np.float64)
  exact = vectors @ vectors.T
  np.testing.assert_allclose(found / np.trace(found), exact / np.trace(exact), atol=5e-3)
  np.testing.assert_allclose(found, found.T, rtol=1e-5)


def test_gram_of_a_spoilt_checkpoint_is_finite():
  spoilt, sound, none = (np.full(4, value, np.float32) for value in (1e30, 1.0, 0.0))
  found = metric.gram(
    [("w", Leaf((spoilt, sound), none)), ("none", Leaf((none[:0], none[:0]), none[:0]))], [".*"]
  )
  np.testing.assert_allclose(found, [[4e60, 4e30], [4e30, 4.0]], rtol=1e-6)
  assert np.isfinite(region.Metric.of(found, np.zeros(2)).to_weights).all()


@pytest.fixture(scope="module", autouse=True)
def eager():
  """Models by chance promise less than its error; here a search goes on all the same."""
  with pytest.MonkeyPatch.context() as patch:
    kind = proposers.PROPOSERS["surrogate"]
    patch.setitem(
      proposers.PROPOSERS, "surrogate", kind._replace(start=functools.partial(kind.start, least=-1.0))
    )
    yield


SURROGATE = {"budget": 16, "proposer": "surrogate", "fitness_source": "metric"}


def run(world, output, **options):
  return recycle.recycle(job(world, output, **options), say=quiet)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
  output = tmp_path_factory.mktemp("out") / "run"
  return output, run(world, output, search=SURROGATE)


def test_a_job_learns_from_answers(finished):
  output, result = finished
  records = journal_of(output)
  kinds = [record["kind"] for record in records if record["split"] == "search"]
  assert "base" in kinds and "surrogate" in kinds
  assert kinds.index("base") < kinds.index("surrogate")
  assert not (output / ".merge_jax_answers").exists()
  assert {"search_mean", "search_sure"} <= {row["name"] for row in result["rows"]}


def test_what_promises_less_than_its_error_ends_a_search(world, tmp_path):
  careful = functools.partial(surrogate, least=1e3)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(proposers.PROPOSERS, "surrogate", proposers.PROPOSERS["surrogate"]._replace(start=careful))
    run(world, tmp_path / "run", search=SURROGATE)
  kinds = [record["kind"] for record in journal_of(tmp_path / "run") if record["split"] == "search"]
  # The sum of task vectors, which opens, and looks in directions that are not known.
  assert "base" in kinds and kinds.count("surrogate") <= 1 + steps.PROBES[0]


UNLIKE = {
  "free": [(0.0, 0.0), (1.0, 0.0), (0.4, 0.0), (0.7, 0.0), (1.2, 0.0)],
  "simplex": [(1.0, 0.0, 0.0), (0.4, 0.6, 0.0), (0.7, 0.3, 0.0), (0.2, 0.8, 0.0), (0.5, 0.5, 0.0)],
}


@pytest.mark.parametrize("name", UNLIKE)
def test_directions_that_no_merge_has_measured_are_looked_at(scored, name):
  """The last checkpoint was in no merge."""
  suite, found = scored
  count = len(UNLIKE[name][0])
  records = [
    search.Record(
      "search", i, 0, "x", "task_arithmetic", search.Point(point), examples.scores(), None, None, 0.0
    )
    for i, (point, (examples, _)) in enumerate(zip(UNLIKE[name], found, strict=True))
  ]
  evidence = Evidence(suite.answers, lambda record: found[record.index][1])
  fitness = search.Fitness(tuple(METRICS), tuple(suite.signs), source="metric")
  options = Options(
    "task_arithmetic", space(name, count), fitness, count, based=True, evidence=evidence, metric=np.eye(count)
  )
  view = View.of(records, options)
  assert view is not None
  probes = [np.array(probe.point.weights) for probe in steps.around(view)]
  assert probes and any(abs(probe[-1]) > 0.1 for probe in probes)
  for probe in probes:
    if name == "simplex":
      assert probe.min() >= 0 and probe.sum() == pytest.approx(1)
    else:
      assert np.linalg.norm(view.metric.z(probe)) == pytest.approx(steps.PROBE)


def example(scored, points, space_, based=True, kinds=(), **fitness):
  """Records of five models at points, and options to search from them."""
  suite, found = scored
  rows = [
    search.Record("search", i, 0, kind, "task_arithmetic", search.Point.of(np.array(point)),
                  examples.scores(), examples.scores(loss=True), None, 0.0)
    for i, (point, (examples, _), kind) in enumerate(zip(points, found, [*kinds, *"xxxxx"], strict=False))
  ]  # fmt: skip
  evidence = Evidence(suite.answers, lambda record: found[record.index][1])
  made = search.Fitness(tuple(METRICS), tuple(suite.signs), **({"source": "metric"} | fitness))
  return rows, Options("task_arithmetic", space_, made, len(points[0]), based=based, evidence=evidence)


def test_on_the_mean_of_the_pool_no_look_is_the_same_model(scored):
  """Weights of a part that all move alike change nothing there."""
  points = [(1.0, 0.0, 0.0), (0.4, 0.6, 0.0), (0.7, 0.3, 0.0), (0.2, 0.8, 0.0), (0.5, 0.5, 0.0)]
  records, options = example(scored, points, space("free", 3), based=False)
  gram = np.eye(3) - 1 / 3  # of differences to the mean
  view = View.of(records, dataclasses.replace(options, metric=gram))
  assert view is not None
  probes = [np.array(probe.point.weights) for probe in steps.around(view)]
  assert probes and np.allclose([probe.sum() for probe in probes], 1)


@pytest.mark.parametrize(
  ("weights", "expected"),
  [
    ((0.5, 0.5, 0.5), (0.0, 0.5, 0.5)),  # the uniform soup
    ((0.779, 0.717, -0.497), (0.0, 3.251, -2.251)),
    ((-0.664, -0.726, -1.940), (0.0, 3.251, -2.251)),  # the same merge
    ((1.2, -0.5, 0.3), None),  # what is left is the opposite
    ((1.0, 0.0, 0.0), None),
  ],
)
def test_a_merge_without_a_checkpoint_is_one_whatever_its_weights_sum_to(weights, expected):
  found = leave_one_out.without(search.Point(weights), 0, based=False)
  assert (found is None) == (expected is None)
  if found is not None:
    np.testing.assert_allclose(found.weights, expected, atol=0.01)


def test_a_frozen_part_is_not_looked_at(scored):
  """Three parts of two checkpoints, the second part the same in all of them."""
  records, options = example(scored, UNLIKE["free"], space("free", 2, rows=3))
  options = dataclasses.replace(options, metric=np.diag([1.0, 1, 0, 0, 1, 1]))
  view = View.of(records, options)
  assert view is not None and view.metric.size == 4
  best, probes = options.weights(view.best.point), steps.around(view)
  assert probes
  for probe in probes:
    assert (options.weights(probe.point)[2:4] == best[2:4]).all()


def test_a_batch_of_any_size_has_regions_of_bounded_size(scored):
  records, options = example(scored, UNLIKE["free"], space("free", 2))
  view = View.of(records, dataclasses.replace(options, batch=4096))
  assert view is not None
  found = steps.batch(view, 0.5, steps.How())
  assert 1 < len(found) <= steps.RADII + 1 and all(np.linalg.norm(one.z) <= 3.01 for one in found)


def test_relative_heights_are_relative_to_smoothed_scores_of_the_checkpoints(scored):
  """So that the best checkpoint of a task has 1, the worst 0."""
  kinds = ["single"] * 3
  for aggregate in ("normalized", "worst"):
    records, options = example(scored, UNLIKE["free"], space("free", 2), kinds=kinds, aggregate=aggregate)
    view = View.of(records, options)
    assert view is not None
    exact = np.array([view.model.table.smoothed(row, np.zeros(5)).scores for row in view.model.table.values])
    exact = exact[:3] * np.array(options.fitness.signs)
    np.testing.assert_array_equal(view.model.singles, exact)
    parts = (exact - exact.min(axis=0)) / np.ptp(exact, axis=0)
    expected = parts.mean(axis=1) if aggregate == "normalized" else parts.min(axis=1)
    np.testing.assert_allclose(view.heights[:3], expected, rtol=1e-6)


def test_effects_of_checkpoints_are_in_each_tasks_metric_whatever_is_searched(scored):
  point = search.Point(tuple(map(float, UNLIKE["free"][4])))
  found = [
    leave_one_out.foreseen(*example(scored, UNLIKE["free"], space("free", 2), source=source), point)
    for source in ("metric", "loss")
  ]
  np.testing.assert_array_equal(*found)


def test_effects_of_checkpoints_are_those_of_merges_that_were_learned_from(scored):
  """A merge without one of two checkpoints is a point where answers are known."""
  suite, found = scored
  points = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.6, 0.4), (1.0, 0.8)]
  signs, names = tuple(suite.signs), tuple(METRICS)
  records = [
    search.Record(
      "search", i, 0, "x", "task_arithmetic", search.Point(point), examples.scores(), None, None, 0.0
    )
    for i, (point, (examples, _)) in enumerate(zip(points, found, strict=True))
  ]
  evidence = Evidence(suite.answers, lambda record: found[record.index][1])
  fitness = search.Fitness(names, signs, source="metric")
  options = Options("task_arithmetic", space("free", 2), fitness, 2, based=True, evidence=evidence)
  table = suite.answers.table([outputs for _, outputs in found])
  smoothed = [table.smoothed(row, np.zeros(len(names))).scores * signs for row in table.values]
  effects = leave_one_out.foreseen(records, options, search.Point((1.0, 0.8)))
  assert effects is not None
  np.testing.assert_allclose(effects[1], smoothed[4] - smoothed[1], atol=0.03)
  alone = leave_one_out.foreseen(records, options, search.Point((1.0, 0.0)))
  assert alone is not None and np.isnan(alone).all()


class Losses:
  """Answers of models whose examples' losses are given."""

  def table(self, outputs, losses=False):
    count = len(outputs[0])
    none, ones = np.zeros((count, 1)), np.ones(count)
    part = smoothing.Part(smoothing.LOSS, np.arange(count)[:, None], none[:, 0].astype(int), none, ones, ones)
    piece = smoothing.Piece(smoothing.LOSS, part)
    weights = np.full(count, 1 / count)
    return smoothing.Table(np.float32(outputs), np.zeros(count, int), weights, (piece,), np.arange(count))


@pytest.mark.parametrize("name", ["free", "simplex"])
def test_the_surest_point_leaves_out_what_examples_disagree_on(name):
  """All examples gain alike by the second checkpoint; by the third as much, each another amount."""
  apart = np.random.default_rng(0).normal(size=200)
  apart -= apart.mean()

  def losses(weights):
    first, second, third = weights
    common = first**2 + (second - 0.5) ** 2 + (third - 0.5) ** 2
    return 3 + common + 4 * (apart * third + 0.1 * np.roll(apart, 7) * second)

  kinds = ["single", "single", "single", "uniform", *["surrogate"] * 6]
  points = [*np.eye(3), np.full(3, 1 / 3), (0, 0.5, 0.5), (0.1, 0.4, 0.5), (0.1, 0.5, 0.4), (0, 0.6, 0.4),
            (0, 0.4, 0.6), (0.05, 0.55, 0.4)]  # fmt: skip
  fitness = search.Fitness(("a",), (-1.0,))
  records = [
    search.Record("search", i, 0, kind, "task_arithmetic", search.Point.of(np.array(point, float)),
                  {"a": losses(point).mean()}, None, None, 0.0)
    for i, (kind, point) in enumerate(zip(kinds, points, strict=True))
  ]  # fmt: skip
  evidence = Evidence(Losses(), lambda record: losses(record.point.array))
  options = Options("task_arithmetic", space(name, 3), fitness, 3, based=name == "free", evidence=evidence)
  found = surest.surest(records, options)
  view = View.of(records, options)
  assert found is not None and view is not None
  np.testing.assert_allclose(view.best.point.array, (0, 0.5, 0.5))
  gains = np.array([losses(points[3]) - losses(one.array) for one in (view.best.point, found)])
  errors = gains.std(axis=1, ddof=1) / np.sqrt(200)
  surer = gains.mean(axis=1) - errors
  assert surer[1] > surer[0] + 0.2 * errors[0]
  assert found.array[2] < 0.45 and gains.mean(axis=1)[1] > 0.8 * gains.mean(axis=1)[0]
  if name == "simplex":
    assert found.array.min() >= 0 and found.array.sum() == pytest.approx(1)
  assert surest.surest([one for one in records if one.kind == "surrogate"], options) is None
  assert surest.surest(records, dataclasses.replace(options, evidence=None)) is None


@pytest.mark.parametrize(("based", "granularity"), [(True, "model"), (True, "group"), (False, "model")])
def test_the_largest_effects_are_measured(world, tmp_path, based, granularity, monkeypatch):
  chosen = choice.select
  monkeypatch.setattr(choice, "select", lambda *args: chosen(*args)._replace(name="uniform"))
  options = SURROGATE | ({} if based else {"method": "linear", "space": "simplex"})
  result = run(world, tmp_path / "run", search=options | {"granularity": granularity})
  members = result["members"]
  assert len(members["foreseen"]) == 3 and set(members["measured"]) == set(members["foreseen"])
  rows = {row["name"]: row for row in result["rows"]}
  (first, measured), *_ = members["measured"].items()
  left = 1 / 3 if based else 1 / 2
  weights = [0.0 if name == first else left for name in result["checkpoints"]]
  (own,) = [one for one in journal_of(tmp_path / "run") if one["split"] == "test"
            and np.allclose(one["point"]["weights"], weights, atol=1e-12)]  # fmt: skip
  signs = {task["name"]: task["sign"] for task in result["tasks"]}
  for task, value in measured.items():
    gain = signs[task] * (rows["selected"]["test"][task] - own["scores"][task])
    assert value["gain"] == pytest.approx(gain, abs=1e-12)
    assert value["stderr"] >= 0
  assert "What each checkpoint adds" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("lost", [False, True])
def test_a_stopped_search_goes_on_with_or_without_its_answers(world, finished, tmp_path, lost):
  calls = iter(range(100))
  stopped = job(world, tmp_path / "x", search=SURROGATE)
  with pytest.raises(recycle.Stopped):
    recycle.recycle(stopped, say=quiet, stop=lambda: next(calls) >= 11)
  kept = tmp_path / "x" / ".merge_jax_answers"
  assert len(list(kept.iterdir())) == len(journal_of(tmp_path / "x"))
  if lost:
    shutil.rmtree(kept)
  else:
    sorted(kept.iterdir())[0].write_bytes(b"damaged")
  result = run(world, tmp_path / "x", search=SURROGATE)
  assert without_times(result) == without_times(finished[1])
  assert without_times(journal_of(tmp_path / "x")) == without_times(journal_of(finished[0]))


@pytest.mark.parametrize("options", [further({"space": "softmax"}), {"batch": 3}])
def test_other_spaces_and_batches(world, tmp_path, options):
  result = run(world, tmp_path / "x", search=SURROGATE | options)
  found = [r for r in journal_of(tmp_path / "x") if (r["split"], r["kind"]) == ("search", "surrogate")]
  assert found and result["rows"]
  together = {r["generation"] for r in found}
  assert (len(together) < len(found)) == ("batch" in options)


@pytest.mark.parametrize("count", [1, 2, further(40)])
def test_any_number_of_checkpoints(tmp_path, count):
  own = tmp_path, pools.make_pool(tmp_path / "pool", count, 0.05), pools.make_tasks(tmp_path / "tasks")
  budget = 2 * count + 8
  result = run(own, tmp_path / "x", search=SURROGATE | {"budget": budget, "fitness_source": "loss"})
  records = [r for r in journal_of(tmp_path / "x") if r["split"] == "search"]
  assert len(records) <= budget + 1 and {r["kind"] for r in records} >= {"single", "base"}
  assert "surrogate" in {r["kind"] for r in records}  # one alone can be scaled
  assert len(result["checkpoints"]) == count


def test_weights_on_the_simplex_stay_there(tmp_path):
  own = tmp_path, pools.make_pool(tmp_path / "pool", 4, 0.15), pools.make_tasks(tmp_path / "tasks")
  options = {"space": "simplex", "method": "linear", "fitness_source": "loss"}
  run(own, tmp_path / "x", search=SURROGATE | options)
  found = [r for r in journal_of(tmp_path / "x") if r["kind"] == "surrogate"]
  assert found
  for record in found:
    weights = np.array(record["point"]["weights"])
    assert weights.shape == (3, 4)  # by depth
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-12 and (weights >= 0).all()


def test_a_scorer_without_answers_is_refused(world, tmp_path):
  command = {"command": "true {model_dir} {scores_json}"}
  with pytest.raises(ValueError, match="gives scores alone"):
    run(world, tmp_path / "x", search=SURROGATE, scorer=command, tasks=["a"])
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  "search, other, expected, rows",
  [
    ({}, {}, "surrogate", 3),
    ({"granularity": "layer"}, {}, "surrogate", 3),
    ({"granularity": "model"}, {}, "surrogate", 1),
    ({"objective": "pareto"}, {}, "surrogate", 3),
    ({"method": "ties"}, {}, "cma_es", 1),
    ({"method": "linear", "space": "trajectory", "steps": [1, 2, 3]}, {}, "cma_es", 1),
    ({"numbers": "scaling"}, {}, "cma_es", 1),
    ({}, {"scorer": {"command": "true {model_dir} {scores_json}"}, "tasks": ["a"]}, "gaussian_process", 1),
    (
      {"granularity": "layer"},
      {"scorer": {"command": "true {model_dir} {scores_json}"}, "tasks": ["a"]},
      "cma_es",
      3,
    ),
    ({"proposer": "line_search"}, {}, "line_search", 1),
  ],
)
def test_the_best_that_can_search_does(world, tmp_path, search, other, expected, rows):
  problem = recycle.build(job(world, tmp_path / "x", search={"proposer": "auto"} | search, **other))
  assert problem.proposer == expected
  assert f" by {expected} " in recycle.describe(problem)
  assert len(problem.patterns) == problem.options.rows == rows


def test_two_checkpoints_of_a_run_are_searched(world, tmp_path):
  along = {"proposer": "auto", "method": "linear", "space": "trajectory", "steps": [1, 2], "budget": 9}
  two = [str(path) for path in world[1][:2]]
  assert recycle.build(job(world, tmp_path / "x", search=along, checkpoints=two)).proposer == "cma_es"


# Along the front.


@pytest.mark.parametrize("count", [2, 5])
def test_the_highest_point_of_a_direction_lies_on_the_front(count):
  generator = np.random.default_rng(count)
  fitness = search.Fitness(tuple("abcde"[:count]), (1.0,) * count, source="metric")
  points, singles = generator.random((200, count)), generator.random((4, count))
  front, found, drawn = pareto.front(points), set(), directions.importances(count, 0)
  for importance, _ in zip(drawn, range(64), strict=False):
    assert (
      importance.shape == (count,)
      and (importance > 0).all()
      and importance.sum() == pytest.approx(1, abs=0.01)
    )
    toward = directions.Direction.toward(fitness, importance, singles, singles)
    heights = toward.aggregated(points, singles)
    found.add(int(np.argmax(heights)))
    slopes = toward.slopes(points[:1], singles)[0]
    step = 1e-7 * generator.normal(size=count)
    ends = toward.aggregated(points[:1] + np.array([[1], [-1]]) * step, singles)
    assert ends[0] - ends[1] == pytest.approx(2 * slopes @ step, rel=1e-3)
  assert all(front[i] for i in found) and len(found) > 2


@pytest.mark.parametrize("batch", [1, 3])
def test_a_search_along_the_front_dominates_more_than_the_known_points(world, tmp_path, batch):
  given = settings.from_mapping(
    settings.to_mapping(job(world, tmp_path / "run"))
    | {"search": SURROGATE | {"budget": 24, "objective": "pareto", "batch": batch}}
  )
  result = recycle.recycle(given, say=quiet)
  volumes = result["pareto"]
  assert volumes["hypervolume"] >= volumes["hypervolume_known"] >= volumes["hypervolume_singles"]
  steps = [one for one in journal_of(tmp_path / "run") if one["split"] == "search"]
  own = [one for one in steps if one["kind"] == "surrogate"]
  assert len({str(one["point"]["weights"]) for one in own}) == len(own) > 3
  _, looks, *_ = generations = [one["generation"] for one in own]  # the first one is everything at once
  alone = [one for one in generations if one > looks]
  assert generations.count(looks) > 1 and alone
  assert len(set(alone)) == len(alone) if batch == 1 else len(set(alone)) < len(alone)


def test_the_front_is_for_the_surrogate(world, tmp_path):
  values = settings.to_mapping(job(world, tmp_path / "run")) | {
    "search": {"objective": "pareto", "proposer": "line_search"}
  }
  with pytest.raises(ValueError, match="cannot search"):
    recycle.build(settings.from_mapping(values))


def test_a_search_that_ends_by_itself_says_what_was_left(world, tmp_path):
  values = settings.to_mapping(job(world, tmp_path / "run"))
  said = []
  values |= {"search": {"budget": 100, "proposer": "surrogate", "fitness_source": "metric"}}
  result = recycle.recycle(settings.from_mapping(values), say=said.append)
  assert result["cost"]["evaluations"] < 100 and result["left"] >= 0
  assert sum(line.startswith("nothing more to find here: after ") for line in said) == 1
  assert "of fitness was foreseen" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("seed", [4, 5, 6, 9])
def test_points_far_away_do_not_bend_what_is_near(seed):
  """Answers that are linear near the incumbent, and anything far from it."""
  generator = np.random.default_rng(seed)
  near, far = 0.3 * generator.normal(size=(8, 3)), 4 * generator.normal(size=(4, 3))
  slopes, wild = generator.normal(size=(3, 200)), 30 * generator.normal(size=(4, 200))
  points, outputs = np.concatenate([near, far]), np.concatenate([near @ slopes, wild])
  outputs /= outputs.std()
  fitted = process.fit(points, outputs @ outputs.T / 200)
  new = np.array([0.2, -0.1, 0.1])
  truth = new @ np.linalg.lstsq(near, outputs[:8], rcond=None)[0]
  off = fitted.at(new)[0] @ outputs - truth
  assert np.linalg.norm(off) < 0.05 * np.linalg.norm(truth)


def test_slopes_of_the_likelihood_are_derivatives():
  generator = np.random.default_rng(5)
  points, outputs = generator.normal(size=(6, 3)), generator.normal(size=(6, 40))
  theta, gram = process.START + 0.1 * generator.normal(size=7), outputs @ outputs.T / 40
  _, slope = process._cost(theta, points, gram)
  for i, step in enumerate(1e-6 * np.eye(7)):
    ends = [process._cost(theta + sign * step, points, gram)[0] for sign in (1, -1)]
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-6, slope[i], rtol=1e-4, atol=1e-6)


def test_damaged_outputs_are_missing_ones(tmp_path):
  candidate = search.Candidate("x", "linear", search.Point((1.0,)))
  Outputs(tmp_path).put(0, candidate, {"losses": np.arange(3.0)})
  (file,) = tmp_path.iterdir()
  whole = file.read_bytes()
  assert Outputs(tmp_path).has(0, candidate)
  central = whole.index(b"PK\x01\x02")
  for at, value in ((central + 8, 1), (central + 10, 8), (central + 10, 99), (central, 0)):
    file.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    assert not Outputs(tmp_path).has(0, candidate)


def test_nothing_is_learned_from_choices_that_an_example_does_not_have():
  table, ones = np.array([[0, 1, -1], [2, 3, 4]]), np.ones(2)
  part = smoothing.Part("choices", table, np.array([1, 0]), np.ones((2, 3)), ones, np.zeros(2, int))
  answers = Answers((part,), np.zeros(0, int), np.arange(2))
  assert answers.table([{"losses": np.arange(5.0)}]).weights.tolist() == [1, 1, 0, 1, 1, 1]
