"""The whole job on a tiny pool: results, resume after kills, refusals, external scorers."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import merge_jax as mj
from merge_jax import checkpoints, models, recycle, search, storage
from merge_jax.recycle import merged, selection, settings
from merge_jax.recycle.folder import DERIVED
from merge_jax.search import Candidate, Point
from tests import pools
from tests.further import further

KILLS = int(os.environ.get("MERGE_JAX_KILLS", "6"))
pytestmark = pytest.mark.filterwarnings("ignore:.*os.fork:RuntimeWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  paths = pools.make_pool(folder / "pool", 3)
  tasks = pools.make_tasks(folder / "tasks")
  return folder, paths, tasks


def job(world, output, **options):
  folder, paths, tasks = world
  values = {
    "checkpoints": [str(p) for p in paths],
    "base": str(folder / "pool" / "base"),
    "tasks": [f"{tasks[0]}:loss", str(tasks[1])],
    "output_dir": str(output),
    "evals": {"max_shapes": 1},  # one program to compile
    "placement": {"mesh": "fsdp:1"},
  }
  search = {"proposer": "cma_es"} | options.pop("search", {"budget": 14, "fitness_source": "auto"})
  return settings.from_mapping(values | {"search": search} | options)


def quiet(*_):
  pass


def run(world, output, **options):
  arguments = {k: options.pop(k) for k in ("overwrite", "stop", "progress") if k in options}
  return recycle.recycle(job(world, output, **options), say=quiet, **arguments)


def journal_of(folder):
  return storage.read_lines(folder / "journal.jsonl")


def without_times(value):
  if isinstance(value, dict):
    return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "final_seconds")}
  return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
  output = tmp_path_factory.mktemp("out") / "run"
  return output, run(world, output)


def test_merges_along_a_run_are_known_points(world, tmp_path):
  """Weights go by the steps, whatever the order of the checkpoints."""
  said, steps = [], [300.0, 100.0, 200.0]
  result = recycle.recycle(job(world, tmp_path / "x", search={"budget": 16, "steps": steps}), say=said.append)
  records = [r for r in journal_of(tmp_path / "x") if r["kind"] == "trajectory" and r["split"] == "search"]
  weights = [r["point"]["weights"] for r in records]
  known = "known points (3 single checkpoints and soups, 9 along the run) take up to 16 of 16 evaluations"
  assert known in said and len(records) <= 9
  assert any(np.allclose(one, [1 / 2, 1 / 6, 1 / 3]) for one in weights)  # linear
  assert any(np.allclose(one, [0.2, 0.0, 0.8]) for one in weights)  # moving average of the last two
  best = max(records, key=lambda r: r["fitness"])
  (row,) = (row for row in result["rows"] if row["name"] == "trajectory")
  assert row["weights"] == best["point"]["weights"] and row["method"] == "linear"


def test_result_has_what_the_design_says(world, finished):
  output, result = finished
  assert sorted(p.name for p in output.iterdir() if not p.name.startswith(".")) == sorted(
    ["manifest.json", "journal.jsonl", "items.jsonl", "result.json", "report.html", "figures", "merged"]
  )
  assert result == json.loads((output / "result.json").read_text())
  names = [row["name"] for row in result["rows"]]
  for name in ("best_single", "best_on_copy", "best_on_choose", "uniform", "greedy", "search_best",
               "search_mean", "selected"):  # fmt: skip
    assert name in names
  rows = {row["name"]: row for row in result["rows"]}
  for row in result["rows"]:
    for split in ("search", "test"):
      average = (row[split]["choose"] - row[split]["copy"]) / 2  # copy is a loss
      np.testing.assert_allclose(row[split]["average"], average)
    assert set(row["test_stderr"]) == {"copy", "choose", "average"}
  assert rows["selected"]["weights"] == rows[result["selected_from"]]["weights"]
  records = storage.read_lines(output / "journal.jsonl")
  searched = [r for r in records if r["split"] == "search" and r["kind"] != "search_mean"]
  assert len(searched) == 14 == result["cost"]["evaluations"]
  assert {r["split"] for r in records[14:]} == {"search", "validation", "test"}
  assert all((r["examples"] is not None) == (r["split"] in ("validation", "test")) for r in records)
  fields = ("split", "index", "generation", "kind", "method", "point", "scores", "fitness", "seconds")
  assert all(field in record for record in records for field in fields)
  assert {(r["kind"] == "cma_es", r["method"]) for r in searched} == {
    (True, "task_arithmetic"),
    (False, "linear"),
  }
  assert {(row["name"], row["method"]) for row in result["rows"]} >= {
    ("uniform", "linear"), ("search_mean", "task_arithmetic"),
  }  # fmt: skip
  assert [(t["name"], t["metric"], t["sign"]) for t in result["tasks"]] == [
    ("copy", "loss", -1.0), ("choose", "choice_accuracy", 1.0),
  ]  # fmt: skip
  assert result["cost"]["training_flops"] == 6 * (1000 + 3 * 500) * checkpoints.open(world[1][0]).parameters
  assert min(result["pareto"]["front"]) >= 0 and max(result["pareto"]["front"]) < 14
  assert result["pareto"]["hypervolume"] >= result["pareto"]["hypervolume_singles"]
  assert len(result["differences"]) == len(result["rows"]) - 1


def test_scores_are_those_of_the_merged_models(world, finished):
  """A row's search score, again from the folders with nothing but public functions."""
  from merge_jax import evals
  from merge_jax.evals import tasks as task_files

  _, result = finished
  loaded = task_files.load_all([f"{world[2][0]}:loss", str(world[2][1])])
  tasks = evals.split(loaded).tasks["test"]
  experts = [checkpoints.open(p).load() for p in world[1]]
  base = checkpoints.open(world[0] / "pool" / "base").load()
  tokens = evals.Tokens.from_folder(world[1][0])
  scorer = evals.make_scorer(models.build(pools.CONFIG).apply, tasks, evals.pack(evals.encode(tasks, tokens)))
  score = jax.jit(scorer.function)
  for row in result["rows"]:
    params = mj.merge(mj.task_arithmetic(), experts, row["weights"], base=base)
    scores = scorer.read(score(params, scorer.batches)).scores()
    for task, value in scores.items():
      np.testing.assert_allclose(row["test"][task], value, rtol=1e-3, err_msg=row["name"])


def test_merged_folder_is_the_selected_model(world, finished):
  output, result = finished
  opened = checkpoints.open(output / "merged")
  weights = next(row["weights"] for row in result["rows"] if row["name"] == "selected")
  experts = [checkpoints.open(p).load() for p in world[1]]
  base = checkpoints.open(world[0] / "pool" / "base").load()
  expected = mj.merge(mj.task_arithmetic(), experts, weights, base=base)
  for name, value in opened.load().items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
  for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
    ours, theirs = (json.loads((folder / name).read_text()) for folder in (output / "merged", world[1][0]))
    assert ours == theirs, name
  provenance = json.loads((output / "merged" / "merge_jax.json").read_text())
  assert list(provenance["weights"].values()) == weights
  assert not (output / "merged" / "training.json").exists()


