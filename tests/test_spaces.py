"""What can be searched: rows of weights, numbers of rules, merges along a run; what is scored is written."""

import json

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import checkpoints, recycle
from merge_jax.operators import grouping, naming
from merge_jax.operators.contrib import trajectory
from merge_jax.recycle import merged, methods
from merge_jax.recycle import pool as placed_pools
from merge_jax.search.loop import FINALS
from merge_jax.search.point import Candidate, Point
from merge_jax.search.space import Number, space
from tests import pools
from tests.further import further
from tests.test_recycle import job, journal_of, quiet

replaced = msgspec.structs.replace
NUMBERS = {"density": Number(0.02, 1.0, 0.2, log=True), "scaling": Number(0.0, 3.0, 1.0)}
STEPS = (30.0, 10.0, 20.0, 40.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  return folder, pools.make_pool(folder / "pool", 3, 0.05), pools.make_tasks(folder / "tasks")


def searched(world, output, **changes):
  given = job(world, output)
  return replaced(given, search=replaced(given.search, **changes))


@pytest.mark.parametrize("name", ["simplex", "softmax", "free"])
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("numbers", [{}, NUMBERS])
def test_points_come_back(name, rows, numbers):
  made = space(name, 4, rows=rows, numbers=numbers)
  point = made.draw(np.random.default_rng(0))
  assert point.array.shape == ((rows, 4) if rows else (4,)) and point.numbers.keys() == numbers.keys()
  x = made.encode(point)
  assert x.shape == (made.size,) and made.size == max(rows, 1) * 4 + len(numbers)
  assert made.decode(x).near(point, 1e-2 if name == "softmax" else 1e-6)
  # A known point has one row and no numbers: all rows are that one, numbers at their start.
  start = made.decode(made.encode(Point((0.25,) * 4)))
  np.testing.assert_allclose(start.array, 0.25)
  assert start.numbers == pytest.approx({n: number.start for n, number in numbers.items()}, rel=1e-6)
  if numbers:
    assert (np.asarray(made.bounds)[:, -2:] == [[0, 0], [1, 1]]).all()


@pytest.mark.parametrize("x", [-1.0, 0.0, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("number", NUMBERS.values())
def test_numbers_stay_in_their_range(number, x):
  assert number.low * (1 - 1e-6) <= number.at(x) <= number.high * (1 + 1e-6)
  if 0 <= x <= 1:
    assert number.coordinate(number.at(x)) == pytest.approx(x, abs=1e-6)


@pytest.mark.parametrize(("power", "schedule"), [(0.5, "uniform"), (0.25, "minus_sqrt")])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_trajectory_is_that_of_the_operators(power, schedule, window):
  made = space("trajectory", 4, along=methods.schedules(STEPS))
  found = made.decode(np.array([(window - 1) / 3, power])).array
  np.testing.assert_allclose(found, trajectory.by_step(schedule, STEPS, window=window), atol=1e-9)
  np.testing.assert_allclose(made.decode(made.encode(Point.of(found))).array, found, atol=1e-9)


def test_a_trajectory_has_no_rows_and_needs_steps():
  for options in ({"along": methods.schedules(STEPS), "rows": 2}, {}):
    with pytest.raises(ValueError, match="trajectory"):
      space("trajectory", 4, **options)


@pytest.mark.parametrize(
  ("granularity", "labels"),
  [
    ("model", ["others"]),
    ("group", ["norms", "embeddings", "attention", "mlp"]),
    ("layer", ["model.layers.0", "model.layers.1", "others"]),
    ("depth", ["model.layers.0", "model.layers.1", "others"]),
  ],
)
def test_every_tensor_is_in_one_group(world, granularity, labels):
  names = checkpoints.open(world[1][0]).specs
  patterns = grouping.patterns(granularity, names)
  assert [grouping.label(pattern) for pattern in patterns] == labels


@pytest.mark.parametrize(
  ("names", "labels"),
  [
    (["params.layers_0.kernel", "params.layers_1.kernel", "embed"],
     ["params.layers_0", "params.layers_1", "others"]),
    (["0.w", "1.w"], ["0", "1"]),
    (["gpt2.h.0.w", "gpt2.h.1.ln_1.w", "gpt2.wte"], ["gpt2.h.0", "gpt2.h.1", "others"]),
    (["layers.1", "layers.10", "layers.2"], ["layers.1", "layers.2", "layers.10"]),
  ],
)  # fmt: skip
def test_layers_are_found_by_the_first_number(names, labels):
  patterns = grouping.patterns("layer", names)
  assert [grouping.label(pattern) for pattern in patterns] == labels


@pytest.mark.parametrize("count", [1, 4, 6, 30])
def test_quarters_of_the_depth_hold_all_layers_in_order(count):
  names = [f"model.layers.{i}.mlp.w" for i in range(count)]
  patterns = grouping.patterns("depth", [*names, "model.embed.w"])
  rows = [naming.first_match(name, patterns) for name in names]
  assert rows == sorted(rows) and set(rows) == set(range(min(count, 4)))
  assert max(map(rows.count, rows)) - min(map(rows.count, rows)) <= 1
  assert (
    naming.first_match("model.embed.w", patterns) == naming.first_match("x", patterns) == len(patterns) - 1
  )


CASES = [
  ("task_arithmetic", "free", "group", ""),
  ("task_arithmetic", "simplex", "layer", "scaling"),
  ("linear", "simplex", "layer", ""),
  ("ties", "free", "model", "density,scaling"),
  ("ties", "free", "group", ""),
  ("dare_ties", "free", "model", "density"),
  ("dare_linear", "simplex", "group", ""),
  ("breadcrumbs", "free", "model", "scaling"),
  ("karcher", "simplex", "model", ""),
]


@pytest.mark.parametrize(
  ("method", "space_name", "granularity", "numbers"), [*CASES[:3], *(further(*case) for case in CASES[3:])]
)
@pytest.mark.parametrize("memory", ["device", further("disk")])
def test_what_is_written_is_what_was_scored(
  world, tmp_path, method, space_name, granularity, numbers, memory
):
  given = searched(
    world, tmp_path / "run", method=method, space=space_name, granularity=granularity, numbers=numbers, seed=3
  )
  given = replaced(given, placement=replaced(given.placement, pool_memory=memory))
  problem = recycle.build(given)
  if memory == "disk" and method in ("ties", "dare_ties"):  # signs of the majority
    with pytest.raises(ValueError, match="statistics of whole models"):
      placed_pools.place(problem)
    return
  placed = placed_pools.place(problem)
  candidate = Candidate("random", method, problem.options.space.draw(np.random.default_rng(1)))
  (tmp_path / "merged").mkdir()
  merged.write(problem, candidate, tmp_path / "merged")
  written = checkpoints.open(tmp_path / "merged").load()
  for name, value in placed.merges[method].at(candidate.point).items():
    np.testing.assert_allclose(
      np.asarray(written[name], np.float32), np.asarray(value, np.float32), rtol=1e-5, atol=1e-6, err_msg=name
    )
  about = json.loads((tmp_path / "merged" / "merge_jax.json").read_text())
  assert about["numbers"] == candidate.point.numbers
  assert len(about["weights"]) == (3 if granularity == "model" else len(problem.patterns))


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"method": "ties", "numbers": "densty"}, "did you mean 'density'"),
    ({"method": "ties", "numbers": "density,density"}, "twice"),
    ({"method": "ties", "numbers": ","}, "unknown number"),
    ({"method": "karcher", "space": "simplex", "numbers": "t"}, "karcher has none"),
    ({"method": "ties", "numbers": "t"}, "unknown number of ties"),
    ({"method": "karcher"}, "cannot be searched in space 'free'"),
    ({"method": "slerp", "space": "simplex"}, "merges 2 models; got 3"),
    ({"method": "linear", "space": "trajectory"}, "needs the steps"),
    ({"method": "task_arithmetic", "space": "trajectory"}, "expected one of"),
    ({"method": "ties", "proposer": "surrogate"}, "learns from the known points"),
    ({"method": "task_arithmetic", "numbers": "scaling", "proposer": "surrogate"}, "searches weights alone"),
    ({"granularity": "group", "proposer": "gaussian_process"}, "one weight for each checkpoint"),
    ({"granularity": "group", "proposer": "soce"}, "one weight for each checkpoint"),
  ],
)
def test_what_cannot_be_searched_is_refused(world, tmp_path, changes, words):
  with pytest.raises(ValueError, match=words):
    recycle.build(searched(world, tmp_path / "run", **changes))
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "changes",
  [
    {"granularity": "depth", "proposer": "surrogate"},
    *map(
      further,
      (
        {"method": "ties", "numbers": "density,scaling", "proposer": "cma_es"},
        {"method": "dare_ties", "numbers": "density", "proposer": "line_search", "batch": 2},
        {"granularity": "group", "proposer": "random"},
        {"granularity": "group", "method": "linear", "space": "simplex", "proposer": "surrogate"},
        {"method": "linear", "space": "trajectory", "steps": (10.0, 20.0, 30.0), "proposer": "line_search"},
      ),
    ),
  ],
)
def test_jobs_search_them_and_go_on(world, tmp_path, changes):
  """A search of ten evaluations that grows to sixteen is one of sixteen."""
  budgets = {"budget": 16, "seed": 5, "fitness_source": "metric"}
  whole = recycle.recycle(searched(world, tmp_path / "whole", **changes | budgets), say=quiet)
  recycle.recycle(searched(world, tmp_path / "grown", **changes | budgets | {"budget": 10}), say=quiet)
  grown = recycle.recycle(searched(world, tmp_path / "grown", **changes | budgets), say=quiet)
  assert whole["rows"] and grown["rows"] and (tmp_path / "whole" / "report.html").is_file()
  steps = [
    [one for one in journal_of(tmp_path / name) if one["split"] == "search" and one["kind"] not in FINALS]
    for name in ("whole", "grown")
  ]
  assert [(one["kind"], one["point"]) for one in steps[0]] == [
    (one["kind"], one["point"]) for one in steps[1]
  ]
  own = [one for one in steps[0] if one["kind"] == changes["proposer"]]
  assert own and all(one["method"] == changes.get("method", "task_arithmetic") for one in own)
  if "numbers" in changes:
    assert all(set(one["point"]["numbers"]) == set(changes["numbers"].split(",")) for one in own)
    assert len({tuple(one["point"]["numbers"].values()) for one in own}) > 1


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare_ties"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_rule_whose_numbers_are_searched_merges_models_in_their_order(method, listed):
  """Not in that of their names, as JAX has dicts in programs: "code" before "math", "10" before "2"."""
  count = 12 if listed else 3
  names = [str(i) for i in range(count)] if listed else ["math", "code", "law"]
  trees = [{"w": jax.random.normal(jax.random.key(i), (8, 8))} for i in range(count)]
  base, weights = {"w": jnp.zeros((8, 8))}, jnp.arange(1.0, count + 1)
  experts = trees if listed else dict(zip(names, trees, strict=True))
  numbers = {"scaling": 0.7} | ({} if method == "task_arithmetic" else {"density": 0.5})
  made = methods.merges((method,), experts, base, searched=(method,))[method]
  found = jax.jit(made.function)(made.source, weights, {k: jnp.float32(v) for k, v in numbers.items()})
  key = methods.key_of(getattr(mj, method)(**numbers), 0)
  want = mj.merge(getattr(mj, method)(**numbers), trees, weights, base=base, key=key, names=names)
  np.testing.assert_allclose(found["w"], want["w"], rtol=1e-6, atol=1e-6)
