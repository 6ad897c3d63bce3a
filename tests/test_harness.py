"""lm-eval, both ways: our models answer it as transformers does, and its documents lead a search."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import checkpoints, evals, recycle, sharding
from merge_jax.evals import requests
from merge_jax.evals.harness import library
from merge_jax.evals.objective import JittedObjective
from merge_jax.recycle import placing, settings, suites
from merge_jax.recycle.settings import Evals, Placement
from merge_jax.search import Candidate, Point
from merge_jax.training import puzzles
from tests import pools

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="extra harness")
ROOT = Path(__file__).parent.parent
NAMES = ["choose", "apart", "finish", "write", "read"]


def make_tasks(folder, count=24):
  """One task of each kind: choices, choices in the prompt, one text, written texts, whole texts."""
  folder.mkdir(parents=True)
  generator = np.random.default_rng(0)
  words = ["".join(generator.choice(list("abcdefgh"), 4)) for _ in range(count)]
  documents = [
    {"word": word, "choices": [word[:1], word[::-1] + "zz", "yyy"], "answer": i % 3, "whole": word * 20}
    for i, word in enumerate(words)
  ]
  (folder / "documents.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
  data = {"data_files": {"test": str(folder / "documents.jsonl")}, "cache_dir": str(folder / "cache")}
  common = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "num_fewshot": 0,
            "metadata": {"version": 2.0}}  # fmt: skip

  def metrics(*names):
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]

  made = {
    "choose": {"output_type": "multiple_choice", "doc_to_text": "pick {{word}}: ", "doc_to_target": "answer",
               "doc_to_choice": "choices", "metric_list": metrics("acc", "acc_norm", "acc_bytes")},
    "apart": {"output_type": "multiple_choice", "doc_to_text": "answer", "doc_to_target": " so it is",
              "doc_to_choice": "choices", "metric_list": metrics("acc", "acc_norm")},
    "finish": {"output_type": "loglikelihood", "doc_to_text": "{{word}}", "doc_to_target": " {{word}}",
               "metric_list": metrics("acc")},
    "write": {"output_type": "generate_until", "doc_to_text": "copy {{word}}=", "doc_to_target": "{{word}}",
              "generation_kwargs": {"until": ["q", "ab"], "max_gen_toks": 8, "do_sample": False},
              "filter_list": [{"name": "first", "filter": [{"function": "regex", "regex_pattern": "([a-z])"},
                                                          {"function": "take_first"}]}],
              "metric_list": metrics("exact_match")},
    "read": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{whole}}",
             "metric_list": [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity",
                              "higher_is_better": False}]},
  }  # fmt: skip
  for name, config in made.items():
    (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | common | config))
  return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("harness")
  return pools.make_pool(folder / "pool", 3, scale=0.05), make_tasks(folder / "tasks")


def judge(path, mesh="fsdp:1"):
  pool = [checkpoints.open(path)]
  options = Evals(max_shapes=2)
  model = suites.model_of(pool, options)
  layout = placing.layout(pool[0].specs, sharding.make_mesh(mesh), Placement(), model.stacks, model.axes)
  params = checkpoints.place(pool[0], layout.shardings, model.stacks)
  return suites.harness_model(pool[0], model, options, layout).on(params)


def evaluated(model, include, logs=None):
  from merge_jax.evals.harness import run

  manager, _ = library.load(NAMES, include=str(include))
  return run.evaluate(model, NAMES, manager, called="ours", logs=logs).scores


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mesh", ["fsdp:1", "data:2,fsdp:2,tensor:2"])
def test_answers_are_those_of_transformers(world, mesh, tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  pytest.importorskip("accelerate")
  from lm_eval.models.huggingface import HFLM

  paths, include = world
  ours = evaluated(judge(paths[0], mesh), include, tmp_path / "ours")
  theirs = evaluated(
    HFLM(pretrained=str(paths[0]), device="cpu", dtype="float32", batch_size=4), include, tmp_path / "theirs"
  )
  assert set(ours) == {
    *(f"lm_eval:choose:{m}" for m in ("acc", "acc_norm", "acc_bytes")), "lm_eval:apart:acc",
    "lm_eval:apart:acc_norm", "lm_eval:finish:acc", "lm_eval:write:exact_match:first",
    "lm_eval:read:byte_perplexity",
  }  # fmt: skip
  assert ours == pytest.approx(theirs, rel=1e-4)
  for name in NAMES:
    a, b = (samples(tmp_path / who, name) for who in ("ours", "theirs"))
    assert len(a) == len(b) == 24
    for one, other in zip(a, b, strict=True):
      assert one["doc_hash"] == other["doc_hash"] and one["prompt_hash"] == other["prompt_hash"]
      for x, y in zip(flat(one["resps"]), flat(other["resps"]), strict=True):
        assert x == y if x in ("True", "False") or name == "write" else abs(float(x) - float(y)) < 1e-3


def samples(folder, name):
  (path,) = folder.rglob(f"samples_{name}_*.jsonl")
  return [json.loads(line) for line in path.read_text().splitlines()]


def flat(value):
  return [x for one in value for x in flat(one)] if isinstance(value, list) else [value]


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
def test_documents_of_a_search_score_as_the_library_says(world):
  from merge_jax.evals.harness import tasks as documents

  paths, include = world
  whole = evaluated(judge(paths[0]), include)
  pool, options = [checkpoints.open(paths[0])], Evals(max_shapes=2)
  for spec, metric in (
    ("choose", "acc"), ("choose:acc_norm", "acc_norm"), ("choose:acc_bytes", "acc_bytes"), ("apart", "acc"),
    ("apart:acc_norm", "acc_norm"), ("finish", "acc"), ("write:exact_match:first", "exact_match:first"),
  ):  # fmt: skip
    made, digests = documents.load([f"lm_eval:{spec}"], include=str(include))
    name = spec.partition(":")[0]
    assert list(digests) == [f"lm_eval:{name}@2.0"]
    assert len({example.group for example in made[0].examples}) == 24
    suite = suites.task_suite({"all": made}, pool, options)
    params = {n: jnp.asarray(pool[0].read(n)) for n in pool[0].specs}
    params = params if not suite.stacks else evals_stacked(params, suite)
    objective = JittedObjective({"x": evals.Merge(lambda source, *_: source, params)}, suite.scorers())
    (found,) = objective.evaluate([Candidate("single", "x", Point((1.0,)))], "all")
    assert found.scores[name] == pytest.approx(whole[f"lm_eval:{name}:{metric}"], abs=1e-6), spec
    assert (suite.answers is None) == (name == "write")


@needs_lm_eval
def test_evaluate_gives_scores_and_logs(world, tmp_path):
  paths, include = world
  own = pools.make_tasks(tmp_path / "own")[0]
  words = [
    sys.executable, "-m", "merge_jax", "evaluate", f"--checkpoints={paths[0]},{paths[1]}",
    f"--tasks=lm_eval:choose,{own}", f"--output={tmp_path / 'scores.json'}", f"--lm_eval_include={include}",
    "--lm_eval_limit=8", f"--lm_eval_logs={tmp_path / 'logs'}", "--max_shapes=1",
  ]  # fmt: skip
  done = subprocess.run(
    words, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  scores = json.loads((tmp_path / "scores.json").read_text())
  keys = {"copy", *(f"lm_eval:choose:{metric}" for metric in ("acc", "acc_norm", "acc_bytes"))}
  assert [set(scores[str(path)]) for path in paths[:2]] == [keys, keys]
  logs = [json.loads(path.read_text()) for path in (tmp_path / "logs").rglob("results_*.json")]
  assert len(logs) == 2 and all(log["versions"] == {"choose": 2.0} for log in logs)
  assert len(list((tmp_path / "logs").rglob("samples_choose_*.jsonl"))) == 2


@needs_lm_eval
def test_scores_are_kept_where_logs_cannot_be(world, tmp_path):
  paths, include = world
  (tmp_path / "logs").mkdir()
  (tmp_path / "logs" / str(paths[0]).replace("/", "__")).write_text("a file where its folder should be")
  words = [
    sys.executable, "-m", "merge_jax", "evaluate", f"--checkpoints={paths[0]}", "--tasks=lm_eval:choose",
    f"--output={tmp_path / 'scores.json'}", f"--lm_eval_include={include}", "--lm_eval_limit=8",
    f"--lm_eval_logs={tmp_path / 'logs'}", "--max_shapes=1",
  ]  # fmt: skip
  done = subprocess.run(
    words, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
  )
  assert done.returncode == 1 and "could not write all of its logs" in done.stderr
  assert json.loads((tmp_path / "scores.json").read_text())[str(paths[0])]


def evals_stacked(params, suite):
  from merge_jax import models

  return models.stack(params, suite.stacks)


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
def test_a_search_on_documents_and_files(world, tmp_path):
  paths, include = world
  (own, _) = pools.make_tasks(tmp_path / "own")
  given = {
    "checkpoints": tuple(map(str, paths)), "output_dir": str(tmp_path / "run"), "keep_items": "yes",
    "tasks": ("lm_eval:choose:acc_norm", str(own), "lm_eval:write"), "harness": {"include": str(include)},
    "search": {"budget": 8}, "evals": {"max_shapes": 1},
  }  # fmt: skip
  result = recycle.recycle(settings.from_mapping(given))
  assert [task["name"] for task in result["tasks"]] == ["choose", "copy", "write"]
  manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
  assert {"lm_eval:choose@2.0", "lm_eval:write@2.0"} <= manifest["inputs"].keys()


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("chose", "knows no task 'chose'; near are .*choose"),
    ("choose:f1", "f1 does not lead a search; expected acc, acc_norm, acc_bytes, loss"),
    ("choose:acc:first", "filter 'first' is of written texts"),
    ("write:exact_match:last", "unknown filter 'last'"),
    ("write:bleu", "bleu is no mean over documents"),
    ("read", "of the kind loglikelihood_rolling are not scored by examples"),
    ("", "expected lm_eval:TASK"),
  ],
)
def test_what_cannot_lead_a_search(world, spec, message):
  from merge_jax.evals.harness import tasks as documents

  with pytest.raises(ValueError, match=message):
    documents.load([f"lm_eval:{spec}"], include=str(world[1]))


def test_without_the_library(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'merge-jax\[harness\]'"):
    library.load(["arc_easy"])


def test_pairs_are_one_text():
  tokens = evals.Tokens(puzzles.tokenizer(), 1)
  assert requests.pair(tokens, "ab ", "c") == tuple(tokens.prompts(["ab", " c"]))
  assert requests.pair(tokens, "", "c") == ([1], tokens.prompts(["c"])[0])
  assert requests.row([1, 2, 3], [4, 5], 3).tolist() == [2, 3, 4, 5]
  with pytest.raises(ValueError, match="continuation of 0 tokens"):
    requests.row([1], [], 8)


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 0.5}, {"num_beams": 4}])
def test_texts_are_greedy(options):
  with pytest.raises(ValueError, match="generated greedily"):
    requests.limits(options, 8)
