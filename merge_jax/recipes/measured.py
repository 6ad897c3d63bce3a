"""Statistics of models that a recipe names, for the methods that weigh by data."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merge_jax.recipes import models, spelling
from merge_jax.recipes.schema import Input, Recipe
from merge_jax.streaming import Readable, Source

if TYPE_CHECKING:
  from merge_jax.evals.statistics_file import Statistics

KINDS = {"fisher": "fisher", "regmean": "gram"}
"""The kind of statistics, by the method that needs them."""
Files = Mapping[str, "Statistics"]
"""Files that are open, by the paths that the recipe has for them."""


def open_all(recipe: Recipe, folder: Path) -> dict[str, "Statistics"]:
  """Opens the files of statistics that a recipe names; reads headers alone.

  Raises:
    FileNotFoundError, ValueError: no such file, or one of something else.
  """
  files = {one.statistics for one in recipe.modules[0].slices[0].inputs if one.statistics is not None}
  if not files:
    return {}
  from merge_jax.evals import statistics_file  # slow to import

  return {file: statistics_file.load(models.locate(file, None, folder)) for file in sorted(files)}


def of_tensor(
  method: str, experts: Sequence[Input], sources: Sequence[Source], files: Files
) -> tuple[Readable | None, ...] | None:
  """What was measured of one tensor of each model; None for methods that do not ask.

  Raises:
    ValueError: a file that is missing, of another kind or of another model; shapes that do not fit.
  """
  if method not in KINDS:
    return None
  from merge_jax.recipes.embeddings import Remapped, Reordered  # slow to import

  found: list[Readable | None] = []
  for one, source in zip(experts, sources, strict=True):
    where = f"{method}: statistics of {one.label}"
    how = f"make them with python -m merge_jax statistics --kind={KINDS[method]}"
    if one.statistics is None:
      raise ValueError(f"{where} are missing; {how}, and name the file as models.{one.label}.statistics.")
    file = files[one.statistics]
    if file.about.kind != KINDS[method]:
      raise ValueError(f"{where}: {file.path} holds those of kind {file.about.kind!r}; {how}.")
    remapped = source.checkpoint if isinstance(source.checkpoint, Remapped) else None
    own = source.checkpoint if remapped is None else remapped.source
    name = spelling.stored(own, source.name)  # as the model that was measured has it
    if name not in file:
      raise ValueError(f"{where}: {file.path} is of a model without tensor {name!r}; {how}.")
    measured: Readable | None = file.find(name)
    if method == "fisher" and measured is not None and remapped and source.name in remapped.remapped:
      measured = Reordered(measured, remapped.plan.rows_of[remapped.label], source.name in remapped.turned)
    shape = source.spec.shape
    if method == "regmean":  # `[out, in, …]`; what has no such axes has no inputs
      shape = (math.prod(shape[1:]),) * 2 if len(shape) > 1 else shape * 2
    if measured is not None and measured.spec.shape != shape:
      raise ValueError(f"{where}: {measured} has shape {measured.spec.shape}; expected {shape}, so {how}.")
    found.append(measured)
  lacking = [one.label for one, measured in zip(experts, found, strict=True) if measured is None]
  if lacking and (method == "fisher" or len(lacking) < len(found)):
    raise ValueError(
      f"{method}: the statistics of {lacking[0]} have none for tensor {sources[0].name!r}; make those of all "
      "models alike."
    )
  return tuple(found)
