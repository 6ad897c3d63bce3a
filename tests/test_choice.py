"""The choice among finalists on simulated pools, and what a choice is worth on other examples."""

import msgspec
import numpy as np
import pytest

from merge_jax import search
from merge_jax.evals import Examples, crossfit, uncertainty
from merge_jax.recycle import choice
from merge_jax.search import final
from merge_jax.search.journal import Record
from merge_jax.search.point import Point

ROWS = ("best_single", "uniform", "greedy", "search_best", "search_mean")
SEARCHED = (0.1, 0.3, 0.2, 0.9, 0.9)
FITNESS = search.Fitness(("a",), (1.0,), source="metric")


def record(split, index, score):
  point = Point((float(index), 1.0))
  return Record(split, index, 0, ROWS[index], "linear", point, {"a": score}, None, None, 0.0)


def chosen(searched, validation, errors=None, caution=1.0):
  """The choice among `ROWS`, given their scores on both splits and errors against any other."""
  records = [record("search", i, value) for i, value in enumerate(searched)]
  finalists = {ROWS[i]: record("validation", i, value) for i, value in enumerate(validation)}

  def error(one, other):
    return None if errors is None else errors

  return final.select(finalists, FITNESS, records, caution=caution, error=error)


@pytest.mark.parametrize(
  ("searched", "validation", "errors", "caution", "name", "why"),
  [
    (SEARCHED, (0.5, 0.5, 0.5, 0.51, 0.505), 0.02, 1.0, "uniform", "uniform stays, the best known point"),
    (SEARCHED, (0.5, 0.5, 0.5, 0.53, 0.51), 0.02, 1.0, "search_best", "gain +0.0300 ± 0.0200"),
    (SEARCHED, (0.53, 0.5, 0.5, 0.53, 0.51), 0.02, 1.0, "best_single", "replaces uniform"),
    (SEARCHED, (0.5, 0.5, 0.5, 0.53, 0.51), 0.02, 2.0, "uniform", "does not exceed 2 paired errors"),
    (SEARCHED, (0.4, 0.5, 0.6, 0.53, 0.7), 0.02, 0.0, "search_mean", "highest fitness on"),
    (SEARCHED, (0.5, 0.5, 0.5, 0.5, 0.5), 0.02, 0.0, "best_single", "highest fitness on"),
    (SEARCHED, (0.5, 0.5, 0.5, 0.5, 0.5), 0.02, 1.0, "uniform", "stays"),
    (SEARCHED, (0.5, 0.5, 0.5, 0.5, 0.501), None, 1.0, "search_mean", "is not known"),
    ((0.1, 0.2, 0.3, 0.3, 0.9), (0.1, 0.5, 0.5, 0.5, 0.5), 0.0, 1.0, "uniform", "as good on validation"),
    ((None, 0.2, 0.3, 0.3, 0.9), (0.1, 0.5, None, 0.6, 0.5), 0.01, 1.0, "search_best", "replaces uniform"),
    ((None, None, None, 0.3, 0.9), (0.1, 0.5, None, 0.6, 0.5), 0.01, 1.0, "search_best", "highest fitness"),
  ],
)  # fmt: skip
def test_the_rule(searched, validation, errors, caution, name, why):
  found = chosen(searched, validation, errors, caution)
  assert found.name == name
  assert why in found.why and found.why.endswith(".") and "_" not in found.why


def test_the_best_known_point_is_compared_with_other_models_than_itself():
  records = [record("search", i, value) for i, value in enumerate(SEARCHED)]
  finalists = {ROWS[i]: record("validation", i, value) for i, value in enumerate((0.4, 0.5, 0.5, 0.49, 0.48))}
  same = {"greedy": finalists["uniform"]}  # the greedy soup took all
  found = final.select(finalists | same, FITNESS, records, caution=1.0, error=lambda one, other: 0.02)
  assert (found.name, found.best) == ("uniform", "search_best") and "-0.0100 ± 0.0200 of search" in found.why


