"""What a PEFT LoRA adapter's `adapter_config.json` says, as far as it changes the weights."""

import functools
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from merge_jax import decoding
from merge_jax.checkpoints import sidecars
from merge_jax.errors import shown

_Rank = Annotated[int, msgspec.Meta(ge=1)]

INERT = frozenset({
  "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
  "lora_dropout", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config",
  "qalora_group_size",
  "runtime_config", "ensure_weight_tying", "task_type", "auto_mapping", "peft_version",
  "base_model_name_or_path", "revision", "inference_mode", "enable_lora", "merge_weights",
})  # fmt: skip
"""Fields without an effect on what is read: the names of the tensors say which modules are adapted."""
_KEEPS_BASE = ("gaussian", "eva", "orthogonal")
"""Initialisations by name that leave the base model's weights as they are."""


class Config(msgspec.Struct):
  """The fields that decide a LoRA's weights."""

  peft_type: str
  r: _Rank = 8
  lora_alpha: float = 8
  use_rslora: bool = False
  fan_in_fan_out: bool = False
  rank_pattern: dict[str, _Rank] | None = None
  alpha_pattern: dict[str, float] | None = None
  bias: str = "none"
  init_lora_weights: bool | str = True

  def rank(self, module: str) -> int:
    """The rank of a module: that of the first pattern that its name ends with."""
    return _matched(self.rank_pattern, module, self.r)

  def scale(self, module: str) -> float:
    """What B A is multiplied by: alpha / r, or alpha / √r (rank-stabilised, arXiv 2312.03732)."""
    rank = self.rank(module)
    return _matched(self.alpha_pattern, module, self.lora_alpha) / (
      math.sqrt(rank) if self.use_rslora else rank
    )


def read_config(path: Path) -> Config:
  """Reads `adapter_config.json`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: not JSON, a value that is not of its type, or an adapter that is no plain LoRA.
  """
  raw = sidecars.read_object(path)
  config = decoding.convert(raw, Config, str(path))
  if config.peft_type != "LORA":
    raise ValueError(
      f"{path}: peft_type is {shown(config.peft_type)}; expected 'LORA', the only one that is read."
    )
  for name, value in raw.items():
    if value and name not in INERT and name not in Config.__struct_fields__:
      raise ValueError(f"{path}: {name} is {shown(value)}; expected it unset: plain LoRA alone is read.")
  if config.bias != "none":
    raise ValueError(
      f"{path}: bias is {shown(config.bias)}; expected 'none': biases of adapters are not read."
    )
  if isinstance(config.init_lora_weights, str) and config.init_lora_weights not in _KEEPS_BASE:
    raise ValueError(
      f"{path}: init_lora_weights is {shown(config.init_lora_weights)}, which changed the base model's "
      "weights; save the adapter with path_initial_model_for_weight_conversion, to fit them as they are."
    )
  for pattern in (*(config.rank_pattern or {}), *(config.alpha_pattern or {})):
    try:
      _compiled(pattern)
    except re.error as error:
      raise ValueError(f"{path}: the pattern {shown(pattern)} is no regular expression ({error}).") from None
  return config


def _matched(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
  for pattern, value in (patterns or {}).items():
    if _compiled(pattern).match(module):
      return value
  return default


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
  """As PEFT matches modules with it."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of sets within sets, which the user did not write
    return re.compile(rf"(.*\.)?({pattern})$")