def test_report_is_one_page(finished):
  output, _ = finished
  page = (output / "report.html").read_text()
  assert "selected" in page and "best single" in page
  sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
  assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
  drawn = {p.name for p in (output / "figures").iterdir()}
  assert drawn - {"correlations.png"} == {"pareto.png", "weights.png", "fitness.png"}  # some have none


def test_transformers_loads_the_merged_model(finished):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  import jax.numpy as jnp

  output, _ = finished
  model = transformers.AutoModelForCausalLM.from_pretrained(output / "merged").eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(output / "merged")
  ids = tokenizer("copy abcd=")["input_ids"]
  with torch.no_grad():
    reference = model(torch.tensor([ids])).logits.numpy()
  opened = checkpoints.open(output / "merged")
  ours = models.build(opened.config).apply(opened.load(), jnp.array([ids]))
  np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_a_finished_run_is_recognised(world, finished):
  output, result = finished
  before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file() and p.name != ".lock"}
  lines = []
  again = recycle.recycle(job(world, output), say=lines.append)
  assert again == result and any("finished before" in line for line in lines)
  assert before == {p: p.stat().st_mtime_ns for p in before}


def test_same_seed_same_result(world, finished, tmp_path):
  output, result = finished
  again = run(world, tmp_path / "again")
  assert without_times(again) == without_times(result)
  for name in ("pareto.png", "weights.png"):
    assert (tmp_path / "again" / "figures" / name).read_bytes() == (output / "figures" / name).read_bytes()


@pytest.mark.parametrize("space", ["simplex", "softmax"])
def test_other_spaces_without_a_base(world, tmp_path, space):
  search = {"budget": 12, "space": space, "proposer": "line_search", "method": "linear"}
  result = run(world, tmp_path / "x", base="", search=search)
  for row in result["rows"]:
    np.testing.assert_allclose(sum(row["weights"]), 1.0, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_orbax_pool_gives_the_same_and_an_orbax_model(world, finished, tmp_path):
  _, result = finished
  paths = []
  for path in [*world[1], world[0] / "pool" / "base"]:
    source = checkpoints.open(path)
    (tmp_path / path.name).mkdir()
    checkpoints.write(tmp_path / path.name, source.load(), like=source, format="orbax")
    paths.append(str(tmp_path / path.name))
  same = run(world, tmp_path / "run", checkpoints=paths[:-1], base=paths[-1])
  assert without_times(same["rows"]) == without_times(result["rows"])
  opened = checkpoints.open(tmp_path / "run" / "merged")
  assert opened.format == "orbax" and opened.config is not None
  assert (opened.path / "tokenizer.json").is_file()


def test_free_weights_without_a_base_use_the_mean(world, tmp_path):
  run(world, tmp_path / "x", base="")
  problem = recycle.build(job(world, tmp_path / "y", base=""))
  experts = [checkpoints.open(p).load() for p in world[1]]
  free = Candidate("x", "task_arithmetic", Point((0.7, -0.1, 1.3)))
  merged.write(problem, free, tmp_path / "merged")
  expected = mj.merge(mj.task_arithmetic(), experts, free.point.array, base=mj.merge(mj.uniform(), experts))
  for name, value in checkpoints.open(tmp_path / "merged").load().items():
    np.testing.assert_array_equal(value, expected[name])
  assert set(checkpoints.open(tmp_path / "x" / "merged").specs) == set(expected)


def test_heldout_tasks_are_scored_and_never_chosen_on(world, finished, tmp_path):
  _, result = finished
  heldout = tmp_path / "heldout.jsonl"
  lines = [json.dumps({"prompt": f"new {i}=", "target": "ab"}) for i in range(10)]
  heldout.write_text("\n".join(lines))
  with_heldout = run(world, tmp_path / "x", heldout_tasks=[f"{heldout}:loss"])
  strip = [{k: v for k, v in row.items() if k != "heldout"} for row in with_heldout["rows"]]
  assert without_times(strip) == without_times(result["rows"])
  assert all(set(row["heldout"]) == {"heldout"} for row in with_heldout["rows"] if "validation" in row)
  shared = tmp_path / "shared.jsonl"
  shutil.copyfile(world[2][0], shared)
  with pytest.raises(ValueError, match="held-out tasks must share none"):
    run(world, tmp_path / "y", heldout_tasks=[str(shared)])
  named, forms = tmp_path / "named.jsonl", tmp_path / "forms.jsonl"
  for path, form in ((named, "item"), (forms, "the same item")):
    lines = [json.dumps({"prompt": f"{form} {i}=", "target": "ab", "id": i}) for i in range(30)]
    path.write_text("\n".join(lines))
  with pytest.raises(ValueError, match="ids of examples of the held-out tasks stand in the search"):
    recycle.plan(job(world, tmp_path / "z", tasks=[str(named)], heldout_tasks=[str(forms)]))


def killer(world, output, at, seconds=None):
  path = output.parent / f"{output.name}.json"
  path.write_text(json.dumps(settings.to_mapping(job(world, output))))
  environment = os.environ | {"MPLBACKEND": "agg", "JAX_NUM_CPU_DEVICES": "8"}
  process = subprocess.Popen(
    [sys.executable, "-m", "tests.killer", str(path), str(at)],
    cwd=Path(__file__).parent.parent, env=environment, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    _, errors = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.kill()
    _, errors = process.communicate()
  return process.returncode, errors


@pytest.mark.parametrize("most", [2, further(KILLS)])
def test_kills_at_any_write_end_in_the_same_result(world, finished, tmp_path, most):
  """SIGKILL at random writes and moments, resumed each time; MERGE_JAX_KILLS sets how often."""
  _, expected = finished
  chance, kills, runs, output = random.Random(7), 0, 0, tmp_path / "run0"
  while kills < most or not (output / "result.json").exists():
    # Late writes are those of figures, page, merged model and result: after the journal is full.
    journal = output / "journal.jsonl"
    late = journal.is_file() and len(storage.read_lines(journal)) > 25
    at, seconds = chance.randint(1, 60 if late else 12), None
    if kills % 5 == 4:
      at, seconds = 0, chance.uniform(2, 8)  # at any moment, not at a write
    if kills >= most:
      at = 0
    code, errors = killer(world, output, at, seconds)
    assert code in (-9, 0), errors
    kills += code == -9
    if (output / "merged").exists():
      assert len(checkpoints.open(output / "merged").specs) == 20
    if (output / "result.json").exists():  # complete, or not there at all
      assert without_times(json.loads((output / "result.json").read_text())) == without_times(expected)
      code, errors = killer(world, output, 0)  # recognised as finished
      assert code == 0, errors
      assert [p.name for p in output.iterdir() if "partial" in p.name] == []
      if kills < most:
        runs += 1
        output = tmp_path / f"run{runs}"
  assert kills >= most


def test_stop_finishes_the_record_and_resumes(world, finished, tmp_path):
  _, expected = finished
  seen = []
  with pytest.raises(recycle.Stopped, match="after 5 evaluations"):
    run(world, tmp_path / "x", progress=seen.append, stop=lambda: len(seen) >= 5)
  assert len(storage.read_lines(tmp_path / "x" / "journal.jsonl")) == 5
  with pytest.raises(recycle.Stopped, match="after 15 evaluations"):  # among the finalists
    run(world, tmp_path / "x", progress=seen.append, stop=lambda: seen[-1].split == "validation")
  scored = []
  assert without_times(run(world, tmp_path / "x", progress=scored.append)) == without_times(expected)
  finals = [r for r in scored if r.split != "search"]
  assert len({r.split for r in finals}) == 2 and finals[0].index == 1  # the first was not scored again


def test_a_second_launch_into_one_folder_leaves(world, tmp_path):
  output = tmp_path / "x"
  with storage.locked(output), pytest.raises(storage.Locked, match="in use by process") as caught:
    # The lock is of an open file, so it also holds against this process.
    run(world, output)
  assert caught.value.status == 75  # a killed job's lock may outlive it for a while: scripts try again


def test_a_process_that_was_told_of_another_job_does_no_part_of_this_one(world, tmp_path, monkeypatch):
  def of_the_lead(value):
    plain, placement = value
    other = plain | {"config": plain["config"] | {"tasks": ["other"]}}
    return [other, placement.replace("fsdp:1", "fsdp:2")]

  monkeypatch.setattr("merge_jax.host.broadcast", of_the_lead)
  with pytest.raises(
    ValueError, match=r"another job than the lead: config.tasks: \['other'\] -> .*placement"
  ):
    run(world, tmp_path / "x")
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"search": {"budget": 13, "fitness_source": "auto"}}, r"config.search.budget: 14 -> 13"),
    ({"search": {"budget": 14, "fitness_source": "auto", "seed": 1}}, r"config.search.seed: 0 -> 1"),
    ({"base": ""}, r"config.base"),
    ({"keep_items": "no"}, r"config.keep_items: auto -> no"),
  ],
)
def test_another_config_is_refused(world, finished, options, message):
  output, _ = finished
  with pytest.raises(recycle.Refused, match=message):
    run(world, output, **options)