def smoothed_choice(smooth, fitness=FITNESS):
  """Two finalists that decide differently on 5 of 40 examples, 3 of them better; chances rise on all."""
  names, hits = ("uniform", "search_best"), np.repeat([1.0, 0.0], 20)
  own = {name: np.stack([hits, np.ones(40), np.ones(40), np.ones(40)]) for name in names}
  own["search_best"][0, 18:23] = 0.0, 0.0, 1.0, 1.0, 1.0
  chances = {"uniform": np.linspace(0.2, 0.8, 40), "search_best": np.linspace(0.2, 0.8, 40) + 0.05}
  examples = {
    n: Examples(("a",), (1.0,), (40,), own[n], smooth=chances[n] if n in smooth else None) for n in names
  }
  scores = {name: one.scores()["a"] for name, one in examples.items()}
  at = {name: ROWS.index(name) for name in names}
  records = [record("search", at[name], value) for name, value in zip(names, (0.4, 0.9), strict=True)]
  records += [msgspec.structs.replace(record("search", 0, score), kind="single") for score in (0.1, 0.3)]
  finalists = {name: record("validation", at[name], scores[name]) for name in names}
  return choice.choose(finalists, examples, fitness, records, 1.0)


def test_alike_models_are_told_apart_by_smoothed_scores():
  """One answer more is less than its error; chances that all rise are not."""
  found = smoothed_choice(("uniform", "search_best"))
  assert found.name == "search_best" and found.gain == pytest.approx(0.05) and found.stderr < 1e-9
  assert "its smoothed validation gain +0.0500" in found.why
  for smooth in ((), ("uniform",)):
    found = smoothed_choice(smooth)
    assert found.name == "uniform" and found.gain == pytest.approx(1 / 40)
    assert "the validation gain" in found.why and "does not exceed its paired error" in found.why
  for unfit in ({"aggregate": "worst", "source": "metric"}, {"source": "auto"}):
    assert "smoothed" not in smoothed_choice(ROWS, search.Fitness(("a",), (1.0,), **unfit)).why


def test_without_caution_it_is_the_highest_validation_fitness():
  generator = np.random.default_rng(0)
  for _ in range(300):
    searched, validation = generator.integers(0, 4, (2, 5)).astype(float).tolist()
    expected = ROWS[int(np.argmax(validation))]
    assert chosen(searched, validation, 0.5, caution=0.0).name == expected


def outcomes(generator, truths, count, alike=0.85):
  """Right or wrong answers of models with given accuracies on the same examples, of which they share most."""
  hard = generator.random(count)
  own = generator.random((len(truths), count))
  luck = np.where(generator.random((len(truths), count)) < alike, hard, own)
  return (luck < np.asarray(truths)[:, None]).astype(float)


def of_outcomes(row, tasks=1):
  size = len(row) // tasks
  names = tuple("abcdef"[:tasks])
  return Examples(names, (1.0,) * tasks, (size,) * tasks, np.stack([row, np.ones(len(row))] * 2))


def rates(truths, caution, pools=150, seed=0):
  """How often the incumbent is replaced, the true gain over it, and how often it is claimed.

  400 search, 200 validation and 400 test examples.
  """
  generator, replaced, gained, claimed = np.random.default_rng(seed), [], [], []
  for pool in range(pools):
    searched = outcomes(generator, truths, 400).mean(axis=1)
    models = [of_outcomes(row) for row in outcomes(generator, truths, 200)]
    scores = [one.scores()["a"] for one in models]
    records = [record("search", i, value) for i, value in enumerate(searched)]
    finalists = {ROWS[i]: record("validation", i, value) for i, value in enumerate(scores)}

    def error(one, other, models=models):
      return uncertainty.paired_difference(models[ROWS.index(one)], models[ROWS.index(other)])[1]

    found = final.select(finalists, FITNESS, records, caution=caution, error=error)
    replaced.append(found.name != found.incumbent)
    gained.append(truths[ROWS.index(found.name)] - truths[ROWS.index(found.incumbent)])
    tested = [of_outcomes(row) for row in outcomes(np.random.default_rng([seed, pool]), truths, 400)]
    pair = (tested[ROWS.index(name)] for name in (found.name, found.incumbent))
    claimed.append(replaced[-1] and uncertainty.shown(*uncertainty.paired_difference(*pair)))
  return float(np.mean(replaced)), float(np.mean(gained)), float(np.mean(claimed))


