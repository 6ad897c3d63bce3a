"""Merges of a pool that the devices do not hold, a tensor at a time: from host memory, or from its files."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from merge_jax import checkpoints
from merge_jax import operators as mj
from merge_jax.checkpoints import Checkpoint
from merge_jax.checkpoints.placement import Stacks
from merge_jax.recycle import methods
from merge_jax.sharding import Layout

Shardings = Mapping[str, NamedSharding]
Read = Callable[[str], Any]
"""A model outside the devices: gives a tensor of it on the devices."""


def on_disk(checkpoint: Checkpoint, shardings: Shardings) -> Read:
  """Its files, read again for every merge."""

  def read(name: str) -> Any:
    value = checkpoint.load_some({name: shardings[name]})[name]
    checkpoint.release(name)
    return value

  return read


def on_host(checkpoint: Checkpoint, shardings: Shardings, verify: bool) -> Read:
  """Its shards in pinned memory of the hosts whose devices will use them."""
  kept = {name: one.with_memory_kind("pinned_host") for name, one in shardings.items()}
  params = checkpoints.place(checkpoint, kept, verify=verify)

  def read(name: str) -> Any:
    value = params[name]
    return jax.device_put(value, shardings[name]) if isinstance(value, jax.Array) else value

  return read


class Window:
  """What `Merge` is for a pool on the devices.

  Args:
    make: from numbers to a rule without statistics of whole models, which would need several passes over
      the pool.
    experts: the pool, by name.
    base: its ancestor; None: the mean of the pool, where the operator needs one.
    specs: shape and dtype of every tensor, as the files have them.
    layout: where the leaves of a merge lie.
    stacks: leaves that are stacks of tensors.
    patterns: of the rows of weights, where a point has several.
    seed: of random rules.

  Raises:
    ValueError: an operator that surveys whole models.
  """

  def __init__(
    self,
    make: Callable[..., mj.Operator],
    experts: Mapping[str, Read],
    base: Read | None,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    layout: Layout,
    stacks: Stacks,
    *,
    patterns: tuple[str, ...] = (),
    seed: int = 0,
  ):
    operator = make()
    if any(getattr(survey, "whole", False) for survey in operator.survey()):
      raise ValueError(
        f"{type(operator).__name__} needs statistics of whole models, so that its pool must be in device "
        "memory: --pool_memory=device, with more devices if it does not fit."
      )
    self._make, self._experts, self._base = make, experts, base
    self._patterns, self._key = patterns, methods.key_of(operator, seed)
    self._specs, self._layout, self._stacks = specs, layout, stacks

  def leaves(self) -> Iterator[tuple[str, mj.Leaf]]:
    """The tensors of all models, one after the other, by name."""
    for name in self._specs:
      base = None if self._base is None else self._base(name)
      yield name, mj.Leaf(tuple(read(name) for read in self._experts.values()), base)

  def at(self, point: Any) -> dict[str, Any]:
    """The merge at a point, laid out."""
    weights = methods.weights_of(np.asarray(point.array, np.float32), self._patterns)
    return dict(self._leaves(self._make(**point.numbers), weights))

  def _leaves(self, operator: mj.Operator, weights: Any) -> Iterator[tuple[str, Any]]:
    stacked = {name for names in self._stacks.values() for name in names}
    for name in self._specs:
      if name not in stacked:
        yield name, self._merged(operator, name, weights)
    for name, parts in self._stacks.items():
      yield name, self._stack(operator, parts, self._layout.shardings[name], weights)

  def _stack(
    self, operator: mj.Operator, parts: Sequence[str], sharding: NamedSharding, weights: Any
  ) -> Array:
    spec = self._specs[parts[0]]
    zeros = functools.partial(jnp.zeros, (len(parts), *spec.shape), spec.dtype)
    whole = jax.jit(zeros, out_shardings=sharding)()
    for i, name in enumerate(parts):
      whole = _put(whole, self._merged(operator, name, weights), np.int32(i))
    return whole

  def _merged(self, operator: mj.Operator, name: str, weights: Any) -> Any:
    experts = {label: {name: read(name)} for label, read in self._experts.items()}
    base = None
    if operator.needs_base:
      own = self._base
      base = mj.merge(mj.uniform(), experts) if own is None else {name: own(name)}
    return mj.merge(operator, experts, weights, base=base, key=self._key)[name]


def of_tensors(specs: Mapping[str, jax.ShapeDtypeStruct], layout: Layout, stacks: Stacks) -> Shardings:
  """Where each tensor of a file lies: one that goes into a stack as the other axes of that."""
  whole = {part: layout.shardings[name] for name, parts in stacks.items() for part in parts}
  slices = {part: NamedSharding(one.mesh, PartitionSpec(*one.spec[1:])) for part, one in whole.items()}
  return {name: slices.get(name) or layout.shardings[name] for name in specs}


@functools.partial(jax.jit, donate_argnums=0)
def _put(whole: Array, part: Array, index: Array) -> Array:
  return jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)
