"""Scores candidates with EleutherAI's lm-eval in PyTorch: any task, any metric, weights reloaded in place.

    JAX_PLATFORMS=cpu python -m launch.recycle --checkpoints=a,b,c --output_dir=runs/x \\
      --tasks=arc_easy,triviaqa --scorer_command="python examples/lm_eval_scorer.py \\
      --tasks=arc_easy:acc_norm,triviaqa --device=cuda {model_dir} {scores_json} {split}"

A task is NAME or NAME:METRIC (else its first metric) and gives the score NAME; where lower is better, with
the sign changed. Where all scores are means over documents, those of all documents are given, so that gains
have errors. Documents are divided into search, validation and test by a hash of each.
Needs `pip install 'lm-eval[hf]'`. Built-in models do the same faster, in one program with the merge:
`--tasks=lm_eval:arc_easy:acc_norm`, without a scorer.
"""

import argparse
import hashlib
import json
from pathlib import Path

import resident

SHARES = {"search": (0.0, 0.4), "validation": (0.4, 0.6), "test": (0.6, 1.0)}


def load(options: argparse.Namespace) -> resident.Score:
  """Reads tasks and documents once; the model with the first candidate."""
  from lm_eval import evaluator
  from lm_eval.tasks import TaskManager

  metrics = dict((*spec.split(":"), "")[:2] for spec in options.tasks.split(","))
  loaded = TaskManager(include_path=options.include or None).load(list(metrics))
  for task in loaded["tasks"].values():
    if options.shots >= 0 or task.get_config("num_fewshot") is None:
      task.set_config(key="num_fewshot", value=max(options.shots, 0))
  model = None

  def score(model_dir: str, split: str) -> dict[str, float | list[float] | None]:
    nonlocal model
    model = read(model, model_dir, options)
    low, high = SHARES[split]
    for task in loaded["tasks"].values():
      task.set_fewshot_seed(seed=1234)  # the same solved examples for every candidate
    chosen = {
      name: [i for i, doc in enumerate(task.eval_docs) if low <= position(doc) < high]
      for name, task in loaded["tasks"].items()
    }
    if empty := [name for name, some in chosen.items() if not some]:  # the harness would take all documents
      raise ValueError(f"Task {empty[0]} has no document in the {split} split.")
    found = evaluator.evaluate(model, loaded, samples=chosen, bootstrap_iters=0)
    keys = {name: scored_by(found, name, metric) for name, metric in metrics.items()}
    single = {name: documents(found, name, key) for name, key in keys.items()}
    return single if all(single.values()) else {n: number(found, n, key) for n, key in keys.items()}

  return score


def position(document: dict) -> float:
  """A number in [0, 1) that belongs to a document."""
  text = json.dumps(document, sort_keys=True, default=str)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read(model, model_dir: str, options: argparse.Namespace):
  """A model of the harness with the candidate's weights; the one that is there, if there is one."""
  from lm_eval.models.huggingface import HFLM
  from safetensors.torch import load_file

  if model is None:
    return HFLM(
      pretrained=model_dir, device=options.device, dtype=options.dtype, batch_size=options.batch_size
    )
  weights = {name: x for file in Path(model_dir).glob("*.safetensors") for name, x in load_file(file).items()}
  lacking, unknown = model.model.load_state_dict(weights, strict=False)
  if unknown or (lacking and lacking != ["lm_head.weight"]):  # a tied head has no tensor of its own
    raise ValueError(f"{model_dir}: tensors do not fit the first candidate's: {[*lacking, *unknown][:3]}")
  return model


def scored_by(found: dict, name: str, metric: str) -> str:
  """The metric and filter by which a task or group is scored."""
  keys = [key for key in results(found, name) if "," in key and "_stderr" not in key]
  chosen = next((key for key in keys if not metric or key.split(",")[0] == metric), None)
  if chosen is None:
    raise ValueError(
      f"Task {name} has no metric {metric!r}; it has {sorted({k.split(',')[0] for k in keys})}."
    )
  return chosen


def results(found: dict, name: str) -> dict:
  """What the harness says of a task or group."""
  return (found.get("groups", {}) | found["results"])[name]


def number(found: dict, name: str, key: str) -> float | None:
  """The score of a task or group, higher is better."""
  value = sign(found, name, key) * results(found, name)[key]
  return value if value == value else None


def documents(found: dict, name: str, key: str) -> list[float]:
  """What each document scored, higher is better; empty where the score is not their mean."""
  metric, kind = key.split(",", 1)
  samples = [one for one in found["samples"].get(name, ()) if one["filter"] == kind]
  values = [one.get(metric) for one in sorted(samples, key=lambda one: one["doc_id"])]
  if not values or not all(isinstance(value, int | float) for value in values):
    return []
  if not abs(sum(values) / len(values) - results(found, name)[key]) <= 1e-9:  # nor if it is NaN
    return []
  return [sign(found, name, key) * float(value) for value in values]


def sign(found: dict, name: str, key: str) -> float:
  """-1 where lower is better."""
  return -1.0 if found["higher_is_better"].get(name, {}).get(key.split(",")[0]) is False else 1.0


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tasks", required=True, help="NAME or NAME:METRIC, separated by commas")
  parser.add_argument("--include", default="", help="folder with further tasks")
  parser.add_argument("--shots", type=int, default=-1, help="solved examples; -1: each task's own number")
  parser.add_argument("--device", default="cuda")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--batch_size", default="auto")
  resident.main(parser, load)
