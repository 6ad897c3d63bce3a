"""Command R in Flax NNX: one norm for both branches of a layer, which are added side by side."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from merge_jax.models.cohere import CohereConfig
from merge_jax.models.config import DecoderConfig
from merge_jax.models.decoder import MLP, Attention, Decoder, Draw, Layer, Place, along_last, take


class LayerNorm(nnx.Module):
  """Takes the mean over the last axis away, divides by the deviation, in float32; no bias."""

  def __init__(self, shape: int | tuple[int, ...], eps: float, draw: Draw):
    self.weight = nnx.Param(draw((shape,) if isinstance(shape, int) else shape, mean=1.0))
    self.eps = eps

  def __call__(self, x: Array) -> Array:
    f = x.astype(jnp.float32)
    f = f - jnp.mean(f, axis=-1, keepdims=True)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + self.eps)
    return (along_last(self.weight, f) * f).astype(x.dtype)


class CohereLayer(Layer):
  norm = LayerNorm

  def __init__(self, config: DecoderConfig, draw: Draw, index: int):
    self.self_attn = Attention(
      config, draw, lambda heads: LayerNorm((heads, config.head_dim), config.norm_eps, draw)
    )
    self.mlp = MLP(config, draw)
    self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps, draw)

  def __call__(self, x: Array, positions: Array | None, place: Place) -> Array:
    normed = self.input_layernorm(x)
    queries = take(normed, positions)
    return take(x, positions) + self.self_attn(normed, queries, positions, place) + self.mlp(queries)


class CohereDecoder(Decoder):
  layer = CohereLayer

  def head(self, x: Array) -> Array:
    return super().head(x) * cast(CohereConfig, self.config).logit_scale
