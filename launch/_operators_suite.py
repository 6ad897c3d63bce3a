"""Methods in device memory, on tensors of the shapes of Llama 3 8B, against copying the same bytes."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import merge_jax as mj

_COUNT = flags.DEFINE_integer("experts", 4, "operators: models beside the base.")
_SHRINK = flags.DEFINE_integer("shrink", 1, "operators: divides the sides of tensors, for small devices.")

SHAPES = {"q": (4096, 4096), "k": (1024, 4096), "gate": (14336, 4096), "down": (4096, 14336)}
OPERATORS: dict[str, mj.Operator] = {
  "linear": mj.linear(),
  "task_arithmetic": mj.task_arithmetic(),
  "ties": mj.ties(0.2),
  "ties_tensor": mj.ties(0.2, scope="tensor", zero_sign="positive"),
  "dare_ties": mj.dare_ties(0.5, zero_sign="positive"),
  "breadcrumbs": mj.breadcrumbs(0.9, 0.01, scope="tensor"),
  "della": mj.della(0.5, 0.15),
  "sce": mj.sce(0.1),
  "karcher": mj.karcher(),
  "model_stock": mj.model_stock(),
}


def suite(repeats: int) -> dict[str, Any]:
  """Seconds of each method, its bytes a second as (K + 1 or 2) tensors, and its ratio to linear."""
  shapes = {n: tuple(max(1, x // _SHRINK.value) for x in shape) for n, shape in SHAPES.items()}
  base, *experts = (_model(shapes, i) for i in range(_COUNT.value + 1))
  nbytes = sum(x.nbytes for x in base.values())
  copy = jax.jit(lambda tree: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree))
  seconds = {"copy": _seconds(lambda: copy(base), repeats)}
  result: dict[str, Any] = {"copy_bytes_a_second": 2 * nbytes / seconds["copy"], "methods": {}}
  key = jax.random.key(0)
  for name in flags.FLAGS.methods or OPERATORS:
    operator = OPERATORS[name]
    more: dict[str, Any] = {"base": base} if operator.needs_base else {}
    if operator.needs_key:
      more["key"] = key
    run = jax.jit(functools.partial(mj.merge, operator))
    seconds[name] = _seconds(lambda run=run, more=more: run(experts, **more), repeats)  # type: ignore[misc]
    moved = nbytes * (len(experts) + 1 + operator.needs_base)
    row = {"seconds": seconds[name], "bytes_a_second": moved / seconds[name]}
    row["of_copy"] = row["bytes_a_second"] / result["copy_bytes_a_second"]
    if "linear" in seconds:
      row["over_linear"] = seconds[name] / seconds["linear"]
    result["methods"][name] = row
    print(name, row, flush=True)
  return result


def _model(shapes: dict[str, Any], seed: int) -> dict[str, jax.Array]:
  keys = jax.random.split(jax.random.key(seed), len(shapes))
  return {
    name: jax.random.normal(one, shape, jnp.bfloat16)
    for one, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def _seconds(call: Callable[[], Any], repeats: int) -> float:
  jax.block_until_ready(call())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  return float(np.median(times))
