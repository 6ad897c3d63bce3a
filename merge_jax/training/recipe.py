"""How a checkpoint is trained: numbers with their ranges."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

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
    learning_rate: peak of the schedule, see `schedule.rate`.
    warmup: steps of linear warm-up.
    schedule_steps: steps over which the rate reaches zero; a number larger than `steps` stops early,
      a smaller one (0) means `steps`.
    decay: how it falls there; "none" keeps the peak.
    decay_steps: at the end, over which it falls; 0 for all after the warm-up.
    until_loss: stop once the mean loss of the last hundred steps is below; 0 trains all steps.
    batch_size: examples a step.
    accumulate: parts of a batch, one after the other: activations are those of a part.
    dtype: of the computation; parameters, moments and sums of gradients are float32.
    remat: keep the inputs of layers alone for gradients, and compute the rest again.
    weight_decay, b2, clip: of AdamW, and the global gradient norm.
    lora_rank: of the products that are trained instead of the matrices (see `lora`); 0 trains all parameters.
    lora_alpha: the product is multiplied by alpha / rank; 0 for the rank.
    dpo_beta: β of direct preference optimisation on pairs of a right and a wrong answer (see `preference`);
      0 learns the right answers.
    seed: of the examples that are drawn, and of what LoRA begins with.
  """

  mixture: dict[str, _Share]
  steps: Annotated[int, Meta(ge=1)]
  learning_rate: Annotated[float, Meta(gt=0)]
  warmup: Annotated[int, Meta(ge=0)] = 20
  schedule_steps: Annotated[int, Meta(ge=0)] = 0
  decay: Literal["cosine", "linear", "minus_sqrt", "none"] = "cosine"
  decay_steps: Annotated[int, Meta(ge=0)] = 0
  until_loss: Annotated[float, Meta(ge=0)] = 0.0
  batch_size: Annotated[int, Meta(ge=1)] = 32
  accumulate: Annotated[int, Meta(ge=1)] = 1
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: bool = False
  weight_decay: Annotated[float, Meta(ge=0)] = 0.0
  b2: Annotated[float, Meta(ge=0, lt=1)] = 0.98
  clip: Annotated[float, Meta(gt=0)] = 1.0
  lora_rank: Annotated[int, Meta(ge=0)] = 0
  lora_alpha: Annotated[float, Meta(ge=0)] = 0.0
  dpo_beta: Annotated[float, Meta(ge=0)] = 0.0
  seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0

  @property
  def horizon(self) -> int:
    """Steps over which the schedule runs."""
    return max(self.schedule_steps, self.steps)

  @property
  def decay_begin(self) -> int:
    """The step from which the rate falls."""
    return self.horizon - self.decay_steps if self.decay_steps else self.warmup


def read_recipe(settings: Mapping[str, Any], where: str) -> Recipe:
  """A recipe from plain settings.

  Args:
    settings: values by field name.
    where: file, or section of a config, for errors.

  Raises:
    ValueError: an unknown field, a value out of range, numbers that do not fit one another.

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
  falls = 0 if recipe.decay == "none" else recipe.horizon - recipe.warmup
  if recipe.decay_steps > falls:
    why = "0 with decay none" if not falls else f"the {falls} steps after the warm-up"
    raise ValueError(f"{where}: decay_steps is {recipe.decay_steps}; expected at most {why}.")
  if recipe.batch_size % recipe.accumulate:
    raise ValueError(
      f"{where}: batch_size is {recipe.batch_size}; expected a multiple of accumulate, {recipe.accumulate}."
    )
  if recipe.lora_alpha and not recipe.lora_rank:
    raise ValueError(
      f"{where}: lora_alpha is {recipe.lora_alpha:g}, but lora_rank is 0, which trains all parameters; "
      "give the rank as well."
    )
  return recipe


def shares(mixture: Mapping[str, float], names: Sequence[str], where: str = "mixture") -> np.ndarray:
  """Shares of tasks that sum to 1, float32 `[tasks]`, in the order of `names`.

  Raises:
    ValueError: the mixture names an unknown task, or has no positive share, or a negative one.

  >>> shares({"a": 3.0, "b": 1.0}, ["b", "a", "c"])
  array([0.25, 0.75, 0.  ], dtype=float32)
  """
  for name in mixture:
    if name not in names:
      raise ValueError(unknown("task", name, names, where))
  values = np.array([mixture.get(name, 0.0) for name in names], np.float32)
  total = values.sum()
  if not (values.min() >= 0 and 0 < total < np.inf):
    raise ValueError(f"{where}: {dict(mixture)} needs a positive share, and no negative one.")
  return values / total
