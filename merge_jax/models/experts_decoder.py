"""Mixtures of experts in Flax NNX: every token takes the sum of a few feed-forwards, by shares of a gate."""

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from merge_jax import sharding
from merge_jax.models.config import DecoderConfig
from merge_jax.models.decoder import MLP, Decoder, Draw, Layer, Linear
from merge_jax.models.experts import ExpertsConfig
from merge_jax.models.mixture import mixture


class Expert(nnx.Module):
  """`down(silu(gate(x)) * up(x))` under the names of a family."""

  names = ("gate_proj", "up_proj", "down_proj")

  def __init__(self, config: ExpertsConfig, draw: Draw):
    inner, outer = config.expert_size, config.hidden_size
    for name, (inputs, outputs) in zip(
      self.names, ((outer, inner), (outer, inner), (inner, outer)), strict=True
    ):
      setattr(self, name, Linear(inputs, outputs, False, config.initializer_range, draw))

  def linears(self) -> list[Linear]:
    return [getattr(self, name) for name in self.names]

  def __call__(self, x: Array) -> Array:
    gate, up, down = self.linears()
    return down(jax.nn.silu(gate(x)) * up(x))


class MixtralExpert(Expert):
  names = ("w1", "w3", "w2")


class Experts(nnx.Module):
  """`Σ share · expert(x)` over the experts whose shares are the largest."""

  expert: type[Expert] = Expert

  def __init__(self, config: ExpertsConfig, draw: Draw, index: int):
    count = config.experts[index]
    self.gate = Linear(config.hidden_size, count, False, config.initializer_range, draw)
    self.experts = nnx.List([self.expert(config, draw) for _ in range(count)])
    self.per_token, self.normalized = config.experts_per_token, config.normalized

  def __call__(self, x: Array) -> Array:
    values, chosen = jax.lax.top_k(jax.nn.softmax(self.gate(x).astype(jnp.float32), axis=-1), self.per_token)
    if self.normalized:
      values = values / jnp.sum(values, axis=-1, keepdims=True)
    if self.experts[0].linears()[0].observe is not None:
      return self.one_by_one(x, chosen, values)
    weights = [
      jnp.stack([linear.weight.get_value().astype(x.dtype) for linear in linears])
      for linears in zip(*(expert.linears() for expert in self.experts), strict=True)
    ]

    def of_rows(x: Array, chosen: Array, values: Array, *weights: Array) -> Array:
      def feed_forward(expert: Array, x: Array) -> Array:
        gate, up, down = (jax.lax.dynamic_index_in_dim(w, expert, keepdims=False) for w in weights)
        return (jax.nn.silu(x @ gate.T) * (x @ up.T)) @ down.T

      tokens, pairs, shares = (y.reshape(-1, y.shape[-1]) for y in (x, chosen, values))
      return mixture(tokens, pairs, shares, len(self.experts), feed_forward).reshape(x.shape)

    return sharding.by_rows(of_rows, (x, chosen, values), weights)

  def one_by_one(self, x: Array, chosen: Array, values: Array) -> Array:
    """The same with every expert on all tokens; those that did not choose it are zeros, for observers."""
    total = jnp.zeros(x.shape, jnp.float32)
    for i, expert in enumerate(self.experts):
      share = jnp.sum(jnp.where(chosen == i, values, 0.0), axis=-1, keepdims=True)
      total = total + share * expert(jnp.where(share > 0, x, 0)).astype(jnp.float32)
    return total.astype(x.dtype)


class MixtralExperts(Experts):
  expert = MixtralExpert


class MixtralLayer(Layer):
  feed_forward = "block_sparse_moe"

  def new_feed_forward(self, config: DecoderConfig, draw: Draw, index: int) -> nnx.Module:
    return MixtralExperts(cast(ExpertsConfig, config), draw, index)


class Qwen3MoeLayer(Layer):
  def new_feed_forward(self, config: DecoderConfig, draw: Draw, index: int) -> nnx.Module:
    c = cast(ExpertsConfig, config)
    return Experts(c, draw, index) if c.experts[index] else MLP(c, draw)


class MixtralDecoder(Decoder):
  layer = MixtralLayer


class Qwen3MoeDecoder(Decoder):
  layer = Qwen3MoeLayer
