"""How sure a score is: errors over independent units of examples, paired where two models are compared.

A score is a ratio of sums, so that what one unit adds to its error is known to first order: its examples'
residuals over the denominator ("linearised", cluster-robust). Units that stand in several tasks count once,
with what they add to all of them. `resampled` is the bootstrap that this replaces; both agree (the tests say
how well), but this has no noise of its own and takes no draws.

What is undefined is NaN: an error from fewer than two units.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from merge_jax.evals.examples import Examples, Floats

SURE = 1.96
"""Errors of a gain that is told as one: chance alone exceeds them, upwards, in 2.5 % of all cases."""
POWER = 2.8
"""1.96 + .84: a gain of so many errors is seen at the two-sided 5 % level with a power of 80 %."""


@np.errstate(invalid="ignore", divide="ignore")
def influences(examples: Examples, slopes: Sequence[float] | Floats, *, loss: bool = False) -> Floats:
  """What each unit adds to Σ slope · score: float64 `[units]`; the root of the sum of squares is the error.

  Args:
    examples: of one model; those of two models on the same examples are paired by subtracting.
    slopes: one for each task, of its score as higher is better; a task with 0 does not count.
    loss: of the losses instead of the metrics.
  """
  groups = examples.units
  total, start = np.zeros(int(groups.max(initial=-1)) + 1), 0
  for i, (sign, count) in enumerate(zip(examples.signs, examples.counts, strict=True)):
    own, start = groups[start : start + count], start + count
    if slopes[i] == 0:
      continue
    top, bottom = examples.of(i, loss)
    residuals = (top - bottom * (top.sum() / bottom.sum())) / bottom.sum()
    total += slopes[i] * (-1.0 if loss else sign) * _enlarged(own) * np.bincount(own, residuals, len(total))
  return total


@np.errstate(invalid="ignore", divide="ignore")
def size_slopes(influence: Floats, examples: Examples, slopes: Sequence[float] | Floats) -> Floats:
  """Derivative of `size(influence)` by what each example adds to its score: float64 `[examples]`.

  Args:
    influence: of the examples, less those of others of which nothing changes.
    examples, slopes: as for `influences`.
  """
  groups, found, start = examples.units, list[Floats](), 0
  for i, (sign, count) in enumerate(zip(examples.signs, examples.counts, strict=True)):
    own, start = groups[start : start + count], start + count
    bottom, at = examples.of(i)[1], influence[own]
    inner = (at - (bottom @ at) / bottom.sum()) / bottom.sum()
    found.append(slopes[i] * sign * _enlarged(own) * inner if slopes[i] else np.zeros(count))
  return np.concatenate(found) / max(size(influence), np.finfo(float).tiny)


def _enlarged(units: np.ndarray) -> np.float64:
  """What the influences of a task's examples are multiplied by: of n units n - 1 are free."""
  there = len(np.unique(units))
  return np.sqrt(np.float64(there) / (there - 1)) if there > 1 else np.float64(np.nan)


def size(influence: Floats) -> float:
  """The standard error that influences, or their differences, amount to."""
  return float(np.sqrt((influence**2).sum())) if len(influence) else np.nan


def paired_error(a: Examples, b: Examples, slopes: Sequence[float] | Floats) -> float:
  """The standard error of Σ slope · (a's score - b's) over the same examples."""
  return size(influences(a, slopes) - influences(b, slopes))


def standard_errors(examples: Examples) -> dict[str, float]:
  """Standard error of each task's score and of their mean (`average`)."""
  each = np.eye(len(examples.tasks))
  errors = {name: size(influences(examples, each[i])) for i, name in enumerate(examples.tasks)}
  return errors | {"average": size(influences(examples, _mean(examples)))}


@np.errstate(invalid="ignore")
def paired_difference(a: Examples, b: Examples) -> tuple[float, float]:
  """Mean over tasks of a's score less b's (higher is better), and its paired error."""
  scores = [np.array(list(x.scores().values())) * np.array(x.signs) for x in (a, b)]
  return float((scores[0] - scores[1]).mean()), paired_error(a, b, _mean(a))


def shown(gain: float, error: float) -> bool:
  """Whether a gain is more than chance gives.

  >>> shown(0.05, 0.02), shown(0.03, 0.02), shown(0.03, float("nan"))
  (True, False, False)
  """
  return bool(gain > SURE * error)


@np.errstate(invalid="ignore", divide="ignore")
def paired_ratio(a: Examples, b: Examples, task: str) -> tuple[float, float]:
  """Of a task what a keeps of b, above 1 where a is better, and its paired error to first order.

  a's score over b's; b's over a's where lower is better. NaN where the one below is 0.
  """
  at = a.tasks.index(task)
  mine, other = (np.float64(x.scores()[task]) for x in (a, b))
  value = float(mine / other if a.signs[at] > 0 else other / mine)
  if not np.isfinite(value):
    return np.nan, np.nan
  # d log(a / b) = da / a - db / b; influences are of scores as higher is better.
  slopes = np.eye(len(a.tasks))[at]
  return value, abs(value) * size(influences(a, slopes) / mine - influences(b, slopes) / other)


def _mean(examples: Examples) -> Floats:
  return np.full(len(examples.tasks), 1 / max(len(examples.tasks), 1))


@np.errstate(invalid="ignore", divide="ignore")
def resampled(examples: Examples, draws: int = 1000, seed: int = 0) -> Floats:
  """Scores of resampled examples, higher is better: float64 `[draws, tasks]`.

  See `redrawn`. The same seed draws the same examples, so differences between two models' results are paired.
  """
  result = np.full((draws, len(examples.tasks)), np.nan)
  for i, counts in enumerate(redrawn(examples, draws, seed)):
    if counts is not None:
      top, bottom = examples.of(i)
      result[:, i] = examples.signs[i] * (counts @ top) / (counts @ bottom)
  return result


def redrawn(examples: Examples, draws: int, seed: int) -> Iterator[npt.NDArray[np.int64] | None]:
  """How often each example is drawn, task by task: int64 `[draws, examples of the task]`.

  Units that several examples share are drawn whole, over all tasks; without such, examples within each task.
  None for a task of fewer than two units.
  """
  generator = np.random.default_rng(seed)
  different, groups = np.unique(examples.units, return_inverse=True)
  start = 0

  def times(count: int) -> npt.NDArray[np.int64]:
    return generator.multinomial(count, np.full(count, 1 / count), size=draws)

  drawn = times(len(different)) if len(different) < len(groups) else None
  for count in examples.counts:
    own, start = groups[start : start + count], start + count
    if len(np.unique(own)) < 2:
      yield None
    else:
      yield times(count) if drawn is None else drawn[:, own]
