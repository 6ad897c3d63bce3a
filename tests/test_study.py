"""The grid of a study: cells, sets of experts, tuning, and a study of models that are there."""

import csv
import io
import json
from concurrent import futures
from pathlib import Path

import jax
import numpy as np
import pytest

from merge_jax import errors, evals, models, sharding
from merge_jax.evals.examples import Examples
from merge_jax.recycle.settings import Evals
from merge_jax.study import grid, job, results, settings, tasks
from merge_jax.study.cells import Cell, Group, Store, forget_what_is_gone, run, share
from merge_jax.study.tasks import Tasks
from merge_jax.training import pool, puzzles
from tests.further import further
from tests.pools import TINY

CONFIG = TINY | {"num_hidden_layers": 1}
CATEGORIES = ("letters", "digits", "mixed")


def numbered(i, run=None, needs=()):
  return Cell("test", f"cell {i}", {"i": i}, run or (lambda: {"i": i}), needs)


def test_cells_are_done_once(tmp_path):
  calls = []

  def counted(i):
    return lambda: calls.append(i) or {"i": i}

  cells = [numbered(i, counted(i)) for i in range(3)]
  first = run(cells, Store(tmp_path))
  again = run([*cells, numbered(3, counted(3))], Store(tmp_path))
  assert calls == [0, 1, 2, 3]
  assert first.results == {key: again.results[key] for key in first.results}
  assert not again.failed


def test_a_failed_cell_is_named_and_tried_again(tmp_path):
  broken = [True]

  def fragile():
    if broken[0]:
      raise RuntimeError("out of luck")
    return {"i": 1}

  one = numbered(1, fragile)
  cells = [numbered(0), one, numbered(2, needs=(one.key,)), numbered(3)]
  failed = run(cells, Store(tmp_path))
  assert failed.failed == {
    "cell 1": "RuntimeError: out of luck", "cell 2": "it needs a cell that failed."
  }  # fmt: skip
  assert len(failed.results) == 2
  broken[0] = False
  assert len(run(cells, Store(tmp_path)).results) == 4


def test_of_a_group_only_the_broken_cell_fails(tmp_path):
  def together(cells):
    if any(cell.spec["i"] == 1 for cell in cells):
      raise ValueError("not this one")
    return [{"i": cell.spec["i"]} for cell in cells]

  outcome = run([Group(tuple(numbered(i) for i in range(4)), together)], Store(tmp_path))
  assert list(outcome.failed) == ["cell 1"]
  assert sorted(result["i"] for result in outcome.results.values()) == [0, 2, 3]


def test_a_stop_keeps_what_is_done(tmp_path):
  asked = iter([False, True])
  with pytest.raises(errors.Stopped, match="1 cells"):
    run([numbered(0), numbered(1)], Store(tmp_path), stop=lambda: next(asked))
  assert run([numbered(0), numbered(1)], Store(tmp_path)).results.keys() == {numbered(0).key, numbered(1).key}


def test_workers_share_cells(tmp_path):
  """Two from both ends: each cell is done once, after those that it needs; one that fails stops no other."""
  store, calls = Store(tmp_path / "cells"), []

  def counted(i):
    def work():
      assert all(store.has(cells[j].key) for j in needs.get(i, ()))
      calls.append(i)
      if i == 3:
        raise RuntimeError("out of luck")
      return {"i": i}

    return work

  needs = {1: (0,), 4: (3,), 5: (1, 2), 7: (6,)}
  cells = list[Cell]()
  for i in range(8):
    cells.append(numbered(i, counted(i), tuple(cells[j].key for j in needs.get(i, ()))))
  pair = Group(tuple(cells[6:]), lambda some: [cell.run() for cell in some])
  work = [*cells[:6], pair._replace(cells=pair.cells[:1]), pair._replace(cells=pair.cells[1:])]
  with futures.ThreadPoolExecutor() as threads:
    done = [threads.submit(share, turn, store, tmp_path / "claims") for turn in (work, work[::-1])]
    for one in done:
      one.result(timeout=60)
  assert sorted(i for i in calls if i != 3) == [0, 1, 2, 5, 6, 7] and calls.count(3) <= 2
  assert run(work, store).failed.keys() == {"cell 3", "cell 4"}