def test_changed_inputs_and_versions_are_refused(world, finished, tmp_path):
  output, result = finished
  copy = tmp_path / "copy"
  shutil.copytree(output, copy)
  manifest = json.loads((copy / "manifest.json").read_text())
  manifest["versions"]["jax"] = "0.0.1"
  (copy / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(recycle.Refused, match=r"versions.jax: 0.0.1 -> "):
    run(world, copy)
  assert run(world, copy, allow_version_change=True) == result
  key = next(k for k in manifest["inputs"] if k.endswith("copy.jsonl"))
  manifest["versions"] = json.loads((output / "manifest.json").read_text())["versions"]
  manifest["inputs"][key] = "other"
  (copy / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(recycle.Refused, match=r"copy.jsonl: the files changed"):
    run(world, copy)


def test_overwrite_begins_anew(world, finished, tmp_path):
  output, _ = finished
  copy = tmp_path / "copy"
  shutil.copytree(output, copy)
  result = run(world, copy, overwrite=True, search={"budget": 9, "fitness_source": "auto"})
  assert result["cost"]["evaluations"] == 9
  assert len([r for r in journal_of(copy) if r["split"] == "search" and r["kind"] != "search_mean"]) == 9


def test_overwrite_with_bad_input_loses_nothing(world, finished, tmp_path):
  output, result = finished
  copy, broken = tmp_path / "copy", tmp_path / "broken"
  shutil.copytree(output, copy)
  shutil.copytree(world[1][0], broken)
  tensors = {n: np.full_like(v, np.nan) for n, v in checkpoints.open(broken).load().items()}
  checkpoints.write(broken, tensors)
  with pytest.raises(ValueError, match="NaN"):
    run(world, copy, overwrite=True, checkpoints=[str(world[1][0]), str(broken)])
  assert run(world, copy) == result


def test_foreign_folders_are_refused(world, tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(recycle.Refused, match=r"holds 'thesis.tex'"):
    run(world, tmp_path)
  with pytest.raises(recycle.Refused, match=r"holds 'thesis.tex'"):
    recycle.plan(job(world, tmp_path))
  assert (tmp_path / "thesis.tex").read_text() == "years of work"
  with pytest.raises(recycle.Refused, match="is a file"):
    run(world, tmp_path / "thesis.tex")


def test_outputs_may_lie_beside_the_inputs(world, tmp_path):
  """As the quickstart does: pool and tasks inside the output folder."""
  shutil.copytree(world[0], tmp_path / "w")
  moved = (
    tmp_path / "w", [tmp_path / "w" / "pool" / p.name for p in world[1]],
    [tmp_path / "w" / "tasks" / p.name for p in world[2]],
  )  # fmt: skip
  assert run(moved, tmp_path / "w")["cost"]["evaluations"] == 14


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"checkpoints": []}, "There is no checkpoint"),
    ({"tasks": []}, "There is no task"),
    ({"output_dir": ""}, "There is no output folder"),
    ({"serch": {}}, "unknown field 'serch'; did you mean 'search'"),
    ({"search": {"bugdet": 3}}, "unknown field in search 'bugdet'; did you mean 'budget'"),
    ({"search": {"space": "fre"}}, "did you mean 'free'"),
    ({"search": {"proposer": "cma"}}, "did you mean 'cma_es'"),
    ({"search": {"budget": 0}}, "budget is 0"),
    ({"search": {"budget": 2}}, "budget is 2; expected at least 3"),
    ({"search": {"budget": 2.5}}, "budget is 2.5; expected a whole number"),
    ({"search": {"method": "linar"}}, "unknown search method 'linar'; did you mean 'linear'"),
    (
      {"search": {"method": "linear"}},
      "'linear' cannot be searched in space 'free'; expected one of simplex",
    ),
    ({"search": {"start": "cold"}}, "unknown search.start 'cold'"),
    ({"search": {"batch": 0}}, "batch is 0; expected a whole number >= 1"),
    (
      {"search": {"steps": [1.0, 2.0]}},
      "steps has 2 numbers, 2 of them different; expected one for each",
    ),
    ({"search": {"steps": [1.0, 2.0, 2.0]}}, "steps has 3 numbers, 2 of them different"),
    *(
      ({"search": {"sigma": value}}, f"sigma is {value}".replace("+", "."))
      for value in (-1.0, float("nan"), 1e300)
    ),
    *(({"search": {"population": value}}, f"population is {value}") for value in (-1, 1, 10**8)),
    *(
      ({"search": {"seconds": value}}, f"seconds is {value}") for value in (-1.0, float("nan"), float("inf"))
    ),
    *(({"search": {"seed": value}}, f"seed is {value}") for value in (-1, 10**22)),
    ({"search": {"fitness_source": "los"}}, "unknown search.fitness_source 'los'; did you mean 'loss'"),
    *(
      ({"search": {"task_weights": value}}, "task")
      for value in ("copy=0,choose=0", "copy=nan", "copy=1,copy=2")
    ),
    ({"evals": {"max_shapes": 0}}, "max_shapes is 0"),
    ({"evals": {"batch_tokens": -5}}, "batch_tokens is -5"),
    *(({"search": {"caution": value}}, f"caution is {value}") for value in (-1.0, float("nan"), 1e9)),
    ({"keep_items": "maybe"}, "unknown keep_items 'maybe'"),
    *(({"splits": {"limits": value}}, "limits") for value in (["a", 1, 1], [1.5, 1, 1], [1, 1], [-1, 0, 0])),
    ({"scorer": {"nan": "maybe"}}, "scorer.nan 'maybe'"),
    ({"scorer": {"timeout": -1.0}}, "timeout is -1"),
    ({"scorer": {"retries": -1}}, "retries is -1"),
    ({"scorer": {"command": "eval {model_dir}"}}, "scores_json"),
    ({"checkpoints": ["", "a"]}, "entry 1 of 2 is empty"),
    ({"tasks": ["a.jsonl", " "]}, "entry 2 of 2 is empty"),
    ({"search": {"fitness": "avg"}}, "unknown search.fitness 'avg'"),
    ({"search": {"task_weights": "cop=1"}}, "did you mean 'copy'"),
    ({"evals": {"dtype": "float"}}, "did you mean 'float32'"),
    ({"checkpoints": ["ftp://x/y", "b"]}, "unknown scheme 'ftp'"),
    ({"checkpoints": ["/nonexistent", "/b"]}, "no such folder"),
    ({"splits": {"fractions": [0.9, 0.9, 0.1]}}, "Split fractions"),
    ({"splits": {"fractions": [0.5, 0.5, 0.0]}}, "fractions"),
  ],
)
def test_refused_jobs_leave_no_trace(world, tmp_path, options, message):
  """Nothing is written, so that the corrected job runs; what an earlier run wrote stays as it was."""
  kept = tmp_path / "kept"
  shutil.copytree(BUILT[0], kept)
  for output in (tmp_path / "x", kept):
    before = contents(tmp_path)
    for overwrite in (False, True):
      with pytest.raises((ValueError, OSError), match=message) as caught:
        run(world, output, overwrite=overwrite, **options)
      assert "\n" not in str(caught.value) and str(caught.value).endswith((".", ")")), caught.value
      assert contents(tmp_path) == before


