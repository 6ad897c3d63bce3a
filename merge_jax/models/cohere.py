"""Command R and R+ (`cohere`), Command R7B and A (`cohere2`): what their `config.json` says."""

import dataclasses
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from merge_jax.models.config import DecoderConfig, Fields, Size, alternating, windows_of
from merge_jax.models.rope import Rope, Unrotated

Factor = Annotated[float, Meta(gt=0, le=1e6)]


@dataclasses.dataclass(frozen=True)
class CohereConfig(DecoderConfig):
  """The norm takes the mean away, attention and feed-forward of a layer are added side by side.

  Attributes:
    logit_scale: factor of the logits.
  """

  logit_scale: float = 1.0


class Cohere(Fields, frozen=True, kw_only=True):
  """Queries and keys may be normed, with weights for each head."""

  theta: ClassVar[float] = 500_000.0
  fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
    "position_embedding_type": ("rope_gptj",),
    "rotary_pct": (1.0,),
    "use_embedding_sharing": (True,),
    "use_gated_activation": (True,),
    "use_parallel_block": (True,),
  }

  layer_norm_eps: Annotated[float, Meta(gt=0, le=1)] = 1e-5
  logit_scale: Factor = 0.0625
  max_position_embeddings: Size = 8192
  tie_word_embeddings: bool = True
  attention_bias: bool = False
  use_qk_norm: bool = False

  def parts(self) -> dict[str, Any]:
    return dict(
      norm_eps=self.layer_norm_eps,
      qkv_bias=self.attention_bias,
      output_bias=self.attention_bias,
      qk_norm=self.use_qk_norm,
      rope_interleaved=True,
      logit_scale=self.logit_scale,
    )


class Cohere2(Cohere, frozen=True, kw_only=True):
  """Layers with windows alternate with some that see everything and rotate nothing."""

  theta: ClassVar[float] = Fields.theta
  fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
    **Cohere.fixed, "use_qk_norm": (False,), "order_of_interleaved_layers": ("local_attn_first",),
  }  # fmt: skip

  sliding_window: Size | None = 4096
  sliding_window_pattern: Size = 4
  layer_switch: Size | None = None  # the same in other words, which transformers does not read
  layer_types: list[str] | None = None

  def windows(self, where: str) -> tuple[int | None, ...]:
    if self.layer_types is None and self.layer_switch not in (None, self.sliding_window_pattern):
      raise ValueError(
        f"{where}: layer_switch is {self.layer_switch}; expected the sliding_window_pattern, "
        f"{self.sliding_window_pattern}."
      )
    default = alternating(self.num_hidden_layers, self.sliding_window_pattern)
    return windows_of(self.layer_types, default, self.sliding_window, where)

  def ropes(self, where: str) -> dict[str, Rope | None]:
    return {"rope": Unrotated(), "local_rope": super().ropes(where)["rope"]}
