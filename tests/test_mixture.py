"""Mixtures of data from merges of experts: predictions, the best ratios for wishes, and what is refused."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from merge_jax import recycle, search
from merge_jax.recycle import Refused, mixing
from merge_jax.search import mixture
from tests import pools
from tests.further import further
from tests.test_recycle import job, quiet

TASKS = ("code", "math", "law")
PEAKS = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.2, 0.2, 0.5, 0.1]])
"""Ratios at which each task is best."""


def truth(ratios):
  return 0.8 - ((np.atleast_2d(ratios)[:, None] - PEAKS) ** 2).sum(axis=2)


def records(count, noise=0.0, seed=0):
  generator = np.random.default_rng(seed)
  ratios = np.concatenate([np.eye(4), generator.dirichlet(np.ones(4), count)])
  scores = truth(ratios) + noise * generator.normal(size=(len(ratios), 3))
  return [
    search.Record(
      "search", i, 0, "single" if i < 4 else "random", "linear", search.Point.of(w),
      dict(zip(TASKS, row.tolist(), strict=True)), None, None, 0.0,
    )
    for i, (w, row) in enumerate(zip(ratios, scores, strict=True))
  ]  # fmt: skip


def fitness(**weights):
  return search.Fitness(TASKS, (1.0,) * 3, source="metric", weights=tuple(weights.items()))


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_scores_of_mixtures_that_were_never_merged(noise):
  learned = mixture.learn(records(40, noise), fitness(), 4)
  fresh = np.random.default_rng(9).dirichlet(np.ones(4), 50)
  mean, deviation = learned.at(fresh)
  errors = mean - truth(fresh)
  assert np.sqrt((errors**2).mean()) < 0.006 + 0.8 * noise
  assert (np.abs(errors) < 3 * deviation + 0.005).mean() > 0.9


@pytest.mark.parametrize(
  ("weights", "share"),
  [
    ({}, (1, 1, 1)),
    further({"code": 5.0}, (5, 1, 1)),
    further({"law": 0.0}, (1, 1, 0)),
  ],
)
def test_the_best_mixture_is_that_of_the_wishes(weights, share):
  best = mixture.learn(records(40), fitness(**weights), 4).best()
  assert best.sum() == pytest.approx(1) and (best >= 0).all()
  # Of such parabolas the mean's highest point is the mean of the peaks.
  np.testing.assert_allclose(best, np.array(share) / sum(share) @ PEAKS, atol=0.03)


def test_other_merges_do_not_count():
  few = records(2)
  others = [
    msgspec.structs.replace(one, **changes)
    for one in records(40)
    for changes in ({"method": "ties"}, {"point": search.Point((1.0, 1.0, 0.0, -1.0))})
  ]
  mixture.learn([*few, *others], fitness(), 4)
  with pytest.raises(
    ValueError, match="4 evaluated merges have weights that are ratios; expected at least 6"
  ):
    mixture.learn([*records(0), *others], fitness(), 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  world = folder, pools.make_pool(folder / "pool", 3, 0.05), pools.make_tasks(folder / "tasks")
  given = job(world, folder / "run")
  spread = {"method": "linear", "space": "simplex", "proposer": "random", "fitness_source": "metric"}
  given = msgspec.structs.replace(given, search=msgspec.structs.replace(given.search, **spread))
  recycle.recycle(given, say=quiet)
  return folder / "run"


def test_a_run_predicts_mixtures(run):
  said = []
  found = recycle.mixture(run, ratios=["m0=1,m2=3"], say=said.append)
  assert found["evaluations"] >= 14 and len(said) == 4
  made = found["mixtures"]
  assert made["m0=1,m2=3"]["ratios"] == {"m0": 0.25, "m1": 0.0, "m2": 0.75}
  assert sum(made["best"]["ratios"].values()) == pytest.approx(1)
  losses = {name: one["scores"]["copy"] for name, one in made.items()}
  assert losses["best"] > 0 and said[0].split()[:4] == ["predicted", "m0", "m1", "m2"]
  # A task alone: no mixture is predicted to have a lower loss than the best for it.
  alone = recycle.mixture(run, task_weights="choose=0,copy=1", ratios=["m1=1"], say=quiet)["mixtures"]
  assert alone["best"]["scores"]["copy"] <= min(one["scores"]["copy"] for one in alone.values()) + 1e-9


def test_a_setting_that_is_no_more_does_not_matter(run, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(run, copy)
  manifest = json.loads((copy / "manifest.json").read_text())
  manifest["config"]["gone"] = 1
  (copy / "manifest.json").write_text(json.dumps(manifest))
  assert recycle.mixture(copy, say=quiet) == recycle.mixture(run, say=quiet)
  del manifest["config"]["search"]["fitness"]  # its default then
  (copy / "manifest.json").write_text(json.dumps(manifest))
  assert recycle.mixture(copy, say=quiet)["mixtures"]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    ({"ratios": ["m9=1"]}, "unknown checkpoint 'm9'"),
    ({"ratios": ["m0=0"]}, "above 0"),
    ({"ratios": ["m0=-1"]}, "m0"),
    ({"ratios": ["m0=nan"]}, "--ratios: got 'm0=nan'; expected checkpoint=share"),
    ({"task_weights": "chose=2"}, "did you mean 'choose'|chose"),
  ],
)
def test_wishes_that_are_none_are_refused(run, arguments, words):
  with pytest.raises(ValueError, match=words):
    recycle.mixture(run, **arguments, say=quiet)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("journal.jsonl", "keeps its journal"), ("result.json", "keeps its result"), ("merged/x", "its merged"),
    ("../pool/m0/config.json", "lies in the input"), ("../tasks/copy.jsonl", "is the input"),
    ("../none/x.json", "there is no folder"), ("..", "is a folder"),
  ],
)  # fmt: skip
def test_an_output_spares_what_is_there(run, name, words):
  before, said = (run / "result.json").read_bytes(), []
  with pytest.raises((ValueError, OSError), match=words):
    recycle.mixture(run, output=str(run / name), say=said.append)
  assert said == [] and (run / "result.json").read_bytes() == before


def test_an_output_spares_inputs_that_were_named_from_another_folder(run, tmp_path, monkeypatch):
  shutil.copytree(run, tmp_path / "run")
  manifest = json.loads((run / "manifest.json").read_text())
  task = Path(next(name for name in manifest["inputs"] if name.endswith("copy.jsonl")))
  manifest["inputs"][task.name] = manifest["inputs"].pop(str(task))
  manifest["folder"] = str(task.parent)
  (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="is the input"):
    recycle.mixture(tmp_path / "run", output=str(task), say=quiet)


def test_an_output_is_written(run, tmp_path):
  found = recycle.mixture(run, output=str(tmp_path / "x.json"), say=quiet)
  assert json.loads((tmp_path / "x.json").read_text()) == found


@pytest.mark.parametrize(
  ("search", "given", "refused"),
  [
    ({}, (), None), ({"method": "linear", "budget": 9}, ("search.method", "search.budget"), None),
    ({"method": "task_arithmetic", "proposer": "auto"}, (), None),
    ({"proposer": "auto"}, ("search.proposer",), "search.proposer is 'auto'"),
    ({"proposer": "cma_es"}, (), "search.proposer is 'cma_es'"), ({"method": "ties"}, (), "'ties'"),
    ({"granularity": "layer"}, (), "search.granularity is 'layer'"),
  ],
)  # fmt: skip
def test_mixtures_are_searched_in_one_way(search, given, refused):
  if refused is None:
    assert mixing.spread(search, given) == search | mixing.SPREAD
  else:
    with pytest.raises(ValueError, match=f"{refused}, but --mixture searches with"):
      mixing.spread(search, given)


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(Refused, match="holds no recycle run"):
    recycle.mixture(tmp_path, say=quiet)
