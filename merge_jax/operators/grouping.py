"""Groups of tensors that have weights of their own: by layer, or by what a module does."""

import re
from collections.abc import Iterable

from merge_jax.operators import naming

ANY = "(?s:.*)"
KINDS = {
  "norms": r"(?is:.*(norm|\bln_|_ln\b|\.ln\d).*)",
  "embeddings": r"(?is:.*(embed|lm_head|\bwte\b|\bwpe\b|output_layer).*)",
  "attention": r"(?is:.*(attn|attention).*)",
  "mlp": r"(?is:.*(mlp|ffn|feed_?forward|experts|moe).*)",
  "others": ANY,
}
"""Patterns of tensor names by kind of module; the first that matches counts."""
BANDS = 4
"""Of neighbouring layers, where weights go by depth."""
_BELOW = r"(?:\..*)?"


def patterns(granularity: str, names: Iterable[str]) -> tuple[str, ...]:
  """Patterns of `Weights` that divide tensors; those that no tensor needs are left out.

  Args:
    granularity: "model" for one pattern, "group" for one a kind of module, "layer" for one a layer and one
      for what is in none, "depth" for one a quarter of the layers and one for what is in none.
    names: of the tensors.

  >>> names = ["embed.w", "layers.0.attn.w", "layers.0.mlp.w", "layers.1.mlp.w"]
  >>> len(patterns("group", names)), len(patterns("layer", names))
  (3, 3)
  >>> len(patterns("layer", ["params.layers_0.kernel", "params.layers_1.kernel"]))
  2
  >>> len(patterns("depth", [f"layers.{i}.attn.w" for i in range(30)]))
  4
  """
  names = list(names)
  if granularity == "model":
    return (ANY,)
  if granularity == "group":
    every = tuple(KINDS.values())
  else:
    found = {
      match.groups() for match in (re.match(r"(.*?(?:^|[._]))(\d+)(?=\.|$)", name) for name in names) if match
    }
    layers = [stem + number for stem, number in sorted(found, key=lambda one: (one[0], int(one[1])))]
    count = min(BANDS, len(layers)) if granularity == "depth" else len(layers)
    bands = [layers[i * len(layers) // count : (i + 1) * len(layers) // count] for i in range(count)]
    every = (*map(_band, bands), ANY)
  used = {naming.first_match(name, every) for name in names}
  return tuple(pattern for i, pattern in enumerate(every) if i in used)


def label(pattern: str) -> str:
  """What people call the tensors of a pattern of `patterns`.

  >>> [label(pattern) for pattern in patterns("layer", ["embed.w", "model.layers.0.w"])]
  ['model.layers.0', 'others']
  >>> [label(pattern) for pattern in patterns("depth", [f"layers.{i}.w" for i in range(5)])]
  ['layers.0', 'layers.1', 'layers.2', 'layers.3 to layers.4']
  """
  known = {pattern: name for name, pattern in KINDS.items()}
  if pattern in known:
    return known[pattern]
  layers = pattern.removeprefix("(?s:(?:").removesuffix(f"){_BELOW})").replace("\\", "").split("|")
  return " to ".join(dict.fromkeys((layers[0], layers[-1])))


def _band(layers: Iterable[str]) -> str:
  """The pattern of the tensors of some layers."""
  return f"(?s:(?:{'|'.join(map(re.escape, layers))}){_BELOW})"
