"""Do tensors fit the parameters of a model, and which field of its config do they speak against?"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# The field that decides whether a tensor is there, by a pattern of its name; the first match counts.
_PRESENCE = (
  (r"\.block_sparse_moe\.", "num_local_experts"),
  (r"\.mlp\.(experts\.\d+\.\w+|gate)\.weight$", "num_experts, decoder_sparse_step or mlp_only_layers"),
  (r"\.self_attn\.\w+\.bias$", "attention_bias"),
  (r"\.mlp\.\w+\.bias$", "mlp_bias"),
  (r"\.[qk]_norm\.weight$", "model_type or use_qk_norm"),
  (r"^lm_head\.weight$", "tie_word_embeddings"),
)
# The fields that decide the length of each axis.
_HEADS, _KV_HEADS = "num_attention_heads or head_dim", "num_key_value_heads or head_dim"
_AXES = (
  (r"\.block_sparse_moe\.gate\.weight$", ("num_local_experts", "hidden_size")),
  (r"\.mlp\.gate\.weight$", ("num_experts", "hidden_size")),
  (r"\.w[13]\.weight$", ("intermediate_size", "hidden_size")),
  (r"\.w2\.weight$", ("hidden_size", "intermediate_size")),
  (r"\.experts\.\d+\.(gate|up)_proj\.weight$", ("moe_intermediate_size", "hidden_size")),
  (r"\.experts\.\d+\.down_proj\.weight$", ("hidden_size", "moe_intermediate_size")),
  (r"(embed_tokens|lm_head)\.weight$", ("vocab_size", "hidden_size")),
  (r"\.q_proj\.\w+$", (_HEADS, "hidden_size")),
  (r"\.[kv]_proj\.\w+$", (_KV_HEADS, "hidden_size")),
  (r"\.o_proj\.\w+$", ("hidden_size", _HEADS)),
  (r"\.(gate|up)_proj\.\w+$", ("intermediate_size", "hidden_size")),
  (r"\.down_proj\.\w+$", ("hidden_size", "intermediate_size")),
  (r"\.[qk]_norm\.weight$", ("head_dim or the number of heads", "head_dim")),
  (r"norm\.weight$", ("hidden_size",)),
)


def ignored(name: str) -> bool:
  """Tensors that some checkpoints carry and no decoder here reads."""
  return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def compare(have: Mapping[str, Any], want: Mapping[str, Any], where: str) -> None:
  """Raises ValueError for the first tensor that is missing, misshapen, or has no place in the model.

  Args:
    have: tensors or their specs, by name.
    want: the model's specs.
    where: what is at fault, a file, for errors.
  """
  for name, spec in want.items():
    if name not in have:
      raise ValueError(f"{where}: tensor {name!r} is missing{_see(_first(_PRESENCE, name))}.")
    shape, expected = tuple(have[name].shape), tuple(spec.shape)
    if shape != expected:
      raise ValueError(
        f"{where}: tensor {name!r} has shape {shape}; its config says {expected}"
        f"{_see(_at_fault(name, shape, expected))}."
      )
  for name in have:
    if name not in want and not ignored(name):
      raise ValueError(
        f"{where}: tensor {name!r} has no place in a model of this config{_see(_first(_PRESENCE, name))}."
      )


def count_layers(names: Iterable[str], expected: int, where: str) -> None:
  """Raises ValueError if the names do not have layers 0 … expected - 1.

  >>> count_layers(["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"], 1, "c.json")
  Traceback (most recent call last):
  ValueError: c.json: num_hidden_layers is 1, but the tensors have layers 0 … 1.
  """
  found = {int(match[1]) for name in names if (match := re.search(r"\blayers\.(\d{1,6})\.", name))}
  if not found:
    raise ValueError(f"{where}: num_hidden_layers is {expected}, but no tensor belongs to a layer.")
  if max(found) != expected - 1:
    raise ValueError(
      f"{where}: num_hidden_layers is {expected}, but the tensors have layers {min(found)} … {max(found)}."
    )


def _first(rules: Iterable[tuple[str, Any]], name: str) -> Any:
  return next((value for pattern, value in rules if re.search(pattern, name)), None)


def _at_fault(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str | None:
  fields = _first(_AXES, name)
  if fields is None or len(shape) != len(expected):
    return None
  return next(field for field, got, want in zip(fields, shape, expected, strict=False) if got != want)


def _see(field: str | None) -> str:
  return f" (see {field})" if field else ""
