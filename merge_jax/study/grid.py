"""The grid: every method × number of experts × set of experts of every lineage, tuned, then tested."""

import hashlib
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from merge_jax import operators as mj
from merge_jax.errors import unknown
from merge_jax.evals.examples import Examples
from merge_jax.evals.tokens import FILES
from merge_jax.recipes.own_methods import OWN, factory
from merge_jax.search.scores import nullables
from merge_jax.study.cells import Cell, Group, Result, Store
from merge_jax.study.judge import Judge, Params
from merge_jax.study.lineages import Lineage, Member
from merge_jax.study.settings import Method
from merge_jax.study.tasks import TEST, VALIDATION, Tasks

STATISTICS = ("fisher", "regmean")
"""Methods that need more than models."""


class Merge(NamedTuple):
  """A cell of the grid.

  Attributes:
    method: as the study calls it.
    members: held-in categories of the experts.
    subset: number of the set of experts, or of the draw where there is one set and the method is random.
  """

  method: str
  members: tuple[str, ...]
  subset: int


def operator(method: Method, numbers: Mapping[str, float]) -> mj.Operator:
  """The operator of a trial.

  Raises:
    ValueError: an unknown one, or arguments or numbers that it does not take.
  """
  if method.operator not in OWN:
    raise ValueError(unknown("operator", method.operator, OWN))
  if method.operator in STATISTICS:
    raise ValueError(
      f"{method.operator} needs statistics of each model's inputs, which a study does not measure."
    )
  try:
    return factory(method.operator)(**method.arguments, **numbers)
  except TypeError as error:
    raise ValueError(f"{method.operator}: {error}") from None