def test_caution_keeps_known_points_where_all_are_equal_and_loses_little_where_not():
  null = {caution: rates((0.6,) * 5, caution)[0] for caution in (0.0, 1.0, 2.0)}
  assert null[0.0] > 0.6 and null[1.0] < 0.45 and null[2.0] < 0.15
  real = {caution: rates((0.5, 0.55, 0.56, 0.64, 0.63), caution)[1] for caution in (0.0, 1.0, 2.0)}
  assert real[1.0] > 0.9 * real[0.0] > 0.05


def test_gains_are_claimed_where_there_are_some():
  assert rates((0.6,) * 5, 1.0, pools=200)[2] <= 0.05
  assert rates((0.5, 0.55, 0.56, 0.66, 0.65), 1.0)[2] > 0.8


# What a choice is worth.


def corrected(models, choose=None):
  best = choose or (
    lambda some: {"best": int(np.argmax([np.mean(list(one.scores().values())) for one in some]))}
  )
  made = crossfit.crossfit(models, best, times=1)
  return np.mean([list(one.scores().values()) for one in made["best"]])


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_the_corrected_score_is_that_of_new_examples(spread):
  """20 models, 240 examples of two tasks: mean over 60 pools, against the true accuracy of the chosen one."""
  generator, found = np.random.default_rng(1), []
  for _ in range(60):
    truths = 0.6 + spread * generator.normal(size=20)
    rows = outcomes(generator, truths, 240, alike=0.7)
    models = [of_outcomes(row, 2) for row in rows]
    scores = np.mean([list(one.scores().values()) for one in models], axis=1)
    at = int(np.argmax(scores))
    found.append((scores[at] - truths[at], corrected(models) - truths[at]))
  raw, fair = np.array(found).T
  error = fair.std(ddof=1) / np.sqrt(len(fair))
  assert abs(fair.mean()) < 3 * error and abs(fair.mean()) < 0.25 * raw.mean()
  assert raw.mean() > 5 * error


def test_parts_hold_whole_units_and_score_what_was_chosen_without_them():
  generator = np.random.default_rng(2)
  groups = np.repeat(np.arange(40), 3)
  values = [np.stack([generator.random(120), np.ones(120)] * 2) for _ in range(3)]
  models = [Examples(("a", "b"), (1.0, 1.0), (60, 60), v, groups) for v in values]
  seen = []

  def choose(some):
    seen.append(set(np.unique(some[0].units)))
    assert all(count in (0, 3) for count in np.bincount(some[0].units))
    return (
      {"worst": int(np.argmin([one.scores()["a"] for one in some])), "now and then": 0}
      if (len(seen) != 7)
      else {"worst": 1}
    )

  made = crossfit.crossfit(models, choose, parts=8, times=2)
  assert list(made) == ["worst"] and len(made["worst"]) == 2 and len(seen) == 16
  assert all(len(left) == 35 for left in seen)  # 5 of 40 are out each time, all once in a division
  assert set.intersection(*seen[:8]) == set()
  for one in made["worst"]:
    for unit in range(40):
      inside = groups == unit
      assert any((one.values[:, inside] == v[:, inside]).all() for v in values)
  alone = Examples(("a",), (1.0,), (5,), np.ones((4, 5)), np.zeros(5, np.int64))
  assert crossfit.crossfit([alone], choose) == {}
