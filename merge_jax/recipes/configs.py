"""What a model's config says of its layers, when they are stacked anew."""

from collections.abc import Mapping, Sequence
from typing import Any

from merge_jax.errors import shown

COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
          "decoder_layers", "depth", "num_blocks")  # fmt: skip
OF_MODULES: Mapping[str, tuple[tuple[str, ...], ...]] = {
  "encoder": (("encoder_layers", "num_hidden_layers"), ("num_layers",)),
  "decoder": (("decoder_layers",), ("num_decoder_layers",)),
}
"""The keys that count the layers of one module of an encoder-decoder: in BART and Whisper, in T5."""
PERIODS = ("decoder_sparse_step", "attn_layer_period", "expert_layer_period", "interleave_moe_layer_step",
           "moe_layer_freq", "no_rope_layer_interval", "global_attn_every_n_layers", "moe_layer_interval",
           "cross_attention_frequency", "cross_layer_interval")  # fmt: skip
"""Keys that say that every N-th layer is of another kind."""
PATTERNS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
"""Every N-th layer of these sees all positions where the config does not say it, the others a window."""
NUMBERS = ("mlp_only_layers", "cross_attention_layers", "attn_layer_indices", "fullatt_block_indexes")
"""Keys that list the numbers of the layers of a kind."""
FIRST = ("first_k_dense_replace", "num_dense_layers")
"""Keys that count layers of a kind that all stand at the start."""
_KINDS = {"vision": ("vis", "image"), "audio": ("audio", "speech"), "text": ("text", "language", "llm")}
"""What parts of a model, and of its config, have in their names."""
Config = dict[str, Any]
Origin = tuple[Mapping[str, Any], int]
"""The config that a layer comes from, and its number there."""


def restack(
  config: Mapping[str, Any],
  count: int,
  origins: Sequence[Origin],
  module: str | None = None,
  prefix: str = "",
) -> Config:
  """The config of layers stacked anew.

  The number of layers, `layer_types` and every other list with an entry for each layer, lists of the
  numbers of layers, and counts of first layers follow the layers to where they are now.

  Args:
    config: of the model that the result's config is taken from.
    count: the number of layers there.
    origins: of every layer of the result.
    module: which of `OF_MODULES` the layers are of, where a config counts those of several.
    prefix: of the layers' names; it tells parts of a config apart that count as many.

  Raises:
    ValueError: there is no number of layers, or a kind of layer goes by a rule that the result breaks.

  >>> old = {"num_hidden_layers": 2, "layer_types": ["full", "sliding"]}
  >>> restack(old, 2, [(old, 0), (old, 1), (old, 1)])
  {'num_hidden_layers': 3, 'layer_types': ['full', 'sliding', 'sliding']}
  """
  inner = _holder(config, count, module, prefix)
  if inner is None:
    raise ValueError(
      f"config.json says nowhere that there are {count} layers (looked for {', '.join(COUNTS)}); "
      "only models whose config does can be stacked from slices."
    )
  sources = [(_inside(source, inner), layer) for source, layer in origins]
  new = _stacked(_inside(config, inner), count, sources, module)
  if inner:
    return dict(config) | {inner: new}
  return new


def _holder(config: Mapping[str, Any], count: int, module: str | None, prefix: str) -> str | None:
  """Which part of a config counts the layers: "" for the config itself, or e.g. "text_config"."""
  kind, ranks = purpose(prefix), {}
  for name in ("", *(name for name, value in config.items() if isinstance(value, Mapping))):
    of_part = purpose(name)
    if not _count_keys(_inside(config, name), count, module) or (kind and of_part and kind != of_part):
      continue
    named = name and name.removesuffix("_config") in prefix
    ranks[name] = 0 if named else 1 if of_part and of_part == kind else 2 if not name else 3
  return min(ranks, key=ranks.__getitem__, default=None)


def purpose(name: str) -> str | None:
  """What a part of a model is for, by its name: a key of `_KINDS`, or None."""
  return next((kind for kind, words in _KINDS.items() if any(word in name for word in words)), None)


def sees(name: str) -> bool:
  """Whether a part of a model, by its name, reads other things than text: images or sound."""
  return purpose(name) in ("vision", "audio")


def _count_keys(config: Mapping[str, Any], count: int, module: str | None) -> list[str]:
  names: tuple[str, ...] = COUNTS
  if module is not None:
    names = next((keys for keys in OF_MODULES[module] if keys[0] in config), ())
  found = [name for name in names if config.get(name) == count and not isinstance(config[name], bool)]
  return found if module is None or names[:1] == tuple(found[:1]) else []


