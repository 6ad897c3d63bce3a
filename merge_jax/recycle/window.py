"""Merges of a pool that the devices do not hold, a tensor at a time: from host memory, or from its files."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from merge_jax import checkpoints
from merge_jax import operators as mj
from merge_jax.checkpoints import Checkpoint
from merge_jax.checkpoints.placement import Stacks
from merge_jax.sharding import Layout


class Held(Protocol):
  """A model outside the devices."""

  def read(self, name: str, sharding: NamedSharding) -> Any:
    """A tensor on the devices."""
    ...


class OnDisk:
  """Its files, read again for every merge."""

  def __init__(self, checkpoint: Checkpoint):
    self._checkpoint = checkpoint

  def read(self, name: str, sharding: NamedSharding) -> Any:
    """A tensor on the devices."""
    value = self._checkpoint.load_some({name: sharding})[name]
    self._checkpoint.release(name)
    return value


class OnHost:
  """Its shards in pinned memory of the hosts whose devices will use them."""

  def __init__(self, checkpoint: Checkpoint, shardings: Mapping[str, NamedSharding], verify: bool):
    kept = {name: one.with_memory_kind("pinned_host") for name, one in shardings.items()}
    self._params = checkpoints.place(checkpoint, kept, verify=verify)

  def read(self, name: str, sharding: NamedSharding) -> Any:
    """A tensor on the devices."""
    value = self._params[name]
    return jax.device_put(value, sharding) if isinstance(value, jax.Array) else value


class Window:
  """What `Merge` is for a pool on the devices.

  Args:
    operator: without statistics of whole models, which would need several passes over the pool.
    experts: the pool.
    base: its ancestor; None: the mean of the pool, where the operator needs one.
    specs: shape and dtype of every tensor, as the files have them.
    layout: where the leaves of a merge lie.
    stacks: leaves that are stacks of tensors.

  Raises:
    ValueError: an operator that surveys whole models.
  """

  def __init__(
    self,
    operator: mj.Operator,
    experts: Sequence[Held],
    base: Held | None,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    layout: Layout,
    stacks: Stacks,
  ):
    if any(getattr(survey, "whole", False) for survey in operator.survey()):
      raise ValueError(
        f"{type(operator).__name__} needs statistics of whole models, so that its pool must be in device "
        "memory: --pool_memory=device, with more devices if it does not fit."
      )
    self._operator, self._experts, self._base = operator, experts, base
    self._specs, self._layout, self._stacks = specs, layout, stacks

  def leaves(self) -> Iterator[mj.Leaf]:
    """The tensors of all models, one after the other."""
    slices = {
      part: slice_of(self._layout.shardings[name]) for name, parts in self._stacks.items() for part in parts
    }
    for name in self._specs:
      sharding = slices.get(name) or self._layout.shardings[name]
      base = None if self._base is None else self._base.read(name, sharding)
      yield mj.Leaf(tuple(model.read(name, sharding) for model in self._experts), base)

  def at(self, point: Any) -> dict[str, Any]:
    """The merge at a point, laid out."""
    return dict(self._leaves(np.asarray(point.array, np.float32)))

  def _leaves(self, weights: np.ndarray) -> Iterator[tuple[str, Any]]:
    stacked = {name for names in self._stacks.values() for name in names}
    for name in self._specs:
      if name not in stacked:
        yield name, self._merged(name, self._layout.shardings[name], weights)
    for name, parts in self._stacks.items():
      yield name, self._stack(parts, self._layout.shardings[name], weights)

  def _stack(self, parts: Sequence[str], sharding: NamedSharding, weights: np.ndarray) -> Array:
    own, spec = slice_of(sharding), self._specs[parts[0]]
    zeros = functools.partial(jnp.zeros, (len(parts), *spec.shape), spec.dtype)
    whole = jax.jit(zeros, out_shardings=sharding)()
    for i, name in enumerate(parts):
      whole = _put(whole, self._merged(name, own, weights), np.int32(i))
    return whole

  def _merged(self, name: str, sharding: NamedSharding, weights: np.ndarray) -> Any:
    experts = [{name: model.read(name, sharding)} for model in self._experts]
    base = None
    if self._operator.needs_base:
      own = self._base
      base = mj.merge(mj.uniform(), experts) if own is None else {name: own.read(name, sharding)}
    return mj.merge(self._operator, experts, weights, base=base)[name]


def slice_of(sharding: NamedSharding) -> NamedSharding:
  """Where a slice of a stack lies, if the stack lies as `sharding` says."""
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@functools.partial(jax.jit, donate_argnums=0)
def _put(whole: Array, part: Array, index: Array) -> Array:
  return jax.lax.dynamic_update_index_in_dim(whole, part, index, 0)
