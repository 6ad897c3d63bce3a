"""The whole estimate of a search, as plain data and as text."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from merge_jax.checkpoints import nbytes
from merge_jax.collectives import by_kind, collectives
from merge_jax.estimate import costs, program
from merge_jax.estimate.costs import Memory, Seconds
from merge_jax.estimate.devices import Device
from merge_jax.estimate.program import Job
from merge_jax.search.final import FINALISTS
from merge_jax.storage import gib

TRAINING_STEPS = (1554, 1182)
TRAINING_BATCH = 64
"""Steps of supervised and of preference training, and sequences of a step (arXiv 2412.04144, App. D)."""


class Search(NamedTuple):
  """What is asked beside the job itself.

  Attributes:
    name: of the model.
    budget: candidates.
    device: of the mesh.
    disk: bytes a second that a host reads.
    compiled: whether to compile the program, for its own bytes and collectives.
  """

  name: str
  budget: int
  device: Device
  disk: float
  compiled: bool = True


def plan(job: Job, search: Search) -> dict[str, Any]:
  """Bytes, operations, seconds and verdict; needs as many (emulated) devices as the mesh has.

  Returns:
    Plain data: `parameter_bytes_per_device` of the whole resident pool, `argument_bytes_per_device` and
    `output_bytes_per_device` of the compiled program, `bytes_per_device` (with formulas for merges and
    activations), `collectives`, `flops_per_candidate`, `seconds_per_candidate`, `seconds`, `device_hours`,
    `fits`, `advice`, `share_of_training`, …

  Raises:
    ValueError: what `launch.recycle` would refuse.
  """
  built = program.build(job)
  mesh, device = built.layout.mesh, search.device
  held, done = costs.memory(job, built), costs.work(job, built)
  compiled = program.compile(job, built) if search.compiled else None
  moved = by_kind(collectives(compiled.text)) if compiled else {}
  took = costs.seconds(job, built, done, sum(size for _, size in moved.values()), device)
  tokens, padded = built.batches.tokens, built.batches.padded
  if built.generation is not None:
    tokens, padded = tokens + built.generation.count, padded + built.generation.padded
  room = costs.USABLE * device.memory
  hosts = math.ceil(mesh.size / device.per_host)
  model = sum(map(nbytes, job.specs.values()))
  disk = job.resident * model
  copies = mesh.shape["candidate"] * mesh.shape["data"]  # of the pool; a host reads what it holds once
  load = disk * min(copies / hosts, 1.0) / search.disk
  final = (FINALISTS + len(job.workload.tasks)) * job.workload.finals
  searching = took.total * (search.budget + final)
  seconds = searching + load
  parameters = sum(math.prod(spec.shape) for spec in job.specs.values())
  result: dict[str, Any] = {
    "model": search.name, "parameters": parameters, "model_bytes": model, "checkpoints": job.checkpoints,
    "resident_models": job.resident, "method": job.method, "mesh": dict(mesh.shape), "device": device.name,
    "efficiency": device.efficiency,
    "devices": mesh.size, "hosts": hosts, "batch": built.objective.batch, "budget": search.budget,
    "tokens_per_candidate": tokens, "padded_tokens_per_candidate": padded,
    "parameter_bytes_per_device": held.parameters, "data_bytes_per_device": held.data,
    "merged_bytes_per_device": held.merged, "activation_bytes_per_device": held.activations,
    "bytes_per_device": held.total, "usable_bytes_per_device": int(room), "fits": held.total <= room,
    "argument_bytes_per_device": None, "output_bytes_per_device": None,
    "compiler_temporary_bytes": None, "compile_seconds": None, "collectives": None,
    "merge_flops": done.merge_flops, "evaluation_flops": done.evaluation_flops,
    "flops_per_candidate": done.merge_flops + done.evaluation_flops,
    "bytes_per_candidate": done.merge_bytes + done.evaluation_bytes,
    "merge_seconds": took.merge, "evaluation_seconds": took.evaluation,
    "collective_seconds": took.collectives, "seconds_per_candidate": took.total,
    "disk_bytes": disk, "disk_seconds": load, "search_seconds": searching, "seconds": seconds,
    "device_hours": seconds * mesh.size / 3600,
    "share_of_training": share_of_training(job.workload.examples, search.budget),
    "advice": advice(job, held, mesh.shape, device, model),
  }  # fmt: skip
  if compiled:
    result |= {
      "argument_bytes_per_device": compiled.arguments, "output_bytes_per_device": compiled.outputs,
      "compiler_temporary_bytes": compiled.temporaries, "compile_seconds": compiled.seconds,
      "collectives": {kind: {"count": n, "bytes": size} for kind, (n, size) in moved.items()},
    }  # fmt: skip
  return result


def share_of_training(examples: int, budget: int) -> float:
  """Cost of a search as a share of one training run, by the paper's accounting (arXiv 2412.04144, App. D).

  `2 N · examples · budget / (6 N · 64 · (1554 + 1182))`: sequences are counted on both sides, not tokens,
  and merging is free.

  >>> round(share_of_training(505 + 541, 50), 3)  # about the paper's two tasks
  0.1
  """
  return 2 * examples * budget / (6 * TRAINING_BATCH * sum(TRAINING_STEPS))


def advice(job: Job, held: Memory, mesh: Mapping[str, int], device: Device, model: int) -> list[str]:
  """What would make a search fit that does not, and what its mesh costs."""
  room, found = costs.USABLE * device.memory, list[str]()
  size = math.prod(mesh.values())
  rest = held.data + held.activations
  if (side := mesh["candidate"]) > 1:
    one = gib(held.parameters // side)
    found.append(
      f"candidate:{side} holds the pool {side} times, {gib(held.parameters)} a device ({one} with "
      f"candidate:1); --batch={side} --in_turn merges {side} candidates in one pass over one pool instead."
    )
  per, heads = device.per_host, job.model.config.num_heads
  hosts = math.ceil(size / per)
  if hosts > 1 and mesh["tensor"] == 1 and per > 1 and heads % per == 0 and mesh["fsdp"] % per == 0:
    inside = dict(mesh) | {"fsdp": mesh["fsdp"] // per, "tensor": per}
    found.append(
      f"--mesh={_named(inside)} cuts heads and feed-forwards within a host: a device then gathers 1/{per} of "
      "the parameters."
    )
  if held.total <= room:
    return found
  cut = held.parameters + held.merged
  if rest >= room:
    found.append(f"Activations alone take {gib(rest)}: lower --batch_tokens, or cut heads over tensor.")
    return found
  factor = 2 ** math.ceil(math.log2(cut / (room - rest)))
  found.append(f"--num_devices={size * factor} would hold it, with the parameters cut over all of them.")
  base = job.resident - job.checkpoints
  fewer = int((room - rest - held.merged) // (held.parameters // job.resident)) - base
  if fewer >= 2:
    found.append(f"{fewer} checkpoints would fit in device memory.")
  need = job.resident * model * mesh["candidate"] * mesh["data"] / hosts
  usual, fits = gib(int(device.host_memory)), need <= costs.USABLE * device.host_memory
  found.append(
    f"--pool_memory=host: {gib(int(need))} a host ({'fits' if fits else 'does not fit'} the usual {usual}); "
    "--pool_memory=disk needs no room and reads the pool for every candidate."
  )
  return found


def text(result: Mapping[str, Any]) -> str:
  """The estimate for people."""
  r = result
  base = " and a base" if r["resident_models"] > r["checkpoints"] else ""
  took = Seconds(r["merge_seconds"], r["evaluation_seconds"], r["collective_seconds"])
  kinds = sorted((r["collectives"] or {}).items(), key=lambda item: -item[1]["bytes"])
  moved = ", ".join(
    f"{gib(int(n['bytes']))} by {n['count']:.0f} {kind}" for kind, n in kinds if n["bytes"] > 1e6
  )
  hosts = f"{r['hosts']} host{'s' if r['hosts'] > 1 else ''}"
  lines = [
    ("model", f"{r['model']}: {r['parameters'] / 1e9:.1f}B parameters, {gib(r['model_bytes'])}"),
    ("pool", f"{r['checkpoints']} checkpoints{base} on {r['devices']} {r['device']} ({hosts}), "
             f"mesh {_named(r['mesh'])}"),
    ("a device", f"{gib(r['bytes_per_device'])} of {gib(r['usable_bytes_per_device'])} usable: "
                 + ("fits" if r["fits"] else "DOES NOT FIT")),
    ("", f"{gib(r['parameter_bytes_per_device'])} of parameters, {gib(r['merged_bytes_per_device'])} merged, "
         f"{gib(r['activation_bytes_per_device'])} of activations (by formula)"),
  ]  # fmt: skip
  if r["collectives"] is not None:
    lines += [
      ("compiled", f"in {r['compile_seconds']:.0f} s: {gib(r['argument_bytes_per_device'])} of arguments, "
                   f"{r['output_bytes_per_device']:,} bytes of results a device"),
      ("", f"moved to a device: {moved or 'next to nothing'}"),
      ("", f"temporaries of XLA's CPU compiler: {gib(r['compiler_temporary_bytes'])} (overstated)"),
    ]  # fmt: skip
  lines += [
    ("candidate", f"{r['flops_per_candidate']:.2e} FLOPs, {r['tokens_per_candidate']:,} tokens "
                  f"({r['padded_tokens_per_candidate']:,} padded): about {duration(took.total)}"),
    ("", f"merge {duration(took.merge)}, evaluation {duration(took.evaluation)} at {r['efficiency']:.0%} of "
         f"the peak, collectives {'not known' if r['collectives'] is None else duration(took.collectives)}, "
         "not overlapped"),
    ("disk", f"{gib(r['disk_bytes'])} to read, about {duration(r['disk_seconds'])}"),
    ("in all", f"{r['budget']} candidates, finalists and loading: about {duration(r['seconds'])}, "
               f"{r['device_hours']:.2f} device-hours"),
    ("training", f"the search costs {r['share_of_training']:.1%} of a training run (the paper's accounting)"),
    *(("advice", one) for one in r["advice"]),
  ]  # fmt: skip
  return "\n".join(f"{word:<10} {line}" for word, line in lines)


def _named(mesh: Mapping[str, int]) -> str:
  """A mesh as its flag has it."""
  return ",".join(f"{axis}:{size}" for axis, size in mesh.items() if size > 1) or "fsdp:1"


def duration(seconds: float) -> str:
  """For people.

  >>> duration(0.0123), duration(75), duration(9000)
  ('12.3 ms', '75.0 s', '2.5 h')
  """
  if seconds < 1:
    return f"{1e3 * seconds:.1f} ms"
  if seconds < 600:
    return f"{seconds:.1f} s"
  if seconds < 5400:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"
