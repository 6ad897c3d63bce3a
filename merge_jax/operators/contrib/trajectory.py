"""Weights for merging along a trajectory: the checkpoints of one run, in place of a learning-rate decay.

Every function takes the steps of K checkpoints, increasing, and gives weights `[K]` (float64) that sum
to 1, for `linear()`. `window` takes the last so many checkpoints alone; the others get 0.

Had the updates of a run of constant rate been multiplied by `1 ≥ w₁ ≥ … ≥ w_k ≥ 0`, from the first
checkpoint to the next and so on, it would have arrived at a merge of its checkpoints (WSM):

    θ₀ + Σ wⱼ (θⱼ - θⱼ₋₁) = Σ cⱼ θⱼ        cⱼ = wⱼ - wⱼ₊₁        w₀ = 1, w_{k+1} = 0

Sources: WSM (arXiv 2507.17634); Model Merging in Pre-training (arXiv 2505.12082).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from merge_jax.errors import shown, unknown

Steps = Sequence[float] | np.ndarray
Decay = Callable[[float], float]

DECAYS: dict[str, Decay] = {
  "linear": lambda x: 1.0 - x,
  "minus_sqrt": lambda x: 1.0 - math.sqrt(x),
  "cosine": lambda x: 0.5 + 0.5 * math.cos(math.pi * x),
}
"""Decay schedules by name: factors of a constant rate, from 1 at 0 to 0 at 1."""


def uniform(steps: Steps, *, window: int | None = None) -> np.ndarray:
  """Equal weights. On evenly spaced steps they stand for a linear decay.

  Raises:
    ValueError: steps that do not increase, a window that is not from 1 to K.

  >>> uniform([100, 200, 300, 400], window=2).tolist()
  [0.0, 0.0, 0.5, 0.5]
  """
  return _windowed(steps, window, lambda chosen: np.ones(len(chosen)))


def ema(steps: Steps, *, decay: float = 0.8, window: int | None = None) -> np.ndarray:
  """Exponential moving average: `m₁ = θ₁`, `mᵢ = decay mᵢ₋₁ + (1 - decay) θᵢ`.

  The decay is from one checkpoint to the next, whatever the steps between them.

  Raises:
    ValueError: as `uniform`; a decay outside [0, 1].

  >>> ema([1, 2, 3], decay=0.5).tolist()
  [0.25, 0.25, 0.5]
  """
  if not 0.0 <= decay <= 1.0:
    raise ValueError(f"decay is {shown(decay)}; expected a number between 0 and 1.")

  def weights(chosen: np.ndarray) -> np.ndarray:
    powers = float(decay) ** np.arange(len(chosen))[::-1]
    return powers * np.where(np.arange(len(chosen)) == 0, 1.0, 1.0 - decay)

  return _windowed(steps, window, weights)


def linear(steps: Steps, *, window: int | None = None) -> np.ndarray:
  """Weights that grow linearly from one checkpoint to the next, `wᵢ ∝ i`; errors as of `uniform`.

  Not the merge of a linear decay: that is `from_decay("linear", steps)`, on even steps `uniform`.

  >>> linear([10, 20, 30]).round(3).tolist()
  [0.167, 0.333, 0.5]
  """
  return _windowed(steps, window, lambda chosen: np.arange(1.0, len(chosen) + 1.0))


def minus_sqrt(steps: Steps, *, window: int | None = None) -> np.ndarray:
  """The merge of a decay by `1 - √x`, as Nemotron 3 Super (arXiv 2604.12374); errors as of `uniform`.

  >>> minus_sqrt([0, 1, 2, 3]).round(3).tolist()
  [0.5, 0.207, 0.159, 0.134]
  """
  return from_decay("minus_sqrt", steps, window=window)


def cosine(steps: Steps, *, window: int | None = None) -> np.ndarray:
  """The merge of half a cosine's decay; errors as of `uniform`.

  >>> cosine([0, 1, 2]).round(3).tolist()
  [0.25, 0.5, 0.25]
  """
  return from_decay("cosine", steps, window=window)


def from_decay(
  schedule: str | Decay | Sequence[float] | np.ndarray, steps: Steps, *, window: int | None = None
) -> np.ndarray:
  """The merge that stands for a decay of the learning rate from the first checkpoint on: `cⱼ = wⱼ - wⱼ₊₁`.

  Args:
    schedule: the factors `[K - 1]` of the updates that end at the second checkpoint and those after it; or
      a function f on [0, 1], or its name in `DECAYS`: `wⱼ = f(x) / f(0)` at `x = (sⱼ - s₀) / span`, where
      the span ends one mean gap after the last checkpoint (`wⱼ = f(j / K)` on even steps).
    steps: of the K checkpoints, or of more than its last `window`.
    window: K, if not all.

  Raises:
    ValueError: as `uniform`; an unknown name, another number of factors, factors that rise, or leave [0, 1].

  >>> from_decay([0.75, 0.25], [0, 500, 1000]).tolist()
  [0.25, 0.5, 0.25]
  """

  def weights(chosen: np.ndarray) -> np.ndarray:
    return -np.diff(_factors(schedule, chosen), prepend=1.0, append=0.0)

  return _windowed(steps, window, weights)


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
  "uniform": uniform,
  "ema": ema,
  "linear": linear,
  "minus_sqrt": minus_sqrt,
  "cosine": cosine,
}
"""Schedules by name, `(steps, *, window, …) -> weights [K]`; `ema` has a `decay`, too."""


def by_step(name: str, steps: Steps, **options: Any) -> np.ndarray:
  """The weights of a schedule in `SCHEDULES` for checkpoints whose steps are in any order.

  Raises:
    ValueError: an unknown name or option; as the schedule itself.

  >>> by_step("linear", [30, 10, 20]).round(3).tolist()
  [0.5, 0.167, 0.333]
  """
  if name not in SCHEDULES:
    raise ValueError(unknown("schedule", name, SCHEDULES))
  given = np.asarray(steps, np.float64)
  order = np.argsort(given, kind="stable")
  try:
    weights = SCHEDULES[name](given[order], **options)
  except TypeError as error:
    raise ValueError(f"schedule {name}: {error}.") from None
  return weights[np.argsort(order, kind="stable")]


def candidates(steps: Steps) -> np.ndarray:
  """Merges along a run worth a try, `[N, K]`: every schedule over all checkpoints, and over the last half.

  Labs try several windows and keep the best (arXiv 2507.17634). Each merge comes once, the mean of all first.

  Raises:
    ValueError: as `uniform`, but that steps may be in any order.

  >>> candidates([20, 10]).round(2).tolist()
  [[0.5, 0.5], [0.2, 0.8], [0.67, 0.33], [0.29, 0.71], [1.0, 0.0]]
  """
  found: list[np.ndarray] = []
  for window in (len(steps), -(-len(steps) // 2)):
    for name in SCHEDULES:
      weights = by_step(name, steps, window=window)
      if not any(np.allclose(weights, other, rtol=0.0, atol=1e-9) for other in found):
        found.append(weights)
  return np.stack(found)


def _factors(schedule: str | Decay | Sequence[float] | np.ndarray, steps: np.ndarray) -> np.ndarray:
  """`w₁ … w_k` at these steps."""
  if isinstance(schedule, str):
    if schedule not in DECAYS:
      raise ValueError(unknown("decay schedule", schedule, DECAYS))
    schedule = DECAYS[schedule]
  if callable(schedule):
    span = (steps[-1] - steps[0]) * len(steps) / max(len(steps) - 1, 1)
    first, function = float(schedule(0.0)), schedule
    if not (math.isfinite(first) and first > 0):
      raise ValueError(f"The decay schedule is {first} at 0; expected a rate above 0.")
    factors = np.array([float(function((step - steps[0]) / span)) / first for step in steps[1:]])
  else:
    factors = np.asarray(schedule, np.float64)
  if factors.shape != (len(steps) - 1,):
    raise ValueError(
      f"The decay schedule has the shape {factors.shape} for {len(steps)} checkpoints; expected one factor "
      f"for each but the first, {len(steps) - 1}."
    )
  if not np.all(np.isfinite(factors)) or np.any(np.diff(factors, prepend=1.0, append=0.0) > 0):
    raise ValueError(
      f"The decay schedule gives the factors {shown(factors.tolist())}; expected numbers from 1 down to 0 "
      "that never rise, since a rise is a negative weight."
    )
  return factors


def _windowed(steps: Steps, window: int | None, weights: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Weights of the last checkpoints, divided by their sum, after zeros for those before."""
  given = np.asarray(steps, np.float64)
  if given.ndim != 1 or not given.size or not np.all(np.isfinite(given)) or np.any(np.diff(given) <= 0):
    raise ValueError(
      f"The steps are {shown(given.tolist())}; expected those of one or more checkpoints, increasing."
    )
  count = len(given) if window is None else window
  if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= len(given):
    raise ValueError(
      f"window is {shown(window)}; expected a whole number from 1 to {len(given)} checkpoints."
    )
  chosen = weights(given[len(given) - count :])
  return np.concatenate([np.zeros(len(given) - count), chosen / chosen.sum()])