BUILT: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def built(finished):
  BUILT.append(finished[0])


def contents(folder):
  """Every file and folder below, with content and time."""
  return {
    path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
    for path in sorted(folder.rglob("*"))
  }


def test_external_scorer(world, tmp_path):
  """A scorer that reads the folder: mean of one tensor against a target, worse on test."""
  script = tmp_path / "score.py"
  script.write_text(
    "import json, sys\nfrom safetensors.numpy import load_file\n"
    "model, out, split = sys.argv[1:]\n"
    "value = float(load_file(model + '/model.safetensors')['model.norm.weight'].mean())\n"
    "json.dump({'close': -abs(value - 1.01), 'split': len(split)}, open(out, 'w'))\n"
  )
  command = f"{sys.executable} {script} {{model_dir}} {{scores_json}} {{split}}"
  scorer = {"command": command, "timeout": 60.0}
  search = {"budget": 12, "proposer": "auto"}
  result = run(world, tmp_path / "x", tasks=["close", "split"], scorer=scorer, search=search)
  assert result["proposer"] == "gaussian_process"
  assert sum(line["kind"] == "gaussian_process" for line in journal_of(tmp_path / "x")) >= 4
  row = result["rows"][-1]
  assert row["search"]["split"] == 6 and row["test"]["split"] == 4 and row["validation"]["split"] == 10
  assert row["test_stderr"] is None and result["tasks"][0]["metric"] == "score"
  assert (tmp_path / "x" / "report.html").is_file()


def test_an_external_scorer_that_tells_of_examples_has_errors(world, tmp_path):
  body = (
    "from safetensors.numpy import load_file\n"
    "norm = load_file(model + '/model.safetensors')['model.norm.weight'].mean()\n"
    "json.dump({'a': [bool(norm > .9 + .02 * i) for i in range(20)], 'b': [1, 0.5]}, open(out, 'w'))"
  )
  command = f"{sys.executable} {script(tmp_path, body)} {{model_dir}} {{scores_json}} {{split}}"
  options = {"tasks": ["a", "b"], "scorer": {"command": command}, "search": {"budget": 12}}
  result = run(world, tmp_path / "x", **options)
  assert all(row["test_stderr"]["a"] is not None for row in result["rows"])
  assert result["not_corrected"] is None and any("search_corrected" in row for row in result["rows"])
  assert all(d["stderr"] is not None for d in result["differences"])
  kept = storage.read_lines(tmp_path / "x" / "items.jsonl")
  assert len(kept) == len(journal_of(tmp_path / "x"))
  assert run(world, tmp_path / "x", **options) == result
  script(tmp_path, body.replace("range(20)", "range(19)"))
  with pytest.raises(ValueError, match="a, b have 20, 2 examples in one evaluation, 19, 2 in another"):
    run(world, tmp_path / "x", **options | {"search": {"budget": 14}})


def test_scores_that_are_missing_on_test_are_null_not_an_error(world, tmp_path):
  script = tmp_path / "score.py"
  script.write_text(
    "import json, sys\nmodel, out, split = sys.argv[1:]\n"
    "json.dump({'a': None if split == 'test' else 0.5, 'b': 1.0}, open(out, 'w'))\n"
  )
  command = f"{sys.executable} {script} {{model_dir}} {{scores_json}} {{split}}"
  options = {"tasks": ["a", "b"], "scorer": {"command": command}, "search": {"budget": 5}}
  result = run(world, tmp_path / "x", **options)
  assert all(row["test"] == {"a": None, "b": 1.0, "average": None} for row in result["rows"])
  assert all(line["gain"] is None for line in result["differences"])
  assert "–" in (tmp_path / "x" / "report.html").read_text()


def test_a_path_that_no_manifest_can_hold_is_refused_at_the_start(world, tmp_path, monkeypatch):
  (folder := tmp_path / "\udcff").mkdir()
  for changed in ({"tasks": ("a", "\udcff")}, {"base": "\udcff"}, {}):
    monkeypatch.chdir(tmp_path if changed else folder)
    with pytest.raises(ValueError, match=r".udcff': the path is not UTF-8; rename the folder or file\."):
      job(world, tmp_path / "x", **changed)


def test_where_nothing_was_evaluated_another_command_runs(world, tmp_path):
  """A scorer that fails at once, with a slip in its name or in itself, costs no folder."""
  output, flaw = tmp_path / "x", tmp_path / "flaw.py"
  flaw.write_text("raise SystemExit('no')")
  places, options = "{model_dir} {scores_json} {split}", {"tasks": ["a"], "search": {"budget": 5}}
  slip = {"scorer": {"command": f"no_such_program {places}"}} | options
  for refused in (run, lambda world, output, **given: recycle.plan(job(world, output, **given))):
    with pytest.raises(FileNotFoundError, match="there is no program 'no_such_program'"):
      refused(world, output, **slip)
    assert not output.exists()
  with pytest.raises(RuntimeError, match="no"):
    run(world, output, scorer={"command": f"{sys.executable} {flaw} {places}", "retries": 0}, **options)
  assert not (output / ".merge_jax_candidates").exists()
  good = f"{sys.executable} {script(tmp_path, 'json.dump({chr(97): 1}, open(out, chr(119)))')} {places}"
  result = run(world, output, scorer={"command": good}, **options)
  assert result["cost"]["evaluations"] == 5
  manifest = json.loads((output / "manifest.json").read_text())
  assert manifest["config"]["scorer"]["command"] == good
  with pytest.raises(recycle.Refused, match=r"scorer.retries: 1 -> 3"):
    run(world, output, scorer={"command": good, "retries": 3}, **options)


