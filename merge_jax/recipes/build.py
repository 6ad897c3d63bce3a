"""From a recipe and opened checkpoints to the jobs that make its result; reads no weights.

All that can be wrong is found here: names, shapes, dtypes, vocabularies, parameters, layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merge_jax.checkpoints import Checkpoint
from merge_jax.operators import naming
from merge_jax.operators.core import Operator
from merge_jax.operators.naming import Axes
from merge_jax.operators.planning import merges
from merge_jax.recipes import (
  assembly,
  casting,
  choices,
  configs,
  layers,
  measured,
  parameters,
  tensors,
  told,
  vocabulary,
)
from merge_jax.recipes.built import Built
from merge_jax.recipes.casting import Part
from merge_jax.recipes.layers import Target
from merge_jax.recipes.schema import EMPTY, Model, Recipe, Semantics
from merge_jax.recipes.vocabulary import Vocabulary
from merge_jax.streaming import Job, Source


def semantics_of(recipe: Recipe) -> Semantics:
  """Whose definitions hold where nobody asks for others: those of the format."""
  return "mergekit" if recipe.origin == "mergekit" else "paper"


def build(
  recipe: Recipe,
  words: Vocabulary,
  *,
  semantics: Semantics | None = None,
  measurements: measured.Files = EMPTY,
  schedule: Sequence[float] | None = None,
) -> Built:
  """Builds the jobs of a merge.

  Args:
    recipe: what to merge.
    words: its models, opened, with the tokenizer that the result has.
    semantics: None: mergekit's for recipes in its format, else the papers'.
    measurements: files of statistics by the paths that the recipe has for them.
    schedule: the weights that the recipe's schedule gives, if it has one.

  Raises:
    ValueError: models that do not match in tensors, shapes or dtypes; parameters that are missing or out
      of range; layers that are not there; a method that takes other models.
  """
  semantics = semantics or semantics_of(recipe)
  mergekit = semantics == "mergekit"
  opened = words.models
  names, notes = tensors.of(opened)
  recipe = tensors.named(recipe, names)
  notes += (*vocabulary.differences(recipe, opened), *words.notes)
  parts: list[Part] = []
  for module in recipe.modules:
    for one in module.slices:
      part, more = casting.cast(recipe, module, one, mergekit)
      parts.append(part)
      notes += more
  targets = assembly.targets(recipe, parts, names)
  notes += told.without_effect(recipe, parts, [target for _, target in targets])
  chosen = [_choose(recipe, part, target, opened, names, mergekit, schedule) for part, target in targets]
  operators = choices.operators(chosen)
  like = opened[recipe.leader]
  groups: dict[Any, int] = {}
  jobs = []
  for (part, target), choice, operator in zip(targets, chosen, operators, strict=True):
    sources = [_source(opened, names, part, i, target) for i in range(len(part.inputs))]
    if tensors.computed(target.name, sources[0].spec):  # as the first model has it
      label = part.inputs[0].label
      jobs.append(Job(target.name, sources[0].spec, operator, (sources[0],), models=(label,), copied=True))
    else:
      job = _job(recipe, part, target, choice, operator, sources, measurements, like)
      group = (choice.method, choices.structure(operator), len(part.experts))
      jobs.append(job._replace(group=groups.setdefault(group, len(groups))))
  if recipe.origin == "own" and recipe.base is not None and all(job.base is None for job in jobs):
    raise ValueError(f"{recipe.method} does not use a base: remove base:, or list it among the models.")
  if measurements and all(job.statistics is None for job in jobs):
    raise ValueError(f"{recipe.method} does not use statistics: remove them from the models.")
  notes += told.measured_elsewhere(recipe, opened, measurements)
  notes += told.fused_experts(recipe, jobs, like) if mergekit else ()
  config = _config(recipe, parts, names, opened, like)
  if config is not None and any(job.name == tensors.HEAD for job in jobs):
    config = _untied(config, [opened[one.model] for part in parts for one in part.inputs], like)
  config = None if config is None else vocabulary.configured(config, words)
  return Built(
    recipe=recipe, semantics=semantics, jobs=tuple(jobs), like=like, config=config, inputs=opened,
    notes=recipe.notes + tuple(dict.fromkeys(notes)), choices=tuple(chosen), vocabulary=words,
    measurements=measurements,
  )  # fmt: skip


def _job(
  recipe: Recipe, part: Part, target: Target, choice: choices.Choice, operator: Operator,
  sources: Sequence[Source], measurements: measured.Files, like: Checkpoint,
) -> Job:  # fmt: skip
  """What merges a tensor; `sources` are those of all inputs of its slice."""
  choices.require_models(choice, operator, len(part.experts), choice.method != recipe.method)
  if operator.needs_base and part.base is None:
    raise ValueError(f"{choice.method} works on differences to a base: add base: to the recipe.")
  base = sources[part.base] if operator.needs_base and part.base is not None else None
  experts, inputs = [sources[i] for i in part.experts], [part.inputs[i] for i in part.experts]
  used = (*part.experts, *(() if part.base is None else (part.base,)))
  spec = _spec(recipe, target, part, [sources[i] for i in used], used, like)
  statistics = None
  if jnp.issubdtype(spec.dtype, jnp.floating):
    statistics = measured.of_tensor(choice.method, inputs, experts, measurements)
  return Job(
    target.name, spec, operator, tuple(experts), base,
    weights=None if operator.weightless else choice.weights,
    models=tuple(one.label for one in inputs),
    statistics=statistics,
    axes=choice.axes(len(spec.shape)) if operator.by_rows else Axes(),
    copied=choices.copies(choice, operator, len(experts)),
  )  # fmt: skip


def _choose(
  recipe: Recipe, part: Part, target: Target, opened: Mapping[Model, Checkpoint],
  names: Mapping[Model, Mapping[str, str]], mergekit: bool, schedule: Sequence[float] | None,
) -> choices.Choice:  # fmt: skip
  experts = [part.inputs[i] for i in part.experts]
  elements = _source(opened, names, part, part.experts[0], target).spec.size
  t = 0.0 if target.layer is None else parameters.position(target.layer, target.length)
  tensor = choices.Tensor(
    target.name,
    tuple(target.names[i] for i in part.experts),
    elements,
    t,
    (part.slice.settings, part.module.settings, recipe.settings),
  )
  if recipe.origin == "mergekit":
    based = part.base is not None
    return choices.of_mergekit(recipe.method, experts, tensor, mergekit=mergekit, task_vectors=based)
  index = naming.first_match(target.name, [rule.pattern for rule in recipe.rules])
  rule = None if index is None else recipe.rules[index]
  return choices.of_own(recipe.method, rule, experts, tensor, schedule)


def _source(
  opened: Mapping[Model, Checkpoint],
  names: Mapping[Model, Mapping[str, str]],
  part: Part,
  i: int,
  target: Target,
) -> Source:
  model = part.inputs[i].model
  return Source(opened[model], names[model][target.names[i]])


def _spec(
  recipe: Recipe, target: Target, part: Part, sources: Sequence[Source], used: Sequence[int], like: Checkpoint
) -> jax.ShapeDtypeStruct:
  """Shape and dtype of a tensor of the result, its sources compared."""
  specs = [source.checkpoint.specs[source.name] for source in sources]
  labels = [part.inputs[i].label for i in used]
  kinds = [
    merges(s.dtype, f"Tensor {target.name!r} of {label}") for s, label in zip(specs, labels, strict=True)
  ]
  for spec, label, kind in zip(specs, labels, kinds, strict=True):
    if spec.shape != specs[0].shape:
      words = target.name == tensors.HEAD or layers.before(target.name)
      hint = " If the vocabularies differ, add tokenizer_source: union." if words else ""
      raise ValueError(
        f"Tensor {target.name!r} has shape {spec.shape} in {label} but {specs[0].shape} in {labels[0]}; only "
        f"models of one architecture merge.{hint}"
      )
    if kind != kinds[0]:
      raise ValueError(
        f"Tensor {target.name!r} is {spec.dtype} in {label} but {specs[0].dtype} in {labels[0]}; expected "
        "floating numbers in all, or in none."
      )
  if not kinds[0]:
    return jax.ShapeDtypeStruct(specs[0].shape, specs[0].dtype)
  dtype = jnp.dtype(recipe.dtype) if recipe.dtype else _dtype(recipe, sources, like)
  merges(dtype, f"dtype of the result, tensor {target.name!r},")
  return jax.ShapeDtypeStruct(specs[0].shape, dtype)


def _dtype(recipe: Recipe, sources: Sequence[Source], like: Checkpoint) -> np.dtype:
  """Where a recipe has none: in mergekit's format one that holds the numbers of all, else that of `like`."""
  if recipe.origin == "own":
    return result_dtype(next((one for one in sources if one.checkpoint is like), sources[0]))
  kinds, widest = {np.dtype(result_dtype(one)) for one in sources}, np.dtype(np.float64)
  return kinds.pop() if len(kinds) == 1 else widest if widest in kinds else np.dtype(np.float32)


