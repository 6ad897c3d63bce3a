"""Gemma in Flax NNX: norms by `1 + weight`, before and (from Gemma 2 on) after each branch of a layer."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from merge_jax.models.config import DecoderConfig
from merge_jax.models.decoder import Decoder, Draw, Layer, Place, along_last, take
from merge_jax.models.gemma import GemmaConfig


class GemmaNorm(nnx.Module):
  """Root mean square norm times `1 + weight`, in float32."""

  def __init__(self, size: int, eps: float, draw: Draw):
    self.weight = nnx.Param(draw((size,)))
    self.eps = eps

  def __call__(self, x: Array) -> Array:
    f = x.astype(jnp.float32)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + self.eps)
    return ((1.0 + along_last(self.weight, f)) * f).astype(x.dtype)


class GemmaLayer(Layer):
  norm = GemmaNorm


class Gemma2Layer(GemmaLayer):
  """What a branch gives is normed, too, before it is added."""

  def __init__(self, config: DecoderConfig, draw: Draw, index: int):
    super().__init__(config, draw, index)
    self.pre_feedforward_layernorm = GemmaNorm(config.hidden_size, config.norm_eps, draw)
    self.post_feedforward_layernorm = GemmaNorm(config.hidden_size, config.norm_eps, draw)

  def __call__(self, x: Array, positions: Array | None, place: Place) -> Array:
    normed = self.input_layernorm(x)
    queries, x = take(normed, positions), take(x, positions)
    x = x + self.post_attention_layernorm(self.self_attn(normed, queries, positions, place))
    return x + self.post_feedforward_layernorm(self.fed(self.pre_feedforward_layernorm(x)))


class GemmaDecoder(Decoder):
  layer: type[Layer] = GemmaLayer

  def embed(self, tokens: Array, dtype: Any) -> Array:
    return super().embed(tokens, dtype) * jnp.asarray(self.config.hidden_size**0.5, dtype)

  def head(self, x: Array) -> Array:
    logits, cap = super().head(x), cast(GemmaConfig, self.config).logit_cap
    return logits if cap is None else cap * jnp.tanh(logits / cap)


class Gemma2Decoder(GemmaDecoder):
  layer = Gemma2Layer
