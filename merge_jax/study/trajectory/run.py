"""What is trained: a run of constant learning rate with checkpoints along it, and decays that branch off."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import msgspec
from jax import Array
from jax.sharding import Mesh
from msgspec import Meta

from merge_jax import decoding
from merge_jax.recycle.settings import Positive
from merge_jax.study.settings import Part
from merge_jax.training import Corpus, Recipe, State, continued, read_recipe, result, saving, train
from merge_jax.training.resume import digest, reached

Params = Mapping[str, Any]
Decay = Literal["linear", "minus_sqrt", "cosine"]


class Along(Part, frozen=True):
  """A run, and what is made of it.

  Attributes:
    recipe: of the run, see `merge_jax.training.Recipe`; its steps and its decay come from here.
    every: steps from checkpoint to checkpoint.
    points: steps at which decays branch off.
    decay_steps: of every decay.
    decays: shapes of the decays.
    windows: checkpoints in a merge; that from a point to the end of its decay comes on top.
    schedules: of the merge's weights, names in `merge_jax.operators.contrib.trajectory.SCHEDULES`.
  """

  recipe: dict[str, Any]
  every: Positive
  points: Annotated[tuple[Positive, ...], Meta(min_length=1)]
  decay_steps: Positive
  decays: Annotated[tuple[Decay, ...], Meta(min_length=1)] = ("linear", "minus_sqrt")
  windows: tuple[Annotated[int, Meta(ge=2)], ...] = (2, 4, 8)
  schedules: tuple[Literal["uniform", "ema", "linear", "minus_sqrt", "cosine"], ...] = (
    "uniform", "ema", "linear", "minus_sqrt", "cosine"
  )  # fmt: skip

  @property
  def end(self) -> int:
    """The last step of the run: that of the last decay."""
    return max(self.points) + self.decay_steps

  @property
  def steps(self) -> range:
    """Those of the checkpoints."""
    return range(self.every, self.end + 1, self.every)

  def constant(self) -> Recipe:
    """The recipe of the run."""
    return read_recipe({**self.recipe, "steps": self.end, "decay": "none"}, "config: along.recipe")

  def decayed(self, point: int, decay: str) -> Recipe:
    """The recipe that is the run's up to a point, and decays from there."""
    changed = {"steps": point + self.decay_steps, "decay": decay, "decay_steps": self.decay_steps}
    return read_recipe({**self.recipe, **changed}, "config: along.recipe")


def read(values: Mapping[str, Any]) -> Along:
  """Settings from plain data, `Study.along`.

  Raises:
    ValueError: an unknown key, a value that is not of its type or range, steps that do not go together, or a
      recipe that cannot be.
  """
  options = decoding.convert(dict(values), Along, "config: along")
  for name in ("steps", "decay", "decay_steps", "schedule_steps", "until_loss"):
    if name in options.recipe:
      raise ValueError(f"config: along.recipe.{name} is set; the run's steps and decays are those of along.")
  if options.recipe.get("dpo_beta"):
    raise ValueError(
      "config: along.recipe.dpo_beta is set; its examples have right answers alone: leave it out."
    )
  if len(set(options.decays)) < len(options.decays):
    raise ValueError(f"config: along.decays is {options.decays}; expected different shapes.")
  for name, steps in (("points", options.points), ("decay_steps", (options.decay_steps,))):
    if wrong := [step for step in steps if step % options.every]:
      raise ValueError(f"config: along.{name}: {wrong[0]} is not a multiple of every, {options.every}.")
  if list(options.points) != sorted(set(options.points)):
    raise ValueError(f"config: along.points is {options.points}; expected different steps, increasing.")
  if (warmup := options.constant().warmup) > options.points[0]:
    raise ValueError(f"config: along.points: {options.points[0]} is within the warm-up of {warmup} steps.")
  return options


def at(step: int) -> str:
  """Name of a checkpoint of the run."""
  return f"step-{step:09d}"


def decayed(point: int, decay: str, steps: int) -> str:
  """Name of the end of a decay that begins at a point."""
  return f"{at(point)}-{decay}-{steps}"


def names(options: Along, before: int | None = None) -> Iterator[str]:
  """Of everything that is trained; of what is kept before a step of the run, if one is given."""
  steps, points = (
    [step for step in some if before is None or step < before] for some in (options.steps, options.points)
  )
  yield from map(at, steps)
  for point in points:
    yield from (decayed(point, decay, options.decay_steps) for decay in options.decays)


def trained(
  apply: Callable[..., Array],
  params: Params,
  data: Corpus,
  options: Along,
  folder: Path,
  *,
  stop: Callable[[], bool] = lambda: False,
  mesh: Mesh | None = None,
) -> Path:
  """Trains the run, and the decays where they branch off; what is there already is kept.

  Args:
    apply, data, mesh: of `training.train`.
    params: to start from.
    options: see there.
    folder: where checkpoints and states are kept, under a name of their own for each run.
    stop: asked between steps of the run; true ends with `training.Stopped`.

  Returns:
    The folder of the run: each of `names` is a checkpoint in it, whole or not there.

  Raises:
    training.Diverged: see there.
    training.Stopped: the same call continues.
  """
  recipe = options.constant()
  kept = folder / _identity(params, data, recipe)

  def put(name: str, params: Params) -> None:
    if not (kept / name).is_dir():
      with saving.new_folder(kept / name) as partial:
        saving.write(partial, params)

  def keep(state: State) -> None:
    put(at(state.step), result(state, recipe))
    for decay in options.decays if state.step in options.points else ():
      name, own = decayed(state.step, decay, options.decay_steps), options.decayed(state.step, decay)
      if not (kept / name).is_dir():
        put(name, result(train(apply, _copy(state), data, own, mesh=mesh), own))

  if not all((kept / name).is_dir() for name in names(options)):
    states, every = kept / "states", options.every
    if any(not (kept / name).is_dir() for name in names(options, before=reached(states))):
      shutil.rmtree(states)  # of other settings: what they did not keep is behind them
    keep(continued(apply, params, data, recipe, states, keep_every=every, keep=keep, stop=stop, mesh=mesh))
    shutil.rmtree(states, ignore_errors=True)
  return kept


def _copy(state: State) -> State:
  """With arrays of its own: those of a state are given to its next step."""
  return state._replace(
    params=jax.tree.map(jnp.copy, state.params), optimizer=jax.tree.map(jnp.copy, state.optimizer)
  )


def _identity(params: Params, data: Corpus, recipe: Recipe) -> str:
  """All that decides what the checkpoints of a run are."""
  told = msgspec.json.encode(recipe) + data.digest().encode()
  return f"run-{digest(params, told)[:16]}"
