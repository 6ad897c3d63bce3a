"""Which tensors belong to which layer, and how layers are stacked anew; from names alone."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from merge_jax.errors import shown, unknown

_WORDS = {"layers", "layer", "h", "block", "blocks", "resblocks"}
_FIRST = re.compile(
  r"embed(?!_out)|wte|wpe|embd|shared|project_in|emb\.|conv1|patch", re.IGNORECASE
)  # names of what stands before the layers: it comes from the first slice


class Place(NamedTuple):
  """Where a tensor stands: `prefix.layer.suffix`."""

  prefix: str
  layer: int
  suffix: str


class Stack(NamedTuple):
  """A numbered list of layers: `prefix.0`, …, `prefix.(length - 1)`."""

  prefix: str
  length: int


def place(name: str) -> Place | None:
  """The first number in a name: experts and heads inside a layer belong to the layer.

  >>> place("model.layers.3.mlp.experts.7.up_proj.weight")
  Place(prefix='model.layers', layer=3, suffix='mlp.experts.7.up_proj.weight')
  """
  match = re.match(r"(.*?)\.(\d+)(?:\.(.*))?$", name) or re.match(r"()(\d+)\.(.*)$", name)
  return None if match is None else Place(match[1], int(match[2]), match[3] or "")


def stacks(names: Iterable[str]) -> tuple[Stack, ...]:
  """The lists of layers of a model, the longest first (then that with most tensors).

  A list is called as layers are (`layers`, `h`, `block`, …) and has all numbers from 0, or is the
  longest such list of all, whatever its name: `vision.mlp.0`, `vision.mlp.2` is none.

  >>> lists = ("model.layers", 3), ("visual.blocks", 2), ("head", 2)
  >>> stacks(f"{prefix}.{i}.w" for prefix, count in lists for i in range(count))
  (Stack(prefix='model.layers', length=3), Stack(prefix='visual.blocks', length=2))
  """
  found: dict[str, dict[int, int]] = {}
  for name in names:
    if (there := place(name)) is not None:
      layers = found.setdefault(there.prefix, {})
      layers[there.layer] = layers.get(there.layer, 0) + 1
  whole = [prefix for prefix, layers in found.items() if max(layers) + 1 == len(layers)]
  ranked = sorted(whole, key=lambda prefix: (-len(found[prefix]), -sum(found[prefix].values()), prefix))
  named = [prefix for prefix in ranked if prefix.rpartition(".")[2] in _WORDS]
  return tuple(Stack(prefix, len(found[prefix])) for prefix in named or ranked[:1])


def modules(found: Sequence[Stack]) -> dict[str, Stack]:
  """Stacks by the names that recipes call modules: as much of the prefix as tells them apart.

  >>> list(modules((Stack("encoder.block", 2), Stack("decoder.block", 2))))
  ['encoder', 'decoder']
  >>> list(modules((Stack("model.language_model.layers", 2), Stack("model.visual.blocks", 2))))
  ['language_model', 'visual']
  """
  if len(found) == 1:
    return {"decoder": found[0]}
  split = [stack.prefix.split(".") for stack in found]
  short = [words[-2] if len(words) > 1 else words[0] for words in split]
  names = short if len(set(short)) == len(short) else [".".join(words) for words in split]
  return dict(zip(names, found, strict=True))


def owner(name: str, have: Mapping[str, Stack]) -> str | None:
  """The module with whose layers a tensor shares most words of its name; None where that is none, or several.

  >>> parts = {"text": Stack("lm.model.layers", 2), "eyes": Stack("vision.encoder.layers", 2)}
  >>> [owner(n, parts) for n in ("lm.lm_head.weight", "vision.patch_conv.weight", "projector.weight")]
  ['text', 'eyes', None]
  """
  words = name.split(".")
  shared = {key: len(os.path.commonprefix([words, stack.prefix.split(".")])) for key, stack in have.items()}
  most = max(shared.values())
  found = [key for key, count in shared.items() if count == most]
  return found[0] if most and len(found) == 1 else None


def called(names: Collection[str], word: str, have: Mapping[str, Stack]) -> set[str]:
  """The tensors outside of layers in whose names a word stands between dots.

  >>> called(["eyes.merger.norm", "eyes.layers.0.merger.w"], "merger", {"eyes": Stack("eyes.layers", 1)})
  {'eyes.merger.norm'}
  """
  prefixes = [stack.prefix for stack in have.values()]
  inside = (name for name in names if (there := place(name)) is not None and there.prefix in prefixes)
  return {name for name in names if word in name.split(".")}.difference(inside)


def before(name: str) -> bool:
  """Whether a tensor outside of the layers stands before them (embeddings), not after (norm, head).

  >>> [before(n) for n in ("model.embed_tokens.weight", "wte.weight", "lm_head.weight", "embed_out.weight")]
  [True, True, False, False]
  """
  return _FIRST.search(name) is not None


class Target(NamedTuple):
  """One tensor of the result.

  Attributes:
    name: in the result.
    names: in each input of its slice.
    slice: which slice makes it.
    layer, length: its place among the layers of that slice; None outside of layers.
  """

  name: str
  names: tuple[str, ...]
  slice: int
  layer: int | None
  length: int


def restack(
  names: Sequence[Iterable[str]], stack: Stack | None, ranges: Sequence[Sequence[tuple[int, int]]]
) -> list[Target]:
  """The tensors of layers stacked anew, with those outside of layers.

  Args:
    names: for each slice the tensor names of its first input.
    stack: the list of layers; None where a model has none, then there is one slice.
    ranges: for each slice, for each of its inputs the half-open range of layers.

  A tensor outside of the layers comes from the first slice if it stands `before` them, else from the last.
  """
  targets, offset = [], 0
  for part, (of_slice, of_inputs) in enumerate(zip(names, ranges, strict=True)):
    start, stop = of_inputs[0]
    for name in of_slice:
      there = place(name)
      if stack is not None and there is not None and there.prefix == stack.prefix:
        if start <= there.layer < stop:
          i = there.layer - start
          sources = tuple(_named(there, begin + i) for begin, _ in of_inputs)
          targets.append(Target(_named(there, offset + i), sources, part, i, stop - start))
      elif part == (0 if before(name) else len(ranges) - 1):
        targets.append(Target(name, (name,) * len(of_inputs), part, None, stop - start))
    offset += stop - start
  return targets


def _named(there: Place, layer: int) -> str:
  return ".".join(word for word in (there.prefix, str(layer), there.suffix) if word)


def check_range(raw: object, where: str) -> tuple[int, int]:
  """Reads `[first, end]`, the end excluded; ValueError if it is not two whole numbers in order.

  A slice without a layer says whose embeddings, or norm and head, the result has.
  """
  if isinstance(raw, list | tuple) and len(raw) == 2 and all(type(item) is int for item in raw):
    first, end = raw
    if 0 <= first <= end:
      return first, end
  raise ValueError(
    f"{where}.layer_range is {shown(raw)}; expected [first, end], two numbers, the end excluded."
  )


def require_module(name: str, have: Mapping[str, Stack], where: str) -> Stack:
  """The stack that a recipe calls `name`; ValueError with the nearest name if there is none."""
  if name not in have:
    raise ValueError(unknown("module", name, have, where))
  return have[name]
