"""Who plays which part in a slice: experts, the base, and models that are read for nothing but a config."""

from typing import NamedTuple

from merge_jax.recipes import methods
from merge_jax.recipes.schema import Input, Model, Module, Recipe, Slice


class Part(NamedTuple):
  """A slice with its base.

  Attributes:
    inputs: all models that are read, in order; labels are unique.
    experts: which of them are merged.
    base: which of them is the base, or None.
    slice: as the recipe has it.
    module: that it belongs to.
  """

  inputs: tuple[Input, ...]
  experts: tuple[int, ...]
  base: int | None
  slice: Slice
  module: Module


def cast(recipe: Recipe, module: Module, slice_: Slice, mergekit: bool) -> tuple[Part, tuple[str, ...]]:
  """The parts in a slice, and notes.

  Raises:
    ValueError: a base that the method needs and does not get, or a number of models that it does not take.
  """
  base = slice_.base or recipe.base
  notes: list[str] = []
  inputs = list(slice_.inputs)
  listed = next((i for i, one in enumerate(inputs) if one.model == base), None)
  if recipe.origin == "own":
    if base is not None:
      inputs.append(Input(base))
      return Part(_labelled(inputs), tuple(range(len(slice_.inputs))), len(slice_.inputs), slice_, module), ()
    return Part(_labelled(inputs), tuple(range(len(inputs))), None, slice_, module), ()
  name, method = recipe.method, methods.MERGEKIT[recipe.method]
  if method.base in ("required", "input") and base is None:
    raise ValueError(
      f"{name} works on differences to a base, or starts from it: add base_model: to the recipe."
    )
  at = listed
  if base is not None and listed is None:
    whole = all(one.layers is None for one in inputs)  # mergekit: in `models:`, not in `slices:`
    averaged = method.base == "no" and mergekit and name != "passthrough" and whole
    if averaged:
      notes.append(
        f"{name} averages the base {base} in as one more model, as mergekit does (it is not listed)"
      )
    elif method.base == "no":
      gives = ": it only gives config and tokenizer" if base == recipe.leader else ""
      notes.append(f"{name} does not use the base {base}{gives}")
    elif not whole:
      if method.base == "input":
        raise ValueError(
          f"{name} starts from the base {base}, which is not among the sources of a slice: list it there, "
          "with its layer_range, in all slices; what is to stay as it is, is a merge by passthrough."
        )
      notes.append(f"the base {base} joins the slices that do not list it, with the same layers")
    if averaged or method.base != "no":
      at = len(inputs)
      inputs.append(Input(base, layers=_range(slice_, base, name)))
  if method.base == "no":
    experts, at = tuple(range(len(inputs))), None
  else:
    experts = tuple(i for i in range(len(inputs)) if i != at)
    if method.base == "input" and at is not None:
      experts, at = (at, *experts), None
  if not experts and at is not None and method.of_base_alone:
    notes.append(f"{name} gets no model but the base {base}, and gives it as it is")
    experts, at = (at,), None
  few, many = method.fewest, method.most
  if len(experts) < few or (many is not None and len(experts) > many):
    wanted = f"{few}" if few == many else f"at least {few}"
    beside = (
      " (the base included)" if method.base == "input" else " (the base apart)" if at is not None else ""
    )
    plural = "s" if (many or few) > 1 else ""
    at_slice = f"slices[{module.slices.index(slice_)}]: " if len(module.slices) > 1 else ""
    raise ValueError(f"{at_slice}{name} merges {wanted} model{plural}{beside}, got {len(experts)}.")
  return Part(_labelled(inputs), experts, at, slice_, module), tuple(notes)


def _range(slice_: Slice, base: Model, name: str) -> tuple[int, int] | None:
  ranges = {one.layers for one in slice_.inputs}
  if len(ranges) > 1:
    raise ValueError(
      f"{name}: a slice takes layers {sorted(r for r in ranges if r)} of its models but does not list the "
      f"base {base}; list it among the sources with its layer_range."
    )
  return next(iter(ranges))


def _labelled(inputs: list[Input]) -> tuple[Input, ...]:
  """Each input with a label of its own; a model that comes twice gets a number."""
  found: list[Input] = []
  for one in inputs:
    label = base = one.label or str(one.model)
    number = 2
    while any(label == other.label for other in found):
      label, number = f"{base}#{number}", number + 1
    found.append(one._replace(label=label))
  return tuple(found)
