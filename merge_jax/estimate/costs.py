"""Formulas: operations and bytes of a candidate, what a device holds, and seconds from its roofline."""

import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from merge_jax import sharding
from merge_jax.checkpoints import nbytes
from merge_jax.estimate.devices import Device
from merge_jax.estimate.program import Built, Job
from merge_jax.evals.batching import Bucket
from merge_jax.evals.generation import Prompts
from merge_jax.preflight.memory import per_device
from merge_jax.recycle import methods

USABLE = 0.9
"""Share of device memory that a program may use (`XLA_PYTHON_CLIENT_MEM_FRACTION=.9`; JAX has .75)."""


class Memory(NamedTuple):
  """Bytes of the fullest device.

  Attributes:
    parameters: of the resident pool, a base included.
    data: tokens and targets, weights, and the operator's numbers.
    merged: of the merges that are evaluated at once.
    activations: of one forward pass, a layer's gathered parameters among them, by formula.
  """

  parameters: int
  data: int
  merged: int
  activations: int

  @property
  def total(self) -> int:
    """All of it."""
    return self.parameters + self.data + self.merged + self.activations


class Work(NamedTuple):
  """What one candidate takes, of all devices together.

  Attributes:
    merge_flops, merge_bytes: of the merge; every model is read once and the merge is written and read.
    evaluation_flops: of all rows and generated texts of full length, padding included.
    evaluation_bytes: parameters, and caches of texts, that are read in every pass.
    passes: forward passes, one for every token of a text among them.
  """

  merge_flops: float
  merge_bytes: float
  evaluation_flops: float
  evaluation_bytes: float
  passes: int


class Seconds(NamedTuple):
  """Of one candidate: those of a program call by the candidates that it evaluates side by side.

  Attributes:
    merge, evaluation: bounds of the roofline.
    collectives: bytes over links; not overlapped with computation.
  """

  merge: float
  evaluation: float
  collectives: float

  @property
  def total(self) -> float:
    """All of it."""
    return self.merge + self.evaluation + self.collectives


