"""The Recycle analyses: cells that stand alone, searches over some of a pool, and what is made of them."""

import json
import shutil

import jax
import msgspec
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import checkpoints, evals, sharding
from merge_jax.evals import tasks as task_files
from merge_jax.recycle import settings as recycle_settings
from merge_jax.reports import study_page
from merge_jax.search import Candidate, Point
from merge_jax.study import recycling
from merge_jax.study.analysis.recycle_claims import Inputs
from merge_jax.study.judge import Judge
from merge_jax.study.recycling import search as recycle_search
from merge_jax.study.recycling import settings as ways
from merge_jax.study.recycling.bench import Bench, Members, Pool
from merge_jax.study.recycling.cost import cost
from merge_jax.study.recycling.found import Setting
from tests.pools import make_pool

TASKS = ("copy", "first", "other")
OPTIONS = {"settings": {"both": ["copy", "first"]}, "counts": [2, 8], "budgets": [4, 7], "seeds": [0, 1],
           "ablations": ["sigma"], "sigmas": [0.1], "batch": 2}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Five checkpoints around a base, and three tasks scored by loss: chance separates them."""
  folder = tmp_path_factory.mktemp("pool")
  make_pool(folder, 5, 0.05)
  generator = np.random.default_rng(0)
  for task in TASKS:
    words = ["".join(generator.choice(list("abcdefgh"), 4)) + str(i) for i in range(40)]
    lines = [{"prompt": f"{task} {w}=", "target": w[:2]} for w in words]
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return Pool({f"m{i}": folder / f"m{i}" for i in range(5)}, folder / "base", {"m0": "sft", "m1": "po"})


def make_judge(world, fractions=(0.4, 0.2, 0.4)):
  tasks = task_files.load_all([f"{world.base.parent / task}.jsonl:loss" for task in TASKS])
  splits = evals.split(tasks, fractions).tasks
  mesh = sharding.make_mesh("fsdp:1")
  return Judge(world.folders.values(), splits, recycle_settings.Evals(max_shapes=1), mesh)


@pytest.fixture(scope="module")
def judge(world):
  return make_judge(world)


@pytest.fixture(scope="module")
def found(world, judge):
  cells = recycling.cells(world, judge, ways.read(OPTIONS))
  return cells, [json.loads(json.dumps(cell.run(), allow_nan=False)) for cell in cells]


def by(results, **fields):
  """The searches with these values."""
  return [one for one in results if all(one.get(name) == value for name, value in fields.items())]


PAPER = msgspec.to_builtins(ways.PAPER)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"settings": {}}, "settings"),
    ({"settings": {"a": ["x", "x"]}}, "names a task twice"),
    ({"counts": [1, 2]}, "counts"),
    ({"counts": [4, 2]}, "increasing"),
    ({"budgets": []}, "budgets"),
    ({"seeds": [1, 1]}, "different ones"),
    ({"ablations": ["sigmas"]}, "sigma"),
    ({"ablated": ["bath"]}, "did you mean 'both'"),
    ({"sigmas": [0]}, "sigmas"),
    ({"setings": {}}, "settings"),
  ],
)
def test_settings_that_cannot_be_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    ways.read(OPTIONS | changes)


def test_an_ablation_varies_one_thing():
  every = ways.arms(ways.read(OPTIONS | {"ablations": list(ways.FACTORS), "sigmas": [0.1, 0.5]}))
  assert len(every) == len(set(every)) and every[0] == ways.PAPER
  for arm in every:
    differs = [
      f for f in ("proposer", "method", "space", "start") if getattr(arm, f) != getattr(ways.PAPER, f)
    ]
    assert len(differs) <= 1 or arm == ways.OURS or ("space", "free") in ways.levels(arm)
  found = {}
  for arm in every:
    for factor, level in ways.levels(arm):
      found.setdefault(factor, set()).add(level)
  assert found == {
    "sigma": {"0.1", "0.5", "1"}, "seeding": {"none", "best"}, "space": {"simplex", "softmax", "free"},
    "proposer": {"search", "ours", "random"},
  }  # fmt: skip
  assert ways.arms(ways.read(OPTIONS | {"ablations": []})) == []


def test_refusals_come_before_anything_is_read(world, judge):
  options = ways.read(OPTIONS)
  for changes, words in (
    ({"stages": {"m9": "po"}}, "no checkpoint 'm9'"),
    ({"folders": {"m0": world.folders["m0"]}, "stages": {}}, "one checkpoint"),
  ):
    with pytest.raises(ValueError, match=words):
      recycling.cells(world._replace(**changes), judge, options)
  with pytest.raises(ValueError, match="no task 'frist'"):
    recycling.cells(world, judge, ways.read(OPTIONS | {"settings": {"x": ["copy", "frist"]}}))


def test_cells_are_told_apart_by_what_they_depend_on(world, judge, found, tmp_path):
  cells, _ = found
  specs = [json.dumps(cell.spec, sort_keys=True, allow_nan=False) for cell in cells]
  assert len(set(specs)) == len(cells) == len({cell.name for cell in cells})
  assert len(cells) == 1 + 2 * (1 + 3 + 1)  # singles; of each seed two checkpoints, three ways, one step more
  moved = tmp_path / "moved"
  shutil.copytree(world.base.parent, moved)
  other = world._replace(folders={name: moved / name for name in world.folders}, base=moved / "base")
  options = ways.read(OPTIONS)
  assert [c.spec for c in recycling.cells(other, judge, options)] == [c.spec for c in cells]
  fewer = recycling.cells(world, judge, ways.read(OPTIONS | {"seeds": [1], "ablations": []}))
  assert all(cell.spec in [c.spec for c in cells] for cell in fewer)
  with (moved / "m0" / "config.json").open("a") as file:
    file.write(" ")
  assert recycling.cells(other, judge, options)[0].spec != cells[0].spec
  changed, again = (make_judge(world, (0.4, 0.2, last)).suite.identity() for last in (0.3, 0.4))
  assert changed != judge.suite.identity() == again


def test_a_cell_alone_gives_the_same(world, judge, found):
  cells, results = found
  alone = recycling.cells(world, judge, ways.read(OPTIONS))
  at = next(i for i, cell in enumerate(cells) if cell.spec.get("count") == 2)
  assert json.loads(json.dumps(alone[at].run())) == results[at]


def test_members_weigh_what_the_program_of_all_says(world, judge):
  members = Members(Bench(world, judge, 2), (1, 3))
  experts = [checkpoints.open(path).load() for path in world.folders.values()]
  base = checkpoints.open(world.base).load()
  scorer = judge.suite.scorers()["test"]
  score = jax.jit(scorer.function)
  two = [experts[1], experts[3]]
  for method, weights, merged in (
    ("linear", (0.25, 0.75), mj.merge(mj.linear(), two, [0.25, 0.75])),
    ("linear", (0.0, 1.0), experts[3]),
    ("task_arithmetic", (0.6, 0.9), mj.merge(mj.task_arithmetic(), two, [0.6, 0.9], base=base)),
  ):
    (found,) = members.evaluate([Candidate("x", method, Point(weights))], "test")
    expected = scorer.read(score(merged, scorer.batches)).scores()
    np.testing.assert_allclose([*found.scores.values()], [*expected.values()], rtol=1e-5)


def test_searches_find_what_they_say(found):
  _, results = found
  alone = results[0]
  single = [-np.mean([model["search"][task] for task in ("copy", "first")]) for model in alone["models"]]
  for one in by(results, kind="search"):
    known, tasks = one["known"], one["tasks"]
    assert set(one["members"]) == set(np.argsort(single)[::-1][: one["count"]])
    outside = [i for i in range(5) if i not in one["members"]]
    assert not np.array(one["weights"])[:, outside].any()
    kinds = set(one["kinds"][known:])
    assert kinds == {one["arm"]["proposer"]} and "single" in one["kinds"][:known]
    averages = -np.mean([one["scores"][task] for task in tasks], axis=0)
    np.testing.assert_allclose(averages, one["fitness"])
    assert one["budgets"] == [answer["evaluations"] for answer in one["answers"]]
    for answer in one["answers"]:
      fitness = one["fitness"][known : known + answer["evaluations"]]
      best = one["models"][answer["rows"]["search_best"]]
      np.testing.assert_allclose(-np.mean([best["search"][task] for task in tasks]), max(fitness))
      assert answer["top"][0] == best["weights"] and len(answer["top"]) == min(5, len(set(fitness)))
      selected = one["models"][answer["rows"]["selected"]]
      for name, place in answer["rows"].items():
        if not name.startswith("best_on"):
          value, chosen = (
            np.mean([m["validation"][t] for t in tasks]) for m in (one["models"][place], selected)
          )
          assert value >= chosen  # a loss
    for model in one["models"]:
      examples = evals.Examples.from_plain(model["examples"], alone["signs"])
      np.testing.assert_allclose([*examples.scores().values()], [*model["test"].values()])


def test_a_smaller_budget_is_what_it_would_be_alone(world, judge, found):
  _, results = found
  (long,) = by(results, kind="search", count=5, seed=1, arm=PAPER)
  short = recycle_search.run(Bench(world, judge, 2), ["copy", "first"], 5, ways.PAPER, 1, [4])
  answer = long["answers"][0]
  models = {name: short["models"][place] for name, place in short["answers"][0]["rows"].items()}
  assert {name: long["models"][place]["weights"] for name, place in answer["rows"].items()} == {
    name: list(model["weights"]) for name, model in models.items()
  }
  assert long["fitness"][: len(short["fitness"])] == short["fitness"]


def test_section_of_the_report(found):
  _, results = found
  section = json.loads(json.dumps(recycling.summary(results, 100), allow_nan=False))
  assert section["checkpoints"] == ["m0", "m1", "m2", "m3", "m4"]
  (setting,) = section["settings"]
  rows = {row["name"]: row for row in setting["rows"]}
  assert {"best_single", "uniform", "merge_best", "greedy", "search", "search 7", "ours", "random"} <= set(
    rows
  )
  searched = by(results, kind="search", count=5, arm=PAPER)
  tests = [one["models"][one["answers"][0]["rows"]["search_best"]]["test"] for one in searched]
  np.testing.assert_allclose(rows["search"]["test"]["copy"], np.mean([test["copy"] for test in tests]))
  average = -np.mean([[test["copy"], test["first"]] for test in tests])
  np.testing.assert_allclose(rows["search"]["test"]["average"], average)
  assert rows["search"]["heldout"].keys() == {"other", "average"} and setting["heldout"] == ["other"]
  assert [len(one["fitness"]) for one in setting["searches"]] == [7, 7]
  points = np.array([searched[0]["scores"][task] for task in ("copy", "first")]).T
  for point in setting["front"]:
    assert not (points < point).all(axis=1).any()
  gain = next(g for g in setting["gains"] if (g["search"], g["evaluations"], g["over"], g["held"])
              == ("search", 4, "uniform", "in"))  # fmt: skip
  np.testing.assert_allclose(gain["value"], average - rows["uniform"]["test"]["average"], rtol=1e-6)
  assert gain["low"] <= gain["value"] <= gain["high"] and gain["stderr"] < gain["noise"]
  assert len(section["weights"]) == 4 and len(section["weights"][0]["values"]) == 5
  assert {(one["n"], one["seed"]) for one in section["sweep"]} == {(2, 0), (2, 1), (5, 0), (5, 1)}
  assert all(one["centroid"] <= one["best"] for one in section["sweep"])
  assert {(one["level"], one["evaluations"]) for one in section["ablations"] if one["factor"] == "sigma"} == {
    (level, budget) for level in ("0.1", "1") for budget in (4, 7)
  }
  values = section["single_fitness"][0]["values"]
  np.testing.assert_allclose(max(values), rows["best_single"]["search"]["average"])
  cost = section["cost"]
  rows = {(row["evaluations"], row["counted"]): row for row in cost["rows"]}
  read = sum(results[0]["tokens"][task] for task in ("copy", "first")) + 5
  samples = sum(results[0]["sizes"]["search"][task] for task in ("copy", "first"))
  np.testing.assert_allclose(rows[4, "pool"]["share"], 4 * read / (3 * 5 * 500))
  np.testing.assert_allclose(rows[7, "tokens"]["share"], 7 * read / (3 * 500))
  np.testing.assert_allclose(rows[4, "sequences"]["share"], 4 * samples / (3 * 40))
  assert "Cost of the searches" in study_page.render({"recycle": section}, {}, [])


def test_what_is_missing_is_left_out(found):
  _, results = found
  assert recycling.summary([]) == recycling.summary(results[1:]) == {}
  assert recycling.inputs(results[1:]) == Inputs()
  no_paper = [one for one in results if one.get("arm") != PAPER]
  section = json.loads(json.dumps(recycling.summary(no_paper, 100), allow_nan=False))
  assert section["sweep"] == section["weights"] == section["settings"][0]["front"] == []
  assert any(row["name"] == "ours" for row in section["settings"][0]["rows"])
  assert recycling.inputs(no_paper).settings == []


def test_claims_are_judged_by_the_papers_searches_at_its_budget(found):
  _, results = found
  given = recycling.inputs(results)
  assert given.stages == ("sft", "po", "", "", "") and len(given.singles) == 5
  (setting,) = given.settings
  assert setting.rows.keys() == {
    "best_single", "uniform", "merge_best", "greedy", "best_on_copy", "best_on_first"
  }  # fmt: skip
  assert len(given.sweep) == 4 and given.sweep[0]["n"] == 2
  for search, one in zip(setting.searches, by(results, kind="search", count=5, arm=PAPER), strict=True):
    best = one["models"][one["answers"][0]["rows"]["search_best"]]
    assert list(search.fitness) == one["fitness"][one["known"] :][:4]
    np.testing.assert_allclose([*search.examples.scores().values()], [*best["test"].values()])
    losses = [best["search"][task] for task in setting.tasks]
    np.testing.assert_allclose(search.average, -np.mean(losses))  # higher is better, as in the samples
  for examples, model in zip(given.singles, results[0]["models"], strict=True):
    np.testing.assert_allclose([*examples.scores().values()], [*model["test"].values()])


def test_checkpoints_that_were_not_searched_over_are_no_zeros(world, judge):
  """Two of five: their weights alone say how dense an answer is, and whether fitness predicts them."""
  options = OPTIONS | {"counts": [2], "budgets": [4], "seeds": [0], "ablations": []}
  results = [cell.run() for cell in recycling.cells(world, judge, ways.read(options))]
  (setting,), section = recycling.inputs(results).settings, recycling.summary(results, 100)
  members = by(results, kind="search", arm=PAPER)[0]["members"]
  alone = section["single_fitness"][0]["values"]
  assert len(members) == 2 and setting.fitness == [alone[i] for i in members]
  for weights, line in zip(setting.searches[0].top, section["weights"], strict=True):
    assert sum(weights) == pytest.approx(1)
    assert [w for w in line["values"] if w is not None] == weights and len(line["values"]) == 5


def test_the_papers_account_of_cost():
  """Two tasks, 50 evaluations, one SFT and PO training: 9.9 % (arXiv 2412.04144, appendix D)."""
  alone = {
    "checkpoints": ["a"], "parameters": 10**11, "trained": [None], "sequences": [64 * (1554 + 1182)],
    "sizes": {"search": {"mbpp": 500, "ifeval": 541}}, "tokens": {"mbpp": 0, "ifeval": 0},
  }  # fmt: skip
  signs = {"mbpp": 1.0, "ifeval": 1.0}
  setting = Setting("both", ("mbpp", "ifeval"), signs, ({"budgets": [50]},), alone)
  (row,) = cost([setting])["rows"]  # real tokens are not known
  np.testing.assert_allclose([row["evaluation"], row["training"]], [2.1e14, 1.057e17], rtol=0.01)
  np.testing.assert_allclose(row["share"], 0.099, atol=5e-4)


def test_intervals_are_paired_and_know_seeds():
  def model(sums):
    return {"examples": {"t": {"sums": sums, "counts": [1.0] * len(sums)}}}

  generator = np.random.default_rng(0)
  right = (generator.random(200) < 0.5).astype(float)
  better = right.copy()
  better[np.flatnonzero(right == 0)[:10]] = 1.0
  setting = Setting("t", ("t",), {"t": 1.0}, (), {"units": None})
  one = setting.interval([model(better.tolist())], ["t"], 2000, model(right.tolist()))
  np.testing.assert_allclose(one["value"], 0.05)
  np.testing.assert_allclose(one["stderr"], np.sqrt(0.05 * 0.95 / 200), rtol=0.1)
  both = setting.interval([model(better.tolist()), model((1 - right).tolist())], ["t"], 2000)
  alone = setting.interval([model(better.tolist())], ["t"], 2000)
  assert alone["stderr"] < 0.04 and both["high"] - both["low"] > 0  # seeds that differ widen it
  halves = [model([value] * 2000) for value in (0.4, 0.6)]
  few = setting.interval(halves, ["t"], 4000)
  np.testing.assert_allclose(few["stderr"], 0.1, rtol=0.05)  # of two seeds: of n - 1, not of n
  worse = Setting("t", ("t",), {"t": -1.0}, (), {"units": None}).interval(
    [model(better.tolist())], ["t"], 100
  )
  np.testing.assert_allclose(worse["value"], -better.mean())
