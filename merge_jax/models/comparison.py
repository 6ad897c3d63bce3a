"""Do two configs describe one forward pass?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from merge_jax.errors import shown
from merge_jax.models.config import DecoderConfig
from merge_jax.models.families import family_of, parse


def differences(
  a: Mapping[str, Any], b: Mapping[str, Any], where_a: str = "a", where_b: str = "b"
) -> list[str]:
  """What two `config.json` say differently of the forward pass, one text per field.

  Compared is what `parse` makes of them: a field that is left out equals its default, and one that the
  model does not use may differ, as `max_position_embeddings` does without a RoPE that is scaled by it.

  Raises:
    ValueError: a config that `parse` refuses.

  >>> shape = dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48,
  ...              num_hidden_layers=2, num_attention_heads=4)
  >>> differences(shape | {"num_key_value_heads": 4}, shape | {"rope_theta": 5e5}, "sft", "dpo")
  ['rope_theta is 10000.0 in sft, 500000.0 in dpo']
  """
  first, second = _flat(parse(a, where_a)), _flat(parse(b, where_b))
  if family_of(a).module is not family_of(b).module:
    first, second = {"model_type": a["model_type"]} | first, {"model_type": b["model_type"]} | second
  return [
    f"{name} is {shown(first.get(name))} in {where_a}, {shown(second.get(name))} in {where_b}"
    for name in first | second
    if first.get(name) != second.get(name)
  ]


def _flat(config: DecoderConfig) -> dict[str, Any]:
  values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.compare}
  local = msgspec.to_builtins(values.pop("local_rope")) or {}
  values |= msgspec.to_builtins(values.pop("rope")) | {
    f"local_{name}": value for name, value in local.items()
  }
  windows = values.pop("windows")
  sliding = [i for i, window in enumerate(windows) if window is not None]
  return values | {"sliding_window": windows[sliding[0]] if sliding else None, "sliding_layers": sliding}
