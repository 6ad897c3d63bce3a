"""Suites of pools: settings, budgets, the table, smooth scores, and the smoke suite from its trainings on."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pools_small, pools_smoke
from merge_jax import evals, models
from merge_jax.errors import Stopped
from merge_jax.evals import metrics
from merge_jax.study.pools import attainable, job, members, settings, table
from merge_jax.study.pools.contest import Watched
from merge_jax.study.pools.members import steps
from merge_jax.training import puzzles
from tests import test_search
from tests.further import beyond

needs_puzzles = pytest.mark.skipif(
  not importlib.util.find_spec("reasoning_gym"), reason="needs reasoning_gym"
)


def suite(config=pools_smoke, **changes):
  return settings.from_mapping(config.get_config().to_dict() | changes)


def test_the_small_suite_has_the_kinds_that_are_asked_for():
  made = suite(pools_small)
  sizes = {kind: len(some) for kind, some in made.kinds.items()}
  assert len(sizes) == 7 and sizes["recipes"] == 16 and sizes["overlapping"] == sizes["variants"] == 8
  assert {len(seeds) for seeds in made.seeds.values()} == {3} and len(made.sizes) == 2
  assert sum(steps(made, size) for size in made.sizes) * 6 < 200_000
  (run,) = made.kinds["stages"].values()
  assert run.recipe["steps"] // run.every == 8
  assert sum(metric == "exact_match" for metric in made.data.tasks.values()) == 3
  assert made.budgets_of(8) == (25, 50, 150) and made.budgets_of(16) == (42, 50, 150)
  assert made.part_of(0) == "tune" and made.part_of(11) == "confirm"


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    (("data", "tasks", "up"), "exact", "unknown metric 'exact'"),
    (("contestants", "known points", "proposer"), "knwon", "unknown proposer 'knwon'; did you mean 'known'"),
    (("contestants", "known points", "space"), "fre", "unknown search space 'fre'"),
    (("seeds", "confirm"), (0,), "seeds must be different"),
    (("budgets",), (12, 9), "expected increasing numbers"),
    (("kinds", "recipes", "po", "start"), "sft", "starts from 'sft', which is no member of the pool"),
    (("kinds", "recipes", "run", "start"), "po", "which starts from it"),
    (("opening",), -1, "opening is -1"),
  ],
)
def test_settings_are_checked(path, value, message):
  values = pools_smoke.get_config().to_dict()
  at = values
  for name in path[:-1]:
    at = at[name]
  at[path[-1]] = value
  with pytest.raises(ValueError, match=message):
    settings.from_mapping(values)


@pytest.mark.parametrize(
  "proposer",
  beyond(
    ("line_search", "cma_es"),
    (name for name, kind in test_search.proposers.PROPOSERS.items() if not kind.foresees),
  ),
)
def test_smaller_budgets_are_read_from_the_longest_search(proposer):
  """Generations do not depend on the budget, and the means are those of a search that ended there."""
  options = test_search.options()
  watched = Watched(test_search.search.proposer(proposer, options))
  journal = test_search.Journal()
  objective = test_search.Objective()
  whole = test_search.search.search(
    watched, objective, journal, options.fitness, test_search.search.Budget(40)
  ).records
  for budget in (5, 17, 26, 40):
    alone = test_search.run(proposer, budget)
    assert test_search.plain(alone.records) == test_search.plain(whole[:budget])
    assert watched.at(budget).mean == alone.mean
  assert watched.marks[-1].seconds > 0


def line(**more):
  about = {"part": "tune", "size": "s", "kind": "a", "contestant": "x", "seed": 0, "search_seed": 0}
  return about | {"budget": 25, "gain": 0.01, "proposing": 1.0, "evaluating": 2.0} | more


def test_the_table_averages_pools_and_search_seeds_apart():
  lines = [line(gain=0.01), line(gain=0.03, search_seed=1), line(gain=0.04, seed=1), line(gain=None, seed=2)]
  rows = {(row["kind"], row["contestant"]): row for row in table.rows(lines[:3])}
  one = rows["a", "x"]
  assert one["n"] == 2 and one["gain"] == pytest.approx(0.03) and one["worst"] == pytest.approx(0.02)
  assert one["stderr"] == pytest.approx(0.02 / math.sqrt(2) / math.sqrt(2))
  assert math.isnan(table.rows(lines)[0]["gain"])  # what failed does not vanish
  read = table.as_csv(table.rows(lines), table.COLUMNS).splitlines()
  assert read[0].startswith("part,kind,contestant") and read[1].startswith("tune,a,x,25,,")


def test_large_pools_stand_beside_small_ones_by_the_place_of_their_budget():
  lines = [line(budget=b, gain=b / 1000) for b in (25, 50, 150)]
  lines += [line(kind="b", budget=b, gain=b / 1000) for b in (42, 50, 150)]
  by = {(row["kind"], row["evaluations"]): row["gain"] for row in table.rows(lines)}
  assert by["b", 42] == pytest.approx(0.042) and by["all", 25] == pytest.approx((0.025 + 0.042) / 2)
  text = table.text(lines)
  assert text.count("evaluations") == 3 and ".0420" in text.splitlines()[2]


@needs_puzzles
def test_a_smooth_score_becomes_the_metric_as_the_temperature_falls(monkeypatch):
  config = pools_smoke.get_config().sizes.tiny.model.to_dict() | {"num_hidden_layers": 1}
  model = models.build(config)
  params = model.init(jax.random.key(0))
  generator = np.random.default_rng(0)

  def text(n):
    return "".join(generator.choice(list("0123456789"), n))

  exact = tuple(evals.Example(text(4), (text(1),)) for _ in range(40))
  asked = tuple(evals.Example(text(4), (text(2), text(3), text(2)), i % 3) for i in range(40))
  tasks = [evals.Task("a", "exact_match", exact), evals.Task("b", "choice_accuracy", asked),
           evals.Task("c", "choice_accuracy_normalized", asked), evals.Task("d", "loss", exact)]  # fmt: skip
  batches = evals.pack(evals.encode(tasks, evals.Tokens(puzzles.tokenizer(), 1)), batch_tokens=200)
  scorer = evals.make_scorer(model.apply, tasks, batches)
  data = scorer.batches
  scores = scorer.read(jax.jit(scorer.function)(params, data)).scores()
  hard = np.mean([scores[n] * (1 if n != "d" else -1) for n in "abcd"])
  score = attainable.smooth_score(evals.make_scorer(model.apply, tasks, batches, smooth=True))
  with monkeypatch.context() as patch:
    patch.setattr(metrics, "SMOOTHING", 1e-3)
    assert float(jax.jit(score)(params, data)) == pytest.approx(hard, abs=0.02)
  warm = jax.jit(lambda params, data: score(params, data))  # a function of its own: SMOOTHING is no argument
  name, step = "model.embed_tokens.weight", 1e-2
  slope = jax.jit(jax.grad(warm))(params, data)[name]
  direction = jnp.sign(slope) / slope.size
  ends = [float(warm(params | {name: params[name] + s * step * direction}, data)) for s in (1, -1)]
  assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(jnp.sum(slope * direction)), rel=0.05)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("suite") / "pools"
  calls = iter(range(10**6))
  with jax.numpy_dtype_promotion("standard"), pytest.raises(Stopped):
    job.compare(suite(), folder, parts=("tune",), inside=True, stop=lambda: next(calls) == 25)
  with jax.numpy_dtype_promotion("standard"):
    return folder, job.compare(suite(), folder, parts=("tune",), inside=True, attainable=True)


@pytest.mark.thorough
@needs_puzzles
def test_the_smoke_suite_runs_and_continues(done):
  folder, found = done
  assert not found["failed"]
  assert len(found["lines"]) == 2 * 3 * 2 and len(found["attainable"]) == 2 * 3
  for one in found["lines"]:
    assert one["evaluations"] <= one["budget"] and one["part"] == "tune" and one["stderr"] >= 0
    assert one["evaluating"] > 0 and one["proposing"] >= 0 and "sums" not in one
  known = [one for one in found["lines"] if one["contestant"] == "known points"]
  assert all(one["evaluations"] <= 7 for one in known)
  assert {row["row"] for row in found["references"]} == {"greedy", "uniform", "best_single"}
  assert all(row["gain"] == 0 for row in found["references"] if row["row"] == "greedy")
  assert (folder / "table.txt").read_text().startswith("tune, test gain over greedy")
  assert (folder / "gains_tune.png").read_bytes().startswith(b"\x89PNG")
  assert len((folder / "lines.jsonl").read_text().splitlines()) == 12


@pytest.mark.thorough
@needs_puzzles
def test_only_what_is_missing_is_done(done):
  folder, found = done
  more = suite()
  added = pools_smoke.get_config().to_dict()["contestants"] | {
    "random": {"proposer": "random", "method": "linear", "space": "simplex"},
    "by layer": {"proposer": "surrogate", "granularity": "layer"},
  }
  more = suite(contestants=added)
  cells, told = set((folder / "cells").iterdir()), []
  again = job.compare(
    more, folder, parts=("tune",), inside=True, names=("random", "by layer"), say=told.append
  )
  assert len(set((folder / "cells").iterdir()) - cells) == 4
  assert all(np.ndim(one["weights"]) == 2 for one in again["lines"]
             if one["contestant"] == "by layer" and one["name"].startswith("search"))  # fmt: skip
  assert [line for line in told if "random" in line] and not [line for line in told if "pretrained" in line]
  assert [one for one in again["lines"] if one["contestant"] not in ("random", "by layer")] == found["lines"]
  assert again["attainable"] == found["attainable"]
  with pytest.raises(ValueError, match="unknown contestant 'rndom'; did you mean 'random'"):
    job.compare(more, folder, names=("rndom",), inside=True)


@pytest.mark.thorough
@needs_puzzles
def test_a_worker_of_its_own_finds_the_same(done, tmp_path):
  folder, found = done
  again = job.compare(suite(), folder, parts=("tune",), workers=2)
  assert again["lines"] == found["lines"] and again["references"] == found["references"]


@pytest.mark.thorough
@needs_puzzles
def test_pairs_of_a_stage_are_preferences_and_a_run_gives_its_checkpoints(done):
  folder, _ = done
  (run,) = (folder / "models").glob("*recipes-run-*")
  assert (run / "step-20" / "training.json").is_file() and (run / "training.json").is_file()
  (preferring,) = (folder / "models").glob("*recipes-po-*")
  about = json.loads((preferring / "training.json").read_text())
  assert about["recipe"]["dpo_beta"] == 0.2 and about["curve"][0][1] < 0.75


def test_steps_are_counted_with_what_preferences_cost():
  assert members.steps(suite(), "tiny") == 80 + 3 * 20 + 40 + round(20 * 2.7)
