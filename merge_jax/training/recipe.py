"""How a checkpoint is trained: numbers with their ranges."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from merge_jax import decoding
from merge_jax.errors import unknown

_Share = Annotated[float, Meta(ge=0)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
  """How a checkpoint is trained; `read_recipe` checks the ranges.

  Attributes:
    mixture: share of each task in the examples that are drawn, by task name; tasks left out are not seen.
    steps: optimizer steps.
    learning_rate: peak of the schedule.
    warmup: steps of linear warm-up.
    schedule_steps: steps over which the cosine reaches zero; a number larger than `steps` stops early,
      a smaller one (0) means `steps`.
    until_loss: stop once the mean loss of the last hundred steps is below; 0 trains all steps.
    batch_size: examples a step.
    weight_decay, b2, clip: of AdamW, and the global gradient norm.
    seed: of the examples that are drawn.
  """

  mixture: dict[str, _Share]
  steps: Annotated[int, Meta(ge=1)]
  learning_rate: Annotated[float, Meta(gt=0)]
  warmup: Annotated[int, Meta(ge=0)] = 20
  schedule_steps: Annotated[int, Meta(ge=0)] = 0
  until_loss: Annotated[float, Meta(ge=0)] = 0.0
  batch_size: Annotated[int, Meta(ge=1)] = 32
  weight_decay: Annotated[float, Meta(ge=0)] = 0.0
  b2: Annotated[float, Meta(ge=0, lt=1)] = 0.98
  clip: Annotated[float, Meta(gt=0)] = 1.0
  seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0

  @property
  def horizon(self) -> int:
    """Steps over which the schedule runs."""
    return max(self.schedule_steps, self.steps)


def read_recipe(settings: Mapping[str, Any], where: str) -> Recipe:
  """A recipe from plain settings.

  Args:
    settings: values by field name.
    where: file, or section of a config, for errors.

  Raises:
    ValueError: an unknown field, a value out of range, a warm-up that is not shorter than the schedule.

  >>> read_recipe({"mixture": {"code": 1.0}, "steps": 100, "learning_rate": 1e-3}, "config").warmup
  20
  >>> read_recipe({"mixture": {"code": 1.0}, "steps": 100, "learning_rate": -1.0}, "config")
  Traceback (most recent call last):
  ValueError: config: learning_rate is -1.0; expected a number > 0.0.
  """
  recipe = decoding.convert(dict(settings), Recipe, where)
  if recipe.warmup >= recipe.horizon:
    raise ValueError(
      f"{where}: warmup is {recipe.warmup}; expected fewer than the {recipe.horizon} steps of the schedule."
    )
  return recipe


def shares(mixture: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
  """Shares of tasks that sum to 1, float32 `[tasks]`, in the order of `names`.

  Raises:
    ValueError: the mixture names an unknown task, or has no positive share, or a negative one.

  >>> shares({"a": 3.0, "b": 1.0}, ["b", "a", "c"])
  array([0.25, 0.75, 0.  ], dtype=float32)
  """
  for name in mixture:
    if name not in names:
      raise ValueError(unknown("task", name, names, "mixture"))
  values = np.array([mixture.get(name, 0.0) for name in names], np.float32)
  total = values.sum()
  if not (values.min() >= 0 and 0 < total < np.inf):
    raise ValueError(f"mixture: {dict(mixture)} needs a positive share, and no negative one.")
  return values / total
