"""A size and seed of a suite: trains its pools, then runs who is asked for on each of them."""

import functools
import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from merge_jax import sharding
from merge_jax.recycle.settings import Evals
from merge_jax.search.journal import Journal
from merge_jax.study.cells import Cell, Outcome, Result, Store, run
from merge_jax.study.data import Data
from merge_jax.study.judge import Judge
from merge_jax.study.pools import attainable, contest, data
from merge_jax.study.pools.members import Pool, plan
from merge_jax.study.pools.scores import Scores
from merge_jax.study.pools.settings import Pools

Say = Callable[[str], None]
LONG = ("sums", "smooth", "fitness")
"""Of a result what lines leave out."""


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """What is to be done with the pools.

  Attributes:
    names: of the contestants that are to run; of the others what is there is read.
    kinds: of the pools; none: all.
    attainable: also find out what there is (`attainable`).
  """

  names: tuple[str, ...]
  kinds: tuple[str, ...]
  attainable: bool


class Unit:
  """One size and seed.

  Args:
    suite: its settings.
    files: its data.
    size, seed: which.
    folder: of the whole suite.
    asked: what to do.
    stop: asked between cells, steps of trainings and evaluations.
  """

  def __init__(
    self,
    suite: Pools,
    files: Data,
    size: str,
    seed: int,
    folder: Path,
    asked: Asked,
    stop: Callable[[], bool],
  ):
    self._suite, self._files, self._folder, self._stop = suite, files, folder, stop
    self._asked, self._store, self.size, self.seed = asked, Store(folder / "cells"), size, seed
    self._mesh = sharding.make_mesh("fsdp:1")
    self._plan = plan(suite, files, size, seed, folder / "models", self._mesh, stop)

  @property
  def name(self) -> str:
    """For people."""
    return f"{self.size}/{self.seed}"

  def run(self, say: Say) -> Result:
    """Does what is missing.

    Returns:
      `lines`: what contestants came to, one for each pool, contestant, search seed and budget, those of
      before, too; `references` and `attainable` likewise; `failed`: sentences by the name of the cell.

    Raises:
      errors.Stopped: it was asked to; the same call continues.
    """
    found: Result = {"lines": [], "references": [], "attainable": [], "failed": {}}
    trained = self._do(self._plan.cells, say)
    found["failed"] |= trained.failed
    for pool in self._plan.pools:
      if self._asked.kinds and pool.kind not in self._asked.kinds:
        continue
      if missing := [name for name, folder in pool.folders.items() if not folder.is_dir()]:
        found["failed"][pool.name] = f"the training of {missing[0]!r} failed."
        continue
      for part, rows in self._pool(pool, found["failed"], say).items():
        found[part] += rows
      gc.collect()  # programs and parameters of a pool that is done
    return found

  def _pool(self, pool: Pool, failed: dict[str, str], say: Say) -> dict[str, list[Result]]:
    judge = Judge(pool.folders.values(), self._splits, Evals(), self._mesh)
    every = {kind: Scores(pool, judge, self._stop, granularity=kind) for kind in self._granularities}
    scores = every["model"]
    about = {"pool": scores.bench.digests()}
    first = Cell("known", f"{pool.name} known points", about, lambda: contest.known(scores))
    cells, places = [first] if self._asked.names or self._asked.attainable else [], []
    for name in self._suite.contestants:
      for seed in self._suite.search_seeds:
        own = every[self._suite.contestants[name].granularity]
        cell = self._search(own, name, seed, about)
        places.append((name, seed, cell))
        if name in self._asked.names:
          cells.append(cell)
    done = self._do(cells, say)
    failed |= done.failed
    where = {"size": pool.size, "kind": pool.kind, "seed": pool.seed, "part": self._suite.part_of(pool.seed),
             "count": len(pool.members)}  # fmt: skip
    known = self._store.get(first.key)
    lines = []
    for name, seed, cell in places:
      if (result := self._store.get(cell.key)) is not None:
        seconds = known["seconds"] if known else None
        who = where | {"contestant": name, "search_seed": seed, "cell": cell.key}
        lines += [who | _short(answer, seconds) for answer in result["answers"]]
    references = [] if known is None else [
      where | {"row": row, "known": len(known["records"]), "cell": first.key} | _short(one)
      for row, one in known["rows"].items()
    ]  # fmt: skip
    most = [] if known is None else self._most(scores, known, about, failed, say)
    return {"lines": lines, "references": references, "attainable": [where | _short(one) for one in most]}

  def _most(
    self, scores: Scores, known: Result, about: dict[str, Any], failed: dict[str, str], say: Say
  ) -> list[Result]:
    """What is attainable in each space, as far as it is there or asked for."""
    options = self._suite.attainable
    if options is None:
      return []

    @functools.cache
    def ground() -> attainable.Ground:
      return attainable.ground(scores.bench, self._splits, known, contest.reference(scores))

    def cell(space: str, values: Result, work: Callable[..., Result]) -> Cell:
      words = f"{scores.pool.name} attainable {space}"
      return Cell("attainable", words, about | {"space": space} | values, lambda: work(ground()))

    ascents = {name: getattr(options, name) for name in ("steps", "rate", "checks")}
    cells = [
      cell(space, ascents, functools.partial(attainable.ascent, space=space, options=options))
      for space in options.spaces
    ]
    for name, ranges in options.numbers.items():
      values = {
        "ranges": {key: list(pair) for key, pair in ranges.items()},
        "evaluations": options.evaluations,
      }
      work = functools.partial(attainable.numbers, name=name, ranges=ranges, options=options)
      cells.append(cell(name, values, work))
    if self._asked.attainable:
      failed |= self._do(cells, say).failed
    return [result for cell in cells if (result := self._store.get(cell.key)) is not None]

  def _search(self, scores: Scores, name: str, seed: int, about: dict[str, Any]) -> Cell:
    one = self._suite.contestants[name]
    spec = {"pool": about["pool"], "contestant": msgspec.to_builtins(one), "seed": seed}
    budgets, caution = self._suite.budgets_of(scores.count), self._suite.caution
    # A journal is that of all budgets: larger ones go on with it.
    path = self._folder / "journals" / f"{Cell('journal', '', spec, dict).key}.jsonl"

    def work() -> Result:
      path.parent.mkdir(exist_ok=True)
      return contest.run(scores, one, seed, budgets, Journal(path), caution)

    words = f"{scores.pool.name} {name} {seed}"
    rule = {"budgets": list(budgets), "caution": caution, "choice": "smoothed"}
    return Cell("contest", words, spec | rule, work)

  @property
  def _granularities(self) -> set[str]:
    return {"model", *(one.granularity for one in self._suite.contestants.values())}

  @functools.cached_property
  def _splits(self) -> dict[str, Any]:
    return data.split(self._files, self._suite.data)

  def _do(self, cells: Sequence[Cell], say: Say) -> Outcome:
    missing = [cell.name for cell in cells if self._store.get(cell.key) is None]

    def progress(done: int, name: str) -> None:
      if name in missing:
        say(f"{self.name}: {missing.index(name) + 1} of {len(missing)}: {name}")

    return run(cells, self._store, stop=self._stop, progress=progress)


def _short(answer: Result, seconds: float | None = None) -> Result:
  """A line: an answer without what every example scored, with the seconds that its evaluations take."""
  line = {key: value for key, value in answer.items() if key not in LONG}
  if seconds is not None:
    line["evaluating"] = round(seconds * answer["evaluations"], 3)
  return line


def units(suite: Pools, parts: Collection[str]) -> Iterator[tuple[str, int]]:
  """Sizes and seeds of the chosen parts of the seeds, the largest models first: they take longest."""
  for size in reversed(list(suite.sizes)):
    for part, seeds in suite.seeds.items():
      for seed in seeds if part in parts else ():
        yield size, seed
