"""Feed-forwards that tokens choose: each computes the tokens that chose it, in blocks of known shape."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

LARGEST = 512


def mixture(
  x: Array, chosen: Array, shares: Array, experts: int, feed_forward: Callable[[Array, Array], Array]
) -> Array:
  """`Σⱼ shares[:, j] · feed_forward(chosen[:, j], x)`.

  Pairs of token and expert are sorted by expert and cut into blocks that have one expert each, the last
  block of an expert being padded. There are at most `pairs / block + experts` of them: about 1.5 times the
  work of the pairs themselves with the blocks of `_block`, whatever the gate says, and no token is dropped.

  Args:
    x: `[tokens, hidden]`.
    chosen: int32 `[tokens, k]`, from 0 to `experts - 1`.
    shares: float32 `[tokens, k]`.
    experts: their number.
    feed_forward: `(expert, [block, hidden]) -> [block, hidden]`; the expert's number is traced.

  Returns:
    `[tokens, hidden]` in the type of x, summed in float32.

  Source: dropless mixtures of MegaBlocks (arXiv 2211.15841).
  """
  pairs, k = chosen.size, chosen.shape[1]
  block = _block(pairs, experts)
  order = jnp.argsort(chosen.reshape(-1))
  expert = chosen.reshape(-1)[order]
  counts = jnp.bincount(expert, length=experts)
  blocks = -(-counts // block)
  ends = jnp.cumsum(blocks)
  within = jnp.arange(pairs) - (jnp.cumsum(counts) - counts)[expert]
  slots = ((ends - blocks) * block)[expert] + within
  total = pairs // block + experts
  tokens = jnp.zeros(total * block, order.dtype).at[slots].set(order // k)  # padding reads the first token
  owners = jnp.minimum(jnp.sum(ends[None] <= jnp.arange(total)[:, None], axis=1), experts - 1)
  run = jax.checkpoint(lambda at: feed_forward(at[0], x[at[1]]))  # gradients keep no activations of experts
  outputs = jax.lax.map(run, (owners, tokens.reshape(total, block))).reshape(total * block, -1)
  slot_of_pair = jnp.zeros(pairs, slots.dtype).at[order].set(slots)
  taken = outputs[slot_of_pair].reshape(*chosen.shape, -1).astype(jnp.float32)
  return jnp.sum(shares[..., None] * taken, axis=1).astype(x.dtype)


def _block(pairs: int, experts: int) -> int:
  """A power of two of at most half of what an expert gets, from 8 to `LARGEST`."""
  half = max(8, min(LARGEST, pairs // (2 * experts)))
  return 1 << (half.bit_length() - 1)
