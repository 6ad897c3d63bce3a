"""The names of one model's tensors, as exports of different ages and classes spell them.

`gpt2` of the hub has `h.0.ln_1.weight`, what was trained from it `transformer.h.0.ln_1.weight`; old exports
of BERT call a norm's weight `gamma`, and its bias `beta`.
"""

from collections.abc import Mapping

from merge_jax.recipes import layers
from merge_jax.recipes.schema import Model

OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
Tensors = dict[str, str]
"""The names that a model has, each with that it is stored under."""


def aligned(names: Mapping[Model, Tensors]) -> tuple[dict[Model, Tensors], tuple[str, ...]]:
  """The names of all models in one spelling, the longest and newest, and notes; those that agree stay.

  >>> old, new = ({f"{p}h.{i}.w": f"{p}h.{i}.w" for i in (0, 1)} for p in ("", "transformer."))
  >>> found, notes = aligned({"a": old, "b": new})
  >>> found["a"]["transformer.h.1.w"], notes
  ('h.1.w', ('a: tensors are read with transformer. before their names, as b has them',))
  """
  if len({frozenset(own) for own in names.values()}) < 2:
    return dict(names), ()
  found, notes = dict(names), list[str]()
  if not all(any(name.endswith(tuple(OLD)) for name in own) for own in names.values()):
    for model, own in names.items():
      found[model] = {_renewed(name): stored for name, stored in own.items()}
      if found[model] != own:
        notes.append(f"{model}: LayerNorm.gamma and beta are read as weight and bias")
  roots = {model: next((one.prefix for one in layers.stacks(own)), "") for model, own in found.items()}
  longest = max(roots, key=lambda model: len(roots[model]))
  for model, root in roots.items():
    before = roots[longest].removesuffix(root)
    if root and before.endswith(".") and before + root == roots[longest]:
      there = found[longest]
      found[model] = {
        before + name if before + name in there and name not in there else name: stored
        for name, stored in found[model].items()
      }
      notes.append(f"{model}: tensors are read with {before} before their names, as {longest} has them")
  return found, tuple(notes)


def _renewed(name: str) -> str:
  for old, new in OLD.items():
    if name.endswith(old):
      return name.removesuffix(old) + new
  return name
