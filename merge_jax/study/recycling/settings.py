"""What the "Recycle" part of a study is told, and the ways of searching that it compares."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from merge_jax import decoding
from merge_jax.errors import unknown
from merge_jax.recycle.settings import Count, Search
from merge_jax.study.settings import Part

Sigma = Annotated[float, Meta(gt=0, le=100)]
Factor = Literal["sigma", "seeding", "space", "proposer"]
FACTORS: tuple[Factor, ...] = ("sigma", "seeding", "space", "proposer")


class Recycling(Part, frozen=True):
  """Searches over the best checkpoints of a pool.

  Attributes:
    settings: tasks of the fitness by the setting's name; the suite's other tasks are its held-out ones.
    counts: numbers N of checkpoints, those with the highest fitness; above the pool's size they are all.
    budgets: points that a search proposes, increasing; the known points come before them. The smallest is
      that of the comparison over N, the paper's.
    seeds: of the searches.
    ablations: factors that are varied one at a time, over all checkpoints: see `levels`.
    ablated: settings in which they are; none: all.
    sigmas: first step widths of the factor "sigma", beside the paper's.
    batch: candidates of one program call.
  """

  settings: Annotated[dict[str, Annotated[tuple[str, ...], Meta(min_length=1)]], Meta(min_length=1)]
  counts: Annotated[tuple[Annotated[int, Meta(ge=2, le=4096)], ...], Meta(min_length=1)] = (2, 4, 8, 16)
  budgets: Annotated[tuple[Annotated[int, Meta(ge=1, le=100_000)], ...], Meta(min_length=1)] = (50, 150)
  seeds: Annotated[tuple[Count, ...], Meta(min_length=1)] = (0, 1, 2)
  ablations: tuple[Factor, ...] = FACTORS
  ablated: tuple[str, ...] = ()
  sigmas: tuple[Sigma, ...] = (0.05, 0.1)
  batch: Annotated[int, Meta(ge=1, le=4096)] = 1


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """A way of searching; see `merge_jax.search.Options`.

  Attributes:
    proposer, method, space: names.
    sigma: first step width; 0 for the space's.
    start: "uniform" ignores the known points, as a search without any; "best" starts from the best of them.
  """

  proposer: str = "cma_es"
  method: str = "linear"
  space: str = "simplex"
  sigma: float = 0.0
  start: str = "uniform"


PAPER = Arm(sigma=1.0)
"""The paper's search (arXiv 2412.04144) read literally; pycma cuts its step to a third of the bounds."""
OURS = Arm("cma_es", Search().method, Search().space, Search().sigma, Search().start)
"""CMA-ES over `launch.recycle`'s weights, from the known points on: its search by scores alone before it
learnt a model of them (a Gaussian process)."""
RANDOM = Arm("random")
"""Dirichlet weights: the control."""
MAIN = {"search": PAPER, "ours": OURS, "random": RANDOM}
"""The ways that are compared in every setting, by name; "search" also over N."""
_TOLD = msgspec.structs.replace(PAPER, start="best")
_SPACES = {
  "simplex": Arm(), "softmax": Arm(space="softmax"), "free": Arm(method="task_arithmetic", space="free")
}  # fmt: skip


def levels(arm: Arm) -> list[tuple[Factor, str]]:
  """The factors whose comparison a way of searching is part of, and its level there.

  sigma     the first step; all but it is the paper's
  seeding   known points ignored ("none"), or the best of them told as the start ("best"). The paper's may
            have been one of these, or a warm start of the distribution, which pycma does not offer
  space     how weights are made from what CMA-ES moves, each with the step width that suits it
  proposer  `MAIN`

  >>> levels(PAPER)
  [('sigma', '1'), ('seeding', 'none'), ('proposer', 'search')]
  """
  found: list[tuple[Factor, str]] = []
  if arm == Arm(sigma=arm.sigma) and arm.sigma:
    found.append(("sigma", f"{arm.sigma:g}"))
  seeding = {"none": PAPER, "best": _TOLD}
  for factor, those in (("seeding", seeding), ("space", _SPACES), ("proposer", MAIN)):
    found += [(factor, level) for level, other in those.items() if other == arm]  # type: ignore[misc]
  return found


def arms(options: Recycling) -> list[Arm]:
  """The ways of searching that the ablations need, each once."""
  widths = [Arm(sigma=sigma) for sigma in options.sigmas]
  every = [PAPER, *widths, _TOLD, *_SPACES.values(), *MAIN.values()]
  wanted = set(options.ablations)
  return [arm for arm in dict.fromkeys(every) if wanted & {factor for factor, _ in levels(arm)}]


def read(values: Mapping[str, Any]) -> Recycling:
  """Settings from plain data, `Study.recycle`.

  Raises:
    ValueError: an unknown key, a value that is not of its type or range, lists that cannot be.

  >>> read({"settings": {"both": ["a", "b"]}, "budgets": [50, 20]})
  Traceback (most recent call last):
  ValueError: config: recycle.budgets is (50, 20); expected different numbers, increasing.
  """
  options = decoding.convert(dict(values), Recycling, "config: recycle")
  for name in ("counts", "budgets"):
    given = getattr(options, name)
    if list(given) != sorted(set(given)):
      raise ValueError(f"config: recycle.{name} is {given}; expected different numbers, increasing.")
  if len(set(options.seeds)) < len(options.seeds):
    raise ValueError(f"config: recycle.seeds is {options.seeds}; expected different ones.")
  for name, tasks in options.settings.items():
    if len(set(tasks)) < len(tasks):
      raise ValueError(f"config: recycle.settings.{name} names a task twice: {', '.join(tasks)}.")
  for name in options.ablated:
    if name not in options.settings:
      raise ValueError(unknown("setting", name, options.settings, "config: recycle.ablated"))
  return options
