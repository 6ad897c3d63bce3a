"""Meshes: candidates a minute side by side, and what compiling costs as a model gets deeper."""

import time
from typing import Any

import jax
import numpy as np
from absl import flags

from merge_jax import models
from merge_jax.estimate import program, workload
from merge_jax.evals.objective import quickest
from merge_jax.recycle import methods
from merge_jax.recycle.settings import Evals
from merge_jax.search import Candidate, Point

from . import _plan_suite

_SIDES = flags.DEFINE_list("mesh_candidates", ["1", "2", "4"], "mesh: sizes of the axis candidate.")
_LAYERS = flags.DEFINE_list("mesh_layers", ["4", "64"], "mesh: layers of models whose programs are compiled.")
_HIDDEN = flags.DEFINE_integer("mesh_hidden", 64, "mesh: width of the models.")


def suite(repeats: int) -> dict[str, Any]:
  """Compile seconds by layers; candidates a minute by the size of the axis `candidate`.

  On emulated devices (`JAX_NUM_CPU_DEVICES=8`) the cores are shared: the figures tell overheads alone.
  """
  jax.config.update("jax_enable_compilation_cache", False)
  return {
    "compile_seconds": {layers: _compiled(int(layers)) for layers in _LAYERS.value},
    "candidates_a_minute": {side: _rate(int(side), repeats) for side in _SIDES.value},
  }


def _job(layers: int, mesh: str) -> program.Job:
  config = models.preset("llama-3-8b") | {
    "vocab_size": 512, "hidden_size": _HIDDEN.value, "intermediate_size": 3 * _HIDDEN.value,
    "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4,
  }  # fmt: skip
  model = models.build(config)
  work = workload.of_numbers(2, 32, 65, 8)
  return program.Job(model, model.specs, 4, "task_arithmetic", work, mesh, 1, False, Evals(max_shapes=1))


def _compiled(layers: int) -> float:
  job = _job(layers, "fsdp:1")
  built = program.build(job)
  start = time.perf_counter()
  program.compile(job, built)
  return time.perf_counter() - start


def _rate(side: int, repeats: int) -> float:
  job = _job(8, f"candidate:{side},fsdp:-1")
  built = program.build(job)
  init = jax.jit(_plan_suite.stacked(job.model, np.float32), out_shardings=dict(built.layout.shardings))
  *experts, base = [init(jax.random.key(i)) for i in range(job.resident)]
  merge = methods.merges((job.method,), experts, base, job.model.axes)[job.method]
  objective = built.objective.on({job.method: merge.source})
  rows = np.random.default_rng(0).dirichlet([1.0] * job.checkpoints, size=objective.batch)
  candidates = [Candidate("random", job.method, Point.of(row)) for row in rows]
  took = quickest(lambda: np.float32(len(objective.evaluate(candidates, "search"))), repeats)
  return 60 * objective.batch / took
