"""Whole merges as a user starts them, in turns with mergekit on the same files."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags

from merge_jax import checkpoints

_PRESET = flags.DEFINE_enum("preset", "100m", ("100m", "1b"), "merge: parameters of a model.")
_PEER = flags.DEFINE_string("peer_python", "", "merge: an interpreter that has mergekit.")
_METHODS = flags.DEFINE_list("methods", [], "merge, operators: which; all if none is named.")
_FOLDER = flags.DEFINE_string("folder", "", "merge: where the pool is kept; a temporary folder if empty.")

SIZES = {"100m": (768, 2048, 12, 16384), "1b": (2048, 5632, 22, 32000)}  # hidden, inner, layers, vocabulary
MODELS = ("base", "x1", "x2", "x3", "x4")
WEIGHT = "weight: 0.25"
METHODS: dict[str, tuple[str, str, bool, Sequence[str]]] = {  # per model, whole, with a base, models
  "linear": (WEIGHT, "", False, MODELS[1:]),
  "task_arithmetic": (WEIGHT, "", True, MODELS[1:]),
  "slerp": ("", "t: 0.4", True, ("base", "x1")),
  "model_stock": ("", "", True, MODELS[1:]),
  "dare_ties": (f"{WEIGHT}, density: 0.5", "", True, MODELS[1:]),
  "ties": (f"{WEIGHT}, density: 0.2", "", True, MODELS[1:]),
  "breadcrumbs": (f"{WEIGHT}, density: 0.9, gamma: 0.01", "", True, MODELS[1:]),
  "sce": ("", "select_topk: 0.1", True, MODELS[1:]),
  "karcher": ("", "", False, MODELS[1:]),
  "della": (f"{WEIGHT}, density: 0.5, epsilon: 0.15", "", True, MODELS[1:]),
}


def suite(repeats: int) -> dict[str, Any]:
  """Ours with an empty and a filled compilation cache, and the peer, for every method."""
  with tempfile.TemporaryDirectory() as scratch:
    folder = Path(_FOLDER.value or scratch) / _PRESET.value
    make_pool(folder, *SIZES[_PRESET.value])
    moved = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    result: dict[str, Any] = {"copy_bytes_a_second": copy_rate(folder), "pool_bytes": moved, "methods": {}}
    run_method("linear", folder)  # not timed: modules are compiled to bytecode, files come into memory
    for method in _METHODS.value or METHODS:
      rows = [run_method(method, folder) for _ in range(repeats)]
      row = {key: {k: float(np.median([r[key][k] for r in rows])) for k in rows[0][key]} for key in rows[0]}
      for key in ("cold", "warm") if "peer" in row else ():
        row[key]["peer_over_ours"] = row["peer"]["wall"] / row[key]["wall"]
      read = moved / len(MODELS) * (len(METHODS[method][3]) + METHODS[method][2])
      row["floor"] = {"wall": (read + moved / len(MODELS)) / result["copy_bytes_a_second"]}
      result["methods"][method] = row
      print(method, json.dumps(row), flush=True)
  return result


def run_method(method: str, folder: Path) -> dict[str, dict[str, float]]:
  """One merge of each kind; the peer's runs lie between ours."""
  own, whole, based, models = METHODS[method]
  lines = [f"merge_method: {method}", "dtype: bfloat16", "models:"]
  for model in models:
    lines += [f"- model: {folder / model}", *([f"  parameters: {{{own}}}"] if own else [])]
  lines += [f"base_model: {folder / 'base'}"] * based + [f"parameters: {{{whole}}}"] * bool(whole)
  with tempfile.TemporaryDirectory() as scratch:
    recipe, out = Path(scratch) / "recipe.yml", Path(scratch) / "out"
    recipe.write_text("\n".join(lines) + "\n")
    ours = [sys.executable, "-m", f"{__package__}.merge", f"--recipe={recipe}", f"--output_dir={out}"]
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache"}
    found = {"cold": timed(ours, out, cache)}
    if _PEER.value:
      command = [str(Path(_PEER.value).parent / "mergekit-yaml"), str(recipe), str(out)]
      found["peer"] = timed(command, out, {"HF_HUB_OFFLINE": "1"})
    found["warm"] = timed(ours, out, cache)
  return found


def timed(command: Sequence[str], output: Path, environment: Mapping[str, str]) -> dict[str, float]:
  """Wall and CPU seconds of a process, and the most private memory that it had.

  Modules are compiled to bytecode once, as they are where a package is installed.
  """
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
  start, anonymous = time.perf_counter(), 0
  process = subprocess.Popen(
    command, env={**own, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )
  status = Path(f"/proc/{process.pid}/status")
  while process.poll() is None:
    try:
      fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
      anonymous = max(anonymous, int(fields.get("RssAnon", "0 kB").split()[0]) * 1024)
    except OSError:
      pass
    time.sleep(0.02)
  wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  if process.returncode:
    raise RuntimeError(f"{' '.join(command)} failed: {process.stderr.read() if process.stderr else ''}")
  if not output.is_dir():
    raise RuntimeError(f"{' '.join(command)} wrote nothing.")
  shutil.rmtree(output)
  return {"wall": wall, "cpu": cpu, "private_bytes": float(anonymous)}


def copy_rate(folder: Path) -> float:
  """Bytes a second of copying a model's file, page cache hot: read and written ones count."""
  source, target = folder / "base" / "model.safetensors", folder / "copy"
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    shutil.copyfile(source, target)
    seconds.append(time.perf_counter() - start)
    target.unlink()
  return 2 * source.stat().st_size / min(seconds)


def make_pool(folder: Path, hidden: int, inner: int, layers: int, vocabulary: int) -> None:
  """A base and four models beside it, bfloat16, of Llama's names and shapes; kept if it is there."""
  specs = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
  specs["model.norm.weight"] = (hidden,)  # type: ignore[assignment]
  for i in range(layers):
    at = f"model.layers.{i}."
    specs |= {f"{at}self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
    specs |= {f"{at}mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
    specs |= {f"{at}mlp.down_proj.weight": (hidden, inner)}
    specs |= {f"{at}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}  # type: ignore[misc]
  config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
    "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
    "num_key_value_heads": hidden // 64, "vocab_size": vocabulary, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
  }  # fmt: skip
  for seed, model in enumerate(MODELS):
    if (folder / model / "config.json").exists():
      continue
    tensors = {}
    for i, (name, shape) in enumerate(specs.items()):
      value = np.random.default_rng(i).standard_normal(shape, np.float32) * np.float32(0.02)
      if seed:
        change = np.random.default_rng((seed, i)).standard_normal(shape, np.float32)
        value = value + change * np.float32(1e-3)
      tensors[name] = value.astype(ml_dtypes.bfloat16)
    checkpoints.write(folder / model, tensors)
    (folder / model / "config.json").write_text(json.dumps(config))
