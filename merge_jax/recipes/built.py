"""A merge that is ready to run, and its result before it is there."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from merge_jax.checkpoints import Checkpoint, Writer, nbytes
from merge_jax.errors import shown
from merge_jax.recipes import choices, measured
from merge_jax.recipes.schema import Model, Recipe, Semantics
from merge_jax.recipes.vocabulary import Vocabulary
from merge_jax.streaming import Job


class Built(NamedTuple):
  """A merge that is ready to run.

  Attributes:
    recipe, semantics: what was asked.
    jobs: one for each tensor of the result, by name.
    like: whose side files the result gets.
    config: content of the result's `config.json`, or None.
    inputs: every model that is read.
    notes: what the user should know.
    choices: method, arguments and weights of each job, for the plan that is shown.
    vocabulary: the tokenizer's files, if they are not those of `like`.
    measurements: files of statistics that are read, by the paths that the recipe has for them.
    stages: earlier merges of the same file whose results are read.
  """

  recipe: Recipe
  semantics: Semantics
  jobs: tuple[Job, ...]
  like: Checkpoint
  config: dict[str, Any] | None
  inputs: Mapping[Model, Checkpoint]
  notes: tuple[str, ...]
  choices: tuple[choices.Choice, ...]
  vocabulary: Vocabulary
  measurements: measured.Files
  stages: tuple["Built", ...] = ()

  @property
  def origins(self) -> dict[Model, Checkpoint]:
    """What the result comes from: every model that is read, those of stages in place of their results."""
    stages = {stage.recipe.name: stage for stage in self.stages}
    found: dict[Model, Checkpoint] = {}
    for model, checkpoint in self.inputs.items():
      stage = stages.get(model.path)
      found |= {} if stage is None else stage.origins
      if stage is None or model.adapter is not None:
        found[model] = checkpoint
    return found

  @property
  def specs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of the result's tensors."""
    return {job.name: job.spec for job in self.jobs}

  @property
  def nbytes(self) -> int:
    """Bytes of the result's tensors."""
    return sum(map(nbytes, self.specs.values()))


@dataclasses.dataclass(frozen=True)
class Planned(Checkpoint):
  """The result of an earlier recipe before it is there: its names and shapes, for those that use it.

  Attributes:
    tokenizer: files of its own, by name; None where those of its path stay.
  """

  format = "planned"
  tokenizer: Mapping[str, bytes] | None = None

  def _stored(self, name: str, index: Any) -> np.ndarray:
    raise ValueError(f"{self.path}: {shown(name)} is not written yet.")

  def files(self) -> tuple[Path, ...]:
    """None yet."""
    return ()

  def writer(self, folder: Path, specs: Mapping[str, Any], **options: Any) -> Writer:
    """Refused: only what is there has a format."""
    raise ValueError(f"{self.path} is not written yet.")

  def result_dtype(self, name: str) -> np.dtype:
    """As it will be written."""
    return np.dtype(self.specs[name].dtype)


def planned_of(built: Built) -> Planned:
  """The result of a merge as later recipes see it."""
  return Planned(built.like.path, built.specs, {}, built.config, tokenizer=built.vocabulary.files)
