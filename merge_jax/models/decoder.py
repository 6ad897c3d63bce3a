"""A decoder in Flax NNX, its parameters named as the Hugging Face tensors are.

Computes Llama 2/3, Mistral, Qwen2, Qwen3 and SmolLM: grouped queries, rotary positions, tied or untied
embeddings, biases, query/key norms, sliding windows. Other families subclass `Layer` and `Decoder`.
Attribute names are tensor names and every weight is `[out, in]`, so that loading is a dict in, without a
conversion table.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from merge_jax.models import rope
from merge_jax.models.attention import Tree, attend
from merge_jax.models.config import DecoderConfig
from merge_jax.sharding import rows

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Draw(Protocol):
  """Makes the first value of a parameter, or its shape alone: normal of a deviation around a mean."""

  def __call__(self, shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Any: ...


class Linear(nnx.Module):
  """`y = x Wᵀ + b` with `weight [out, in]`.

  Attributes:
    observe: called with every input, where somebody wants to see them.
  """

  observe: Callable[[Array], None] | None = None

  def __init__(self, inputs: int, outputs: int, bias: bool, std: float, draw: Draw):
    self.weight = nnx.Param(draw((outputs, inputs), std))
    if bias:
      self.bias = nnx.Param(draw((outputs,)))

  def __call__(self, x: Array, dtype: Any = None) -> Array:
    if self.observe is not None:
      self.observe(x)
    weight = self.weight.get_value().astype(x.dtype)
    y = jnp.einsum("...i,oi->...o", x, weight, preferred_element_type=dtype)
    return y + along_last(self.bias, y) if hasattr(self, "bias") else y


class RMSNorm(nnx.Module):
  """Root mean square norm over the last axis, in float32."""

  def __init__(self, size: int, eps: float, draw: Draw):
    self.weight = nnx.Param(draw((size,), mean=1.0))
    self.eps = eps

  def __call__(self, x: Array) -> Array:
    f = x.astype(jnp.float32)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + self.eps)
    return along_last(self.weight, x) * f.astype(x.dtype)


class Embedding(nnx.Module):
  def __init__(self, count: int, size: int, std: float, draw: Draw):
    self.weight = nnx.Param(draw((count, size), std))


class Place(NamedTuple):
  """What differs between layers of the same tensors; numbers, so that one program serves all of them.

  Attributes:
    window: how many positions are looked back over; None for all.
    cos: `[batch or 1, time, head_dim / 2]`.
    sin: the same.
    tree: of rows with branches.
    recall: `(keys, values, columns of the queries) -> the same` of all that is seen, where there is a cache.
  """

  window: int | Array | None
  cos: Array
  sin: Array
  tree: Tree | None = None
  recall: Callable[[Array, Array, Array | None], tuple[Array, Array, Array | None]] | None = None


class Attention(nnx.Module):
  """Causal attention with grouped queries."""

  def __init__(self, config: DecoderConfig, draw: Draw, norm: Callable[[int], nnx.Module]):
    """norm: of queries or keys of so many heads, if they are normed."""
    c, std = config, config.initializer_range
    self.q_proj = Linear(c.hidden_size, c.num_heads * c.head_dim, c.qkv_bias, std, draw)
    self.k_proj = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, c.qkv_bias, std, draw)
    self.v_proj = Linear(c.hidden_size, c.num_kv_heads * c.head_dim, c.qkv_bias, std, draw)
    self.o_proj = Linear(c.num_heads * c.head_dim, c.hidden_size, c.output_bias, std, draw)
    if c.qk_norm:
      self.q_norm, self.k_norm = norm(c.num_heads), norm(c.num_kv_heads)
    self.config = config

  def __call__(self, x: Array, queries: Array, positions: Array | None, place: Place) -> Array:
    """x `[batch, time, hidden]`, queries `[batch, queries, hidden]` at `positions`, None for all."""

    c = self.config

    def heads(y: Array) -> Array:
      return rows(y).reshape(*y.shape[:-1], -1, c.head_dim)

    q, k, v = heads(self.q_proj(queries)), heads(self.k_proj(x)), heads(self.v_proj(x))
    if hasattr(self, "q_norm"):
      q, k = self.q_norm(q), self.k_norm(k)
    k = rope.rotate(k, place.cos, place.sin, c.rope_interleaved)
    q = rope.rotate(q, take(place.cos, positions), take(place.sin, positions), c.rope_interleaved)
    at = positions
    if place.recall is not None:
      k, v, at = place.recall(k, v, at)
    out = attend(q, k, v, at, place.window, c.attention_scale, c.attention_cap, c.attention, place.tree)
    return self.o_proj(out.reshape(*out.shape[:-2], -1))


class MLP(nnx.Module):
  """`down(activation(gate(x)) * up(x))`."""

  def __init__(self, config: DecoderConfig, draw: Draw):
    c, std = config, config.initializer_range
    self.gate_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, std, draw)
    self.up_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, std, draw)
    self.down_proj = Linear(c.intermediate_size, c.hidden_size, c.mlp_bias, std, draw)
    self.activation = c.activation

  def __call__(self, x: Array) -> Array:
    return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
  """Attention, then feed-forward, each added to what it got the norm of.

  Attributes:
    norm: the class of all norms, made from size, epsilon and `Draw`.
    feed_forward: its name in tensors.
  """

  feed_forward = "mlp"

  norm: Callable[[int, float, Draw], nnx.Module] = RMSNorm

  def __init__(self, config: DecoderConfig, draw: Draw, index: int):
    def norm(size: int) -> nnx.Module:
      return type(self).norm(size, config.norm_eps, draw)

    self.self_attn = Attention(config, draw, lambda heads: norm(config.head_dim))
    setattr(self, self.feed_forward, self.new_feed_forward(config, draw, index))
    self.input_layernorm = norm(config.hidden_size)
    self.post_attention_layernorm = norm(config.hidden_size)

  def new_feed_forward(self, config: DecoderConfig, draw: Draw, index: int) -> nnx.Module:
    return MLP(config, draw)

  def __call__(self, x: Array, positions: Array | None, place: Place) -> Array:
    """Outputs at the positions `[batch, queries]` alone, or at all."""
    normed = self.input_layernorm(x)
    queries, x = take(normed, positions), take(x, positions)
    x = x + self.self_attn(normed, queries, positions, place)
    return x + self.fed(self.post_attention_layernorm(x))

  def fed(self, x: Array) -> Array:
    """What the feed-forward makes of it."""
    return getattr(self, self.feed_forward)(x)


class Stack(nnx.Module):
  """Embedding, layers and final norm: `model.*` of the tensor names."""

  def __init__(self, config: DecoderConfig, draw: Draw, layer: type[Layer]):
    self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, config.initializer_range, draw)
    self.layers = nnx.List([layer(config, draw, i) for i in range(config.num_layers)])
    self.norm = layer.norm(config.hidden_size, config.norm_eps, draw)


class Decoder(nnx.Module):
  """A causal language model; see `merge_jax.models.build` for its functional form.

  Attributes:
    layer: the class of the layers.
  """

  layer: type[Layer] = Layer

  def __init__(self, config: DecoderConfig, draw: Draw):
    self.model = Stack(config, draw, self.layer)
    if not config.tie_embeddings:
      self.lm_head = Linear(config.hidden_size, config.vocab_size, False, config.initializer_range, draw)
    self.config = config

  def embed(self, tokens: Array, dtype: Any) -> Array:
    """What the first layer gets: `[batch, time, hidden]`."""
    return self.model.embed_tokens.weight.get_value()[tokens].astype(dtype)

  def head(self, x: Array) -> Array:
    """Logits of what the final norm gives, float32: rounded to bfloat16 many of them would be equal."""
    if self.config.tie_embeddings:
      embedding = self.model.embed_tokens.weight.get_value().astype(x.dtype)
      return jnp.einsum("bth,vh->btv", x, embedding, preferred_element_type=jnp.float32)
    return self.lm_head(x, jnp.float32)

  def __call__(
    self,
    tokens: Array,
    layer: Callable[[Any], Layer],
    positions: Array | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    branches: tuple[Array, Array, Array] | None = None,
    scan: bool = False,
  ) -> Array:
    """Logits of the next token.

    Args:
      tokens: `[batch, time]`, int32, padded on the right (causal attention never looks there).
      layer: the layers by index.
      positions: `[batch, queries]`, int32, columns whose logits are wanted; None for all. The last
        layer's queries, its feed-forward and the head are computed for these alone.
      dtype: of the computation; norms, rotations and logits stay float32.
      remat: keep the inputs of layers for gradients, and compute the rest again.
      branches: of rows whose last columns are branches: `Tree.of`'s lengths of prompts, places and numbers.
        Not for rotations that depend on the length of a row (`rope.Dynamic`).
      scan: run all layers but the last in one scan, where `layer` takes a traced index.

    Returns:
      float32 `[batch, queries or time, vocabulary]`.
    """
    tree = None if branches is None else Tree.of(*branches, tokens.shape[1])
    places = None if tree is None else tree.places
    place, last = places_of(self.config, tokens.shape[1], places, tree), self.config.num_layers - 1

    def step(x: Array, i: Any) -> Array:
      def run(x: Array) -> Array:
        return rows(layer(i)(x, None, place(i)))

      return jax.checkpoint(run)(x) if remat else run(x)

    x = rows(self.embed(tokens, dtype))
    if scan:
      x, _ = jax.lax.scan(lambda x, i: (step(x, i), None), x, jnp.arange(last))
    else:
      for i in range(last):
        x = step(x, i)
    return self.head(self.model.norm(rows(layer(last)(x, positions, place(last)))))


def places_of(
  config: DecoderConfig, length: int, places: Array | None, tree: Tree | None, longest: int | None = None
) -> Callable[[Any], Place]:
  """The place of a layer by its index, which may be traced, of tokens at these positions or at all.

  `longest` is of the sequences, where some of the `length` columns are padding in all of them.
  """

  def tables(one: rope.Rope) -> tuple[Array, Array]:
    cos, sin = rope.tables(one, config.head_dim, length, longest)
    return (cos[None], sin[None]) if places is None else (cos[places], sin[places])

  windows, usual = config.windows, tables(config.rope)
  local = usual if config.local_rope is None else tables(config.local_rope)

  def place(i: Any) -> Place:
    if isinstance(i, int) or len(set(windows)) == 1:
      window = windows[i if isinstance(i, int) else 0]
      return Place(window, *(usual if window is None else local), tree)
    slides = jnp.array([window is not None for window in windows])[i]
    reach = jnp.array([length if window is None else window for window in windows])[i]
    cos, sin = (jnp.where(slides, a, b) for a, b in zip(local, usual, strict=True))
    return Place(reach, cos, sin, tree)

  return place


def along_last(vector: nnx.Param, x: Array) -> Array:
  """A vector as x has its last axis (or an array as x has its last ones), in x's dtype."""
  value = vector.get_value()
  return jnp.expand_dims(value.astype(x.dtype), range(x.ndim - value.ndim))


def take(x: Array, positions: Array | None) -> Array:
  """x `[batch, time, hidden]` at positions `[batch, queries]`, or at all."""
  return x if positions is None else rows(jnp.take_along_axis(x, positions[:, :, None], axis=1))
