"""The table of model families: what their `config.json` says, and the module that computes it.

Another architecture is a row of `FAMILIES`, with a file of its own for what differs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from merge_jax.errors import shown, unknown
from merge_jax.models.config import DecoderConfig, Fields, Size, read

LAYER_TYPES = ("full_attention", "sliding_attention")


class Family(NamedTuple):
  """A row of the table.

  Attributes:
    parse: `(content of config.json, its path) -> config`, which may be of a subclass with further fields;
      ValueError for what is not supported.
    module: `(config, draw) -> nnx.Module` whose parameters have the names of the tensors; see
      `merge_jax.models.decoder.Draw`.
  """

  parse: Callable[[Mapping[str, Any], str], DecoderConfig]
  module: Callable[[DecoderConfig, Callable[..., Any]], Any]


class Llama(Fields, frozen=True, kw_only=True):
  """Llama 2 and 3, SmolLM."""

  attention_bias: bool = False
  mlp_bias: bool = False

  def parts(self) -> dict[str, Any]:
    return dict(qkv_bias=self.attention_bias, output_bias=self.attention_bias, mlp_bias=self.mlp_bias)


class Mistral(Fields, frozen=True, kw_only=True):
  """Every layer has the window."""

  num_key_value_heads: Size | None = 8
  max_position_embeddings: Size = 131_072
  sliding_window: Size | None = 4096

  def windows(self, where: str) -> tuple[int | None, ...]:
    return (self.sliding_window,) * self.num_hidden_layers


class Qwen2(Fields, frozen=True, kw_only=True):
  """Windows by layer, if they are switched on; biases of queries, keys and values in any case."""

  num_key_value_heads: Size | None = 32
  max_position_embeddings: Size = 32_768
  attention_bias: bool = True  # accepted at both values, as transformers does
  use_sliding_window: bool = False
  sliding_window: Size | None = 4096
  max_window_layers: int = 28  # that many first layers see everything
  layer_types: list[str] | None = None

  def windows(self, where: str) -> tuple[int | None, ...]:
    layers, window = self.num_hidden_layers, self.sliding_window if self.use_sliding_window else None
    if self.layer_types is None:
      return tuple(None if i < self.max_window_layers else window for i in range(layers))
    if len(self.layer_types) != layers:
      raise ValueError(
        f"{where}: layer_types has {len(self.layer_types)} entries, num_hidden_layers is {layers}; "
        "expected one a layer."
      )
    for kind in self.layer_types:
      if kind not in LAYER_TYPES:
        raise ValueError(unknown("layer type", kind, LAYER_TYPES, where))
    slides = [kind == "sliding_attention" for kind in self.layer_types]
    if any(slides) and window is None:
      raise ValueError(f"{where}: layer_types has sliding_attention, but sliding_window is not in use.")
    return tuple(window if sliding else None for sliding in slides)

  def parts(self) -> dict[str, Any]:
    return dict(qkv_bias=True)


class Qwen3(Qwen2, frozen=True, kw_only=True):
  """Queries and keys are normed."""

  head_dim: Size | None = 128
  attention_bias: bool = False

  def parts(self) -> dict[str, Any]:
    return dict(qkv_bias=self.attention_bias, output_bias=self.attention_bias, qk_norm=True)


def _decoder(config: DecoderConfig, draw: Callable[..., Any]) -> Any:
  from merge_jax.models.decoder import Decoder  # a config is read without flax

  return Decoder(config, draw)


def _llama_like(fields: type[Fields]) -> Family:
  return Family(functools.partial(read, fields), _decoder)


FAMILIES = {
  "llama": _llama_like(Llama),
  "mistral": _llama_like(Mistral),
  "qwen2": _llama_like(Qwen2),
  "qwen3": _llama_like(Qwen3),
}


def family_of(config: Mapping[str, Any], where: str = "config.json") -> Family:
  """The row of a config's `model_type`."""
  if not isinstance(config, Mapping):
    raise ValueError(f"{where}: the content is {shown(config)}; expected an object.")
  name = config.get("model_type")
  family = FAMILIES.get(str(name))
  if family is None:
    raise ValueError(
      unknown("model_type", str(name), FAMILIES, where) + " Score another family with your own apply "
      "function or with --scorer_command."
    )
  return family


def parse(config: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
  """Reads a Hugging Face config of a Llama, Mistral, Qwen2, Qwen3 or SmolLM model.

  Args:
    config: the content of `config.json`.
    where: its path, for errors.

  Returns:
    What the family's module needs; equal configs compute the same from the same parameters.

  Raises:
    ValueError: another model family, an unsupported field or value, a missing field.

  >>> shape = dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48,
  ...              num_hidden_layers=2, num_attention_heads=4)
  >>> parse(shape).head_dim
  8
  """
  return family_of(config, where).parse(config, where)
