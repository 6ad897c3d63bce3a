"""What models call their tensors: heads that are tied, buffers that are computed, lists of layers."""

from collections.abc import Mapping

import jax

from merge_jax.checkpoints import Checkpoint
from merge_jax.recipes import configs, layers
from merge_jax.recipes.schema import Model, Module, Recipe

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
MASKS = (".attn.bias", ".attention.bias")
BUFFERS = (".inv_freq", ".masked_bias", "embeddings.position_ids", *MASKS)
"""Tensors that old exports hold and new ones leave out: computed by the model, not learned."""
PROJECTORS = ("multi_modal_projector", "merger")
"""What stands between eyes and a language model, where it has a name that mergekit's recipes can mean."""
Tensors = Mapping[str, str]
"""The names that a model has, each with that it is stored under."""


def head(checkpoint: Checkpoint) -> str | None:
  """The name that a model's head is stored under: its own, or that of the embedding that it is tied to."""
  if HEAD in checkpoint.specs:
    return HEAD
  if HEAD in checkpoint.aliases:
    return checkpoint.aliases[HEAD]
  if not (checkpoint.config or {}).get("tie_word_embeddings", True):
    return None
  return next((name for name in checkpoint.specs if name.endswith(EMBEDDINGS) and "visual" not in name), None)


def computed(name: str, spec: jax.ShapeDtypeStruct) -> bool:
  """Whether a tensor is computed by the model, not learned, by its name; a mask has at least three axes."""
  mask = not name.endswith(MASKS) or len(spec.shape) > 2
  return name.endswith(BUFFERS) and mask


def untied(checkpoint: Checkpoint) -> bool:
  """Whether a model uses a head of its own; some that are tied merely store one, too."""
  return HEAD in checkpoint.specs and (checkpoint.config or {}).get("tie_word_embeddings") is not True


def of(opened: Mapping[Model, Checkpoint]) -> tuple[dict[Model, dict[str, str]], tuple[str, ...]]:
  """The names of each model's tensors, with where they are stored; and notes.

  Where one model has a head of its own, all have one: a tied model's is its embedding. Computed buffers
  that not all models hold are left out.
  """
  notes = []
  heads = any(HEAD in checkpoint.specs for checkpoint in opened.values())
  own = any(map(untied, opened.values()))
  found = {}
  for model, checkpoint in opened.items():
    names = {name: name for name in checkpoint.specs}
    if heads and (stored := head(checkpoint)) is not None:
      names[HEAD] = stored
      if own and not untied(checkpoint):
        notes.append(f"{model} ties its head to its embedding; the result has a head of its own")
    found[model] = names
  everywhere = set.intersection(*(set(names) for names in found.values()))
  for model, names in found.items():
    specs = opened[model].specs
    further = (name for name in names if name not in everywhere and name in specs)
    for name in [name for name in further if computed(name, specs[name])]:
      del names[name]
      notes.append("buffers that not all models hold are left out")
  return found, tuple(dict.fromkeys(notes))


def named(recipe: Recipe, names: Mapping[Model, Tensors]) -> Recipe:
  """A recipe with our names of its modules, where it has mergekit's, which are those of the parts' kinds."""
  modules = []
  for module in recipe.modules:
    there = names[module.slices[0].inputs[0].model]
    have = layers.modules(found) if (found := layers.stacks(there)) else {}
    seeing = [name for name, stack in have.items() if configs.sees(stack.prefix)]
    reading = [name for name in have if name not in seeing]
    known = {"default": [*have], "text_decoder": reading, "vision_tower": seeing, "vision_model": seeing}
    known["multi_modal_projector"] = [word for word in PROJECTORS if layers.called(there, word, have)]
    ours = known.get(module.name or "", []) if module.name not in have else []
    modules.append(module._replace(name=ours[0]) if len(ours) == 1 else module)
  return recipe._replace(modules=tuple(modules))


def stack_of(
  module: Module, names: Mapping[Model, Tensors], where: str
) -> tuple[layers.Stack | None, dict[str, layers.Stack]]:
  """The list of layers that a module's slices are of, by its first model; and all lists of that model.

  A module may also be what has its name in those of its tensors, and no layers: a projector.

  Raises:
    ValueError: slices of a model that has no layers, or several lists of them; a module that is not there.
  """
  there = names[module.slices[0].inputs[0].model]
  found = layers.stacks(there)
  have = layers.modules(found) if found else {}
  sliced = any(one.layers is not None for part in module.slices for one in part.inputs)
  other = module.name is not None and module.name not in have and have
  if other and layers.called(there, str(module.name), have):
    if sliced:
      raise ValueError(f"{where}: {module.name} has no layers to take slices of; give it models.")
    return None, have
  if module.name is not None:
    return layers.require_module(module.name, have, where), have
  if sliced and len(found) != 1:
    listed = ", ".join(f"{name} ({stack.length})" for name, stack in have.items()) or "none"
    raise ValueError(
      f"{where}: slices need a model with one list of layers, this one has {listed}; put slices under "
      "modules: by these names."
    )
  return found[0] if found else None, have
