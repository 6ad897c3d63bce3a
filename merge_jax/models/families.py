"""The table of model families: what their `config.json` says, and the module that computes it.

Another architecture is a row of `FAMILIES`, with a file of its own for what differs.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from merge_jax.errors import shown, unknown
from merge_jax.models import cohere, experts, gemma
from merge_jax.models.config import LAYER_TYPES, DecoderConfig, Fields, Size, read, windows_of


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
  """Every layer has the window, but where a file has `layer_types`."""

  num_key_value_heads: Size | None = 8
  max_position_embeddings: Size = 131_072
  sliding_window: Size | None = 4096
  layer_types: list[str] | None = None

  def windows(self, where: str) -> tuple[int | None, ...]:
    usual = "full_attention" if self.sliding_window is None else "sliding_attention"
    return windows_of(self.layer_types, [usual] * self.num_hidden_layers, self.sliding_window, where)


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
    window = self.sliding_window if self.use_sliding_window else None
    first = self.num_hidden_layers if window is None else self.max_window_layers
    default = [LAYER_TYPES[i >= first] for i in range(self.num_hidden_layers)]
    return windows_of(self.layer_types, default, window, where)

  def parts(self) -> dict[str, Any]:
    return dict(qkv_bias=True)


class Qwen3(Qwen2, frozen=True, kw_only=True):
  """Queries and keys are normed."""

  head_dim: Size | None = 128
  attention_bias: bool = False

  def parts(self) -> dict[str, Any]:
    return dict(qkv_bias=self.attention_bias, output_bias=self.attention_bias, qk_norm=True)


@functools.cache
def _module(path: str) -> Callable[[DecoderConfig, Callable[..., Any]], Any]:
  """A class by `file:name`, imported when a model is built: configs are read without flax."""
  file, _, name = path.partition(":")

  def build(config: DecoderConfig, draw: Callable[..., Any]) -> Any:
    return getattr(importlib.import_module(f"merge_jax.models.{file}"), name)(config, draw)

  return build


def _family(
  fields: type[Fields], made: type[DecoderConfig] = DecoderConfig, module: str = "decoder:Decoder"
) -> Family:
  return Family(functools.partial(read, fields, made=made), _module(module))


FAMILIES = {
  "llama": _family(Llama),
  "mistral": _family(Mistral),
  "ministral": _family(Mistral),  # as transformers 5 writes a file of mistral with layer_types
  "qwen2": _family(Qwen2),
  "qwen3": _family(Qwen3),
  "cohere": _family(cohere.Cohere, cohere.CohereConfig, "cohere_decoder:CohereDecoder"),
  "cohere2": _family(cohere.Cohere2, cohere.CohereConfig, "cohere_decoder:CohereDecoder"),
  "mixtral": _family(experts.Mixtral, experts.ExpertsConfig, "experts_decoder:MixtralDecoder"),
  "qwen3_moe": _family(experts.Qwen3Moe, experts.ExpertsConfig, "experts_decoder:Qwen3MoeDecoder"),
  "gemma": _family(gemma.Gemma, gemma.GemmaConfig, "gemma_decoder:GemmaDecoder"),
  "gemma2": _family(gemma.Gemma2, gemma.GemmaConfig, "gemma_decoder:Gemma2Decoder"),
  "gemma3_text": _family(gemma.Gemma3, gemma.GemmaConfig, "gemma_decoder:Gemma2Decoder"),
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
  """Reads a Hugging Face config of a model whose `model_type` is in `FAMILIES`.

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
