"""Bases with the experts and multitask models that come from them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from merge_jax import checkpoints, preflight
from merge_jax.study.settings import Family

PRETRAINED, INSTRUCT, EXPERT, MULTITASK = "pretrained", "instruct", "expert", "multitask"


class Member(NamedTuple):
  """A model of a lineage.

  Attributes:
    folder: where it is, or will be.
    identity: key of the cell that trains it, or the digest of its files.
    needs: keys of the cells that make it.
  """

  folder: Path
  identity: str
  needs: tuple[str, ...] = ()


class Lineage(NamedTuple):
  """A base with what was trained from it; see `settings.Family`."""

  size: str
  kind: str
  seed: int
  base: Member
  experts: dict[str, Member]
  multitask: Member | None

  @property
  def name(self) -> str:
    """For people."""
    return f"{self.size}/{self.kind}/{self.seed}"

  @property
  def members(self) -> dict[str, Member]:
    """All models, by role: "base", "expert:CATEGORY", "multitask"."""
    rest = {} if self.multitask is None else {MULTITASK: self.multitask}
    return {"base": self.base, **{f"{EXPERT}:{c}": one for c, one in self.experts.items()}, **rest}


def given(families: Sequence[Family], categories: Sequence[str]) -> list[Lineage]:
  """The lineages that lie in folders.

  Args:
    families: of the settings.
    categories: those that are held in.

  Raises:
    ValueError: a family that stands twice, an expert for another category or none for one of them, models
      that do not go together.
    FileNotFoundError, ValueError: folders that are no checkpoints.
  """
  found: dict[tuple[str, str, int], Lineage] = {}
  for i, one in enumerate(families):
    at = f"config: families[{i}]"
    key = (one.size, one.kind, one.seed)
    if key in found:
      raise ValueError(f"{at}: size {one.size!r}, kind {one.kind!r} and seed {one.seed} stand twice.")
    if set(one.experts) != set(categories):
      raise ValueError(
        f"{at}: experts are given for {', '.join(sorted(one.experts)) or 'none'}; expected one for each "
        f"held-in category: {', '.join(sorted(categories))}."
      )
    experts = {category: opened(one.experts[category]) for category in categories}
    multitask = opened(one.multitask) if one.multitask else None
    found[key] = Lineage(*key, opened(one.base), experts, multitask)
    require_alike([member.folder for member in found[key].members.values()], at)
  return list(found.values())


def require_alike(folders: Iterable[Path], where: str) -> None:
  """Raises ValueError where models that are there differ in their tensors, configs or vocabularies."""
  there = [checkpoints.open(folder) for folder in folders if folder.exists()]
  if there:
    try:
      preflight.require(tuple(preflight.check(there, memory=tuple, values=False)))
    except preflight.PreflightError as error:
      raise ValueError(f"{where}: {error}") from None


def in_turn(starts: Mapping[str, str], where: str) -> list[str]:
  """The members of a pool, each after the one that it is trained from.

  Args:
    starts: what each is trained from; "" is none of them.
    where: of the settings, for errors.

  Raises:
    ValueError: a start that is not there, or that is trained from what starts from it.

  >>> in_turn({"a": "b", "b": "", "c": "a"}, "config")
  ['b', 'a', 'c']
  """
  found: dict[str, None] = {}
  for name in starts:
    chain = [name]
    while start := starts[chain[-1]]:
      if start not in starts or start in chain:
        told = "is no member of the pool" if start not in starts else "starts from it"
        raise ValueError(f"{where}.{chain[-1]} starts from {start!r}, which {told}.")
      chain.append(start)
    found |= dict.fromkeys(reversed(chain))
  return list(found)


def opened(folder: str) -> Member:
  """A model that is there."""
  checkpoint = checkpoints.open(folder)
  return Member(checkpoint.path, checkpoint.digest())
