"""How sure a statistic is: examples and units of training are drawn again, alike for all models.

Arrays of draws have the data themselves at index 0: `[1 + draws, ...]`. A statistic is computed once, on
the whole array; its value is that at index 0 and its interval is of the others.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.evals import uncertainty
from merge_jax.evals.examples import Examples
from merge_jax.search.scores import nullable

LEVEL = 0.95
DEFINED = 0.9
"""A statistic that is defined in fewer of the draws has no interval."""


class Interval(NamedTuple):
  """A statistic, its 95 % interval (NaN where there is none) and how many models are behind it."""

  value: float
  low: float
  high: float
  n: int

  def plain(self) -> dict[str, Any]:
    """For a JSON file; NaN is None."""
    value, low, high = map(nullable, self[:3])
    return {"value": value, "low": low, "high": high, "n": self.n}


@np.errstate(invalid="ignore", divide="ignore")
def resampled_scores(examples: Sequence[Examples], draws: int, seed: int = 0) -> np.ndarray:
  """Scores of resampled examples, as the metrics give them: float64 `[1 + draws, models, tasks]`.

  All models are scored on the same examples in a draw, so that their differences are paired; the draws
  are those of `evals.uncertainty.redrawn`. A task of fewer than two units has no score: NaN.

  Raises:
    ValueError: models were scored on different tasks or numbers of examples, or with other units.
  """
  first = examples[0]
  for one in examples:
    if (one.tasks, one.signs, one.counts) != (first.tasks, first.signs, first.counts):
      raise ValueError(
        f"Models were scored on different examples: {dict(zip(one.tasks, one.counts, strict=True))} and "
        f"{dict(zip(first.tasks, first.counts, strict=True))}; expected the same of all."
      )
    if not np.array_equal(one.units, first.units):
      raise ValueError("Models were scored on examples of different units; expected the same of all.")
  result = np.full((1 + draws, len(examples), len(first.tasks)), np.nan)
  for i, drawn in enumerate(uncertainty.redrawn(first, draws, seed)):
    if drawn is None:
      continue
    top, bottom = np.stack([one.of(i) for one in examples], axis=1)  # [models, examples] each
    counts = np.concatenate([np.ones((1, drawn.shape[1])), drawn])
    same = bottom[:1] if (bottom == bottom[0]).all() else bottom
    result[:, :, i] = (counts @ top.T) / (counts @ same.T)
  return result


def resampled_units(units: int, draws: int, seed: int | Sequence[int] = 0) -> np.ndarray:
  """Weights of units that are drawn with replacement: float64 `[1 + draws, units]`, 1 for the data.

  n - 1 of n are drawn, for n draws of so few would make a mean look surer than it is by sqrt(1 - 1/n)
  (Rao and Wu 1988). One unit alone cannot be resampled and always has weight 1.
  """
  result = np.ones((1 + draws, units))
  if units > 1:
    drawn = np.random.default_rng(seed).multinomial(units - 1, np.full(units, 1 / units), size=draws)
    result[1:] = drawn * (units / (units - 1))
  return result


def crossed_units(units: Sequence[tuple[int, int]], draws: int, seed: int | Sequence[int] = 0) -> np.ndarray:
  """Weights of units that are pairs (training seed, subset of experts): float64 `[1 + draws, units]`.

  Seeds and subsets are drawn apart and their weights multiplied (Owen 2007, "pigeonhole bootstrap"): merges
  of one seed share their experts, and merges of one subset their categories, so that pairs are not
  independent. Where there is one seed alone, an interval says nothing of other trainings.
  """
  result = np.ones((1 + draws, len(units)))
  for i, side in enumerate(zip(*units, strict=True)):
    levels, index = np.unique(side, return_inverse=True)
    of_side = (*seed, i) if isinstance(seed, Sequence) else (seed, i)
    result *= resampled_units(len(levels), draws, of_side)[:, index]
  return result


def interval(values: np.ndarray, n: int, among: int = 1, units: int = 1) -> Interval:
  """The value and its percentile interval, 2.5 to 97.5 %.

  Args:
    values: `[1 + draws]`.
    n: models behind it.
    among: number of statistics that are looked at together. Above 1 the interval is value ± standard errors,
      wide enough that all of them cover at 95 % (Bonferroni): draws are too few for such percentiles.
    units: that were drawn; errors of few are unsure themselves, so that Student's t takes the normal's place.
  """
  drawn = values[1:][np.isfinite(values[1:])]
  if not np.isfinite(values[0]) or len(drawn) < max(2, DEFINED * (len(values) - 1)):
    return Interval(float(values[0]), np.nan, np.nan, n)
  tail = (1 - LEVEL) / 2
  if among == 1:
    low, high = np.quantile(drawn, (tail, 1 - tail))
  else:
    from scipy import stats

    errors = stats.t(units - 1) if units > 1 else stats.norm
    reach = errors.ppf(1 - tail / among) * drawn.std(ddof=1)
    low, high = values[0] - reach, values[0] + reach
  return Interval(float(values[0]), float(low), float(high), n)


def standard_error(values: np.ndarray) -> float:
  """Standard deviation of the draws in `values` `[1 + draws]`."""
  return float(values[1:].std(ddof=1)) if len(values) > 2 else np.nan