def test_a_worker_stops_between_cells(tmp_path):
  asked = iter([False, True])
  with pytest.raises(errors.Stopped):
    share([numbered(0), numbered(1)], Store(tmp_path), tmp_path / "claims", stop=lambda: next(asked))
  assert Store(tmp_path).has(numbered(0).key) and not Store(tmp_path).has(numbered(1).key)


def test_a_damaged_cell_is_named(tmp_path):
  store, cell = Store(tmp_path), numbered(0)
  run([cell], store)
  path = tmp_path / f"{cell.key}.json"
  path.write_text(path.read_text()[:-20])
  with pytest.raises(ValueError, match=f"{cell.key}.json .remove it"):
    store.get(cell.key)
  path.unlink()
  run([cell], store)
  path.write_text(json.dumps(json.loads(path.read_text()) | {"result": {}}))
  with pytest.raises(ValueError, match=f"{cell.key}.json .remove it.*is not the one that was written"):
    store.get(cell.key)


def test_what_is_gone_is_made_again_where_it_is_needed(tmp_path):
  store, calls = Store(tmp_path / "cells"), []

  def model(i, needs=()):
    made = tmp_path / f"{i}"

    def train():
      calls.append(i)
      made.write_text("")
      return {"i": i}

    return numbered(i, train, needs)._replace(made=made)

  first = model(0)
  second = model(1, (first.key,))
  other = model(2, (first.key,))
  score = numbered(3, needs=(second.key,))
  cells = [first, second, other, score]
  run(cells, store)
  for i in range(3):
    (tmp_path / f"{i}").unlink()
  forget_what_is_gone(cells, store)
  run(cells, store)
  assert calls == [0, 1, 2]  # nothing is missing that would need them
  store.forget(score.key)
  forget_what_is_gone(cells, store)
  run(cells, store)
  assert calls == [0, 1, 2, 0, 1]
  (tmp_path / "0").unlink()
  forget_what_is_gone(cells, store, [other.key])
  assert not store.has(first.key) and store.has(second.key) and not store.has(other.key)


def test_a_folder_of_others_is_left_alone(tmp_path):
  (tmp_path / "study.json").write_text('{"mine": 1}')
  values = {"held_in": {"a": ["a.jsonl"]}, "methods": {"average": {"operator": "uniform"}}}
  with pytest.raises(OSError, match="is not empty"):
    job.study(settings.from_mapping(values | {"output_dir": str(tmp_path)}))
  assert [path.name for path in tmp_path.iterdir()] == ["study.json"]


@pytest.mark.parametrize(("count", "expected"), [(1, 3), (2, 5), (5, 1)])
def test_subsets_differ_and_do_not_depend_on_their_number(count, expected):
  names = ["a", "b", "c", "d", "e"]
  found = grid.subsets(names, count, expected)
  assert len(found) == len(set(found)) == expected
  assert all(len(one) == count and list(one) == sorted(one) for one in found)
  assert grid.subsets(names, count, 2) == found[:2]


def test_random_methods_are_repeated_where_there_is_one_set():
  methods = {
    "average": settings.Method(operator="uniform"),
    "dare": settings.Method(operator="dare_ties", grid=({"density": 0.5},)),
  }
  made = grid.merges(methods, ["a", "b"], [2], 3)
  assert [(merge.method, merge.subset) for merge in made] == [
    ("average", 0), ("dare", 0), ("dare", 1), ("dare", 2)
  ]  # fmt: skip


def test_trials_are_compared_by_scores_over_the_experts():
  tasks = Tasks({"a": ("x", "y"), "b": ("z",)}, {}, {}, "", Evals())
  values = np.array([[1, 1, 0, 0, 4, 4], [1] * 6, [0] * 6, [1] * 6], float)
  examples = Examples(("x", "y", "z"), (1.0, 1.0, -1.0), (2, 2, 2), values)
  references = {"a": {"x": 0.5, "y": 0.0, "z": 9.0}, "b": {"z": 2.0}}
  # x: 1 / .5; y is no denominator; z is a loss: 2 / 4.
  assert grid.worth(examples, ("a", "b"), tasks, references) == pytest.approx((2.0 + 0.5) / 2)
  assert grid.worth(examples, ("a",), tasks, references) == pytest.approx(2.0)


