"""How tensors lie on a mesh. Where its axes are Explicit, types say it; where they are Auto, XLA decides.

Operators ask here, and nowhere else, where shards matter to them: what does not shard (factorisations, sorts)
takes a tensor whole, and its result goes back to where the tensor was. Elsewhere all of this is free.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def on_mesh(x: Array) -> bool:
  """Whether an array lies on a mesh."""
  return _sharding(x) is not None


def explicit(x: Array) -> NamedSharding | None:
  """The sharding of an array on a mesh whose axes are all Explicit, or None."""
  sharding = _sharding(x)
  return sharding if sharding is not None and sharding.mesh.are_all_axes_explicit else None


def whole(x: Array) -> Array:
  """The tensor on every device of an Explicit mesh; else as it is, and XLA gathers it where it must."""
  sharding = explicit(x)
  return x if sharding is None else jax.sharding.reshard(x, NamedSharding(sharding.mesh, P()))


def whole_rows(x: Array) -> Array:
  """The same of rows alone: the last axis is not split any more."""
  sharding = explicit(x)
  if sharding is None:
    return x
  spec = (*sharding.spec, *[None] * x.ndim)[: x.ndim - 1]
  return jax.sharding.reshard(x, NamedSharding(sharding.mesh, P(*spec, None)))


def as_sharded(x: Array, like: Array, axes: Sequence[int] | None = None) -> Array:
  """Undoes `whole`: a tensor split as another one is, or along some of its axes alone."""
  sharding = explicit(like)
  if sharding is None:
    return x
  spec = [one if axes is None or axis in axes else None for axis, one in enumerate(sharding.spec)]
  return jax.sharding.reshard(x, NamedSharding(sharding.mesh, P(*spec)))


def alike(tree: Any) -> Any:
  """Arrays of one shape laid out as the first of them whose type says how, also those of the host."""
  leaves = jax.tree.leaves(tree)
  placed = (x for x in leaves if x.shape == leaves[0].shape and explicit(x) is not None)
  first = next(placed, leaves[0])
  spec = explicit(first)

  def moved(x: Any) -> Any:
    if spec is None or x.shape != first.shape:
      return x
    own = explicit(x)
    if own is None and not any(isinstance(one, jax.core.Tracer) for one in (x, first)):
      return jax.device_put(x, first.sharding) if first.is_fully_addressable else x
    return x if own is not None and own.spec == spec.spec else as_sharded(x, first)

  return jax.tree.map(moved, tree)


def shards(x: Array) -> tuple[int, ...]:
  """Into how many shards each axis is split, as far as types say."""
  sharding = explicit(x)
  if sharding is None:
    return (1,) * x.ndim
  return tuple(
    size // max(part, 1) for size, part in zip(x.shape, sharding.shard_shape(x.shape), strict=True)
  )


def block(x: Array, largest: int, axis: int = -1) -> int:
  """The largest power of two up to `largest` (at most 64) such that blocks of it fill each shard's axis.

  A block on two devices would have XLA send the tensor around. On an Auto mesh, whose types do not say how
  tensors are split, each axis counts as split over all devices.

  >>> block(jax.numpy.zeros((3, 48)), 64), block(jax.numpy.zeros((3, 5)), 64)
  (16, 1)
  """
  if not x.ndim:
    return 1
  size, sharding = x.shape[axis], _sharding(x)
  count = shards(x)[axis] if sharding is None or explicit(x) is not None else sharding.mesh.size
  return next((b for b in (64, 32, 16, 8, 4, 2) if b <= largest and size % (b * count) == 0), 1)


def over_shards(mapped: Callable, x: Array, axis: int, alike: bool) -> Callable:
  """A function that is mapped over one axis of arrays like x, also where that axis is split over a mesh.

  Few batching rules of JAX know of Explicit axes that what is mapped is split over: inside they are Auto.

  Args:
    mapped: a function whose results have the mapped axis in front.
    x, axis: one of the arrays, and which of its axes is mapped.
    alike: whether the results are laid out as x, the mapped axis in front; or along that axis alone.
  """
  sharding = explicit(x)
  spec = [] if sharding is None else [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]
  if sharding is None or spec[axis] is None:
    return mapped
  along = spec.pop(axis)
  out = NamedSharding(sharding.mesh, P(along, *spec) if alike else P(along))
  return jax.sharding.auto_axes(mapped, out_sharding=out)


def varying(tree: Any, *others: Any) -> Any:
  """Arrays said to differ between devices of a `shard_map` as others do: loops must begin with such."""
  types = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves((tree, others))]
  axes = frozenset().union(*types)

  def cast(x: Array) -> Array:
    more = axes - jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(more), to="varying") if more else x

  return jax.tree.map(cast, tree) if axes else tree


def _sharding(x: Array) -> NamedSharding | None:
  """The sharding in an array's type, or None where there is no mesh."""
  sharding = getattr(jax.typeof(x), "sharding", None)
  return None if sharding is None or sharding.mesh.empty else sharding
