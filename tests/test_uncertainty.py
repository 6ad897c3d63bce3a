"""Errors of clustered examples: what they should be, and how often their intervals hold the truth."""

import numpy as np
import pytest

from merge_jax import evals
from merge_jax.evals import splits, tasks, uncertainty


def sampled(generator, units, sizes, shared, effect=0.0, tokens=False):
  """Two models on tasks of `sizes` examples; a unit's difficulty moves all of its examples, of both models.

  Args:
    units: number of units, in all tasks together where they are shared, else in each.
    shared: standard deviation of the difficulty of a unit; of each example's own 1.
    effect: how much better the second model is, in probits; its truth is simulated by `truth`.
    tokens: whether examples have lengths, as for losses.
  """
  groups, hard, columns = [], [], [[], []]
  common = generator.normal(size=units) * shared
  own = generator.normal(size=(2, units)) * shared * 0.5  # a unit also suits one model and not the other
  for size in sizes:
    unit = generator.integers(0, units, size)
    groups.append(unit)
    hard.append(common[unit] + generator.normal(size=size))
    for model in range(2):
      score = hard[-1] + own[model][unit] + generator.normal(size=size) * 0.7 + effect * model
      columns[model].append(score if tokens else (score > 0).astype(float))
  length = [generator.integers(1, 9, size) if tokens else np.ones(size) for size in sizes]
  names = tuple(f"t{i}" for i in range(len(sizes)))
  made = []
  for model in columns:
    top = np.concatenate([score * n for score, n in zip(model, length, strict=True)])
    values = np.stack([top, np.concatenate(length)] * 2)
    dense = np.unique(np.concatenate(groups), return_inverse=True)[1]
    made.append(evals.Examples(names, (1.0,) * len(sizes), tuple(sizes), values, dense))
  return made


def alone(examples):
  return evals.Examples(examples.tasks, examples.signs, examples.counts, examples.values)


DESIGNS = {
  "independent": (5000, (400,), 0.0),
  "passages of 8": (50, (400,), 1.0),
  "three tasks of the same items": (150, (150, 150, 150), 1.0),
  "20 units": (20, (200, 100), 1.0),
}


def covered(design, trials, seed=0, effect=0.3):
  """How often value ± 1.96 errors holds the truth: a score, a gain, a gain whose units are overlooked.

  Last, the error of such a gain as a share of what it should be.
  """
  units, sizes, shared = DESIGNS[design]
  generator, found = np.random.default_rng(seed), []
  for _ in range(trials):
    a, b = sampled(generator, units, sizes, shared, effect)
    score, error = np.mean(list(b.scores().values())), uncertainty.standard_errors(b)["average"]
    found.append((score, error, *uncertainty.paired_difference(b, a),
                  uncertainty.paired_difference(alone(b), alone(a))[1]))  # fmt: skip
  score, error, gain, paired, naive = np.array(found).T
  normal = [np.sqrt(1 + 0.49 + 1.25 * shared**2)]
  from scipy import stats

  level = stats.norm.cdf(effect / normal[0])  # exact: all is normal
  held = [np.abs(score - level) < 1.96 * error, np.abs(gain - (level - 0.5)) < 1.96 * paired,
          np.abs(gain - (level - 0.5)) < 1.96 * naive]  # fmt: skip
  return [*(float(np.mean(one)) for one in held), float(np.mean(naive / paired))]


@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_and_units_matter(design):
  """500 studies each: .95 ± .02 is the Monte-Carlo error; few units would need Student's t (.935 for 20)."""
  score, gain, _, share = covered(design, 500)
  least = 0.9 if design == "20 units" else 0.925
  assert least <= score <= 0.975 and least <= gain <= 0.975
  assert share == pytest.approx(1.0, abs=0.02) if design == "independent" else share < 0.9


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(("units", "shared"), [(5000, 0.0), (60, 1.0)])
def test_the_bootstrap_of_units_agrees(tokens, units, shared):
  for seed in range(3):
    a, b = sampled(np.random.default_rng(seed), units, (300, 200), shared, 0.2, tokens)
    drawn = [uncertainty.resampled(one, 2000) for one in (a, b)]
    expected = (drawn[1] - drawn[0]).mean(axis=1).std(ddof=1)
    gain, error = uncertainty.paired_difference(b, a)
    assert error == pytest.approx(expected, rel=0.08)
    errors = uncertainty.standard_errors(a)
    np.testing.assert_allclose([errors["t0"], errors["t1"]], drawn[0].std(axis=0, ddof=1), rtol=0.08)
    np.testing.assert_allclose(gain, np.mean(list(b.scores().values())) - np.mean(list(a.scores().values())))


def test_the_error_of_equal_clusters_by_hand():
  """A mean of cluster means: their standard deviation over the root of their number."""
  generator = np.random.default_rng(0)
  means = generator.normal(size=30)
  values = np.stack([np.repeat(means, 4), np.ones(120)] * 2)
  examples = evals.Examples(("a",), (-1.0,), (120,), values, np.repeat(np.arange(30), 4))
  expected = means.std(ddof=1) / np.sqrt(30)
  assert uncertainty.standard_errors(examples)["a"] == pytest.approx(expected)
  twice = evals.Examples(
    ("a", "b"), (-1.0, -1.0), (120, 120), np.tile(values, 2), np.tile(np.repeat(np.arange(30), 4), 2)
  )  # the same items in two tasks tell no more than in one
  assert uncertainty.standard_errors(twice)["average"] == pytest.approx(expected)
  one = evals.Examples(("a",), (1.0,), (120,), values, np.zeros(120, np.int64))
  assert np.isnan(uncertainty.standard_errors(one)["a"])


