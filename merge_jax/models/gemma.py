"""Gemma 1, 2 and the text part of Gemma 3: what their `config.json` says."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from merge_jax.errors import unknown
from merge_jax.models import rope
from merge_jax.models.config import LAYER_TYPES, DecoderConfig, Fields, Size, alternating, windows_of

Positive = Annotated[float, Meta(gt=0, le=1e6)]


@dataclasses.dataclass(frozen=True)
class GemmaConfig(DecoderConfig):
  """Embeddings are scaled by the root of their size, norms by `1 + weight`.

  Attributes:
    logit_cap: keeps logits within plus and minus this.
  """

  logit_cap: float | None = None


class Gemma(Fields, frozen=True, kw_only=True):
  fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),  # the first files mean the one by the other
    "hidden_activation": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (False,),
  }

  num_key_value_heads: Size | None = 16
  head_dim: Size | None = 256
  max_position_embeddings: Size = 8192
  tie_word_embeddings: bool = True
  attention_bias: bool = False

  def parts(self) -> dict[str, Any]:
    return dict(activation="gelu_pytorch_tanh", qkv_bias=self.attention_bias, output_bias=self.attention_bias)


class Gemma2(Gemma, frozen=True, kw_only=True):
  """Every other layer has a window; what the softmax of the attention gets, and the logits, are capped."""

  num_key_value_heads: Size | None = 4
  query_pre_attn_scalar: Positive = 256
  attn_logit_softcapping: Positive | None = 50.0
  final_logit_softcapping: Positive | None = 30.0
  sliding_window: Size | None = 4096
  layer_types: list[str] | None = None

  def windows(self, where: str) -> tuple[int | None, ...]:
    return windows_of(self.layer_types, alternating(self.num_hidden_layers, 2), self.sliding_window, where)

  def parts(self) -> dict[str, Any]:
    return super().parts() | dict(
      attention_scale=self.query_pre_attn_scalar**-0.5,
      attention_cap=self.attn_logit_softcapping,
      logit_cap=self.final_logit_softcapping,
    )


class Gemma3(Gemma2, frozen=True, kw_only=True):
  """Five layers with windows and rotations of their own for one that sees everything; no cap."""

  theta: ClassVar[float] = 1_000_000.0
  fixed: ClassVar[dict[str, tuple[Any, ...]]] = {**Gemma.fixed, "attn_logit_softcapping": ()}

  max_position_embeddings: Size = 131_072
  attn_logit_softcapping: Positive | None = None
  final_logit_softcapping: Positive | None = None
  sliding_window_pattern: Size = 6
  rope_local_base_freq: rope.Theta = 10_000.0

  def windows(self, where: str) -> tuple[int | None, ...]:
    default = alternating(self.num_hidden_layers, self.sliding_window_pattern)
    return windows_of(self.layer_types, default, self.sliding_window, where)

  def ropes(self, where: str) -> dict[str, rope.Rope | None]:
    given: Mapping[str, Any] = self.rope_parameters or {}  # newer files have an entry for each type of layer
    for kind, options in given.items():
      if kind not in LAYER_TYPES:
        raise ValueError(unknown("layer type", kind, LAYER_TYPES, f"{where}: rope_parameters"))
      if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"{where}: rope_parameters.{kind} is {options!r}; expected an object.")
    local = given.get("sliding_attention") or {}
    return {
      "rope": self.one_rope(given.get("full_attention"), self.rope_theta, where),
      "local_rope": rope.parse(local, self.rope_local_base_freq, self.max_position_embeddings, where),
    }

  def parts(self) -> dict[str, Any]:
    return super().parts() | dict(qk_norm=True)