@pytest.mark.parametrize(
  ("nan", "where", "message", "evaluations"),
  [
    ("fail", "split == 'search'", "Task 'b': all 3 single checkpoints have scores on the search", 3),
    ("worst", "1", "No finalist .*Task 'b': null", 5),
    ("fail", "split != 'search'", "No finalist .*Task 'b': null", 5),
  ],
)
def test_scores_that_are_null_for_all_are_said(world, tmp_path, nan, where, message, evaluations):
  body = f"json.dump({{'a': 1.0, 'b': None if {where} else 1.0}}, open(out, 'w'))"
  command = f"{sys.executable} {script(tmp_path, body)} {{model_dir}} {{scores_json}} {{split}}"
  options = {"tasks": ["a", "b"], "scorer": {"command": command, "nan": nan}, "search": {"budget": 5}}
  with pytest.raises(ValueError, match=f"{message}.*--overwrite"):
    run(world, tmp_path / "x", **options)
  searched = [r for r in journal_of(tmp_path / "x") if r["split"] == "search"]
  assert len([r for r in searched if r["kind"] != "search_mean"]) == evaluations


def test_a_failing_scorer_keeps_the_journal(world, tmp_path):
  script = tmp_path / "score.py"
  script.write_text(
    "import json, sys, pathlib\ncount = pathlib.Path(__file__).with_name('count')\n"
    "n = int(count.read_text()) if count.exists() else 0\ncount.write_text(str(n + 1))\n"
    "sys.exit('out of luck') if n == 3 else json.dump({'a': n}, open(sys.argv[2], 'w'))\n"
  )
  command = f"{sys.executable} {script} {{model_dir}} {{scores_json}}"
  options = {"tasks": ["a"], "scorer": {"command": command, "retries": 0}, "search": {"budget": 8}}
  with pytest.raises(RuntimeError, match="out of luck"):
    run(world, tmp_path / "x", **options)
  assert len(storage.read_lines(tmp_path / "x" / "journal.jsonl")) == 3
  result = run(world, tmp_path / "x", **options)
  assert result["cost"]["evaluations"] == 8
  assert "same examples" in result["notes"][0]


def test_plan_says_what_would_be_done(world, tmp_path):
  text = recycle.describe(recycle.build(job(world, tmp_path / "x")))
  words = ("3 checkpoints", "copy", "choose", "FLOPs", "14 candidates", "cma_es", "merged", "on validation")
  for word in words:
    assert word in text
  assert not (tmp_path / "x").exists() and "items.jsonl" in text
  scorer = {"command": f"{sys.executable} {{model_dir}} {{scores_json}}"}
  told = recycle.plan(job(world, tmp_path / "x", tasks=["a"], scorer=scorer))
  assert "items.jsonl" not in told and "config.evals does nothing" in told and "sigma" not in told


def test_a_rule_that_needs_its_pool_on_the_devices_is_refused_before_anything(world, tmp_path):
  options = {"search": {"method": "ties"}, "placement": {"mesh": "fsdp:1", "pool_memory": "disk"}}
  for refuses in (recycle.plan, recycle.recycle):
    with pytest.raises(ValueError, match=r"'ties' needs statistics of whole models.* not on disk"):
      refuses(job(world, tmp_path / "x", **options))
  assert not (tmp_path / "x").exists()


def test_settings_that_do_nothing_are_said(world, tmp_path):
  search = {"proposer": "surrogate", "sigma": 0.3, "population": 8, "competitors": 8, "in_turn": True}
  told = recycle.build(job(world, tmp_path / "x", search=search, scorer={"timeout": 9.0})).notes
  named = [note.partition(" does nothing")[0] for note in told]
  assert named == [*(f"config.search.{name}" for name in ("sigma", "population", "in_turn")), "config.scorer"]
  assert recycle.build(job(world, tmp_path / "x")).notes == ()
  assert recycle.build(job(world, tmp_path / "x", scorer={"nan": "worst"})).notes == ()
  scorer = {"command": f"{sys.executable} {{model_dir}} {{scores_json}} {{split}}"}
  batch = {"batch": 8, "proposer": "line_search"}
  (told,) = recycle.build(
    job(world, tmp_path / "x", search=batch, tasks=["a"], scorer=scorer, evals={})
  ).notes
  assert told.startswith("config.search.batch does nothing")
  alone = {"proposer": "line_search", "batch": 4}
  assert "one candidate after the other" in recycle.build(job(world, tmp_path / "x", search=alone)).notes[0]


def test_one_checkpoint_has_merges_with_a_base_alone(world, tmp_path):
  one = {"checkpoints": [str(world[1][0])], "search": {"proposer": "surrogate"}}
  (told,) = recycle.build(job(world, tmp_path / "x", **one, base="")).notes
  assert told.startswith("Every merge of one checkpoint is that checkpoint")
  assert recycle.build(job(world, tmp_path / "x", **one)).notes == ()


def test_one_checkpoint_is_scaled(world, tmp_path):
  """Spread, slope and greedy soup are undefined here, and null; the job ends with a result."""
  search = {"budget": 6, "proposer": "line_search"}
  result = run(world, tmp_path / "x", checkpoints=[str(world[1][0])], search=search)
  assert result["cost"]["evaluations"] == 6
  with pytest.raises(ValueError, match="at least 2 numbers to search"):
    run(world, tmp_path / "y", checkpoints=[str(world[1][0])])


@pytest.mark.parametrize("proposer", ["cma_es", "line_search", "gaussian_process"])
def test_a_constant_scorer_has_a_result(world, tmp_path, proposer):
  command = (
    f"{sys.executable} {script(tmp_path, 'json.dump({chr(97): 0.0, chr(36): 1}, open(out, chr(119)))')}"
  )
  options = {"tasks": ["a", "$"], "scorer": {"command": f"{command} {{model_dir}} {{scores_json}} {{split}}"}}
  result = run(world, tmp_path / "x", search={"budget": 12, "proposer": proposer}, **options)
  assert result["analysis"]["fitness_slope"]["slope"] == 0.0
  assert (tmp_path / "x" / "figures" / "pareto.png").is_file()  # a dollar in a name is no formula


def script(folder, body):
  path = folder / "score.py"
  path.write_text(f"import json, sys\nmodel, out, split = sys.argv[1:]\n{body}\n")
  return path


