"""The cells of searches over a pool."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from merge_jax.study.cells import Cell
from merge_jax.study.judge import Judge
from merge_jax.study.recycling import search
from merge_jax.study.recycling.bench import Bench, Pool
from merge_jax.study.recycling.settings import MAIN, PAPER, Arm, Recycling, arms

KIND = "recycle"


def cells(pool: Pool, judge: Judge, options: Recycling, name: str = "recycle") -> list[Cell]:
  """What there is to do, the checkpoints alone first. One placed pool serves all of them.

  Args:
    pool: opened here; its tensors are read by the first cell that runs.
    judge: of its models, by a suite with the splits search, validation and test; the tasks of all settings
      are in each.
    options: see there.
    name: of the pool, for people.

  Raises:
    ValueError: a pool of one checkpoint, checkpoints that do not go together, tasks or splits that the suite
      does not have.
  """
  for split in ("search", "validation", "test"):
    if split not in judge.suite.splits:
      raise ValueError(f"The suite has no {split} examples; its splits are {', '.join(judge.suite.splits)}.")
  bench = Bench(pool, judge, options.batch)
  if bench.count < 2:
    raise ValueError("The pool has one checkpoint; give at least two to recycle.")
  for tasks in options.settings.values():
    bench.fitness(tasks)
  about = bench.digests() | {"batch": options.batch}
  scored = {"stages": dict(pool.stages), "names": list(pool.folders)}
  found = [Cell(KIND, f"{name} singles", about | scored, functools.partial(search.singles, bench))]
  for setting, count, arm, seed, budgets in dict.fromkeys(_searches(options, bench.count)):
    plain = {"setting": setting, "tasks": list(options.settings[setting]), "count": count,
             "arm": msgspec.to_builtins(arm), "seed": seed, "budgets": list(budgets)}  # fmt: skip
    words = f"{name} {setting} N={count} {arm.proposer} {arm.space} σ={arm.sigma:g} {arm.start} seed {seed}"
    found.append(Cell(KIND, words, about | plain, functools.partial(_search, bench, plain, arm)))
  return found


Search = tuple[str, int, Arm, int, tuple[int, ...]]
"""Setting, number of checkpoints, way, seed and budgets of a search."""


def _searches(options: Recycling, most: int) -> Iterator[Search]:
  counts = sorted({min(count, most) for count in options.counts})
  for setting in options.settings:
    varied = arms(options) if not options.ablated or setting in options.ablated else []
    for seed in options.seeds:
      for arm in (*MAIN.values(), *varied):
        yield setting, counts[-1], arm, seed, options.budgets
      for count in counts[:-1]:
        yield setting, count, PAPER, seed, options.budgets[:1]


def _search(bench: Bench, plain: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
  found = search.run(bench, plain["tasks"], plain["count"], arm, plain["seed"], plain["budgets"])
  return {**plain, **found}
