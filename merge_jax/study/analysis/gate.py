"""Whether experts learned anything: a family whose experts do not beat their base says nothing of merges."""

from typing import Any, NamedTuple

import numpy as np

from merge_jax.study.analysis import scores
from merge_jax.study.analysis.draws import Draws
from merge_jax.study.analysis.intervals import standard_error

ERRORS = 2.0
"""An expert beats its base if it gains more than this many standard errors."""
SHARE = 0.5
"""Of the held-in categories, at least so many must have experts that beat their base.

An expert of no worth passes 2 errors by chance in 2 % of cases, and half of eight in about 1 of 50,000.
"""


class Gain(NamedTuple):
  """What an expert gains over its base on its own category: means over tasks and training seeds.

  Attributes:
    base, expert: scores as the metrics give them.
    gain: their difference, positive where the expert is better.
    stderr: of the gain, over examples that are resampled alike for both.
  """

  size: str
  kind: str
  category: str
  base: float
  expert: float
  gain: float
  stderr: float

  @property
  def clear(self) -> bool:
    return self.gain > ERRORS * self.stderr and self.gain > 0


class Gate(NamedTuple):
  """Whether there is something to conclude from a family, and a sentence that says why."""

  size: str
  kind: str
  enough: bool
  why: str


def gains(draws: Draws) -> list[Gain]:
  """Of every family and category that has experts and bases."""
  found, places = [], draws.columns
  for size, kind in draws.families:
    bases = {draws.models[i].seed: i for i in draws.find("base", size, kind)}
    experts = [i for i in draws.find("expert", size, kind) if draws.models[i].seed in bases]
    for i, category in enumerate(draws.categories):
      own = [row for row in experts if draws.models[row].members == (category,)]
      tasks, signs = places.tasks[places.categories == i], places.signs[places.categories == i]
      if not own:
        continue
      pairs = np.array([[bases[draws.models[row].seed], row] for row in own])
      picked = draws.scores[:, pairs][..., tasks].mean(axis=1)  # [1 + draws, base and expert, tasks]
      better = scores.mean_defined((picked[:, 1] - picked[:, 0]) * signs)
      base, expert = scores.mean_defined(picked[0]).tolist()
      found.append(Gain(size, kind, category, base, expert, float(better[0]), standard_error(better)))
  return found


def gates(draws: Draws, found: list[Gain]) -> list[Gate]:
  """Of every family: at least half of the held-in categories must have experts that clearly gain."""
  result = []
  for size, kind in draws.families:
    clear = [gain.category for gain in found if (gain.size, gain.kind) == (size, kind) and gain.clear]
    enough = len(clear) >= SHARE * len(draws.categories)
    why = (
      f"Experts beat their base by more than {ERRORS:g} standard errors in {len(clear)} of "
      f"{len(draws.categories)} categories"
    )
    result.append(Gate(size, kind, enough, f"{why}." if enough else f"{why}: left out of all verdicts."))
  return result


def plain(rows: list[Gain] | list[Gate]) -> list[dict[str, Any]]:
  """For a JSON file; NaN is None."""
  return [
    {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row._asdict().items()}
    for row in rows
  ]
