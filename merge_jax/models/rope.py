"""Rotary position embedding and its scaling variants."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.models.config import DecoderConfig


def frequencies(config: DecoderConfig, length: int) -> tuple[np.ndarray, float]:
  """Inverse frequencies and the factor on cosines and sines, for sequences of `length` positions.

  Args:
    config: rope kinds are "default", "linear", "dynamic" (NTK), "llama3", "yarn".
    length: "dynamic" stretches its base beyond `max_positions`.

  Returns:
    float64 `[head_dim // 2]` and a scalar.

  Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), Llama 3 (arXiv 2407.21783).
  """
  rope, dim = config.rope, config.head_dim
  options = dict(rope.options)
  factor = float(options.get("factor") or 1.0)
  exponents = np.arange(0, dim, 2, dtype=np.float64) / dim
  inverse = rope.theta**-exponents
  if rope.kind == "linear":
    return inverse / factor, 1.0
  if rope.kind == "dynamic":
    known = float(options.get("original_max_position_embeddings") or config.max_positions)
    stretch = factor * max(length, known) / known - (factor - 1)
    return (rope.theta * stretch ** (dim / (dim - 2))) ** -exponents, 1.0
  if rope.kind == "llama3":
    known = float(options.get("original_max_position_embeddings") or config.max_positions)
    low, high = float(options["low_freq_factor"]), float(options["high_freq_factor"])
    turns = known * inverse / (2 * math.pi)  # of each frequency over the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * inverse / factor + smooth * inverse, 1.0
  if rope.kind == "yarn":
    return _yarn(inverse, factor, options, config)
  return inverse, 1.0


def _yarn(
  inverse: np.ndarray, factor: float, options: dict, config: DecoderConfig
) -> tuple[np.ndarray, float]:
  dim, known = config.head_dim, options.get("original_max_position_embeddings")
  known = float(known or config.max_positions)

  def dimension(turns: float) -> float:  # where a frequency turns this often over the context
    return dim * math.log(known / (turns * 2 * math.pi)) / (2 * math.log(config.rope.theta))

  low = dimension(float(options.get("beta_fast") or 32.0))
  high = dimension(float(options.get("beta_slow") or 1.0))
  if options.get("truncate", True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  ramp = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
  scaled = inverse / factor * ramp + inverse * (1 - ramp)

  def attention(scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

  given = options.get("attention_factor")
  if given is None:
    scale, all_dims = options.get("mscale"), options.get("mscale_all_dim")
    given = attention(1.0)
    if scale and all_dims:
      given = attention(float(scale)) / attention(float(all_dims))
  return scaled, float(given)


def tables(config: DecoderConfig, length: int) -> tuple[Array, Array]:
  """Cosines and sines `[length, head_dim // 2]`, float32."""
  inverse, factor = frequencies(config, length)
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * jnp.asarray(inverse, jnp.float32)[None]
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates the two halves of each head: x `[batch, time, heads, size]`, tables `[batch|1, time, size/2]`."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x.dtype)
