"""What people are told of a recipe that does otherwise than they may think."""

from collections.abc import Mapping, Sequence

from merge_jax.checkpoints import Checkpoint
from merge_jax.operators import naming
from merge_jax.recipes.casting import Part
from merge_jax.recipes.layers import Target
from merge_jax.recipes.measured import Files
from merge_jax.recipes.schema import Model, Recipe
from merge_jax.streaming import Job

FUSED = ("mixtral", "qwen3_moe")
"""Kinds of models whose experts mergekit 0.1.5 puts together before it merges."""


def without_effect(recipe: Recipe, parts: Sequence[Part], targets: Sequence[Target]) -> tuple[str, ...]:
  """A note for each rule that decides nothing, and each filter that is in no name."""
  patterns = [rule.pattern for rule in recipe.rules]
  used = {naming.first_match(one.name, patterns) for one in targets} if patterns else set()
  rules = (
    f"the rule for {pattern!r} decides no tensor: a pattern has to match the whole name of one, and the "
    "first that does counts"
    for i, pattern in enumerate(patterns)
    if i not in used
  )
  scopes = [recipe.settings]
  for part in parts:
    scopes += [part.module.settings, part.slice.settings, *(one.settings for one in part.inputs)]
  said = (setting.filter for scope in scopes for some in scope.values() for setting in some)
  filters = dict.fromkeys(name for name in said if name is not None)
  names = {name for one in targets for name in (one.name, *one.names)} if filters else set()
  unheard = (one for one in filters if not any(one in name for name in names))
  return (*rules, *(f"the filter {one!r} is in no tensor's name" for one in unheard))


def measured_elsewhere(recipe: Recipe, opened: Mapping[Model, Checkpoint], files: Files) -> tuple[str, ...]:
  """A note for each file of statistics that was made of other weights than those that it now weighs."""
  inputs = recipe.modules[0].slices[0].inputs if files else ()
  pairs = [(one, files[one.statistics].about.made) for one in inputs if one.statistics is not None]
  return tuple(
    f"the statistics of {one.label} ({one.statistics}) were measured on another checkpoint, or on one that "
    "has changed since"
    for one, made in pairs
    if "checkpoint" in made and made["checkpoint"] != opened[one.model].digest()
  )


def fused_experts(recipe: Recipe, jobs: Sequence[Job], like: Checkpoint) -> tuple[str, ...]:
  """A note where mergekit would measure all experts of a layer as one tensor."""
  if (like.config or {}).get("model_type") not in FUSED:
    return ()
  experts = (job.operator for job in jobs if ".experts." in job.name)
  if not any(not survey.whole for operator in experts for survey in operator.survey()):
    return ()
  return (
    "mergekit merges all experts of a layer as one tensor; here each is one, so that thresholds, norms and "
    f"angles of {recipe.method} are its own",
  )
