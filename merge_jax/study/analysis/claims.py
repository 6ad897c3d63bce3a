"""The claims of "What Matters for Model Merging at Scale?", tested on a study's merges.

Only tuned merges count, and only families that pass the gate. Bounds and rules are fixed here and in
`verdicts.py`; no verdict is written by hand. A claim "for every size" is tested on each size's mean over
methods and counts; single cells can only contradict it, with intervals wide enough for how many they are.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from merge_jax.study.analysis.comparisons import mean_over, over_multitask, same_units, shares, slope, spreads
from merge_jax.study.analysis.draws import Draws
from merge_jax.study.analysis.gate import Gate
from merge_jax.study.analysis.intervals import interval
from merge_jax.study.analysis.verdicts import Check, Claim, Value, every, together

WEAK, STRONG = "pretrained", "instruct"
MARGIN = 0.02
"""What is not worse by more than this ratio matches."""
MANY = 6
"""W4 speaks of more experts than these."""


def claims(draws: Draws, gates: Sequence[Gate]) -> list[Claim]:
  """All claims, on the families that pass the gate."""
  enough = {(gate.size, gate.kind) for gate in gates if gate.enough}
  passed = dataclasses.replace(draws, families=tuple(f for f in draws.families if f in enough))
  found = [test(passed) for test in CLAIMS]
  if not passed.families:
    found = [claim.unknown("No size has experts that beat their base by more than noise.") for claim in found]
  left_out = [f"{gate.size} ({gate.kind})" for gate in gates if not gate.enough]
  if left_out:
    note = f"; left out, for their experts do not beat their base: {', '.join(left_out)}"
    found = [claim._replace(scope=claim.scope + note) for claim in found]
  return found


def w1(draws: Draws) -> Claim:
  """Experts of the strong base merge better."""
  claim = Claim(
    "W1",
    "Experts from the instruction-tuned base merge better than experts from the pretrained base, for every "
    "size, count and method.",
    scope(draws),
    "Held-in score, instruct less pretrained, of merges of the same method, count, seed and subset; each is "
    "relative to its own base's experts, on tasks that neither drops. Mean over methods and counts.",
  )
  values, cells, raw = [], [], []
  for size in draws.sizes:
    if not {(size, WEAK), (size, STRONG)} <= set(draws.families):
      continue
    both = draws.over_common_tasks([(size, WEAK), (size, STRONG)])
    weak, strong = both.cells(size, WEAK), both.cells(size, STRONG)
    found, n = [], 0
    for method, count in [key for key in weak if key in strong]:
      a, b = same_units(both, weak[method, count], strong[method, count])
      if a and b:
        gain = mean_over(both, [b]) - mean_over(both, [a])
        found.append((f"{size} {method} of {count}", gain, len(a) + len(b), len(a)))
        n += len(a) + len(b)
        raw.append(both.raw(b) - both.raw(a))
    if found:
      values.append(Value(size, interval(np.mean([one[1] for one in found], axis=0), n)))
      cells += found
  if not values:
    return claim.unknown("No size has comparable merges from both kinds of base.")
  contradictions = [Check(name, interval(gain, n, len(cells), units)) for name, gain, n, units in cells]
  note = f"{sum(one[1][0] > 0 for one in cells)} of {len(cells)} cells are above 0"
  note += f"; raw scores differ by {np.mean(raw):.3f}"
  return claim.judged(values, every([Check(*value) for value in values], contradictions), note)


def w2(draws: Draws) -> Claim:
  """Larger models merge better."""
  claim = Claim(
    "W2",
    "Larger models are easier to merge: the held-in score rises with size.",
    scope(draws),
    "Held-in score of the largest size less that of the smallest, for each kind of base, over methods and "
    "counts that all sizes have, on tasks that none drops. Steps between neighbouring sizes can contradict.",
  )
  tests, steps, values = [], [], []
  for kind in _kinds(draws):
    sizes = [size for size in draws.sizes if draws.cells(size, kind)]
    if len(sizes) < 2:
      continue
    alike = draws.over_common_tasks([(size, kind) for size in sizes])
    cells = [alike.cells(size, kind) for size in sizes]
    common = [key for key in cells[0] if all(key in own for own in cells)]
    if not common:
      continue
    means = [mean_over(alike, [own[key] for key in common]) for own in cells]
    numbers = [sum(len(own[key]) for key in common) for own in cells]
    last = len(sizes) - 1
    for a, b in [(0, last), *((i, i + 1) for i in range(last) if last > 1)]:
      name, change = f"{sizes[a]} to {sizes[b]}, {kind}", means[b] - means[a]
      units = min(len(draws.units[sizes[a]]), len(draws.units[sizes[b]]))
      values.append(Value(name, interval(change, numbers[a] + numbers[b])))
      if (a, b) == (0, last):
        tests.append(Check(*values[-1]))
      else:
        steps.append(Check(name, interval(change, numbers[a] + numbers[b], max(last, 2), units)))
  if not tests:
    return claim.unknown("It needs two sizes that have a kind of base, a method and a count in common.")
  return claim.judged(values, every(tests, steps))


def w3(draws: Draws) -> Claim:
  """Merging helps where the base was not trained."""
  claim = Claim(
    "W3",
    "Merging improves the held-out score over the base in most settings: the ratio exceeds 1.",
    scope(draws),
    "Share of cells (kind of base, method, count) whose mean held-out score relative to the base is above "
    "1; the verdict is on all sizes together, against one half. The two kinds of base are different "
    "denominators.",
  )
  return _judged_share(claim, shares(draws, True, lambda mean: mean > 1))


def w4(draws: Draws) -> Claim:
  """Many large experts of the strong base are as good as multitask training."""
  claim = Claim(
    "W4",
    "With a strong base and more than 6 large experts the merge matches or exceeds multitask training on "
    "held-out tasks.",
    scope(draws),
    f"Held-out score, merge less multitask, instruct base, more than {MANY} experts, where the multitask "
    "model was trained on the same categories; mean over methods. The verdict is on the largest size here "
    f"(the paper's are at least 24B): a match is above -{MARGIN:g}.",
  )
  values = _against_multitask(draws, STRONG, MANY)
  largest = _largest(draws, STRONG)
  if not largest:
    return claim.unknown("No instruction-tuned base is there to judge.")
  if not values or values[-1].size != largest:
    why = f"Size {largest} has no merge of more than {MANY} experts with a multitask model of the same ones."
    return claim.judged(values, every([]))._replace(why=why)
  return claim.judged(values, every([Check(*values[-1], bound=-MARGIN)]))


def w5(draws: Draws) -> Claim:
  """Larger models bear more experts."""
  claim = Claim(
    "W5",
    "Larger models tolerate more experts: with the weak base the held-in score falls as their number grows, "
    "with the strong base it flattens.",
    scope(draws),
    "Slope of the held-in score per expert, within the same category, method and seed (merges of more "
    "experts cover other categories, so that the paper's means are of other tasks). Three parts: it is "
    "below 0 for the pretrained base at every size; it is higher for the instruct base at every size; it is "
    "higher at the largest size than at the smallest, as a mean over bases.",
  )
  slopes, numbers = {}, {}
  for size, kind in draws.families:
    cells = draws.cells(size, kind)
    if kind in (WEAK, STRONG) and len({count for _, count in cells}) > 1:
      slopes[size, kind] = slope(draws, cells)
      numbers[size, kind] = sum(map(len, cells.values()))
  values = [Value(", ".join(family), interval(one, numbers[family])) for family, one in slopes.items()]
  both = [size for size in draws.sizes if {(size, WEAK), (size, STRONG)} <= slopes.keys()]
  if len(both) < 2:
    why = "It needs two sizes that have merges of different counts from both kinds of base."
    return claim.judged(values, every([]))._replace(why=why)
  merges = {size: numbers[size, WEAK] + numbers[size, STRONG] for size in both}
  flatter = [
    Value(f"{size}, {STRONG} less {WEAK}", interval(slopes[size, STRONG] - slopes[size, WEAK], merges[size]))
    for size in both
  ]
  first, last = both[0], both[-1]
  change = np.mean([slopes[last, kind] - slopes[first, kind] for kind in (WEAK, STRONG)], axis=0)
  larger = Value(f"{first} to {last}", interval(change, merges[first] + merges[last]))
  falls = [
    Check(*value, above=False) for value, (_, kind) in zip(values, slopes, strict=True) if kind == WEAK
  ]
  parts = [every(falls), every([Check(*value) for value in flatter]), every([Check(*larger)])]
  return claim.judged([*values, *flatter, larger], together(parts))


def w6(draws: Draws) -> Claim:
  """Methods give the same at scale."""
  claim = Claim(
    "W6",
    "At the largest size with the strong base all methods give nearly the same result, so that averaging is "
    "enough.",
    scope(draws),
    "Held-in score, instruct base: standard deviation over methods of their means, less that over units "
    "(seed and subset of experts) of the means over methods; mean over counts with at least two of both. "
    "Units are the yardstick, so only their examples are resampled. The verdict is on the largest size: "
    "below 0 it matters more which experts are merged than how.",
  )
  values, notes = [], {}
  for size in draws.sizes:
    found = list(spreads(draws, size, STRONG).values())
    if found:
      methods = np.mean([one.methods for one in found], axis=0)
      units = np.mean([one.units for one in found], axis=0)
      noise = np.mean([one.noise for one in found])
      values.append(Value(size, interval(methods - units, sum(one.n for one in found))))
      notes[size] = (
        f"spread over methods {methods[0]:.3f}, over units {units[0]:.3f}, evaluation noise {noise:.3f}"
      )
  largest = _largest(draws, STRONG)
  if not largest:
    return claim.unknown("No instruction-tuned base is there to judge.")
  if largest not in notes:
    why = f"The largest size, {largest}, has no count with two methods and two units."
    return claim.judged(values, every([]))._replace(why=why)
  return claim.judged(values, every([Check(*values[-1], above=False)]), notes[largest])


def w7(draws: Draws) -> Claim:
  """Merges stay below experts."""
  claim = Claim(
    "W7",
    "Merged models usually stay below the experts on held-in tasks: the ratio is at most 1.",
    scope(draws),
    "Share of cells (kind of base, method, count) whose mean held-in score relative to the experts is at "
    "most 1; the verdict is on all sizes together, against one half.",
  )
  return _judged_share(claim, shares(draws, False, lambda mean: mean <= 1))


def w8(draws: Draws) -> Claim:
  """With the weak base multitask training wins."""
  claim = Claim(
    "W8",
    "For the pretrained base multitask training beats every merge on held-out tasks.",
    scope(draws),
    "Held-out score, merge less multitask, pretrained base, where the multitask model was trained on the "
    "same categories; mean over methods and counts. Every cell can contradict, those of fewer experts, too.",
  )
  values = _against_multitask(draws, WEAK, 0)
  if not values:
    return claim.unknown("No merge from a pretrained base has a multitask model of the same categories.")
  cells = []
  for size in draws.sizes:
    for (method, count), rows in draws.cells(size, WEAK).items():
      gain, chosen = over_multitask(draws, rows, alike=False)
      if chosen:
        cells.append((f"{size} {method} of {count}", gain, len(chosen)))
  contradictions = [Check(name, interval(v, n, len(cells), n), above=False) for name, v, n in cells]
  note = f"{sum(gain[0] < 0 for _, gain, _ in cells)} of {len(cells)} cells are below 0"
  return claim.judged(values, every([Check(*value, above=False) for value in values], contradictions), note)


CLAIMS: tuple[Callable[[Draws], Claim], ...] = (w1, w2, w3, w4, w5, w6, w7, w8)


def scope(draws: Draws) -> str:
  """Sizes, bases, methods, counts and repeats that there are to test on."""
  merges = [
    draws.models[row] for family in draws.families for own in draws.cells(*family).values() for row in own
  ]
  if not merges:
    return "no merges"
  seeds = {size: {m.seed for m in merges if m.size == size} for size in draws.sizes}
  sizes = [f"{size} (training seeds: {len(own)})" for size, own in seeds.items() if own]
  counts = sorted({len(m.members) for m in merges})
  methods = dict.fromkeys(m.method for m in merges)
  text = f"sizes {', '.join(sizes)}; bases {', '.join(_kinds(draws))}; methods {', '.join(methods)}; "
  text += f"counts {', '.join(map(str, counts))}"
  alone = [size for size, own in seeds.items() if own and len(draws.units[size]) == 1]
  if alone:
    text += f"; only examples are resampled, for there is one seed and subset: {', '.join(alone)}"
  return text


def _kinds(draws: Draws) -> list[str]:
  return list(dict.fromkeys(kind for _, kind in draws.families))


def _largest(draws: Draws, kind: str) -> str:
  return ([""] + [size for size in draws.sizes if (size, kind) in draws.families])[-1]


def _judged_share(claim: Claim, values: list[Value]) -> Claim:
  if not values:
    return claim.unknown("No merge has such a score.")
  return claim.judged(values, every([Check(*values[-1], bound=0.5)]))


def _against_multitask(draws: Draws, kind: str, more_than: int) -> list[Value]:
  """Held-out score of merges less that of multitask models of the same categories, by size."""
  values = []
  for size in draws.sizes:
    cells = [rows for (_, count), rows in draws.cells(size, kind).items() if count > more_than]
    found = [
      (gain, len(rows)) for gain, rows in (over_multitask(draws, c, alike=True) for c in cells) if rows
    ]
    if found:
      gain = np.mean([one for one, _ in found], axis=0)
      values.append(Value(size, interval(gain, sum(n for _, n in found))))
  return values
