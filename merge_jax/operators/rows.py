"""Order statistics and ranks within each row of a matrix, by sorting it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import layout
from merge_jax.operators.selection import TOP


def kth_of_rows(keys: Array, k: Array) -> Array:
  """The k-th largest key of each row, `[..., 1]`, by a sort; `TOP - 1` for k = 0."""
  ordered, size = jnp.sort(layout.whole_rows(keys), axis=-1), keys.shape[-1]
  rank = row_count(k)
  found = jax.lax.dynamic_index_in_dim(ordered, jnp.maximum(size - rank, 0), -1)
  return jnp.where(rank == 0, TOP - np.uint32(1), found)


def largest_of_rows(keys: Array, kth: Array, k: Array) -> Array:
  """Which elements are among the k largest of their row, the first among equals; `kth` is `kth_of_rows`."""
  keys = layout.whole_rows(keys)
  above, tied = keys > kth, keys == kth
  need = row_count(k) - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
  return above | (tied & (jnp.cumsum(tied, axis=-1, dtype=jnp.int32) <= need))


def ranks_in_rows(keys: Array) -> Array:
  """Rank of each element in its row from 0, ascending, as float32; equal ones share the mean of theirs."""
  keys = layout.whole_rows(keys)
  ordered = jnp.sort(keys, axis=-1)
  less, not_more = (_insertion(ordered, keys, side) for side in ("left", "right"))
  return (less + not_more - 1).astype(jnp.float32) * 0.5


def _insertion(ordered: Array, keys: Array, side: str) -> Array:
  """Where keys belong in rows in ascending order, by bisection."""
  size = ordered.shape[-1]
  index = jnp.zeros_like(keys, jnp.int32)
  for power in reversed(range(size.bit_length())):
    after = index + (1 << power)
    value = jnp.take_along_axis(ordered, jnp.minimum(after, size) - 1, -1, mode="promise_in_bounds")
    ahead = (value < keys) if side == "left" else (value <= keys)
    index = jnp.where((after <= size) & ahead, after, index)
  return index


def row_count(k: Array) -> Array:
  """A count that is below 2^31, as int32."""
  return k[0].astype(jnp.int32) + (k[1].astype(jnp.int32) << 16)