@pytest.mark.parametrize(
  ("method", "counts", "words"),
  [
    ({"operator": "tise"}, (2,), "did you mean 'ties'"),
    ({"operator": "ties", "grid": ({"density": 1.5},)}, (2,), "density"),
    ({"operator": "ties", "grid": ({"destiny": 0.5},)}, (2,), "destiny"),
    ({"operator": "fisher"}, (2,), "statistics"),
    ({"operator": "slerp", "grid": ({"t": 0.5},)}, (2, 3), "trial 0"),
    ({"operator": "uniform"}, (2, 4), "at most the 3"),
    ({"operator": "uniform"}, (2, 2), "different numbers"),
    ({"operator": "ties", "grid": ({"density": 0.5}, {"scaling": 0.5})}, (2,), "same names"),
  ],
)
def test_what_cannot_be_merged_is_refused(method, counts, words):
  with pytest.raises(ValueError, match=words):
    grid.check({"m": settings.Method(**method)}, counts, 3)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """A base, experts and a multitask model in Hugging Face folders, with task files."""
  folder = tmp_path_factory.mktemp("own")
  model, tokenizer = models.build(CONFIG), puzzles.tokenizer().to_str()
  base = model.init(jax.random.key(0))

  def save(name, seed):
    moved = {
      key: value + 0.05 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), value.shape)
      for i, (key, value) in enumerate(base.items())
    }
    pool.save(folder / name, base if seed == 0 else moved, CONFIG, tokenizer, {})
    return str(folder / name)

  generator = np.random.default_rng(0)

  def task(name, choices=False):
    lines = []
    for i in range(40):
      letters = "".join(generator.choice(list("abcdef"), 3))
      line = {"prompt": f"{name}{i} {letters}="}
      line |= (
        {"choices": [letters[:2], letters[1:] + "z"], "answer": i % 2} if choices else {"target": letters}
      )
      lines.append(json.dumps(line))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / f"{name}.jsonl")

  family = {
    "size": "tiny", "kind": "pretrained", "base": save("base", 0), "multitask": save("all", 9),
    "experts": {name: save(name, i + 1) for i, name in enumerate(CATEGORIES)},
  }  # fmt: skip
  return {
    "held_in": {name: (f"{task(name)}:loss",) for name in CATEGORIES},
    "held_out": {"other": (task("other", choices=True),)},
    "families": (family,),
    "methods": {
      "average": {"operator": "uniform"},
      "ties": {"operator": "ties", "grid": ({"density": 0.2}, {"density": 0.6})},
      "dare_ties": {"operator": "dare_ties", "grid": ({"density": 0.5}, {"density": 0.8})},
    },
    "counts": (2, 3), "subsets": 2, "bootstrap": 100, "limits": (10, 15),
  }  # fmt: skip


def study(own, folder, **changed):
  given = settings.from_mapping({**own, "output_dir": str(folder), **changed})
  return job.study(given, say=lambda line: None)


def plain(result):
  """What does not depend on the clock."""
  return {key: value for key, value in result.items() if key not in ("cost", "title")}


@pytest.fixture(scope="module")
def done(own, tmp_path_factory):
  folder = tmp_path_factory.mktemp("done") / "run"
  return folder, study(own, folder)


def test_a_study_of_given_models_scores_every_cell(done):
  folder, result = done
  rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
  roles = [row["role"] for row in rows if row["task"] == "other"]
  # Sets of two: two; of three: one, but dare_ties draws twice; each tuned and untuned.
  assert {role: roles.count(role) for role in set(roles)} == {
    "base": 1, "expert": 3, "multitask": 1, "merge": 2 * (3 + 3 + 4)
  }  # fmt: skip
  assert {row["held"] for row in rows if row["task"] == "other"} == {"out"}
  trials = result["hyperparameters"]
  assert len(trials) == 3 + 2 * 3 + 2 * 4
  better = sum(trial["chosen"] and trial["trial"] > 0 for trial in trials)
  assert result["cost"]["evaluations"] == 2 * 5 + len(trials) + 10 + better
  assert {claim["id"] for claim in result["claims"]} >= {f"W{i}" for i in range(1, 9)}
  assert (folder / "report.html").is_file() and json.loads((folder / "result.json").read_text())
  assert not result["failed"]


