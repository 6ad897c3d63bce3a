"""The program that a search runs, built from shapes alone and compiled for an emulated mesh."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merge_jax import evals, models, sharding
from merge_jax.estimate.workload import Workload
from merge_jax.evals.batching import Batches
from merge_jax.evals.branches import groups
from merge_jax.evals.generation import Generation, prepare
from merge_jax.evals.objective import JittedObjective
from merge_jax.models import Model
from merge_jax.recycle import methods, placing
from merge_jax.recycle.settings import Evals, Placement
from merge_jax.search.loop import SPLIT
from merge_jax.search.point import Point

Specs = dict[str, jax.ShapeDtypeStruct]


class Job(NamedTuple):
  """A search to be.

  Attributes:
    model: the decoder.
    specs: of a checkpoint's tensors, in their stored dtype.
    checkpoints: how many.
    method: that is searched; one that needs a base holds one more model.
    workload: what a candidate is scored on.
    mesh: text of the mesh.
    batch, in_turn: see `JittedObjective`.
    evals: how tasks are scored.
  """

  model: Model
  specs: Specs
  checkpoints: int
  method: str
  workload: Workload
  mesh: str
  batch: int
  in_turn: bool
  evals: Evals

  @property
  def resident(self) -> int:
    """Models that are held: the pool, and a base where the method needs one."""
    return self.checkpoints + methods.METHODS[self.method].needs_base


class Program(NamedTuple):
  """A compiled program, per device.

  Attributes:
    arguments, outputs, temporaries: bytes; the last are those of XLA's CPU compiler, which keeps float32
      copies of what it reads and so overstates them.
    text: optimized HLO.
    seconds: that it took to trace and compile.
  """

  arguments: int
  outputs: int
  temporaries: int
  text: str
  seconds: float


class Built(NamedTuple):
  """A job on its mesh, from shapes alone.

  Attributes:
    layout: see there.
    leaves: of one model, stacked and sharded.
    batches: the rows that are scored, packed.
    generation: of texts, where a task is scored by them.
    objective: the search's own; its pool is abstract.
  """

  layout: sharding.Layout
  leaves: Specs
  batches: Batches
  generation: Generation | None
  objective: JittedObjective


def build(job: Job) -> Built:
  """Shapes, shardings and the search's objective; as many devices as the mesh has must be there.

  Raises:
    ValueError: what `launch.recycle` would refuse.
  """
  mesh, model = sharding.make_mesh(job.mesh), job.model
  layout = placing.layout(job.specs, mesh, Placement(), model.stacks, model.axes)
  leaves = {
    name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=layout.shardings[name])
    for name, spec in models.stack_specs(job.specs, model.stacks).items()
  }
  merges = methods.abstract((job.method,), [leaves] * job.checkpoints, leaves, layout.shardings, model.axes)
  work, packing = job.workload, {
    "max_shapes": job.evals.max_shapes, "batch_tokens": job.evals.batch_tokens,
    "vocabulary": model.config.vocab_size, "multiple": sharding.row_count(mesh),
  }  # fmt: skip
  batches = evals.pack(work.rows, groups=groups(work.rows, model.branches), **packing)
  generation = None
  if work.tokens is not None:
    generation = prepare(
      model.generate, work.tasks, work.rows, work.tokens, max_length=model.config.max_positions, **packing
    )
  scorer = evals.make_scorer(
    model.apply, work.tasks, batches, dtype=jnp.dtype(job.evals.dtype), mesh=mesh, generation=generation
  )
  objective = JittedObjective(merges, {SPLIT: scorer}, job.batch, layout, in_turn=job.in_turn)
  return Built(layout, leaves, batches, generation, objective)


def compile(job: Job, built: Built) -> Program:
  """Compiles the program of a candidate, or of a batch of them."""
  start = time.perf_counter()
  point = Point((1.0 / job.checkpoints,) * job.checkpoints)
  compiled = built.objective.lower(job.method, SPLIT, [point]).compile()
  memory = compiled.memory_analysis()
  return Program(
    memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes, compiled.as_text(),
    time.perf_counter() - start,
  )  # fmt: skip