def check(methods: Mapping[str, Method], counts: Sequence[int], categories: int) -> None:
  """Raises ValueError for methods, numbers or counts that cannot be merged, before anything is trained."""
  if not counts or len(set(counts)) != len(counts) or max(counts) > categories:
    raise ValueError(
      f"config: counts is {tuple(counts)}; expected different numbers of experts, at most the {categories} "
      "held-in categories."
    )
  tree = {"layer.weight": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
  for name, method in methods.items():
    for i, numbers in enumerate(method.grid):
      try:
        made = operator(method, numbers)
        if len({str(sorted(numbers)) for numbers in method.grid}) > 1:
          raise ValueError("its trials have different numbers; give each the same names.")
        for count in counts:
          jax.eval_shape(equally, made, [tree] * count, tree, jax.random.key(0))
      except ValueError as error:
        raise ValueError(f"config: methods.{name}, trial {i}: {error}") from None


def equally(
  made: mj.Operator, experts: Sequence[Params], base: Params, key: Any, weight: float = 1.0, axes: Any = ()
) -> Params:
  """A merge with one weight for all experts."""
  weights = jnp.full(len(experts), weight)
  return mj.merge(
    made, list(experts), None if made.weightless else weights,
    base=base if made.needs_base else None, key=key if made.needs_key else None, axes=axes,
  )  # fmt: skip


def subsets(categories: Sequence[str], count: int, most: int) -> list[tuple[str, ...]]:
  """Different sets of `count` categories, drawn alike whatever `most` is; each in the categories' order.

  >>> subsets(["a", "b", "c"], 3, 2)
  [('a', 'b', 'c')]
  >>> subsets(["a", "b", "c"], 2, 2) == subsets(["a", "b", "c"], 2, 3)[:2]
  True
  """
  generator, found = random.Random(f"{count} of {len(categories)}"), list[tuple[str, ...]]()
  while len(found) < min(most, math.comb(len(categories), count)):
    chosen = tuple(categories[i] for i in sorted(generator.sample(range(len(categories)), count)))
    if chosen not in found:
      found.append(chosen)
  return found


def merges(
  methods: Mapping[str, Method], categories: Sequence[str], counts: Sequence[int], most: int
) -> list[Merge]:
  """The merges of each lineage."""
  result = []
  for name, count in itertools.product(methods, counts):
    sets = subsets(categories, count, most)
    draws = operator(methods[name], methods[name].grid[0]).needs_key and len(sets) == 1
    result += [Merge(name, one, i) for i, one in enumerate(sets * most if draws else sets)]
  return result


class Bench:
  """Judges, and the models of the lineage that is in work, on the devices.

  Lineages whose bases are of one size, config and tokenizer share a judge.

  Args:
    judge: makes one for the models of a lineage.
  """

  def __init__(self, judge: Callable[[Lineage], Judge]):
    self._make, self._judges = judge, dict[Any, Judge]()
    self._reads = dict[str, Any]()
    self._name, self._held = "", dict[str, Params]()

  def judge(self, lineage: Lineage) -> Judge:
    """What scores the lineage's models."""
    if lineage.name not in self._reads:
      files = (lineage.base.folder / name for name in FILES)
      told = (file.read_bytes() if file.is_file() else b"" for file in files)
      self._reads[lineage.name] = lineage.size, *(hashlib.sha256(one).digest() for one in told)
    how = self._reads[lineage.name]
    if how not in self._judges:
      self._judges[how] = self._make(lineage)
    return self._judges[how]

  def params(self, lineage: Lineage, member: Member) -> Params:
    """A model of the lineage."""
    if lineage.name != self._name:
      self._name, self._held = lineage.name, {}
    if member.identity not in self._held:
      self._held[member.identity] = self.judge(lineage).load(member.folder)
    return self._held[member.identity]


def scored(lineage: Lineage, tasks: Tasks, bench: Bench) -> Group:
  """The cells that score the models which are merged, and those that merges are compared with."""

  def run(cells: Sequence[Cell]) -> list[Result]:
    return [_score(bench, lineage, members[cell.name]) for cell in cells]

  members = {f"{lineage.name}/{role}": member for role, member in lineage.members.items()}
  cells = [
    Cell("score", name, {"model": one.identity, "tasks": tasks.digest}, _alone, one.needs[-1:])
    for name, one in members.items()
  ]
  return Group(tuple(cells), run)


def _alone() -> Result:
  raise AssertionError("cells of a group are run by it")


def _score(bench: Bench, lineage: Lineage, member: Member) -> Result:
  began, params = time.perf_counter(), bench.params(lineage, member)
  (validation,) = bench.judge(lineage).score([params], VALIDATION)
  (test,) = bench.judge(lineage).score([params], TEST)
  seconds = round(time.perf_counter() - began, 3)
  return {"validation": nullables(validation.scores()), "test": _plain(test), "seconds": seconds}


def _plain(examples: Examples) -> Result:
  return {"examples": examples.to_plain(), "losses": nullables(examples.scores(loss=True))}


def merged(
  lineage: Lineage, some: Sequence[Merge], methods: Mapping[str, Method], tasks: Tasks, bench: Bench,
  store: Store, experts: Mapping[str, str],
) -> Group:  # fmt: skip
  """The cells of merges that are tuned, then tested, together.

  Args:
    lineage: whose experts are merged.
    some: the merges.
    methods: by name.
    tasks: of the study.
    bench: loads and scores.
    store: holds the experts' scores, which merges are measured by.
    experts: keys of the experts' cells of `scored`, by category.
  """
  chosen: dict[str, Merge] = {}
  cells = []
  for merge in some:
    method = methods[merge.method]
    random_one = operator(method, method.grid[0]).needs_key
    spec = {
      "base": lineage.base.identity,
      "experts": {category: lineage.experts[category].identity for category in merge.members},
      "method": msgspec.to_builtins(method),
      "draw": [lineage.seed, merge.subset] if random_one else None,
      "tasks": tasks.digest,
    }
    if any(len(tasks.held_in[category]) > 1 for category in merge.members):  # trials are judged by category
      spec["categories"] = {category: list(tasks.held_in[category]) for category in merge.members}
    name = f"{lineage.name}/{merge.method}/{len(merge.members)}/{merge.subset}"
    chosen[name] = merge
    cells.append(Cell("merge", name, spec, _alone, tuple(experts[category] for category in merge.members)))

  def run(missing: Sequence[Cell]) -> list[Result]:
    references = {c: store.get(experts[c]) for merge in chosen.values() for c in merge.members}
    return _tuned(
      lineage, [chosen[cell.name] for cell in missing], methods, tasks, bench,
      {category: result["validation"] for category, result in references.items() if result is not None},
    )  # fmt: skip

  return Group(tuple(cells), run)


def _tuned(
  lineage: Lineage, some: Sequence[Merge], methods: Mapping[str, Method], tasks: Tasks, bench: Bench,
  references: Mapping[str, Mapping[str, float | None]],
) -> list[Result]:  # fmt: skip
  """Every trial of every merge on validation examples; the best one, and the untuned, on test examples."""
  began, judge = time.perf_counter(), bench.judge(lineage)

  def model(one: tuple[Merge, int]) -> Params:
    merge, trial = one
    method = methods[merge.method]
    experts = [bench.params(lineage, lineage.experts[category]) for category in merge.members]
    key = jax.random.fold_in(jax.random.key(lineage.seed), merge.subset)
    base = bench.params(lineage, lineage.base)
    made = operator(method, method.grid[trial])
    return equally(made, experts, base, key, axes=judge.suite.axes)

  tries = [(merge, trial) for merge in some for trial in range(len(methods[merge.method].grid))]
  made = dict(zip(tries, judge.score(map(model, tries), VALIDATION), strict=True))
  values = {one: worth(made[one], one[0].members, tasks, references) for one in tries}
  best = {
    merge: max(range(len(methods[merge.method].grid)), key=lambda trial: values[merge, trial])
    for merge in some
  }
  finals = list(dict.fromkeys(one for merge in some for one in ((merge, best[merge]), (merge, 0))))
  tested = dict(zip(finals, judge.score(map(model, finals), TEST), strict=True))
  seconds = round((time.perf_counter() - began) / len(some), 3)
  return [
    {
      "trials": [
        {"numbers": numbers, "validation": values[merge, i] if math.isfinite(values[merge, i]) else None}
        for i, numbers in enumerate(methods[merge.method].grid)
      ],
      "chosen": best[merge],
      "tuned": _plain(tested[merge, best[merge]]),
      "untuned": _plain(tested[merge, 0]),
      "seconds": seconds,
    }
    for merge in some
  ]  # fmt: skip


def worth(
  examples: Examples,
  members: Sequence[str],
  tasks: Tasks,
  references: Mapping[str, Mapping[str, float | None]],
) -> float:
  """What trials are compared by: the mean over the members' categories of scores over their experts'.

  A loss counts as the expert's over the merge's. Tasks at which an expert fails do not count; -inf where a
  score is not finite.
  """
  scores, signs = examples.scores(), dict(zip(examples.tasks, examples.signs, strict=True))
  means = []
  for category in members:
    ratios = []
    for task in tasks.held_in[category]:
      reference, score = references[category][task], scores[task]
      if reference is None or reference <= 0:
        continue
      ratios.append(score / reference if signs[task] > 0 else reference / score if score > 0 else math.nan)
    if ratios:
      means.append(float(np.mean(ratios)))
  value = float(np.mean(means)) if means else 0.0
  return value if math.isfinite(value) else -math.inf
