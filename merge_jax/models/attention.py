"""Causal attention with grouped queries: cuDNN's fused kernel where it applies, einsums elsewhere."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax import sharding
from merge_jax.errors import unknown

CHOICES = ("auto", "xla", "cudnn")
"""`auto` is cuDNN on a GPU, `cudnn` on any backend, so that programs can be lowered for one; both only where
its kernel computes what is asked. `xla` never is."""


def check(attention: str) -> None:
  """Raises ValueError for what is not in `CHOICES`."""
  if attention not in CHOICES:
    raise ValueError(unknown("attention", attention, CHOICES))


class Tree(NamedTuple):
  """Rows whose last columns are branches behind a prompt: each sees the prompt and itself.

  Attributes:
    stem: how many columns come before the branches.
    places: int32 `[batch, time]`, the position of each token.
    numbers: int32 `[batch, time]`, 0 for a prompt, from 1 for branches, -1 for padding.
  """

  stem: int
  places: Array
  numbers: Array

  @classmethod
  def of(cls, starts: Array, places: Array, numbers: Array, time: int) -> "Tree":
    """From the prompts' lengths `[batch]`, and places and numbers of the branches' columns alone."""
    stem = time - places.shape[1]
    columns = jnp.broadcast_to(jnp.arange(stem, dtype=places.dtype), (len(places), stem))
    prompt = jnp.where(columns < starts[:, None], 0, -1).astype(numbers.dtype)
    return cls(stem, jnp.concatenate([columns, places], 1), jnp.concatenate([prompt, numbers], 1))

  def behind(self, at: Array) -> Array:
    """How far every token is behind those in the columns `at` `[batch, queries]`; negative if unseen."""
    place, number = (jnp.take_along_axis(x, at, axis=1)[:, :, None] for x in (self.places, self.numbers))
    seen = (self.numbers[:, None] == 0) | (self.numbers[:, None] == number)
    return jnp.where(seen, place - self.places[:, None], -1)


def fused(
  attention: str,
  backend: str,
  dtype: Any,
  head_dim: int,
  window: int | Array | None = None,
  cap: float | None = None,
  at: Array | None = None,
) -> bool:
  """Does cuDNN compute it?

  Args:
    attention: one of `CHOICES`.
    backend: the platform of JAX.
    dtype: of queries, keys and values; the kernel takes 16 bits.
    head_dim: it takes multiples of 8 up to 128 on every GPU that has it.
    window: it takes one that is known when the program is made.
    cap: it has none.
    at: it takes queries of all positions.

  >>> fused("auto", "gpu", jnp.bfloat16, 128), fused("auto", "cpu", jnp.bfloat16, 128)
  (True, False)
  """
  asked = attention == "cudnn" or (attention == "auto" and backend == "gpu")
  sixteen = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
  plain = cap is None and at is None and not isinstance(window, Array)
  return asked and sixteen and plain and head_dim % 8 == 0 and head_dim <= 128


def attend(
  q: Array,
  k: Array,
  v: Array,
  at: Array | None = None,
  window: int | Array | None = None,
  scale: float | None = None,
  cap: float | None = None,
  attention: str = "auto",
  tree: Tree | None = None,
) -> Array:
  """`softmax(cap · tanh(scale · qkᵀ / cap)) v` over what is not ahead of a query and inside its window.

  Args:
    q: `[batch, queries, heads, head_dim]`.
    k: `[batch, time, kv_heads, head_dim]`; each is shared by `heads / kv_heads` neighbouring heads.
    v: the same.
    at: the columns of the queries, `[batch, queries]`; None: all of them.
    window: how many positions a query looks back over, itself included; None for all.
    scale: of the products; None for `1 / sqrt(head_dim)`.
    cap: the softmax's arguments stay between minus and plus this (Gemma 2, arXiv 2408.00118).
    attention: one of `CHOICES`.
    tree: of rows with branches; None: a column is a position.

  Returns:
    `[batch, queries, heads, head_dim]`; the softmax is taken in float32.
  """
  batch, queries, _, size = q.shape
  if tree is not None and at is None:  # prompts are plain rows, for which there are fused kernels
    stem = tree.stem
    tails = jnp.broadcast_to(jnp.arange(stem, queries), (batch, queries - stem))
    parts = (
      attend(q[:, :stem], k[:, :stem], v[:, :stem], None, window, scale, cap, attention),
      attend(q[:, stem:], k, v, tails, window, scale, cap, attention, tree),
    )
    return jnp.concatenate(parts, axis=1)
  scale = size**-0.5 if scale is None else scale
  if fused(attention, jax.default_backend(), q.dtype, size, window, cap, at):
    back, odd = None if window is None else (int(window) - 1, 0), queries % 2
    # JAX takes the kernel's empty bias for one, and refuses gradients of odd lengths; none sees the end.
    padded = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    q, k, v = (sharding.heads(x, k.shape[2]) for x in padded)
    attended = jax.nn.dot_product_attention(
      q, k, v, scale=scale, is_causal=True, local_window_size=back, implementation="cudnn"
    )
    attended = sharding.heads(attended, k.shape[2])
    return attended[:, :queries]
  grouped = q.reshape(batch, queries, k.shape[2], -1, size)
  logits = scale * jnp.einsum("bqkgd,btkd->bkgqt", grouped, k, preferred_element_type=jnp.float32)
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  at = jnp.arange(queries)[None] if at is None else at
  behind = at[:, :, None] - jnp.arange(k.shape[1])[None, None] if tree is None else tree.behind(at)
  mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
  shares = jax.nn.softmax(logits, where=mask[:, None, None], axis=-1).astype(v.dtype)
  return jnp.einsum("bkgqt,btkd->bqkgd", shares, v).reshape(q.shape)