def test_pictures_hold_their_legends(finished):
  """Of a figure that has a layout the page cuts to its edges what it saves, of others to what is drawn."""
  from matplotlib import pyplot as plt

  from merge_jax.reports import figures

  output, result = finished
  found = {}
  for name, draw in figures.draw(result, journal_of(output)).items():
    if (figure := draw()) is None:
      continue
    figure.canvas.draw()
    inches = figure.get_tightbbox() if figure.get_layout_engine() is None else figure.bbox_inches
    edges = inches.transformed(figure.dpi_scale_trans)
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    for box in (legend.get_window_extent() for legend in legends):
      assert edges.x0 - 1 <= box.x0 < box.x1 <= edges.x1 + 1, name
      assert edges.y0 - 1 <= box.y0 < box.y1 <= edges.y1 + 1, name
    found[name] = len(legends)
    plt.close(figure)
  assert found["pareto"] == found["fitness"] == 1


def test_a_figure_that_fails_costs_no_result(world, tmp_path, monkeypatch):
  from merge_jax.reports import figures

  def fails(result, records):
    raise RuntimeError("no ink")

  monkeypatch.setitem(figures.FIGURES, "weights", fails)
  run(world, tmp_path / "x", search={"budget": 5})
  page = (tmp_path / "x" / "report.html").read_text()
  assert "The figure weights could not be drawn: no ink" in page
  assert not (tmp_path / "x" / "figures" / "weights.png").exists()


def test_a_budget_may_grow(world, finished, tmp_path):
  """A finished and a running search go on as if the budget had been so from the start."""
  larger = {"search": {"budget": 20, "fitness_source": "auto"}}
  expected = run(world, tmp_path / "whole", **larger)
  shutil.copytree(finished[0], tmp_path / "grown")
  seen = []
  with pytest.raises(recycle.Stopped):
    run(world, tmp_path / "grown", progress=seen.append, stop=lambda: len(seen) >= 17, **larger)
  assert run(world, tmp_path / "grown", **larger) != finished[1]  # the interrupted one is not finished
  grown = json.loads((tmp_path / "grown" / "result.json").read_text())
  assert without_times(grown) == without_times(expected)
  manifest = json.loads((tmp_path / "grown" / "manifest.json").read_text())
  assert manifest["config"]["search"]["budget"] == 20
  with pytest.raises(recycle.Refused, match=r"config.search.budget: 20 -> 14"):
    run(world, tmp_path / "grown")


def test_a_batch_of_candidates_gives_the_same_result(world, finished, tmp_path):
  batched = run(world, tmp_path / "x", search={"budget": 14, "fitness_source": "auto", "batch": 4})
  assert recycle.select(tmp_path / "x", candidate=1, say=quiet)["weights"] == (0.0, 1.0, 0.0)
  single = {row["name"]: row for row in finished[1]["rows"]}
  for row in batched["rows"]:
    np.testing.assert_allclose(row["weights"], single[row["name"]]["weights"], atol=1e-4)
    for task, value in row["test"].items():
      np.testing.assert_allclose(value, single[row["name"]]["test"][task], atol=1e-4)


def test_overwrite_spares_what_is_the_users(world, finished, tmp_path):
  """Their files beside ours, also in our folders."""
  copy = tmp_path / "copy"
  shutil.copytree(finished[0], copy)
  for name in ("notes.txt", "figures/mine.png", "merged/README.md"):
    (copy / name).write_text("years of work")
  run(world, copy, overwrite=True, search={"budget": 5})
  kept = [path for path in copy.rglob("*") if path.is_file() and path.read_bytes() == b"years of work"]
  assert sorted(path.name for path in kept) == ["README.md", "mine.png", "notes.txt"]


@pytest.mark.parametrize(
  ("lost", "message"),
  [((".merge_jax.json",), "older merge_jax"), ((".merge_jax.json", "journal.jsonl"), "not of this job")],
)
def test_a_folder_that_only_looks_like_a_run_is_refused(world, finished, tmp_path, lost, message):
  copy = tmp_path / "copy"
  shutil.copytree(finished[0], copy)
  for name in lost:
    (copy / name).unlink()
  before = contents(copy)
  for overwrite in (False, True):
    with pytest.raises(recycle.Refused, match=message):
      run(world, copy, overwrite=overwrite)
  assert contents(copy) == before


def test_a_hostile_marker_removes_nothing(world, finished, tmp_path):
  copy, precious = tmp_path / "copy", tmp_path / "precious"
  shutil.copytree(finished[0], copy)
  precious.write_text("years of work")
  for name in ("../precious", str(precious)):
    marker = json.loads((finished[0] / ".merge_jax.json").read_text())
    marker["wrote"].append(name)
    (copy / ".merge_jax.json").write_text(json.dumps(marker))
    with pytest.raises(recycle.Refused, match="no file of a run"):
      run(world, copy, overwrite=True)
  assert precious.read_text() == "years of work"


@pytest.mark.parametrize("name", ["merged", "figures/m0", "merged/deep/m0"])
def test_a_pool_where_outputs_go_is_refused(world, tmp_path, name):
  shutil.copytree(world[1][0], tmp_path / "run" / name)
  before = contents(tmp_path)
  paths = [str(tmp_path / "run" / name), str(world[1][1])]
  for options in ({"checkpoints": paths}, {"base": paths[0]}):
    with pytest.raises(ValueError, match="choose another"):
      run(world, tmp_path / "run", **options)
  assert contents(tmp_path) == before
  linked = tmp_path / "linked"  # a folder elsewhere whose weights lie there
  shutil.copytree(world[1][0], linked)
  (linked / "model.safetensors").unlink()
  (linked / "model.safetensors").symlink_to(tmp_path / "run" / name / "model.safetensors")
  with pytest.raises(ValueError, match="choose another"):
    run(world, tmp_path / "run", checkpoints=[str(linked), paths[1]])


def test_outputs_on_or_in_inputs_are_refused(world, tmp_path):
  checkpoint, task = tmp_path / "m0", tmp_path / "run" / "journal.jsonl"
  shutil.copytree(world[1][0], checkpoint)
  task.parent.mkdir()
  shutil.copyfile(world[2][0], task)
  (tmp_path / "link").symlink_to(checkpoint)
  before = contents(tmp_path)
  paths = [str(checkpoint), str(world[1][1])]
  for output, options in (
    (checkpoint, {"checkpoints": paths}), (checkpoint / "runs" / "x", {"checkpoints": paths}),
    (tmp_path / "link" / "x", {"checkpoints": paths}),
    (tmp_path / "run", {"tasks": [str(task), str(world[2][1])]}),
  ):  # fmt: skip
    with pytest.raises(ValueError, match="choose another"):
      run(world, output, **options)
  assert contents(tmp_path) == before


@pytest.mark.parametrize("lost", ["report.html", "merged", "figures", "figures/weights.png", "result.json"])
def test_what_was_deleted_is_made_again(world, finished, tmp_path, lost):
  output, result = finished
  copy = tmp_path / "copy"
  shutil.copytree(output, copy)
  shutil.rmtree(copy / lost) if (copy / lost).is_dir() else (copy / lost).unlink()
  scored = []
  again = run(world, copy, progress=scored.append)
  assert again == result and (copy / lost).exists()
  assert journal_of(copy) == journal_of(output)  # nothing was evaluated again
  assert (copy / "report.html").read_bytes() == (output / "report.html").read_bytes()