def result_dtype(source: Source) -> np.dtype:
  """The dtype that a merge of a tensor is written in, unless the recipe says otherwise."""
  return source.checkpoint.result_dtype(source.name)


def _config(
  recipe: Recipe, parts: Sequence[Part], names: Mapping[Model, Mapping[str, str]],
  opened: Mapping[Model, Checkpoint], like: Checkpoint,
) -> dict[str, Any] | None:  # fmt: skip
  if like.config is None:
    return None
  config = dict(like.config)
  for module in recipe.modules:
    own = [part for part in parts if part.module is module]
    if all(one.layers is None for part in own for one in part.inputs):
      continue
    stack, have = tensors.stack_of(module, names, recipe.method)
    if stack is None:
      raise ValueError(f"{recipe.method}: slices need a model with layers, this one has none.")
    origins: list[configs.Origin] = []
    for part in own:
      leader = part.inputs[0]
      first, end = assembly.layer_range(leader.layers, stack, names[leader.model], leader.label)
      origins += [(opened[leader.model].config or config, layer) for layer in range(first, end)]
    in_like = next((s.length for s in layers.stacks(like.specs) if s.prefix == stack.prefix), stack.length)
    counted = module.name if set(have) == set(configs.OF_MODULES) else None
    config = configs.restack(config, in_like, origins, counted, stack.prefix)
  return config


def _untied(config: dict[str, Any], merged: Sequence[Checkpoint], like: Checkpoint) -> dict[str, Any]:
  """The config of a result with a head of its own.

  Only where that of one model is not its embedding it is said, also where the key is missing: some families
  tie what does not say otherwise.
  """
  if tensors.untied(like) or not any(map(tensors.untied, merged)):
    return config
  return config | {"tie_word_embeddings": False}
