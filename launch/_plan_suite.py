"""Plans against what happens: bytes of real pools, seconds of real candidates, on one device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from merge_jax import models
from merge_jax.estimate import devices, plan, program, workload
from merge_jax.evals.objective import quickest
from merge_jax.recycle import methods
from merge_jax.recycle.settings import Evals
from merge_jax.search import Candidate, Point

_DEVICE = flags.DEFINE_string("plan_device", "cpu", "plan: what the figures are for.")
_SIZES = flags.DEFINE_list("plan_sizes", ["128:2", "256:4", "512:8", "1024:8"], "plan: hidden:layers, …")
_COUNT = flags.DEFINE_integer("plan_models", 8, "plan: checkpoints.", lower_bound=2)
_DTYPE = flags.DEFINE_enum("plan_dtype", "float32", ["float32", "bfloat16"], "plan: of pool and evaluation.")
_EXAMPLES = flags.DEFINE_integer("plan_examples", 64, "plan: of each of two tasks, 128 tokens long.")


def suite(repeats: int) -> dict[str, Any]:
  """Each size: what the plan says, what was measured, and their ratio."""
  device = devices.device(_DEVICE.value)
  return {size: _row(size, device, repeats) for size in _SIZES.value}


def _row(size: str, device: devices.Device, repeats: int) -> dict[str, Any]:
  hidden, layers = map(int, size.split(":"))
  config = models.preset("llama-3-8b") | {
    "vocab_size": 4096, "hidden_size": hidden, "intermediate_size": int(2.75 * hidden),
    "num_hidden_layers": layers, "num_attention_heads": max(hidden // 64, 2), "num_key_value_heads": 2,
    "head_dim": 64,
  }  # fmt: skip
  model, dtype = models.build(config), jnp.dtype(_DTYPE.value)
  specs = {name: jax.ShapeDtypeStruct(spec.shape, dtype) for name, spec in model.specs.items()}
  work = workload.of_numbers(2, _EXAMPLES.value, 129, 16)
  evals = Evals(dtype=_DTYPE.value, max_shapes=1)  # type: ignore[arg-type]
  job = program.Job(model, specs, _COUNT.value, "task_arithmetic", work, "fsdp:1", 1, False, evals)
  planned = plan.plan(job, plan.Search(f"{hidden} x {layers}", 1, device, 1e9))
  built = program.build(job)
  draw = jax.jit(jax.random.normal, static_argnums=(1, 2))

  def drawn(seed: int) -> dict[str, jax.Array]:
    """Random parameters one by one: what it takes to draw a whole model at once would be the peak."""
    leaves = models.stack_specs(specs, model.stacks).items()
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    made = {n: 0.02 * draw(k, spec.shape, dtype) for k, (n, spec) in zip(keys, leaves, strict=True)}
    return jax.device_put(made, dict(built.layout.shardings))

  experts = [drawn(i) for i in range(job.resident)]
  merge = methods.merges((job.method,), experts[:-1], experts[-1], model.axes)[job.method]
  objective = built.objective.on({job.method: merge.source})
  candidate = Candidate("random", job.method, Point((1.0 / job.checkpoints,) * job.checkpoints))
  took = quickest(lambda: np.float32(len(objective.evaluate([candidate], "search"))), repeats)
  held = sum(array.nbytes for array in jax.tree.leaves(merge.source.leaves))
  peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  return {
    "parameters": planned["parameters"],
    "parameter_bytes": {"plan": planned["parameter_bytes_per_device"], "real": held},
    "argument_bytes": {
      "plan": planned["parameter_bytes_per_device"] + planned["data_bytes_per_device"],
      "compiled": planned["argument_bytes_per_device"],
    },
    "seconds": {
      "plan": planned["seconds_per_candidate"], "real": took,
      "ratio": took / planned["seconds_per_candidate"],
      "merge": {"plan": planned["merge_seconds"], "real": objective.merge_seconds(candidate)},
    },
    "peak_bytes": {"plan": planned["bytes_per_device"], "real": peak},
    "flops_per_second": planned["flops_per_candidate"] / took,
    "share_of_peak": planned["flops_per_candidate"] / took / device.rate(_DTYPE.value),
  }  # fmt: skip


def stacked(model: models.Model, dtype: Any) -> Callable[[jax.Array], dict[str, jax.Array]]:
  """Random parameters from a key, as a search holds them."""

  def init(key: jax.Array) -> dict[str, jax.Array]:
    params = {name: value.astype(dtype) for name, value in model.init(key).items()}
    return models.stack(params, model.stacks)

  return init
