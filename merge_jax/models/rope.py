"""Rotary position embedding: a row of `KINDS` for each way to scale it.

Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), Llama 3 (arXiv 2407.21783).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import msgspec
import numpy as np
from jax import Array
from msgspec import Meta

from merge_jax.decoding import convert
from merge_jax.errors import shown, unknown

Theta = Annotated[float, Meta(gt=1, le=1e12)]
Length = Annotated[int, Meta(ge=1, lt=2**31)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]


class Rope(
  msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="rope_type", tag="default"
):
  """Unscaled; the fields of a kind are the options that `config.json` may give it.

  >>> Rope(rope_theta=100.0).frequencies(dim=4, length=8)
  (array([1. , 0.1]), 1.0)
  """

  rope_theta: Theta = 10_000.0

  def inverse(self, dim: int) -> np.ndarray:
    return self.rope_theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)

  def frequencies(self, dim: int, length: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies and the factor on cosines and sines.

    Args:
      dim: size of a head, even.
      length: of the sequences, in positions.

    Returns:
      float64 `[dim // 2]` and a scalar.
    """
    return self.inverse(dim), 1.0


class Unrotated(Rope, frozen=True, tag="none"):
  """Layers without positions; no file names this kind, a family's windows imply it."""

  def frequencies(self, dim: int, length: int) -> tuple[np.ndarray, float]:
    return np.zeros(dim // 2), 1.0


class Linear(Rope, frozen=True, kw_only=True, tag="linear"):
  """Positions divided by the factor."""

  factor: Positive

  def frequencies(self, dim: int, length: int) -> tuple[np.ndarray, float]:
    return self.inverse(dim) / self.factor, 1.0


class Scaled(Linear, frozen=True, kw_only=True, tag=""):
  """Kinds that depend on the length of the original training, `max_position_embeddings` where not given."""

  original_max_position_embeddings: Length


class Dynamic(Scaled, frozen=True, kw_only=True, tag="dynamic"):
  """The base grows with sequences longer than the original ones (NTK)."""

  def frequencies(self, dim: int, length: int) -> tuple[np.ndarray, float]:
    known = self.original_max_position_embeddings
    stretch = self.factor * max(length, known) / known - (self.factor - 1)
    base = self.rope_theta * stretch ** (dim / max(dim - 2, 1))  # a head of size 2 has exponent 0 alone
    return base ** -(np.arange(0, dim, 2, dtype=np.float64) / dim), 1.0


class Llama3(Scaled, frozen=True, kw_only=True, tag="llama3"):
  """Low frequencies divided by the factor, high ones kept, a ramp between."""

  low_freq_factor: Positive
  high_freq_factor: Positive

  def __post_init__(self) -> None:
    if self.low_freq_factor >= self.high_freq_factor:
      raise ValueError("low_freq_factor must be less than high_freq_factor")

  def frequencies(self, dim: int, length: int) -> tuple[np.ndarray, float]:
    inverse, low, high = self.inverse(dim), self.low_freq_factor, self.high_freq_factor
    turns = self.original_max_position_embeddings * inverse / (2 * math.pi)  # over the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * inverse / self.factor + smooth * inverse, 1.0


class Yarn(Scaled, frozen=True, kw_only=True, tag="yarn"):
  """A ramp between the frequencies that turn `beta_slow` and `beta_fast` times; attention is scaled, too."""

  beta_fast: Positive = 32.0
  beta_slow: Positive = 1.0
  truncate: bool = True
  attention_factor: Positive | None = None
  mscale: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
  mscale_all_dim: Annotated[float, Meta(ge=0, le=1e6)] = 0.0

  def __post_init__(self) -> None:
    if self.beta_slow >= self.beta_fast:
      raise ValueError("beta_slow must be less than beta_fast")

  def frequencies(self, dim: int, length: int) -> tuple[np.ndarray, float]:
    inverse, known = self.inverse(dim), self.original_max_position_embeddings

    def dimension(turns: float) -> float:  # where a frequency turns this often over the context
      return dim * math.log(known / (turns * 2 * math.pi)) / (2 * math.log(self.rope_theta))

    low, high = dimension(self.beta_fast), dimension(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low or 1e-3  # negative where a context is shorter than a turn: so does transformers
    ramp = np.clip((np.arange(dim // 2) - low) / span, 0.0, 1.0)
    return inverse / self.factor * ramp + inverse * (1 - ramp), self.attention()

  def attention(self) -> float:
    def scaled(scale: float) -> float:
      return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return scaled(self.mscale) / scaled(self.mscale_all_dim)
    return scaled(1.0)


KINDS: dict[str, type[Rope]] = {
  "default": Rope, "linear": Linear, "dynamic": Dynamic, "llama3": Llama3, "yarn": Yarn,
}  # fmt: skip


def parse(options: Mapping[str, Any], theta: float, max_positions: int, where: str) -> Rope:
  """Reads `rope_parameters` or `rope_scaling`.

  Args:
    options: the field's content; nulls are as if they were not there.
    theta: the base where `options` has none.
    max_positions: the original length where `options` has none.
    where: file and field, for errors.

  Raises:
    ValueError: an unknown kind or option, a value out of range, a missing option.
  """
  given = {"rope_theta": theta} | {name: value for name, value in options.items() if value is not None}
  older = given.pop("type", "default")
  name = given.setdefault("rope_type", older)
  kind = KINDS.get(str(name))
  if kind is None:
    raise ValueError(unknown("rope_type", str(name), KINDS, where))
  partial = given.pop("partial_rotary_factor", 1.0)
  if partial != 1.0:
    raise ValueError(f"{where}: partial_rotary_factor is {shown(partial)}; only 1.0 is supported.")
  if issubclass(kind, Dynamic):  # transformers knows no other length of these
    given["original_max_position_embeddings"] = max_positions
  elif issubclass(kind, Scaled):
    given.setdefault("original_max_position_embeddings", max_positions)
  return convert(given, kind, where)


def tables(rope: Rope, dim: int, length: int, longest: int | None = None) -> tuple[Array, Array]:
  """Cosines and sines `[length, dim // 2]`, float32; sequences are at most `longest`, the rest is padding."""
  inverse, factor = rope.frequencies(dim, length if longest is None else min(length, longest))
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * jnp.asarray(inverse, jnp.float32)[None]
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool = False) -> Array:
  """Rotates pairs of each head, which come out as two halves whatever they were.

  Args:
    x: `[batch, time, heads, size]`.
    cos: `[batch|1, time, size / 2]`.
    sin: the same.
    interleaved: pairs are neighbours and not elements of the two halves. Queries and keys come out in one
      order, on which their products do not depend.
  """
  f = x.astype(jnp.float32)
  first, second = (f[..., ::2], f[..., 1::2]) if interleaved else jnp.split(f, 2, axis=-1)
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x.dtype)