def test_a_merge_is_that_of_the_library(own, done, tmp_path):
  import merge_jax as mj
  from merge_jax import checkpoints

  folder, _ = done
  rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
  (row,) = [
    r for r in rows if (r["method"], r["count"], r["tuned"], r["task"]) == ("ties", "3", "1", "letters")
  ]
  family = own["families"][0]
  base = checkpoints.open(family["base"]).load()
  experts = [checkpoints.open(family["experts"][name]).load() for name in CATEGORIES]
  merged = mj.merge(mj.ties(json.loads(row["numbers"])["density"]), experts, base=base)
  pool.save(tmp_path / "merged", merged, CONFIG, puzzles.tokenizer().to_str(), {})
  changed = dict(family, base=str(tmp_path / "merged"), multitask="")
  study(own, tmp_path / "run", families=(changed,), methods={"average": {"operator": "uniform"}})
  other = csv.DictReader(io.StringIO((tmp_path / "run" / "results.csv").read_text()))
  (base_row,) = [r for r in other if (r["role"], r["task"]) == ("base", "letters")]
  assert float(base_row["score"]) == pytest.approx(float(row["score"]), rel=1e-5)


def test_the_same_study_again_does_nothing_and_more_adds_what_is_missing(own, done, monkeypatch):
  folder, result = done
  before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
  scored = []
  monkeypatch.setattr(grid, "_score", lambda *args: scored.append(args))
  assert plain(study(own, folder)) == plain(result)
  more = own["methods"] | {"linear": {"operator": "linear"}}
  study(own, folder, methods=more)
  after = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
  assert not scored and before.items() <= after.items()
  assert len(after) == len(before) + 3


@pytest.mark.thorough
def test_workers_find_what_one_process_finds(own, done, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
  given = settings.from_mapping({**own, "output_dir": str(tmp_path / "run"), "workers": 2})
  said = []
  result = job.study(
    given, mesh=sharding.make_mesh("fsdp:1"), say=lambda line: None,
    progress=lambda what, done, total, name: said.append(done),
  )  # fmt: skip
  _, alone = done
  assert said == sorted(said) and not result["failed"]
  assert not (tmp_path / "run" / job.CLAIMS).exists()
  for one, other in zip(alone["scores"], result["scores"], strict=True):
    assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)


ONE = {"methods": {"average": {"operator": "uniform"}}, "counts": (2,), "subsets": 1}


def recycled(size, searched=None, a=None):
  return {
    "size": size, "pool": {"a": a or {}, "b": {}}, "options": {"settings": searched} if searched else {},
  }  # fmt: skip


def test_how_tasks_are_scored_is_part_of_a_cell_where_it_matters(own):
  digests = {}
  for name, how in {"": {}, "shapes": {"max_shapes": 1}, "dtype": {"dtype": "bfloat16"}}.items():
    digests[name] = tasks.read(settings.from_mapping({**own, "output_dir": "x", "evals": how}), {}).digest
  assert digests[""] == digests["shapes"] != digests["dtype"]


@pytest.mark.parametrize("batch", [further(1), 4])
def test_batches_score_alike(own, done, tmp_path, batch):
  _, result = done
  again = study(own, tmp_path / "run", batch=batch)
  for one, other in zip(result["scores"], again["scores"], strict=True):
    assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"counts": (2, 5)}, "at most the 3"),
    ({"families": ()}, "there are no models"),
    ({"held_out": {"letters": ("x.jsonl",)}}, "held in and held out"),
    ({"held_in": {}}, "held_in"),
    ({"fractions": (0.9, 0.9)}, "at most 1"),
    ({"fractions": (0.0, 1.0)}, "both need examples"),
    ({"limits": (10, 1)}, "has 1 independent test example, but errors need two"),
    ({"limits": (1, 15), "recycle": recycled("tiny", {"x": ("letters",)})}, "recycle divides validation"),
    ({"recycle": recycled("tiny", {"x": ("letters",)}, {"folder": "m", "start": "b"})}, "has no start"),
    ({"training": {"sizes": {}, "recipes": {}}}, "training.sizes"),
    ({"methods": {}}, "methods"),
    ({"workers": 2}, "share the cores"),
    ({"workers": 0}, "workers"),
    ({"evals": {"max_shapes": 0}}, "max_shapes"),
    ({"along": {"size": "tiny", "options": {}}}, "along"),
    ({"held_out": {"a/b": ("x.jsonl",)}}, "without /"),
    ({"methods": {" ": {"operator": "uniform"}}}, "name of a method"),
    ({"counts": (2, float("nan"))}, "counts"),
    ({"recycle": recycled("huge", {"x": ("letters",)})}, "huge"),
    ({"recycle": recycled("tiny")}, "settings"),
    ({"recycle": recycled("tiny", {"x": ("leters",)})}, "did you mean 'letters'"),
    ({"recycle": recycled("tiny", {"x": ("letters",)})}, "recycle.pool.a: give a folder"),
  ],
)
def test_a_refused_study_leaves_no_trace(own, tmp_path, changed, words):
  with pytest.raises(ValueError, match=words):
    study(own, tmp_path / "run", **changed)
  assert not (tmp_path / "run").exists()


