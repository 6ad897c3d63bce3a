"""The trainings of a suite: a base for each size and seed, and from it the members of every kind of pool."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from merge_jax import models
from merge_jax.study.cells import Cell
from merge_jax.study.data import Data
from merge_jax.study.lineages import PRETRAINED, Lineage, Member, in_turn
from merge_jax.study.pools.settings import MemberSettings, Pools
from merge_jax.study.settings import Size, Training
from merge_jax.study.trainer import Trainer
from merge_jax.training import read_recipe

OVERHEAD, SECONDS = 0.02, 0.085
"""CPU-seconds of a training step of 32 short rows: of a tiny model, and more for a million parameters."""


class Pool(NamedTuple):
  """A pool that is trained, or will be.

  Attributes:
    size, kind, seed: of the suite.
    members: checkpoints by name.
    base: their common ancestor.
  """

  size: str
  kind: str
  seed: int
  members: dict[str, Member]
  base: Member

  @property
  def name(self) -> str:
    """For people."""
    return f"{self.size}/{self.kind}/{self.seed}"

  @property
  def folders(self) -> dict[str, Path]:
    """Of the members."""
    return {name: member.folder for name, member in self.members.items()}


class Plan(NamedTuple):
  """What a size and seed come to: `cells` of trainings, and the pools that are made of them."""

  cells: list[Cell]
  pools: list[Pool]


def plan(
  suite: Pools, data: Data, size: str, seed: int, folder: Path, mesh: Mesh, stop: Callable[[], bool]
) -> Plan:
  """Trainings and pools of one size and seed.

  Raises:
    ValueError: recipes that cannot be.
  """
  recipes = _recipes(suite, size)
  alone = Size(model=suite.sizes[size].model, seeds=(seed,), recipes={PRETRAINED: recipes[PRETRAINED]})
  trained = Training(sizes={size: alone}, recipes={}, kinds=("pretrained",))
  trainer = Trainer(trained, data, {}, folder, mesh, stop)
  (lineage,) = trainer.lineages
  pools = [_pool(trainer, lineage, kind, members, recipes["member"]) for kind, members in suite.kinds.items()]
  return Plan(trainer.cells, pools)


def _recipes(suite: Pools, size: str) -> dict[str, dict[str, Any]]:
  common, own = {str(stage): values for stage, values in suite.recipes.items()}, suite.sizes[size].recipes
  return {stage: {**common.get(stage, {}), **own.get(stage, {})} for stage in (PRETRAINED, "member")}


def _values(member: MemberSettings, common: Mapping[str, Any]) -> dict[str, Any]:
  values = {**common, **member.recipe}
  return values | {"learning_rate": values["learning_rate"] * member.rate}


def _pool(
  trainer: Trainer,
  lineage: Lineage,
  kind: str,
  members: Mapping[str, MemberSettings],
  common: Mapping[str, Any],
) -> Pool:
  made = dict[str, list[Member]]()  # of a run all of its checkpoints, in order
  for name in in_turn({name: one.start for name, one in members.items()}, f"config: kinds.{kind}"):
    member, label, where = members[name], f"{kind}/{name}", f"config: kinds.{kind}.{name}.recipe"
    start = made[member.start][-1] if member.start else lineage.base
    made[name] = trainer.further(label, lineage, _values(member, common), start, where, member.every)
  shown = {
    f"{name}-{i}" if member.every else name: one
    for name, member in members.items() if not member.hidden
    for i, one in enumerate(made[name], 1)
  }  # fmt: skip
  return Pool(lineage.size, kind, lineage.seed, shown, lineage.base)


def steps(suite: Pools, size: str) -> int:
  """Training steps of one seed of a size, those of preferences counted as what they cost (2.7)."""
  recipes = _recipes(suite, size)
  total = float(recipes[PRETRAINED]["steps"])
  for members in suite.kinds.values():
    for member in members.values():
      recipe = read_recipe({"mixture": {}, **_values(member, recipes["member"])}, "config: kinds")
      total += recipe.steps * recipe.batch_size / 32 * (2.7 if recipe.dpo_beta else 1.0)
  return round(total)


def seconds(suite: Pools, size: str) -> float:
  """CPU-seconds of a step, a rough guess: it grows with the parameters, and takes a little for none."""
  specs = models.build({**suite.sizes[size].model}).specs
  return OVERHEAD + SECONDS * sum(math.prod(spec.shape) for spec in specs.values()) / 1e6