def memory(job: Job, built: Built) -> Memory:
  """What the fullest device holds; activations by formula."""
  mesh = built.layout.mesh
  model = max(per_device(built.leaves, built.layout.shardings).values())
  side = max(job.batch // mesh.shape["candidate"], 1)
  parts = sharding.row_count(mesh)
  rows = sum(array.nbytes // parts for array in jax.tree.leaves(built.batches.buckets))
  if built.generation is not None:
    texts = built.generation.data
    rows += sum(array.nbytes // parts for array in jax.tree.leaves(texts.prompts))
    rows += texts.order.nbytes + texts.moves.nbytes
  numbers = 4 * (job.checkpoints * side + len(jax.tree.leaves(methods.METHODS[job.method].operator())))
  data = rows + built.batches.order.nbytes + numbers
  activations = max(_activations(job, bucket, mesh) for bucket in built.batches.buckets)
  for prompts, most in _texts(built):
    _, height, stem = prompts.tokens.shape
    bucket = Bucket(prompts.tokens, prompts.starts[..., None], prompts.tokens, prompts.tokens)
    cache = _cache(job, height // parts, stem + most) // mesh.shape["tensor"]
    activations = max(activations, cache + _activations(job, bucket, mesh))
  at_once = 1 if job.in_turn else side
  return Memory(job.resident * model, data, side * model, at_once * activations + _gathered(job, mesh))


def _activations(job: Job, bucket: Bucket, mesh: Mesh) -> int:
  """Of one pass: the residual stream three times, and the largest of attention, feed-forward and logits."""
  c, wide = job.model.config, jnp.dtype(job.evals.dtype).itemsize
  _, height, length = bucket.tokens.shape
  rows, tensor = height // sharding.row_count(mesh), mesh.shape["tensor"]
  asked = bucket.positions.shape[-1]
  stream = rows * length * c.hidden_size * wide
  heads = rows * length * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim * wide
  stem, tail = _columns(bucket)
  scores = 2 * rows * c.num_heads * max(stem * stem, tail * length) * 4  # float32, where not fused
  forward = 3 * rows * length * c.intermediate_size * wide
  logits = 3 * rows * asked * c.vocab_size * 4
  pairs = rows * length * getattr(c, "experts_per_token", 0)  # of a token and an expert: see `mixture`
  routed = pairs * c.hidden_size * (3 * wide // 2 + 4)
  return 3 * stream + max(max(heads + scores, forward, logits) // tensor, routed + _stacked(job, mesh))


def _stacked(job: Job, mesh: Mesh) -> int:
  """A layer's experts beside one another in the type of the computation, as `models.mixture` takes them."""
  sizes: Counter[str] = Counter()
  for name, spec in job.specs.items():
    layer, inside, _ = name.partition(".experts.")
    if inside:
      sizes[layer] += math.prod(spec.shape) * jnp.dtype(job.evals.dtype).itemsize
  return max(sizes.values(), default=0) // mesh.shape["tensor"]


def _gathered(job: Job, mesh: Mesh) -> int:
  """Whole but for `tensor`: a layer twice (one in use, the next on its way), or the embedding."""
  if mesh.shape["fsdp"] == 1:
    return 0
  sizes: Counter[str] = Counter()
  for name, spec in job.specs.items():
    layer = re.match(r"model\.layers\.\d+\.", name)
    sizes[layer[0] if layer else name] += (2 if layer else 1) * nbytes(spec)
  return max(sizes.values()) // mesh.shape["tensor"]


def work(job: Job, built: Built) -> Work:
  """Operations and bytes of one candidate: 2 FLOPs a parameter and token, attention beside them."""
  c = job.model.config
  size, remembered = sum(math.prod(spec.shape) for spec in job.specs.values()), 0
  model = sum(map(nbytes, job.specs.values()))
  flops, passes = 0.0, 0
  for bucket in built.batches.buckets:
    chunks, height, length = bucket.tokens.shape
    asked = bucket.positions.shape[-1]
    rows = chunks * height
    inner = rows * length * (c.num_layers - 1) + rows * asked  # the last layer serves asked positions alone
    flops += 2.0 * _active(job) / c.num_layers * inner
    stem, tail = _columns(bucket)
    pairs = rows * ((stem * stem + tail * length) * (c.num_layers - 1) + asked * length)
    flops += 4.0 * c.num_heads * c.head_dim * pairs
    flops += 2.0 * c.hidden_size * c.vocab_size * rows * asked
    passes += chunks
  for prompts, most in _texts(built):  # a pass for every token, which reads the cache
    chunks, height, stem = prompts.tokens.shape
    rows, time = chunks * height, stem + most
    flops += 2.0 * rows * (_active(job) * time + c.hidden_size * c.vocab_size * most)
    flops += 4.0 * c.num_heads * c.head_dim * c.num_layers * rows * (stem * stem + most * time)
    passes += chunks * most
    remembered += chunks * most * _cache(job, height, time)
  read = float(model * passes + remembered)
  return Work(2.0 * job.resident * size, (job.resident + 2.0) * model, flops, read, passes)


def _texts(built: Built) -> list[tuple[Prompts, int]]:
  """Prompts of generated texts, and the most tokens that follow them."""
  if built.generation is None:
    return []
  return list(zip(built.generation.data.prompts, built.generation.most, strict=True))


def _cache(job: Job, rows: int, time: int) -> int:
  """Bytes of the keys and values of all layers."""
  c, wide = job.model.config, jnp.dtype(job.evals.dtype).itemsize
  return 2 * rows * time * c.num_layers * c.num_kv_heads * c.head_dim * wide


def _columns(bucket: Bucket) -> tuple[int, int]:
  """Those that see each other, and those of branches, which see all."""
  tail = 0 if bucket.branches is None else bucket.branches.places.shape[-1]
  return bucket.tokens.shape[-1] - tail, tail


def _active(job: Job) -> float:
  """Parameters of all layers' matrices that one token is multiplied by; of experts, those it is routed to."""
  config = job.model.config
  experts, chosen = max(getattr(config, "experts", ()), default=0), getattr(config, "experts_per_token", 0)
  total = 0.0
  for name, spec in job.specs.items():
    if name.startswith("model.layers.") and len(spec.shape) == 2:
      share = chosen / experts if experts and ".experts." in name else 1.0
      total += math.prod(spec.shape) * share
  return total


def seconds(job: Job, built: Built, done: Work, moved: float, device: Device) -> Seconds:
  """Seconds of one candidate.

  Args:
    job, built, done: see `work`.
    moved: bytes that collectives leave on one device in one program call, compiled for CPUs.
    device: of the mesh.
  """
  mesh = built.layout.mesh
  side = mesh.shape["candidate"]
  merge = max(done.merge_bytes / mesh.size / device.bandwidth, done.merge_flops / mesh.size / device.flops)
  # Rows are divided over data and fsdp, so that each of these devices reads the parameters whole.
  read = done.evaluation_bytes / (side * mesh.shape["tensor"]) / device.bandwidth
  rate = device.rate(job.evals.dtype)
  evaluation = max(done.evaluation_flops / mesh.size / (device.efficiency * rate), read)
  link = device.link if mesh.size // side <= device.per_host else device.network
  if job.evals.dtype != "float32":
    moved /= 2  # XLA's CPU compiler computes in float32, and gathers what it computes with
  collectives = moved / link / built.objective.batch
  return Seconds(merge, evaluation, collectives)