@pytest.mark.parametrize("lost", ["journal.jsonl", "manifest.json"])
def test_what_cannot_be_made_again_is_said(world, finished, tmp_path, lost):
  copy = tmp_path / "copy"
  shutil.copytree(finished[0], copy)
  (copy / lost).unlink()
  before = contents(copy)
  with pytest.raises(recycle.Refused, match=f"{lost} of the run is missing.*--overwrite"):
    run(world, copy)
  assert contents(copy) == before
  assert without_times(run(world, copy, overwrite=True)) == without_times(finished[1])


@pytest.mark.parametrize("text", ["[]", "null", "{}", "", "{", '{"rows": 3}', "\udcff", "[" * 9999])
@pytest.mark.parametrize("name", ["result.json", "manifest.json", "journal.jsonl", ".merge_jax.json"])
def test_files_that_are_not_ours_are_mended_or_refused(world, finished, tmp_path, name, text):
  output, result = finished
  copy = tmp_path / "copy"
  shutil.copytree(output, copy)
  (copy / name).write_bytes(text.encode(errors="surrogateescape") + b"\n" * (name == "journal.jsonl"))
  before = contents(copy)
  try:
    assert without_times(run(world, copy)) == without_times(result)
    assert name in ("result.json", "journal.jsonl")
  except ValueError as error:
    assert str(copy) in str(error) and str(error).count("\n") == 0, error
    assert contents(copy) == before


def test_the_log_of_a_trainer_does_not_matter(world, finished, tmp_path):
  """What lies beside a checkpoint and is not read is no input."""
  for name in ("pool", "tasks"):
    shutil.copytree(world[0] / name, tmp_path / name)
  moved = (
    tmp_path,
    [tmp_path / "pool" / p.name for p in world[1]],
    [tmp_path / "tasks" / p.name for p in world[2]],
  )
  seen = []
  with pytest.raises(recycle.Stopped):
    run(moved, tmp_path / "run", progress=seen.append, stop=lambda: len(seen) >= 4)
  (moved[1][0] / "train.log").write_text("step 1")
  assert without_times(run(moved, tmp_path / "run"))["rows"] == without_times(finished[1])["rows"]


@pytest.mark.parametrize("how", ["rewritten", "removed"])
def test_inputs_that_change_while_a_search_runs(world, tmp_path, how):
  pool = [tmp_path / path.name for path in world[1]]
  for source, path in zip(world[1], pool, strict=True):
    shutil.copytree(source, path)
  file = pool[1] / "model.safetensors"

  def change(record):
    if record.index == 4:
      content = file.read_bytes()
      file.unlink()
      if how == "rewritten":
        file.write_bytes(content)

  with pytest.raises(RuntimeError, match=r"model.safetensors changed while the job ran"):
    run(world, tmp_path / "run", checkpoints=[str(p) for p in pool], progress=change)
  assert not (tmp_path / "run" / "result.json").exists()
  assert len(journal_of(tmp_path / "run")) == 5


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"rope_theta": 5e5}, "rope_theta"), ({"rms_norm_eps": 1e-5}, "eps"),
    ({"num_attention_heads": 8, "num_key_value_heads": 4}, "heads"), ({"tie_word_embeddings": False}, "tie"),
    ({"num_hidden_layers": 1}, "layers"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("which", [0, 2, "base"])
def test_configs_that_compute_something_else_are_refused(world, tmp_path, change, message, which):
  """The shapes of the tensors are the same."""
  source = world[0] / "pool" / "base" if which == "base" else world[1][which]
  shutil.copytree(source, tmp_path / "other")
  config = json.loads((source / "config.json").read_text()) | change
  (tmp_path / "other" / "config.json").write_text(json.dumps(config))
  paths = [str(p) for p in world[1]]
  options = {"base": str(tmp_path / "other")} if which == "base" else {}
  if which != "base":
    options["checkpoints"] = [*paths[:which], str(tmp_path / "other"), *paths[which + 1 :]]
  with pytest.raises(ValueError, match=message):
    run(world, tmp_path / "run", **options)
  assert not (tmp_path / "run").exists()


def test_home_is_expanded(world, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(world[0]))
  names = [f"~/pool/{p.name}" for p in world[1]]
  tasks = [f"~/tasks/{world[2][0].name}:loss", f"~/tasks/{world[2][1].name}"]
  built = recycle.build(job(world, tmp_path / "x", checkpoints=names, tasks=tasks, base="~/pool/base"))
  assert len(built.pool) == 3 and built.suite.names == ("copy", "choose")


def test_candidates_of_a_scorer_lie_in_the_run_and_are_cleared(world, tmp_path):
  body = (
    "json.dump({'a': float('/run/' in model)}, open(out, 'w'))\nif not 0: open(model + '/left', 'w').close()"
  )
  command = f"{sys.executable} {script(tmp_path, body)} {{model_dir}} {{scores_json}} {{split}}"
  scratch = tmp_path / "run" / ".merge_jax_candidates"
  options = {"tasks": ["a"], "scorer": {"command": command}, "search": {"budget": 5}}
  with pytest.raises(recycle.Stopped):
    run(world, tmp_path / "run", stop=lambda: True, **options)
  (scratch / "killed" / "model").mkdir(parents=True)  # as SIGKILL leaves it
  result = run(world, tmp_path / "run", **options)
  assert result["rows"][0]["search"]["a"] == 1.0 and not scratch.exists()


def test_the_answer_says_why_and_how_sure_it_is(finished):
  output, result = finished
  choice, rows = result["choice"], {row["name"]: row for row in result["rows"]}
  assert choice["name"] == result["selected_from"] and choice["caution"] == 1.0
  assert choice["incumbent"] in ("best_single", "uniform", "merge_best", "greedy")
  assert choice["stderr"] is not None and choice["why"].endswith(".")
  beaten = choice["name"] != choice["incumbent"]
  assert beaten == (choice["gain"] > choice["stderr"]) or choice["gain"] == 0.0
  for line in result["differences"]:
    assert line["detectable"] == (pytest.approx(2.8 * line["stderr"]) if line["stderr"] else None)
  sizes = [task["examples"]["test"] for task in result["tasks"]]
  assert result["units"]["test"] == sum(sizes)
  assert result["not_corrected"] is None
  for name in ("best_single", "best_on_copy", "greedy", "search_best"):
    assert set(rows[name]["search_corrected"]) == {"copy", "choose", "average"}
  assert "search_corrected" not in rows["search_mean"]
  assert set(rows["selected"]["validation_corrected"]) == {"copy", "choose", "average"}
  page = (output / "report.html").read_text()
  assert "could not be seen with these" in page and choice["why"].replace("'", "&#39;") in page


def test_lost_items_cost_the_correction_alone(world, finished, tmp_path):
  output, result = finished
  copy = tmp_path / "copy"
  shutil.copytree(output, copy)
  (copy / "items.jsonl").unlink()
  assert run(world, copy) == result  # finished is finished
  (copy / "result.json").unlink()
  again = run(world, copy)
  assert again["not_corrected"] == "items.jsonl lacks 14 of 14 evaluations of the search"
  assert again["selected_from"] == result["selected_from"] and again["differences"] == result["differences"]
  assert not any("search_corrected" in row for row in again["rows"])
  assert "cannot be corrected" in (copy / "report.html").read_text()


def test_another_point_is_selected_without_an_evaluation(world, finished, tmp_path, monkeypatch):
  output, result = finished
  copy, said = tmp_path / "copy", []
  shutil.copytree(output, copy)
  records = [r for r in journal_of(copy) if r["split"] == "search"]
  before = contents(copy)
  made = recycle.select(copy, task_weights="copy=0", say=said.append)
  best = max(records, key=lambda r: r["scores"]["choose"])["scores"]["choose"]
  assert records[made["candidate"]]["scores"]["choose"] == best == made["tasks"]["choose"]["score"]
  folder = Path(made["output"])
  assert folder == copy / f"selected-{made['candidate']}"
  problem = recycle.build(job(world, tmp_path / "none"))
  point = records[made["candidate"]]
  candidate = Candidate(point["kind"], point["method"], Point(tuple(point["point"]["weights"])))
  merged.write(problem, candidate, tmp_path / "expected")
  for name, value in checkpoints.open(tmp_path / "expected").load().items():
    np.testing.assert_array_equal(checkpoints.open(folder).load()[name], value)
  rows = {row["name"]: row for row in result["rows"]}
  for task, row in made["tasks"].items():
    assert row["selected"] == rows["selected"]["search"][task] and row["stderr"] is not None
  assert any("average" in line and "±" in line for line in said)
  assert {
    k: v for k, v in contents(copy).items() if "selected-" not in str(k)
  } == before  # the run is as it was

  floor = sorted(r["scores"]["choose"] for r in records)[-2]
  held = recycle.select(copy, at_least=[f"choose={floor}"], output=str(tmp_path / "held"), say=quiet)
  assert held["tasks"]["choose"]["score"] >= floor
  numbered = recycle.select(copy, candidate=1, output=str(tmp_path / "one"), say=quiet)
  assert numbered["weights"] == (0.0, 1.0, 0.0)
  np.testing.assert_array_equal(
    checkpoints.open(tmp_path / "one").load()["model.norm.weight"],
    checkpoints.open(world[1][1]).load()["model.norm.weight"],
  )
  asked = []
  monkeypatch.setattr(storage, "require_space", lambda place, nbytes: asked.append(place))
  recycle.select(copy, candidate=1, output=str(tmp_path / "elsewhere"), say=quiet)
  assert asked[0] == tmp_path / "elsewhere"  # then its writer asks
  (copy / "items.jsonl").unlink()
  without = recycle.select(copy, candidate=1, output=str(tmp_path / "two"), say=said.append)
  assert without["average"]["stderr"] is None and any("Without errors" in line for line in said)
  with pytest.raises(FileExistsError):
    recycle.select(copy, candidate=1, output=str(tmp_path / "two"), say=quiet)
  with pytest.raises(ValueError, match="is where the run keeps its merged"):
    recycle.select(copy, candidate=1, output=str(copy / "merged" / "x"), say=quiet)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "Give --candidate"), ({"candidate": 1, "task_weights": "copy=1"}, "--candidate names a point"),
    ({"candidate": 999}, "--candidate is 999; there is no evaluation of this number, the last is 14"),
    ({"task_weights": "chose=2"}, "unknown task in the fitness weights 'chose'; did you mean 'choose'"),
    ({"task_weights": "choose"}, "--task_weights: got 'choose'; expected task=number"),
    ({"at_least": ["cope=1"]}, "--at_least: unknown task 'cope'; did you mean 'copy'"),
    ({"at_least": ["copy=x"]}, "--at_least=copy=x: expected task=score"),
    ({"at_least": ["choose=.1", "choose=.2"]}, "'choose' stands twice"),
    ({"at_least": ["choose=1.5"]}, r"No evaluated point .* the best of choose is .* \(candidate"),
    ({"at_least": ["copy=.001"]}, "the best of copy is"),  # a loss: at most
  ],
)  # fmt: skip
def test_wishes_that_cannot_be(finished, options, message):
  output, _ = finished
  before = contents(output)
  with pytest.raises(ValueError, match=message):
    recycle.select(output, say=quiet, **options)
  assert contents(output) == before


