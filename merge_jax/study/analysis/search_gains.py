"""What searches gain: the claims of "If You Can't Use Them, Recycle Them" about scores of their answers.

All scores are of report examples, which chose nothing; averages are plain means over the fitness tasks, as in
the paper, with losses negated. Where the paper names tasks that a pool does not have, what is tested is the
general form, and said.
"""

from collections.abc import Sequence

import numpy as np

from merge_jax.study.analysis import searches
from merge_jax.study.analysis.intervals import interval
from merge_jax.study.analysis.searches import Sample, Setting
from merge_jax.study.analysis.verdicts import Check, Claim, Value, every, some

BASELINES = ("best_single", "uniform", "merge_best")
MARGIN = 0.02
"""Of a score: no loss is at most this (the paper's own repeats differ by .5 to 3 points)."""


def r1(samples: Sequence[Sample]) -> Claim:
  """The search beats the three baselines."""
  claim = Claim(
    "R1",
    "In all settings the searched merge has a higher held-in average than best single, uniform soup and "
    "merge-best.",
    scope(samples),
    "Held-in average of the search's answer less that of each baseline, mean over searches.",
  )
  if not _has(samples, BASELINES):
    return claim.unknown("There is no setting with all three baselines.")
  values = [
    Value(f"{one.name}, over {name}", interval(one.gain(one.rows[name], one.columns), one.repeats))
    for one in samples
    for name in BASELINES
  ]
  return claim.judged(values, every([Check(*value) for value in values]))


def r2(samples: Sequence[Sample]) -> Claim:
  """By how much it beats the better soup."""
  claim = Claim(
    "R2",
    "The gain over the best merge baseline is +2.0, +1.2 and +0.6 points for the pairs and +1.4 for the "
    "triple.",
    scope(samples),
    "Held-in average of the search's answer less the higher one of uniform soup and merge-best (in each "
    "draw). The paper's numbers belong to its tasks: tested is that every gain is above 0.",
  )
  if not _has(samples, BASELINES[1:]):
    return claim.unknown("There is no setting with both soups.")
  values = []
  for one in samples:
    averages = [one.rows[name][:, one.columns].mean(axis=1) for name in BASELINES[1:]]
    answers = one.mean(one.answers[..., one.columns].mean(axis=-1))
    values.append(Value(one.name, interval(answers - np.max(averages, axis=0), one.repeats)))
  return claim.judged(values, every([Check(*value) for value in values]))


def r3(samples: Sequence[Sample]) -> Claim:
  """It is not dominated."""
  claim = Claim(
    "R3",
    "The searched merge lies on the Pareto front of single checkpoints, baselines and search.",
    scope(samples),
    "Of the other models the one that comes nearest to dominating the answer: by how much the answer is "
    "ahead of it on the task that suits it best; below 0 it is dominated. Mean over searches. On report "
    "examples, for on its own the highest average is on the front by necessity.",
  )
  if not samples or not all(one.singles.shape[1] for one in samples):
    return claim.unknown("There are no scores of the single checkpoints.")
  values = [Value(one.name, interval(searches.margin(one), one.repeats)) for one in samples]
  return claim.judged(values, every([Check(*value) for value in values]))


def r4(samples: Sequence[Sample]) -> Claim:
  """It can beat the best single checkpoint of a task."""
  claim = Claim(
    "R4",
    "The searched merge can beat the best single model on a single task; in the triple it is slightly below "
    "it.",
    scope(samples),
    "Score on each fitness task of the search's answer less that of the checkpoint that was best on that "
    "task's search examples. Tested is that there is such a task, with intervals widened for their number.",
  )
  pairs = [
    (one, column, one.rows[f"best_on_{one.tasks[column]}"])
    for one in samples
    for column in one.columns
    if f"best_on_{one.tasks[column]}" in one.rows
  ]
  if not pairs:
    return claim.unknown("There are no checkpoints that were best on a task.")
  gains = [(f"{one.name}, {one.tasks[i]}", one.gain(row, [i]), one.repeats) for one, i, row in pairs]
  values = [Value(name, interval(gain, n)) for name, gain, n in gains]
  return claim.judged(values, some([Check(name, interval(g, n, len(gains), n)) for name, g, n in gains]))


def r5(samples: Sequence[Sample]) -> Claim:
  """Nothing is lost on other tasks."""
  claim = Claim(
    "R5",
    "There is no loss on held-out tasks against the baselines, sometimes a gain.",
    scope(samples),
    f"Mean score on the tasks outside the fitness, answer less each baseline; no loss is above -{MARGIN:g}.",
  )
  usable = [one for one in samples if one.rest]
  if not _has(usable, BASELINES):
    return claim.unknown("There is no setting with tasks outside the fitness and all three baselines.")
  values = [
    Value(f"{one.name}, over {name}", interval(one.gain(one.rows[name], one.rest), one.repeats))
    for one in usable
    for name in BASELINES
  ]
  gaps = [f"{one.name} {one.gap:.3f}" for one in usable if np.isfinite(one.gap)]
  note = f"on the search's own examples answers score higher by {', '.join(gaps)}" if gaps else ""
  return claim.judged(values, every([Check(*value, bound=-MARGIN) for value in values]), note)


def r12(samples: Sequence[Sample]) -> Claim:
  """Picking the best checkpoints is not enough."""
  claim = Claim(
    "R12",
    "Merge-best is close to the search in one setting and below it elsewhere: picking by single-model score "
    "is suboptimal.",
    scope(samples),
    "Held-in average of the search's answer less that of merge-best; the verdict is on the mean over "
    "settings, for the claim allows for one where they are close.",
  )
  if not _has(samples, ["merge_best"]):
    return claim.unknown("There is no setting with merge-best.")
  gains = [one.gain(one.rows["merge_best"], one.columns) for one in samples]
  counts = [one.repeats for one in samples]
  values = [Value(one.name, interval(gain, n)) for one, gain, n in zip(samples, gains, counts, strict=True)]
  whole = Value("all settings", interval(np.mean(gains, axis=0), sum(counts)))
  return claim.judged([*values, whole], every([Check(*whole)]))


def r13(samples: Sequence[Sample]) -> Claim:
  """A plain average is better than any single checkpoint."""
  claim = Claim(
    "R13",
    "The uniform soup already has a higher held-in average than the best single model in all settings.",
    scope(samples),
    "Held-in average of the uniform soup less that of the best single checkpoint.",
  )
  if not _has(samples, BASELINES[:2]):
    return claim.unknown("There is no setting with a uniform soup and a best single checkpoint.")
  values = []
  for one in samples:
    gain = (one.rows["uniform"] - one.rows["best_single"])[:, one.columns].mean(axis=1)
    values.append(Value(one.name, interval(gain, 2)))
  return claim.judged(values, every([Check(*value) for value in values]))


CLAIMS = (r1, r2, r3, r4, r5, r12, r13)


def scope(settings: Sequence[Setting] | Sequence[Sample]) -> str:
  """Settings and searches there are to test on."""
  names = [f"{one.name} (searches: {one.repeats})" for one in settings]
  return f"settings {', '.join(names)}" if names else "no searches"


def _has(samples: Sequence[Sample], names: Sequence[str]) -> bool:
  return bool(samples) and all(name in one.rows for one in samples for name in names)