def test_a_study_is_not_written_into_a_checkpoint(own):
  for folder in (own["families"][0]["base"], own["families"][0]["experts"]["letters"] + "/study"):
    with pytest.raises(ValueError, match=f"{folder} (is|lies in) the input"):
      study(own, folder)
  assert not Path(folder).exists()


def test_a_folder_with_other_things_is_refused(own, tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(FileExistsError):
    study(own, tmp_path)


def test_a_broken_expert_costs_its_merges_alone(own, tmp_path):
  import shutil

  family = dict(own["families"][0])
  target = tmp_path / "broken"
  shutil.copytree(family["experts"]["mixed"], target)
  (target / "model.safetensors").write_bytes((target / "model.safetensors").read_bytes()[:-40])
  family["experts"] = dict(family["experts"], mixed=str(target))
  with pytest.raises(ValueError, match="broken"):
    study(own, tmp_path / "run", families=(family,))


def test_searches_that_cannot_be_do_not_cost_the_grid(own, tmp_path, monkeypatch):
  def refused(*_):
    raise ValueError("no two of them go together")

  monkeypatch.setattr(job.parts, "searches", refused)
  experts = own["families"][0]["experts"]
  part = recycled("tiny", {"x": ("letters",)}, {"folder": experts["letters"]})
  part["pool"]["b"] = {"folder": experts["digits"]}
  result = study(own | ONE, tmp_path / "run", recycle=part)
  assert result["failed"] == {"recycle": "no two of them go together"}
  assert result["scores"] and (tmp_path / "run" / "report.html").is_file()


def copied(source, target, **changed):
  """A model with another config."""
  import shutil

  shutil.copytree(source, target)
  config = json.loads((target / "config.json").read_text())
  (target / "config.json").write_text(json.dumps(config | changed))
  return str(target)


def test_models_are_scored_with_configs_of_their_own(own, tmp_path):
  """Those of one family have to be alike; bases that differ are judged apart, whatever their size's name."""
  family = dict(own["families"][0], multitask="")
  changed = copied(family["experts"]["letters"], tmp_path / "letters", rope_theta=500.0)
  experts = family["experts"] | {"letters": changed}
  with pytest.raises(ValueError, match=r"families\[0\]: configs: rope_theta is 10000.0 in base"):
    study(own, tmp_path / "refused", families=(dict(family, experts=experts),))
  assert not (tmp_path / "refused").exists()
  other = {
    name: copied(source, tmp_path / f"other-{name}", rope_theta=500.0)
    for name, source in (family["experts"] | {"base": family["base"]}).items()
  }
  further = dict(family, kind="instruct", base=other.pop("base"), experts=other)

  def scores(families, name):
    rows = study(own | ONE, tmp_path / name, families=families)["scores"]
    return {(row["kind"], row["model"]): row["scores"]["letters"] for row in rows}

  both, alone = scores((family, further), "both"), scores((further,), "alone")
  assert both.items() >= alone.items()
  assert both["pretrained", "expert:letters"] != both["instruct", "expert:letters"]


def test_merges_are_chosen_by_the_categories_of_the_day(own, tmp_path):
  """Tasks of another category weigh otherwise, in a folder of before as in a new one."""
  (letters,), (digits,), (mixed,) = own["held_in"].values()
  family = dict(own["families"][0], multitask="")
  family["experts"] = dict(zip("pq", family["experts"].values(), strict=False))
  given = own | {"families": (family,), "counts": (2,), "subsets": 1}
  study(given, tmp_path / "one", held_in={"p": (letters,), "q": (digits, mixed)})
  regrouped = given | {"held_in": {"p": (letters, digits), "q": (mixed,)}}
  again, new = (study(regrouped, tmp_path / name)["hyperparameters"] for name in ("one", "two"))
  assert again == new


def test_examples_of_a_group_are_one_unit_of_errors(own, tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(results, "summarise", lambda scored, *_, **__: seen.extend(scored) or {"claims": []})
  text = Path(own["held_in"]["letters"][0].removesuffix(":loss")).read_text()
  lines = map(json.loads, text.splitlines())
  grouped = "".join(json.dumps(line | {"group": f"g{i // 4}"}) + "\n" for i, line in enumerate(lines))
  (tmp_path / "letters.jsonl").write_text(grouped)
  held_in = own["held_in"] | {"letters": (f"{tmp_path / 'letters.jsonl'}:loss",)}
  study(own | ONE, tmp_path / "run", held_in=held_in, limits=(0, 0))
  one = seen[0].examples
  units = one.units[: one.counts[one.tasks.index("letters")]]
  assert 1 < len(set(units.tolist())) <= len(units) / 3


def trained(own, tmp_path, **changed):
  """A study that would train, up to where it would begin."""
  (tmp_path / "tokenizer.json").write_text(puzzles.tokenizer().to_str())
  files = {}
  for name in (*CATEGORIES, "text"):
    files[name] = str(tmp_path / f"{name}_to_train.jsonl")
    lines = [json.dumps({"prompt": f"{name} {i}", "target": "abc"}) + "\n" for i in range(4)]
    (tmp_path / f"{name}_to_train.jsonl").write_text("".join(lines))
  steps = {"steps": 4, "learning_rate": 1e-3, "warmup": 1}
  recipes = {"pretrained": steps, "expert": steps} | changed.pop("recipes", {})
  options = {
    "tokenizer": str(tmp_path / "tokenizer.json"), "train": {name: files[name] for name in CATEGORIES},
    "pretrain": {"text": files["text"]},
  }  # fmt: skip
  given = own | ONE | {
    "families": (), "data": {"options": options | changed},
    "training": {"sizes": {"tiny": {"model": CONFIG}}, "kinds": ("pretrained",), "recipes": recipes},
  }  # fmt: skip
  made = settings.from_mapping({**given, "output_dir": str(tmp_path / "run")})
  return job.study(made, say=lambda line: None, stop=lambda: True)


def test_an_instruction_that_all_examples_share_is_no_question():
  def task(*answers):
    return evals.Task("t", "choice_accuracy", tuple(evals.Example("Which?", one) for one in answers))

  asked = Tasks({"t": ("t",)}, {}, {"test": [task(("a", "b"), ("c", "d"))]}, "", Evals()).asked
  leaked = [any(key in asked for key in tasks.asked_in(one)) for one in task(("a", "b"), ("e", "f")).examples]
  assert leaked == [True, False]


def test_training_files_go_by_their_names_in_the_settings(own, tmp_path):
  with pytest.raises(errors.Stopped):
    trained(own, tmp_path)


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"recipes": {"expert": {"steps": 4, "mixture": {"letters": 1.0}}}}, "recipes.expert.mixture is set"),
    ({"recipes": {"pretrained": {"steps": 4, "seed": 3}}}, "recipes.pretrained.seed is set"),
    ({"tokenizer": ""}, "data.options.tokenizer is missing"),
    ({"tokenizer": "letters_to_train.jsonl"}, "letters_to_train.jsonl is not a tokenizer"),
    ({"pretrain": {"text": "letters.jsonl"}}, "training examples are asked in the task 'letters'"),
  ],
)
def test_trainings_that_cannot_be_are_refused_before_the_first(own, tmp_path, changed, words):
  def found(value):
    if isinstance(value, dict):
      return {key: found(one) for key, one in value.items()}
    here = tmp_path / value
    there = own["held_in"]["letters"][0].removesuffix("letters.jsonl:loss") + value
    return str(here) if value.endswith("train.jsonl") else there

  paths = {key: found(value) if key != "recipes" and value else value for key, value in changed.items()}
  with pytest.raises(ValueError, match=words):
    trained(own, tmp_path, **paths)
  assert not (tmp_path / "run").exists()
