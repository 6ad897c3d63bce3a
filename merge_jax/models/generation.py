"""Greedy decoding of a batch of prompts with a cache of keys and values, as one traceable loop."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.models.attention import Tree
from merge_jax.models.decoder import Decoder, Layer, places_of
from merge_jax.sharding import rows

Cache = tuple[Array, Array]
"""Keys and values of all layers, `[batch, layers, time, kv_heads, head_dim]` each."""
Layers = Callable[[Any], Layer]


def generate(
  decoder: Decoder,
  layer: Layers,
  tokens: Array,
  starts: Array,
  states: Array,
  limits: Array,
  moves: Array,
  most: int,
  dtype: Any,
  scan: bool,
) -> Array:
  """The most likely token after each prompt, the most likely one after that, and so on.

  When a text ends is said by an automaton over tokens, so that strings of several tokens end it, too. The
  loop ends with the last text.

  Args:
    decoder: without its layers.
    layer: these by index.
    tokens: int32 `[batch, stem]`, prompts padded on the right.
    starts: int32 `[batch]`, their lengths, 1 or more.
    states: int32 `[batch]`, of the automaton before the first token; -1 for rows that are padding.
    limits: int32 `[batch]`, most tokens of each text, from 1 to `most`.
    moves: int32 `[states, vocabulary]`, the state after a token; -1 where the text ends with it.
    most: most tokens of any text.
    dtype: of the computation and of the cache.
    scan: see `Decoder.__call__`.

  Returns:
    int32 `[batch, most]`, the tokens with the one that ended the text; -1 after it.
  """
  tokens, starts, states, limits, moves = map(jnp.asarray, (tokens, starts, states, limits, moves))
  c, (batch, stem) = decoder.config, tokens.shape
  time = stem + most
  empty = rows(jnp.zeros((batch, c.num_layers, time, c.num_kv_heads, c.head_dim), dtype))
  after = starts[:, None] + jnp.arange(most, dtype=jnp.int32)[None]
  tree = Tree.of(starts, after, jnp.ones((batch, most), jnp.int32), time)
  call = functools.partial(remember, decoder, layer, dtype=dtype, scan=scan)

  def note(t: Any, logits: Array, states: Array, written: Array) -> tuple[Array, Array, Array]:
    token, going = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32), states >= 0
    written = written.at[:, t].set(jnp.where(going, token, -1))
    return token, jnp.where(going & (t + 1 < limits), moves[states, token], -1), written

  def more(carry: Any) -> Array:
    t, (_, states, _), _ = carry
    return (t < most) & jnp.any(states >= 0)

  def step(carry: Any) -> Any:
    t, (token, states, written), cache = carry
    places = starts[:, None] + t - 1
    logits, cache = call(token[:, None], cache, stem + t - 1, places, tree=tree)
    return t + 1, note(t, logits, states, written), cache

  logits, cache = call(
    tokens, (empty, empty), 0, jnp.arange(stem, dtype=jnp.int32)[None], positions=starts[:, None] - 1
  )
  first = note(0, logits, states, jnp.full((batch, most), -1, jnp.int32))
  _, (_, _, written), _ = jax.lax.while_loop(more, step, (jnp.int32(1), first, cache))
  return written


def remember(
  decoder: Decoder,
  layer: Layers,
  tokens: Array,
  cache: Cache,
  column: Any,
  places: Array,
  *,
  positions: Array | None = None,
  tree: Tree | None = None,
  dtype: Any,
  scan: bool,
) -> tuple[Array, Cache]:
  """Logits of the next token, and a cache that holds what later tokens need of these.

  Args:
    decoder, layer, dtype, scan: as `generate`.
    tokens: int32 `[batch, new]`.
    cache: in `dtype`.
    column: where in the cache the tokens belong; may be traced.
    places: int32 `[batch or 1, new]`, the position of each token.
    positions: int32 `[batch, queries]`, columns whose logits are wanted; None for all.
    tree: of the cache's columns, which the tokens then see; None: they are a prompt, and see each other.
  """
  at = None if tree is None else jnp.broadcast_to(jnp.asarray(column, jnp.int32), tokens.shape)
  # The longest prompt and the longest answer need not be of one row, and no row exceeds the model's length.
  place = places_of(decoder.config, cache[0].shape[2], places, tree, decoder.config.max_positions)

  def step(x: Array, cache: Cache, i: Any, asked: Array | None = None) -> Any:
    def recall(k: Array, v: Array, of: Array | None) -> tuple[Array, Array, Array | None]:
      nonlocal cache
      where = [jnp.asarray(n, jnp.int32) for n in (0, i, column, 0, 0)]
      keys, values = (
        jax.lax.dynamic_update_slice(old, new[:, None].astype(old.dtype), where)
        for old, new in zip(cache, (k, v), strict=True)
      )
      cache = keys, values
      if at is None:
        return k, v, of
      keys, values = (jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False) for x in cache)
      return keys, values, at

    x = layer(i)(x, asked, place(i)._replace(recall=recall))
    return rows(x), cache

  x, last = rows(decoder.embed(tokens, dtype)), decoder.config.num_layers - 1
  if scan:
    (x, cache), _ = jax.lax.scan(lambda carry, i: (step(*carry, i), None), (x, cache), jnp.arange(last))
  else:
    for i in range(last):
      x, cache = step(x, cache, i)
  x, cache = step(x, cache, last, positions)
  return decoder.head(decoder.model.norm(x)), cache
