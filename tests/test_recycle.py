"""The whole job on a tiny pool: results, resume after kills, refusals, external scorers."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import merge_jax as mj
from merge_jax import checkpoints, models, recycle, storage
from merge_jax.recycle import settings
from tests import pools

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
    "search": {"budget": 14, "fitness_source": "auto"},
    "bootstrap": 50,
  }
  return settings.from_mapping(values | options)


def quiet(*_):
  pass


def run(world, output, **options):
  arguments = {k: options.pop(k) for k in ("overwrite", "stop", "progress") if k in options}
  return recycle.recycle(job(world, output, **options), say=quiet, **arguments)


def without_times(value):
  if isinstance(value, dict):
    return {k: without_times(v) for k, v in value.items() if k != "seconds"}
  return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
  output = tmp_path_factory.mktemp("out") / "run"
  return output, run(world, output)


def test_result_has_what_the_design_says(world, finished):
  output, result = finished
  assert sorted(p.name for p in output.iterdir() if not p.name.startswith(".")) == sorted(
    ["manifest.json", "journal.jsonl", "result.json", "report.html", "figures", "merged"]
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
  assert len(records) == 14 == result["cost"]["evaluations"]
  fields = ("index", "generation", "kind", "weights", "scores", "fitness", "seconds")
  assert all(field in record for record in records for field in fields)
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
  for row in result["rows"]:
    merged = mj.merge(mj.task_arithmetic(), experts, row["weights"], base=base)
    scores = scorer.read(scorer.function(merged, scorer.batches)).scores()
    for task, value in scores.items():
      np.testing.assert_allclose(row["test"][task], value, rtol=1e-3, err_msg=row["name"])


def test_merged_folder_is_the_selected_model(world, finished):
  output, result = finished
  merged = checkpoints.open(output / "merged")
  weights = next(row["weights"] for row in result["rows"] if row["name"] == "selected")
  experts = [checkpoints.open(p).load() for p in world[1]]
  base = checkpoints.open(world[0] / "pool" / "base").load()
  expected = mj.merge(mj.task_arithmetic(), experts, weights, base=base)
  for name, value in merged.load().items():
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
  assert {p.name for p in (output / "figures").iterdir()} == {
    "pareto.png", "weights.png", "fitness.png", "correlations.png",
  }  # fmt: skip


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
  search = {"budget": 12, "space": space, "proposer": "line_search"}
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
  merged = checkpoints.open(tmp_path / "run" / "merged")
  assert merged.format == "orbax" and merged.config is not None
  assert (merged.path / "tokenizer.json").is_file()


def test_free_weights_without_a_base_use_the_mean(world, tmp_path):
  result = run(world, tmp_path / "x", base="")
  weights = next(row["weights"] for row in result["rows"] if row["name"] == "search_mean")
  experts = [checkpoints.open(p).load() for p in world[1]]
  expected = mj.merge(mj.task_arithmetic(), experts, weights, base=mj.merge(mj.uniform(), experts))
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


def killer(world, output, at, seconds=None):
  path = output.parent / f"{output.name}.json"
  plain = {
    "checkpoints": [str(p) for p in world[1]], "base": str(world[0] / "pool" / "base"),
    "tasks": [f"{world[2][0]}:loss", str(world[2][1])], "output_dir": str(output),
    "search": {"budget": 14, "fitness_source": "auto"}, "bootstrap": 50,
  }  # fmt: skip
  path.write_text(json.dumps(plain))
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


def test_kills_at_any_write_end_in_the_same_result(world, finished, tmp_path):
  """SIGKILL at random writes and moments, resumed each time; MERGE_JAX_KILLS sets how often."""
  _, expected = finished
  chance, kills, runs, output = random.Random(7), 0, 0, tmp_path / "run0"
  while kills < KILLS or not (output / "result.json").exists():
    # Late writes are those of figures, page, merged model and result: after the journal is full.
    journal = output / "journal.jsonl"
    late = journal.is_file() and len(storage.read_lines(journal)) == 14
    at, seconds = chance.randint(1, 30 if late else 8), None
    if kills % 5 == 4:
      at, seconds = 0, chance.uniform(2, 8)  # at any moment, not at a write
    if kills >= KILLS:
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
      if kills < KILLS:
        runs += 1
        output = tmp_path / f"run{runs}"
  assert kills >= KILLS


def test_stop_finishes_the_record_and_resumes(world, finished, tmp_path):
  _, expected = finished
  seen = []
  with pytest.raises(recycle.Stopped, match="after 5 evaluations"):
    run(world, tmp_path / "x", progress=seen.append, stop=lambda: len(seen) >= 5)
  assert len(storage.read_lines(tmp_path / "x" / "journal.jsonl")) == 5
  assert without_times(run(world, tmp_path / "x")) == without_times(expected)


def test_a_second_launch_into_one_folder_leaves(world, tmp_path):
  output = tmp_path / "x"
  with storage.locked(output), pytest.raises(storage.Locked, match="in use by process"):
    # The lock is of an open file, so it also holds against this process.
    run(world, output)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"search": {"budget": 15, "fitness_source": "auto"}}, r"config.search.budget: 14 -> 15"),
    ({"base": ""}, r"config.base"),
    ({"bootstrap": 51}, r"config.bootstrap: 50 -> 51"),
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
  assert len(storage.read_lines(copy / "journal.jsonl")) == 9


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
    ({"serch": {}}, "unknown config key 'serch'; did you mean 'search'"),
    ({"search": {"bugdet": 3}}, "unknown config key in search 'bugdet'; did you mean 'budget'"),
    ({"search": {"space": "fre"}}, "did you mean 'free'"),
    ({"search": {"proposer": "cma"}}, "did you mean 'cma_es'"),
    ({"search": {"budget": 0}}, "budget is 0"),
    ({"search": {"fitness": "avg"}}, "unknown fitness 'avg'"),
    ({"search": {"task_weights": "cop=1"}}, "did you mean 'copy'"),
    ({"evals": {"dtype": "float"}}, "did you mean 'float32'"),
    ({"checkpoints": ["a"]}, "at least two checkpoints"),
    ({"checkpoints": ["gs://x/y", "b"]}, "not supported yet"),
    ({"checkpoints": ["/nonexistent", "/b"]}, "no such folder"),
    ({"splits": {"fractions": [0.9, 0.9, 0.1]}}, "Split fractions"),
    ({"splits": {"fractions": [0.5, 0.5, 0.0]}}, "three positive shares"),
  ],
)
def test_bad_settings_are_one_sentence(world, tmp_path, options, message):
  with pytest.raises((ValueError, OSError), match=message):
    run(world, tmp_path / "x", **options)
  assert not (tmp_path / "x" / "journal.jsonl").exists()


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
  result = run(world, tmp_path / "x", tasks=["close", "split"], scorer=scorer, search={"budget": 10})
  row = result["rows"][-1]
  assert row["search"]["split"] == 6 and row["test"]["split"] == 4 and row["validation"]["split"] == 10
  assert row["test_stderr"] is None and result["tasks"][0]["metric"] == "score"
  assert (tmp_path / "x" / "report.html").is_file()


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
  text = recycle.plan(job(world, tmp_path / "x"))
  for word in ("3 checkpoints", "copy", "choose", "FLOPs", "14 candidates", "cma_es", "merged"):
    assert word in text
  assert not (tmp_path / "x").exists()