def test_a_task_that_a_flag_cannot_name_is_selected_by_number():
  odd = search.Fitness(("a,b", "c"), (1.0, 1.0))
  assert selection._weighted(odd, "c=2").weights == (("c", 2.0),)
  for weights in ("a,b=2", "b=2"):
    with pytest.raises(ValueError, match=r"'a,b' cannot be named there.*--candidate=N"):
      selection._weighted(odd, weights)
  assert selection._floors(["a=b = .5"], ("a=b", "a")) == {"a=b": 0.5}


def test_relative_paths_are_those_of_the_start(world, tmp_path, monkeypatch):
  monkeypatch.chdir(world[0])
  pool, tasks = ([path.relative_to(world[0]) for path in paths] for paths in world[1:])
  relative, options = (world[0], pool, tasks), {"search": {"budget": 5}}
  result = run(relative, tmp_path / "x", **options)
  assert json.loads((tmp_path / "x" / "merged" / "merge_jax.json").read_text())["manifest"]["folder"] == ""
  monkeypatch.chdir(tmp_path)
  started = f"started .*{re.escape(str(world[0]))}"
  with pytest.raises(recycle.Refused, match=f"m0: there is no such folder.*{started}"):
    recycle.select(tmp_path / "x", candidate=1, say=quiet)
  with pytest.raises(recycle.Refused, match=f"(?s){started}.*config.checkpoints"):
    run(world, tmp_path / "x", **options)
  monkeypatch.chdir(world[0])
  assert run(relative, tmp_path / "x", **options) == result
  assert recycle.select(tmp_path / "x", candidate=1, say=quiet)["candidate"] == 1


def test_reports_are_of_finished_runs(world, finished, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(finished[0], copy)
  for name in ("report.html", "figures/weights.png"):
    (copy / name).unlink()
  assert recycle.completed(copy, DERIVED).config == recycle.completed(finished[0]).config
  for text in ("{}", '{"rows": []}', (copy / "result.json").read_text() + " "):
    (copy / "result.json").write_text(text)
    with pytest.raises(recycle.Refused, match="not finished, or files of it are gone or changed"):
      recycle.completed(copy, DERIVED)


def test_select_refuses_what_is_not_finished_or_changed(world, finished, tmp_path):
  output, _ = finished
  with pytest.raises(recycle.Refused, match="holds no recycle run"):
    recycle.select(tmp_path, candidate=0, say=quiet)
  copy = tmp_path / "copy"
  shutil.copytree(output, copy)
  (copy / "result.json").unlink()
  with pytest.raises(recycle.Refused, match="the run is not finished"):
    recycle.select(copy, candidate=0, say=quiet)
  shutil.copyfile(output / "result.json", copy / "result.json")
  manifest = json.loads((copy / "manifest.json").read_text())
  key = next(k for k in manifest["inputs"] if k.endswith("m1"))
  manifest["inputs"][key] = "other"
  (copy / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
  with pytest.raises(recycle.Refused, match="m1 changed since the run"):
    recycle.select(copy, candidate=0, say=quiet)
  assert not list(copy.glob("selected-*"))
