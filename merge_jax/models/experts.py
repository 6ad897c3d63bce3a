"""Mixtral and Qwen3-MoE, mixtures of experts: what their `config.json` says."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from msgspec import Meta

from merge_jax.models.config import DecoderConfig, Fields, Size

Count = Annotated[int, Meta(ge=1, le=1024)]
Layers = list[Annotated[int, Meta(ge=0, le=1000)]]


@dataclasses.dataclass(frozen=True)
class ExpertsConfig(DecoderConfig):
  """Tokens choose feed-forwards.

  Attributes:
    experts: of each layer, 0 where it has a single feed-forward of `intermediate_size`.
    experts_per_token: how many are added up for a token.
    expert_size: their intermediate size.
    normalized: the chosen experts' shares add up to 1.
  """

  experts: tuple[int, ...] = ()
  experts_per_token: int = 1
  expert_size: int = 1
  normalized: bool = True

  def kinds(self) -> tuple[int, ...]:
    return self.experts

  def only(self, layers: Sequence[int]) -> Self:
    return dataclasses.replace(super().only(layers), experts=tuple(self.experts[i] for i in layers))


class Mixtral(Fields, frozen=True, kw_only=True):
  theta: ClassVar[float] = 1_000_000.0

  num_key_value_heads: Size | None = 8
  rms_norm_eps: Annotated[float, Meta(gt=0, le=1)] = 1e-5
  max_position_embeddings: Size = 131_072
  sliding_window: Size | None = None
  num_local_experts: Count = 8
  num_experts_per_tok: Size = 2

  def windows(self, where: str) -> tuple[int | None, ...]:
    _check(self.num_experts_per_tok, self.num_local_experts, "num_local_experts", where)
    return (self.sliding_window,) * self.num_hidden_layers

  def parts(self) -> dict[str, Any]:
    return dict(
      experts=(self.num_local_experts,) * self.num_hidden_layers,
      experts_per_token=self.num_experts_per_tok,
      expert_size=self.intermediate_size,
    )


class Qwen3Moe(Fields, frozen=True, kw_only=True):
  """Some layers may have a single feed-forward; no windows in any published file."""

  fixed: ClassVar[dict[str, tuple[Any, ...]]] = {"use_sliding_window": (False,)}

  num_key_value_heads: Size | None = 4
  max_position_embeddings: Size = 32_768
  attention_bias: bool = False
  moe_intermediate_size: Size = 768
  num_experts: Count | None = None
  num_local_experts: Count | None = None  # what transformers 5 calls it in files
  num_experts_per_tok: Size = 8
  norm_topk_prob: bool = False
  decoder_sparse_step: Size = 1
  mlp_only_layers: Layers | None = None

  @property
  def count(self) -> int:
    given = (self.num_experts, self.num_local_experts)
    return next((number for number in given if number is not None), 128)

  def windows(self, where: str) -> tuple[int | None, ...]:
    if None not in (self.num_experts, self.num_local_experts) and self.num_experts != self.num_local_experts:
      raise ValueError(
        f"{where}: num_experts is {self.num_experts}, num_local_experts {self.num_local_experts}; they are "
        "one number, keep one of them."
      )
    _check(self.num_experts_per_tok, self.count, "num_experts", where)
    return super().windows(where)

  def parts(self) -> dict[str, Any]:
    dense, step = self.mlp_only_layers or [], self.decoder_sparse_step
    sparse = [i not in dense and (i + 1) % step == 0 for i in range(self.num_hidden_layers)]
    return dict(
      experts=tuple(self.count if on else 0 for on in sparse),
      experts_per_token=self.num_experts_per_tok,
      expert_size=self.moe_intermediate_size,
      normalized=self.norm_topk_prob,
      qkv_bias=self.attention_bias,
      output_bias=self.attention_bias,
      qk_norm=True,
    )


def _check(chosen: int, count: int, name: str, where: str) -> None:
  if chosen > count:
    raise ValueError(f"{where}: num_experts_per_tok is {chosen}; expected at most {name} = {count}.")
