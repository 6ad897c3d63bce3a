"""Which tensors the result has, and which tensors of the inputs make each; names alone."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from merge_jax.recipes import configs, layers, tensors
from merge_jax.recipes.casting import Part
from merge_jax.recipes.layers import Stack, Target
from merge_jax.recipes.schema import Model, Recipe


def targets(
  recipe: Recipe, parts: Sequence[Part], names: Mapping[Model, Mapping[str, str]]
) -> list[tuple[Part, Target]]:
  """All tensors of the result by name, with the slices that make them.

  Args:
    recipe: what to merge.
    parts: its slices, cast, in order.
    names: of each model's tensors, as `tensors.of` gives them.

  Raises:
    ValueError: a tensor that one of the models does not have, layers that are not there, a module that
      the recipe leaves out.
  """
  found = sorted(_targets(recipe, parts, names), key=lambda pair: pair[1].name)
  for (_, one), (_, other) in itertools.pairwise(found):
    if one.name == other.name:
      raise ValueError(f"Tensor {one.name!r} would be made twice; the slices or modules overlap.")
  return found


def _targets(
  recipe: Recipe, parts: Sequence[Part], names: Mapping[Model, Mapping[str, str]]
) -> Iterator[tuple[Part, Target]]:
  roots: dict[str, Stack] = {}
  for module in recipe.modules:
    own = [part for part in parts if part.module is module]
    where = recipe.method if module.name is None else f"modules.{module.name}"
    stack, have = tensors.stack_of(module, names, where)
    roots = have
    ranges = [
      [layer_range(one.layers, stack, names[one.model], one.label) for one in part.inputs] for part in own
    ]
    mine = [_of_module(names[part.inputs[0].model], module.name, recipe, have) for part in own]
    if all(one.layers is None for part in own for one in part.inputs):
      yield from _whole(own[0], mine[0], names, have)
      continue
    restacked = _shared_once(layers.restack(mine, stack, ranges), stack, mine, where)
    _refuse_further(own, ranges, stack, names, recipe, have)
    for target in restacked:
      part = own[target.slice]
      for one, name in zip(part.inputs, target.names, strict=True):
        _require_tensor(name, names[one.model], one.label, part.inputs[0].label)
      yield part, target
  missing = [
    name for name in roots if recipe.modules[0].name and name not in {m.name for m in recipe.modules}
  ]
  if missing:
    raise ValueError(f"modules: {missing[0]} is missing; the model has the modules {', '.join(roots)}.")


def _refuse_further(
  parts: Sequence[Part],
  ranges: Sequence[Sequence[tuple[int, int]]],
  stack: Stack | None,
  names: Mapping[Model, Mapping[str, str]],
  recipe: Recipe,
  have: Mapping[str, Stack],
) -> None:
  """Raises ValueError if an input of a slice has a tensor that its first one lacks."""
  for number, (part, of_inputs) in enumerate(zip(parts, ranges, strict=True)):
    first, module = part.inputs[0], part.module.name
    for other, own in zip(part.inputs[1:], of_inputs[1:], strict=True):
      mine = _of_module(names[other.model], module, recipe, have)
      alike = layers.restack([[]] * number + [mine] + [[]] * (len(parts) - number - 1), stack,
                             [*ranges[:number], [own, of_inputs[0]], *ranges[number + 1 :]])  # fmt: skip
      for target in alike:
        _require_tensor(target.names[1], names[first.model], first.label, other.label)


def _shared_once(
  targets: Sequence[Target], stack: Stack | None, names: Sequence[Sequence[str]], where: str
) -> Sequence[Target]:
  """Without copies of what the first layer holds for all (T5's positions).

  Raises:
    ValueError: the first layer of the result is one that lacks it.
  """
  if stack is None:
    return targets
  places = {place for of_slice in names for place in map(layers.place, of_slice)}
  there = [place for place in places if place is not None and place.prefix == stack.prefix]
  first = {place.suffix for place in there if place.layer == 0}
  others = {place.suffix for place in there if place.layer > 0}
  if not others or not others < first:  # layers of another kind are told apart by the config
    return targets
  shared = {(stack.prefix, suffix) for suffix in first - others}
  now = [(target, layers.place(target.name)) for target in targets]
  held = {(one.prefix, one.suffix) for _, one in now if one is not None and one.layer == 0}
  if missing := sorted(suffix for prefix, suffix in shared if (prefix, suffix) not in held):
    raise ValueError(
      f"{where}: all layers use {missing[0]!r} of layer 0, which alone has it; the slices must begin with "
      "layer 0."
    )
  return [one for one, at in now if at is None or at.layer == 0 or (at.prefix, at.suffix) not in shared]


def _whole(
  part: Part, mine: Sequence[str], names: Mapping[Model, Mapping[str, str]], have: Mapping[str, Stack]
) -> Iterator[tuple[Part, Target]]:
  """The tensors of models with all their layers."""
  counts = {stack.prefix: stack.length for stack in have.values()}
  first = part.inputs[0]
  for other in part.inputs[1:]:
    if extra := names[other.model].keys() - names[first.model].keys():
      _require_tensor(min(extra), names[first.model], first.label, other.label)
  for name in mine:
    for other in part.inputs[1:]:
      _require_tensor(name, names[other.model], other.label, first.label)
    there = layers.place(name)
    count = 0 if there is None else counts.get(there.prefix, 0)
    layer = there.layer if there is not None and count else None
    yield part, Target(name, (name,) * len(part.inputs), 0, layer, count)


def _of_module(
  names: Mapping[str, str], module: str | None, recipe: Recipe, have: Mapping[str, Stack]
) -> list[str]:
  """The tensors of a module: those that share most of its layers' name, or have that of one without layers.

  What shares as much with several belongs to those that read or write text: embeddings to the first, a head
  to the last, which is the decoder.
  """
  if module is None:
    return list(names)
  bare = {one.name: layers.called(names, one.name, have) for one in recipe.modules if one.name}
  bare = {name: found for name, found in bare.items() if name not in have}
  outer = [name for name, stack in have.items() if not configs.sees(stack.prefix)] or list(have)
  outer.sort(key=lambda name: "dec" in have[name].prefix)

  def owner(name: str) -> str:
    inside = next((word for word, found in bare.items() if name in found), None)
    return inside or layers.owner(name, have) or outer[0 if layers.before(name) else -1]

  return [name for name in names if owner(name) == module]


def layer_range(
  chosen: tuple[int, int] | None, stack: Stack | None, names: Mapping[str, str], label: str
) -> tuple[int, int]:
  """The layers of a model that a slice takes, all where it does not say; ValueError beyond the last."""
  if stack is None:
    return (0, 0)
  count = next((one.length for one in layers.stacks(names) if one.prefix == stack.prefix), 0)
  first, end = chosen or (0, count)
  if end > count:
    raise ValueError(f"layer_range [{first}, {end}] of {label}: it has {count} layers (the end is excluded).")
  return first, end


def _require_tensor(name: str, names: Mapping[str, str], where: str, other: str) -> None:
  if name not in names:
    raise ValueError(
      f"Tensor {name!r} of {other} is missing in {where}; only models with the same tensors merge."
    )