def _inside(config: Mapping[str, Any], inner: str) -> Mapping[str, Any]:
  part = config.get(inner, {}) if inner else config
  return part if isinstance(part, Mapping) else {}


def _stacked(config: Mapping[str, Any], count: int, origins: Sequence[Origin], module: str | None) -> Config:
  new, length = dict(config), len(origins)
  for name in _count_keys(config, count, module):
    new[name] = length
  same = [layer for _, layer in origins] == list(range(length))
  for name, value in config.items():
    by_layer = isinstance(value, list) and len(value) == count > 1
    by_layer = by_layer and name not in ("layer_types", "architectures", *NUMBERS)
    if by_layer and not name.endswith(("token_id", "token_ids")):
      new[name] = [_entry(source.get(name, value), layer, name) for source, layer in origins]
  new.update(_kinds(config, origins))
  for name in NUMBERS:
    if isinstance(config.get(name), list):
      listed = [_list(source.get(name, config[name]), name) for source, _ in origins]
      new[name] = [i for i, (_, layer) in enumerate(origins) if layer in listed[i]]
  for name in FIRST:
    if isinstance(config.get(name), int):
      new[name] = _leading([layer < (source.get(name) or 0) for source, layer in origins], "dense", name)
  if isinstance(end := config.get("moe_layer_end_index"), int):  # ERNIE
    start, last = config.get("moe_layer_start_index") or 0, end if end >= 0 else count - 1
    sparse = [start <= layer <= last for _, layer in origins]
    start = sparse.index(True) if True in sparse else length
    last = start + _leading(sparse[start:], "sparse", "moe_layer_end_index") - 1
    new |= {"moe_layer_start_index": start, "moe_layer_end_index": last}
  for name in PERIODS:
    period = config.get(name)
    if not same and isinstance(period, int) and period > 1 and not isinstance(period, bool):
      moved = next((i for i, (_, layer) in enumerate(origins) if i % period != layer % period), None)
      if moved is not None:
        raise ValueError(
          f"config.json: {name} is {period}: every {period} layers are of another kind, but layer "
          f"{origins[moved][1]} comes to place {moved}; stack ranges that keep the pattern."
        )
  return new


def _entry(values: Any, layer: int, name: str) -> Any:
  if not isinstance(values, list) or layer >= len(values):
    raise ValueError(f"config.json: {name} has no entry for layer {layer}; expected one for each layer.")
  return values[layer]


def _list(value: Any, name: str) -> list[Any]:
  if not isinstance(value, list):
    raise ValueError(f"config.json: {name} is {shown(value)}; expected a list of the numbers of layers.")
  return value


def _kinds(config: Mapping[str, Any], origins: Sequence[Origin]) -> Config:
  """`layer_types` from those of the sources, and `max_window_layers` (Qwen2) that fits."""
  types = [layer_type(source, layer) for source, layer in origins]
  new: Config = {}
  if "layer_types" in config or len(set(types)) > 1:
    new["layer_types"] = [kind or "full_attention" for kind in types]
  if "max_window_layers" in config:
    full = [kind != "sliding_attention" for kind in types]
    new["max_window_layers"] = full.index(False) if False in full else len(full)
  return new


def layer_type(config: Mapping[str, Any], layer: int) -> str | None:
  """The kind of attention of a layer, as transformers derives it; None where a config tells none.

  >>> layer_type({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, 1)
  'sliding_attention'
  """
  types = config.get("layer_types")
  if isinstance(types, list):
    return str(_entry(types, layer, "layer_types"))
  period = config.get("sliding_window_pattern") or PATTERNS.get(str(config.get("model_type")))
  if isinstance(period, int) and period > 1:
    return "sliding_attention" if (layer + 1) % period else "full_attention"
  first = config.get("max_window_layers")
  if first is not None:
    if type(first) is not int:
      raise ValueError(f"config.json: max_window_layers is {shown(first)}; expected a whole number.")
    sliding = config.get("use_sliding_window") and config.get("sliding_window") is not None
    return "sliding_attention" if sliding and layer >= first else "full_attention"
  return None


def _leading(flags: Sequence[bool], kind: str, name: str) -> int:
  count = flags.index(False) if False in flags else len(flags)
  if any(flags[count:]):
    raise ValueError(
      f"config.json: {name} holds {kind} layers side by side alone; the slices put others between them."
    )
  return count
