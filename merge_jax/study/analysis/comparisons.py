"""Statistics of a study's merges, like for like: arrays `[1 + draws]` with the data themselves at index 0.

A cell is the merges of one size, kind of base, method and number of experts. Means over cells weigh each the
same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.study.analysis.draws import Draws
from merge_jax.study.analysis.intervals import interval, standard_error
from merge_jax.study.analysis.scores import mean_defined
from merge_jax.study.analysis.verdicts import Value

Cells = dict[tuple[str, int], list[int]]
"""Rows of merges by method and number of experts."""


def same_units(draws: Draws, a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
  """The merges of two cells whose unit (seed and subset of experts) is in both."""
  common = {draws.unit(row) for row in a} & {draws.unit(row) for row in b}
  picked = [[row for row in rows if draws.unit(row) in common] for rows in (a, b)]
  return picked[0], picked[1]


def mean_over(draws: Draws, cells: Sequence[Sequence[int]]) -> np.ndarray:
  """Mean over cells of their mean score relative to the experts."""
  return np.mean([draws.mean(draws.held(rows, out=False), rows) for rows in cells], axis=0)


def shares(draws: Draws, out: bool, counted: Callable[[np.ndarray], np.ndarray]) -> list[Value]:
  """Share of cells whose mean is `counted`, of each size and at last of all; of those that a draw has."""
  means: dict[str, list[np.ndarray]] = {}
  numbers: dict[str, int] = {}
  for size, kind in draws.families:
    for rows in draws.cells(size, kind).values():
      one = draws.mean(draws.held(rows, out), rows)
      if np.isfinite(one[0]):
        for name in (size, "all sizes"):
          means.setdefault(name, []).append(np.where(np.isfinite(one), counted(one), np.nan))
          numbers[name] = numbers.get(name, 0) + len(rows)
  return [
    Value(name, interval(mean_defined(np.stack(means[name], axis=-1)), numbers[name]))
    for name in (*draws.sizes, "all sizes")
    if name in means
  ]


def over_multitask(draws: Draws, rows: Sequence[int], alike: bool) -> tuple[np.ndarray, list[int]]:
  """Held-out score of one cell's merges less that of the multitask model, and the merges that have one.

  Args:
    draws: of the study.
    rows: of the cell.
    alike: only where the multitask model was trained on the merge's own categories.
  """
  pairs = [(row, *draws.multitask(row)) for row in rows]
  found = [(row, other) for row, other, same in pairs if other is not None and (same or not alike)]
  if not found:
    return np.empty(0), []
  merges, others = (list(side) for side in zip(*found, strict=True))
  return draws.mean(draws.held_out[:, merges] - draws.held_out[:, others], merges), merges


def slope(draws: Draws, cells: Cells) -> np.ndarray:
  """Change of the held-in score per expert, by least squares within each method, seed and category.

  Merges of more experts cover more categories; only scores of the same category are compared, relative to
  the same expert. One slope is fitted to all, each group with a level of its own.
  """
  top, bottom = np.zeros(len(draws.ratios)), np.zeros(len(draws.ratios))
  rows = [row for own in cells.values() for row in own]
  weights = np.concatenate([draws.weights(own) for own in cells.values()], axis=1)
  models = [draws.models[row] for row in rows]
  for method, seed in dict.fromkeys((model.method, model.seed) for model in models):
    for i, category in enumerate(draws.categories):
      own = [
        j for j, m in enumerate(models) if (m.method, m.seed) == (method, seed) and category in m.members
      ]
      if not own:
        continue
      score = draws.ratios[:, [rows[j] for j in own], i]
      weight = np.where(np.isfinite(score), weights[:, own], 0)
      count = np.array([len(models[j].members) for j in own], float)
      total = weight.sum(axis=1, keepdims=True)
      center = (weight * count).sum(axis=1, keepdims=True)
      away = count - np.divide(center, total, out=np.zeros_like(total), where=total > 0)
      top += (weight * away * np.nan_to_num(score)).sum(axis=1)
      bottom += (weight * away**2).sum(axis=1)
  return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 1e-9)


class Spread(NamedTuple):
  """How much held-in scores of one size, base and count differ.

  Attributes:
    methods: `[1 + draws]`, standard deviation over methods of their means.
    units: `[1 + draws]`, that over units of the means over methods; only examples are resampled.
    noise: standard error of a method's mean that comes from examples alone, as a mean over methods.
    n: merges.
  """

  methods: np.ndarray
  units: np.ndarray
  noise: float
  n: int


def spreads(draws: Draws, size: str, kind: str) -> dict[int, Spread]:
  """By number of experts, where at least two methods have at least two units in common."""
  by_count: dict[int, list[list[int]]] = {}
  for (_, count), rows in draws.cells(size, kind).items():
    by_count.setdefault(count, []).append(sorted(rows, key=draws.unit))
  result = {}
  for count, methods in by_count.items():
    common = set.intersection(*({draws.unit(row) for row in rows} for rows in methods))
    if len(methods) < 2 or len(common) < 2:
      continue
    chosen = [[row for row in rows if draws.unit(row) in common] for rows in methods]
    scores = [draws.held(rows, out=False) for rows in chosen]
    means = np.array([draws.mean(one, rows) for one, rows in zip(scores, chosen, strict=True)])
    result[count] = Spread(
      means.std(axis=0, ddof=1),
      np.mean(scores, axis=0).std(axis=1, ddof=1),
      float(np.mean([standard_error(one.mean(axis=1)) for one in scores])),
      sum(map(len, chosen)),
    )
  return result