def test_a_gain_of_the_detectable_size_is_seen_four_times_of_five():
  generator, seen = np.random.default_rng(1), []
  for _ in range(400):
    a, b = sampled(generator, 5000, (400,), 0.0, 0.2)
    gain, error = uncertainty.paired_difference(b, a)
    seen.append((gain, error))
  gains, errors = np.array(seen).T
  spread, truth = errors.mean(), gains.mean()
  moved = gains - truth + uncertainty.POWER * spread
  assert np.mean(np.abs(moved) > 1.96 * errors) == pytest.approx(0.8, abs=0.06)


# Splits.


def example(prompt, group="", id=""):
  return evals.Example(prompt, ("x",), id=id, group=group)


def placed(made):
  return {e.prompt: name for name in evals.SPLITS for task in made.tasks[name] for e in task.examples}


def test_what_shares_a_group_shares_a_split_in_all_tasks():
  a = evals.Task("a", "loss", tuple(example(f"a{i}", f"g{i % 60}") for i in range(300)))
  b = evals.Task("b", "loss", tuple(example(f"b{i}", f"g{i % 60}") for i in range(200)))
  where = placed(evals.split([a, b]))
  for group in range(60):
    assert (
      len({where[f"a{i}"] for i in range(group, 300, 60)} | {where[f"b{i}"] for i in range(group, 200, 60)})
      == 1
    )
  assert where == placed(evals.split([b, a])) and evals.split([a, b]).groups == 60
  assert {**where, **placed(evals.split([a]))} == where  # another task moves nothing


def test_without_groups_splits_are_those_of_the_prompt():
  """Also with ids, as long as each has one prompt."""
  for ids in (False, True):
    task = evals.Task("a", "loss", tuple(example(f" q{i}", id=str(i) * ids) for i in range(100)))
    for prompt, name in placed(evals.split([task], seed=3)).items():
      at = splits.position(prompt, 3)
      assert name == evals.SPLITS[(at >= 0.4) + (at >= 0.4 + 0.2)]


def test_ids_and_prompts_tie_what_they_share():
  several = [example(f"p{i}", id=f"i{i // 3}") for i in range(240)]
  same = [example(f"p{i}", "g") for i in (0, 90)]  # these prompts bring two ids into one group
  made = evals.split(
    [evals.Task("a", "loss", tuple(several)), evals.Task("b", "loss", tuple(same * 2))], (1.0, 0, 0)
  )
  units = {e.prompt: e.group for task in made.tasks["search"] for e in task.examples}
  assert {units[f"p{i}"] for i in (0, 1, 2, 90, 91, 92)} == {"g"}
  assert units["p3"] == units["p4"] == units["p5"] == "p3" and made.repeated == 80 and made.duplicates == 2
  numbers = tasks.units(made.tasks["search"])
  by_prompt = [e.prompt for task in made.tasks["search"] for e in task.examples]
  assert len({n for n, p in zip(numbers, by_prompt, strict=True) if units[p] == "g"}) == 1
  assert len(set(numbers)) == 79


def test_ids_and_groups_are_texts_or_whole_numbers(tmp_path):
  path = tmp_path / "t.jsonl"
  path.write_text('{"prompt": "a", "target": "b", "id": 7, "group": "x"}\n{"prompt": "c", "target": "d"}\n')
  first, second = evals.load(str(path)).examples
  assert (first.id, first.group, first.unit) == ("7", "x", "x") and second.unit == ""
  for value in ("1.5", '""', "[1]", "true", "{}"):
    for field in ("id", "group"):
      path.write_text(f'{{"prompt": "a", "target": "b", "{field}": {value}}}\n')
      with pytest.raises(ValueError, match=f"t.jsonl:1: {field} is "):
        evals.load(str(path))
  path.write_text('{"prompt": "a", "target": "b", "grup": 1}\n')
  with pytest.raises(ValueError, match="did you mean 'group'"):
    evals.load(str(path))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_a_model_keeps_of_another_has_the_bootstraps_error(sign):
  units, sizes, shared = DESIGNS["passages of 8"]
  b, a = sampled(np.random.default_rng(3), units, sizes, shared, 0.5)
  a, b = (evals.Examples(x.tasks, (sign,), x.counts, x.values, x.units) for x in (a, b))
  value, error = uncertainty.paired_ratio(a, b, "t0")
  scores = [x.scores()["t0"] for x in (a, b)]
  assert value == pytest.approx(scores[0] / scores[1] if sign > 0 else scores[1] / scores[0])
  draws = [np.abs(uncertainty.resampled(x, 4000)[:, 0]) for x in (a, b)]
  ratios = draws[0] / draws[1] if sign > 0 else draws[1] / draws[0]
  assert error == pytest.approx(ratios.std(), rel=0.1)
  same, none = uncertainty.paired_ratio(a, a, "t0")
  assert same == 1.0 and none == pytest.approx(0.0, abs=1e-12)
  values = b.values.copy()
  values[0] = 0.0
  nothing = evals.Examples(b.tasks, b.signs, b.counts, values, b.units)
  lost, unknown = uncertainty.paired_ratio(*((a, nothing) if sign > 0 else (nothing, a)), "t0")
  assert np.isnan(lost) and np.isnan(unknown)
