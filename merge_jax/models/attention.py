"""Causal attention with grouped queries: cuDNN's fused kernel where it applies, einsums elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.errors import unknown

CHOICES = ("auto", "xla", "cudnn")
"""`auto` is cuDNN on a GPU, `cudnn` on any backend, so that programs can be lowered for one; both only where
its kernel computes what is asked. `xla` never is."""


def check(attention: str) -> None:
  """Raises ValueError for what is not in `CHOICES`."""
  if attention not in CHOICES:
    raise ValueError(unknown("attention", attention, CHOICES))


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
) -> Array:
  """`softmax(cap · tanh(scale · qkᵀ / cap)) v` over what is not ahead of a query and inside its window.

  Args:
    q: `[batch, queries, heads, head_dim]`.
    k: `[batch, time, kv_heads, head_dim]`; each is shared by `heads / kv_heads` neighbouring heads.
    v: the same.
    at: the positions of the queries, `[batch, queries]`; None: all of them.
    window: how many positions a query looks back over, itself included; None for all.
    scale: of the products; None for `1 / sqrt(head_dim)`.
    cap: the softmax's arguments stay between minus and plus this (Gemma 2, arXiv 2408.00118).
    attention: one of `CHOICES`.

  Returns:
    `[batch, queries, heads, head_dim]`; the softmax is taken in float32.
  """
  batch, queries, _, size = q.shape
  scale = size**-0.5 if scale is None else scale
  if fused(attention, jax.default_backend(), q.dtype, size, window, cap, at):
    back = None if window is None else (int(window) - 1, 0)
    return jax.nn.dot_product_attention(
      q, k, v, scale=scale, is_causal=True, local_window_size=back, implementation="cudnn"
    )
  grouped = q.reshape(batch, queries, k.shape[2], -1, size)
  logits = scale * jnp.einsum("bqkgd,btkd->bkgqt", grouped, k, preferred_element_type=jnp.float32)
  if cap is not None:
    logits = cap * jnp.tanh(logits / cap)
  at = jnp.arange(queries)[None] if at is None else at
  behind = at[:, :, None] - jnp.arange(k.shape[1])[None, None]
  mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
  shares = jax.nn.softmax(logits, where=mask[:, None, None], axis=-1).astype(v.dtype)
  return jnp.einsum("bkgqt,btkd->bqkgd", shares, v).reshape(q.shape)
