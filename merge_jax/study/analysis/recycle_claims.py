"""The claims of "If You Can't Use Them, Recycle Them", tested on searches over a pool of checkpoints.

Examples are resampled alike for all models; searches by several seeds, checkpoints and seeds are units where
a claim is about them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.evals.examples import Examples
from merge_jax.search import analysis
from merge_jax.search.scores import floats
from merge_jax.study.analysis import search_gains, searches
from merge_jax.study.analysis.intervals import Interval, interval, resampled_scores, resampled_units
from merge_jax.study.analysis.search_gains import scope
from merge_jax.study.analysis.searches import Setting, over_units, rank_correlations
from merge_jax.study.analysis.verdicts import (
  UNKNOWN,
  Check,
  Claim,
  Judgement,
  Value,
  absent,
  every,
  some,
  together,
)

THRESHOLD = 0.24
"""Of the uniform weight: .015 for 16 checkpoints, the paper's figure."""
PREDICTS = 0.5
"""Rank correlation within ± this explains less than a quarter of the ranks' variance."""
SHARE = 0.15
"""Of a training: what is still about 10 %."""
STEPS = 50
"""Evaluations of the paper's searches."""


class Cost(NamedTuple):
  """FLOPs of a search and of the training that it stands beside.

  Attributes:
    name: how it was counted.
    evaluations: of the search.
    evaluation: FLOPs of one.
    training: FLOPs.
  """

  name: str
  evaluations: int
  evaluation: float
  training: float

  @property
  def share(self) -> float:
    return self.evaluations * self.evaluation / self.training


class Inputs(NamedTuple):
  """What the claims are tested on; what is empty makes its claims "cannot tell here".

  Attributes:
    settings: searches by fitness.
    sweep: searches over the N best checkpoints: dictionaries with setting, n, seed, centroid (mean fitness of
      its merges) and best.
    costs: as counted.
    singles: report examples of every checkpoint.
    stages: of their training, such as "sft" and "po".
  """

  settings: Sequence[Setting] = ()
  sweep: Sequence[dict[str, Any]] = ()
  costs: Sequence[Cost] = ()
  singles: Sequence[Examples] = ()
  stages: Sequence[str] = ()


def claims(inputs: Inputs, draws: int = 1000, seed: int = 0) -> list[Claim]:
  """R1 to R13.

  Raises:
    ValueError: see `searches.sample`.
  """
  settings = inputs.settings
  samples = [searches.sample(setting, draws, seed) for setting in settings]
  found = [
    *(test(samples) for test in search_gains.CLAIMS),
    r6(settings, draws, seed),
    r7(settings, draws, seed),
    r8(settings),
    r9(inputs.sweep, draws, seed),
    r10(inputs.costs),
    r11(inputs.singles, inputs.stages, draws, seed),
  ]
  return sorted(found, key=lambda claim: int(claim.id[1:]))


def r6(settings: Sequence[Setting], draws: int = 1000, seed: int = 0) -> Claim:
  """Good merges use most checkpoints."""
  claim = Claim(
    "R6",
    "Good merges are dense: few weights near zero in pairs, at least 9 of 16 non-zero in each of the five "
    "best solutions of the triple.",
    scope(settings),
    f"Share of weights whose magnitude exceeds {THRESHOLD:g} of the uniform weight (.015 of 16 "
    "checkpoints), in the sparsest of a search's best solutions; mean over searches. Dense is above one "
    "half.",
  )
  values = []
  for setting in settings:
    shares = [searches.density(one, THRESHOLD) for one in setting.searches if len(one.top)]
    if shares:
      values.append(Value(setting.name, interval(over_units(shares, draws, seed), len(shares))))
  if not values:
    return claim.unknown("There are no weights of best solutions.")
  return claim.judged(values, every([Check(*value, bound=0.5) for value in values]))


def r7(settings: Sequence[Setting], draws: int = 1000, seed: int = 0) -> Claim:
  """A checkpoint's own fitness says little about its weight."""
  claim = Claim(
    "R7",
    "Single-model fitness does not predict the weight; weak checkpoints can get a high one.",
    scope(settings),
    "Spearman's correlation of the checkpoints' fitness with their mean weight in the five best solutions, "
    "mean over searches; checkpoints are resampled. None is an interval that contains 0 and is within "
    f"±{PREDICTS:g}.",
  )
  values = []
  for setting in settings:
    fitness = floats(setting.fitness)
    known = np.isfinite(fitness)
    tops = [np.mean(one.top, axis=0)[known] for one in setting.searches if len(one.top) and len(fitness)]
    if tops and known.sum() > 2:
      found = np.mean([rank_correlations(fitness[known], top, draws, seed) for top in tops], axis=0)
      values.append(Value(setting.name, interval(found, int(known.sum()))))
  if not values:
    return claim.unknown("There are no fitness and weights of at least three checkpoints.")
  return claim.judged(values, absent([Check(*value) for value in values], PREDICTS))


def r8(settings: Sequence[Setting]) -> Claim:
  """Proposals become better."""
  claim = Claim(
    "R8",
    "The mean fitness of proposals rises with the iteration.",
    scope(settings),
    f"Least-squares change of fitness in {STEPS} evaluations, mean over searches, with the regression's 95 "
    "% interval.",
  )
  from scipy import stats

  values = []
  for setting in settings:
    proposals = [floats(one.fitness) for one in setting.searches]
    lines = [analysis.slope(one) for one in proposals]
    slopes = [line["slope"] for line in lines if line]
    errors = floats([line["stderr"] for line in lines if line])
    if not slopes or None in slopes:
      continue
    freedom = sum(int(np.isfinite(one).sum()) - 2 for one, line in zip(proposals, lines, strict=True) if line)
    value = STEPS * float(np.mean(np.array(slopes, float)))
    reach = STEPS * np.sqrt(np.sum(np.square(errors))) / len(errors) * stats.t.ppf(0.975, freedom)
    values.append(Value(setting.name, Interval(value, value - reach, value + reach, len(slopes))))
  if not values:
    return claim.unknown("There are no searches of at least three proposals.")
  return claim.judged(values, every([Check(*value) for value in values]))


def r9(sweep: Sequence[dict[str, Any]], draws: int = 1000, seed: int = 0) -> Claim:
  """More checkpoints are better."""
  names = list(dict.fromkeys(row["setting"] for row in sweep))
  claim = Claim(
    "R9",
    "Searching over more checkpoints (the N best by fitness) gives better merges: 8 and 16 beat 2 and 4.",
    f"settings {', '.join(names)}; N {', '.join(map(str, sorted({row['n'] for row in sweep})))}"
    if sweep
    else "",
    "Mean over N >= 8 less mean over N <= 4 at the same budget, of the fitness of all merges (centroid) and "
    "of the best one, paired by seed; seeds are resampled.",
  )
  values = []
  for name in names:
    own = [row for row in sweep if row["setting"] == name]
    for what in ("centroid", "best"):
      gains = []
      for one in dict.fromkeys(row["seed"] for row in own):
        known = [(row["n"], row[what]) for row in own if row["seed"] == one and row[what] is not None]
        many, few = [v for n, v in known if n >= 8], [v for n, v in known if n <= 4]
        if many and few:
          gains.append(float(np.mean(many) - np.mean(few)))
      if gains:
        values.append(Value(f"{name}, {what}", interval(over_units(gains, draws, seed), len(gains))))
  if not values:
    return claim.unknown("There are no searches over both at least 8 and at most 4 checkpoints.")
  return claim.judged(values, every([Check(*value) for value in values]))


def r10(costs: Sequence[Cost]) -> Claim:
  """The search is cheap."""
  claim = Claim(
    "R10",
    "A search costs about 10 % of one SFT and preference training.",
    f"counted as {', '.join(cost.name for cost in costs)}" if costs else "no costs",
    "Evaluations times FLOPs of an evaluation over FLOPs of the training; the paper's formulas are 6 N B S "
    f"and 2 N a sample, with sequences on both sides. About 10 % or less is below {SHARE:g}. Nothing is "
    "resampled.",
  )
  if not costs:
    return claim.unknown("The FLOPs of the training are not known.")
  values = [
    Value(cost.name, Interval(cost.share, cost.share, cost.share, cost.evaluations)) for cost in costs
  ]
  return claim.judged(values, every([Check(*value, bound=SHARE, above=False) for value in values]))


def r11(singles: Sequence[Examples], stages: Sequence[str], draws: int = 1000, seed: int = 0) -> Claim:
  """There are trade-offs in the pool."""
  claim = Claim(
    "R11",
    "Trade-offs exist in the pool: one stage of training is better at some tasks, the other at others, and "
    "some tasks correlate negatively.",
    f"{len(singles)} checkpoints",
    "The paper names its tasks (SFT: code; preference training: chat and instructions); tested is that "
    "there is a pair of tasks with a negative Spearman correlation over checkpoints, and for each stage a "
    "task with a higher mean. Checkpoints are resampled; intervals are widened for their number.",
  )
  if len(singles) < 3 or len(singles[0].tasks) < 2:
    return claim.unknown("It needs three checkpoints and two tasks.")
  first = singles[0]
  points = resampled_scores(singles, 1)[0] * np.array(first.signs)
  pairs = [(i, j) for j in range(len(first.tasks)) for i in range(j)]
  values, checks = [], []
  for i, j in pairs:
    name = f"{first.tasks[i]} and {first.tasks[j]}"
    found = rank_correlations(points[:, i], points[:, j], draws, seed)
    values.append(Value(name, interval(found, len(singles))))
    checks.append(Check(name, interval(found, len(singles), len(pairs), len(singles)), above=False))
  parts = [some(checks)]
  kinds = list(dict.fromkeys(stages))
  if len(kinds) == 2 and len(stages) == len(singles):
    differences = _stage_differences(points, [np.array(stages) == kind for kind in kinds], draws, seed)
    gaps = []
    for i, task in enumerate(first.tasks):
      name = f"{task}, {kinds[0]} less {kinds[1]}"
      values.append(Value(name, interval(differences[:, i], len(singles))))
      gaps.append(Check(name, interval(differences[:, i], len(singles), len(first.tasks), len(singles))))
    parts += [some(gaps), some([check._replace(above=False) for check in gaps])]
  else:
    parts.append(Judgement(UNKNOWN, "Checkpoints are not of two stages of training."))
  return claim.judged(values, together(parts))


def _stage_differences(points: np.ndarray, groups: Sequence[np.ndarray], draws: int, seed: int) -> np.ndarray:
  """`[1 + draws, tasks]`: mean score of one group of checkpoints less that of the other."""
  means = []
  for i, group in enumerate(groups):
    weights = resampled_units(int(group.sum()), draws, (seed, 5, i))
    means.append(weights @ points[group] / weights.sum(axis=1, keepdims=True))
  return means[0] - means[1]
