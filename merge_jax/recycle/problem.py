"""A job that can work: everything a user can get wrong is found here, before anything is written."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh

from merge_jax import host, preflight, sharding, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.decoding import by_task
from merge_jax.errors import unknown
from merge_jax.evals import objective as objectives
from merge_jax.evals.suite import Suite
from merge_jax.operators import grouping
from merge_jax.preflight import Finding
from merge_jax.recycle import folder as folders
from merge_jax.recycle import manifest as manifests
from merge_jax.recycle import methods, placing, suites, unused
from merge_jax.recycle.manifest import Manifest
from merge_jax.recycle.settings import AUTO, ITEMS, Settings
from merge_jax.search.fitness import Fitness
from merge_jax.search.loop import Budget
from merge_jax.search.options import Options
from merge_jax.search.proposers import PROPOSERS, proposer
from merge_jax.search.space import Space, space
from merge_jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class Problem:
  """A pool, what its merges are scored by, and how they are searched; no tensor is read.

  Attributes:
    settings: what it was built from.
    pool, base: open checkpoints; no base: the mean of the pool, where the method needs one.
    labels: short names of the pool's checkpoints.
    suite: the scores.
    fitness: one number of them.
    proposer: who searches, a name in `PROPOSERS`.
    patterns: which tensors the rows of weights belong to.
    options: what it is made from.
    budget: when it stops.
    layout: the mesh, and where the leaves of a merge lie.
    memory: where the pool is held: "device", "host" or "disk".
    findings: of the checks that read no tensors; none is an error.
    manifest: what the run is made from.
  """

  settings: Settings
  pool: tuple[Checkpoint, ...]
  base: Checkpoint | None
  labels: tuple[str, ...]
  suite: Suite
  fitness: Fitness
  proposer: str
  patterns: tuple[str, ...]
  options: Options
  budget: Budget
  layout: Layout
  memory: str
  findings: tuple[Finding, ...]
  manifest: Manifest

  @property
  def notes(self) -> tuple[str, ...]:
    """What the user should know."""
    return (*self.suite.notes, *unused.notes(self.settings, self.proposer, self.options))

  @property
  def foresees(self) -> bool:
    """Whether the proposer learns from what models answer."""
    return PROPOSERS[self.proposer].foresees

  @property
  def measures(self) -> bool:
    """Whether the proposer looks at distances between merges; only those of linear ones are known."""
    return PROPOSERS[self.proposer].measures and self.options.linear

  @property
  def method(self) -> str:
    """Name of the method that is searched."""
    return self.settings.search.method

  @property
  def parts(self) -> tuple[str, ...]:
    """What the rows of weights are for; none where there is one weight for each model."""
    return tuple(map(grouping.label, self.patterns)) if len(self.patterns) > 1 else ()

  @property
  def items(self) -> bool:
    """Whether what every example scored is kept."""
    kept = self.settings.keep_items
    most = max((sum(self.suite.sizes(split).values()) for split in self.suite.splits), default=0)
    return kept == "yes" or (kept == "auto" and most <= ITEMS)

  @property
  def checkpoints(self) -> tuple[Checkpoint, ...]:
    """The pool and its base."""
    return self.pool if self.base is None else (*self.pool, self.base)

  @property
  def inputs(self) -> tuple[Path, ...]:
    """Folders and files that are read."""
    return tuple(_inputs(self.settings))

  @property
  def files(self) -> list[Path]:
    """Every file that is read."""
    tensors = [file for checkpoint in self.checkpoints for file in checkpoint.files()]
    return [*tensors, *suites.files(self.settings)]


def _proposer(name: str, options: Options, suite: Suite) -> str:
  """Who searches: the one that is asked for, or the best that can.

  Raises:
    ValueError: who is asked for cannot, and why.
  """
  lacks = None
  if suite.answers is None:
    lacks = "learns from what models answer at target positions, but this scorer gives scores alone"
  elif not options.linear:
    lacks = f"learns from the known points, which are linear merges, not {options.method}"
  elif options.space.weights < options.space.size:
    lacks = "searches weights alone"
  chosen = name if name != AUTO else "surrogate" if not lacks else _without_answers(options)
  proposer(chosen, options)
  if lacks and PROPOSERS[chosen].foresees:
    raise ValueError(f"config: search.proposer {chosen!r} {lacks}; use cma_es or line_search.")
  if options.pareto and not PROPOSERS[chosen].foresees:
    why = f", and surrogate {lacks}" if lacks else "; set search.proposer to surrogate"
    raise ValueError(f"config: search.objective is 'pareto', which {chosen} cannot search{why}.")
  return chosen


def _without_answers(options: Options) -> str:
  """Who does most with few scores: a model of them, which learns from known points and distances."""
  learns = options.linear and options.space.weights == options.space.size == options.count
  return "gaussian_process" if learns else "cma_es"


def check(settings: Settings) -> None:
  """Whether there can be such a job, as far as settings tell before any file is there.

  Raises:
    ValueError: the first thing that cannot work, in one sentence.
  """
  s, count = settings.search, len(settings.checkpoints)
  _check_lists(settings)
  methods.check(s.method, s.space, count)
  methods.numbers(s.method, s.numbers)
  methods.trajectory(s.steps, count)
  if s.proposer not in (AUTO, *PROPOSERS):
    raise ValueError(unknown("search.proposer", s.proposer, (AUTO, *PROPOSERS), "config"))
  if s.population == 1:
    raise ValueError("config: search.population is 1; expected at least 2, or 0 for the proposer's own.")
  if s.budget < count:
    raise ValueError(
      f"config: search.budget is {s.budget}; expected at least {count}, one for each checkpoint."
    )
  sharding.make_mesh(settings.placement.mesh)


def build(settings: Settings) -> Problem:
  """Reads headers, configs and task files, and checks every setting; writes nothing.

  Raises:
    ValueError, OSError: the first thing that cannot work, in one sentence.
  """
  check(settings)
  s, numbers = settings.search, methods.numbers(settings.search.method, settings.search.numbers)
  pool, base = preflight.open_pool(settings.checkpoints, settings.base)
  patterns = grouping.patterns("model" if s.granularity == AUTO else s.granularity, pool[0].specs)

  def searched(patterns: Sequence[str]) -> Space:
    rows = len(patterns) if len(patterns) > 1 else 0
    return space(s.space, len(pool), rows=rows, numbers=numbers, along=methods.schedules(s.steps))

  made = searched(patterns)
  checkpoints = [*pool, *([base] if base else [])]
  _check_outputs(settings, checkpoints)
  pool[0].refuse_place(settings.folder)
  mesh = sharding.make_mesh(settings.placement.mesh)
  batch = 1 if settings.scorer.command else objectives.batch_of(s.batch, mesh)
  memory, findings = _checked(settings, pool, base, mesh, -(-batch // mesh.shape["candidate"]))
  suite = suites.build(settings, checkpoints, mesh)
  layout = placing.layout(pool[0].specs, mesh, settings.placement, suite.stacks, suite.axes)
  weights = tuple(sorted(by_task(s.task_weights, "config: search.task_weights").items()))
  fitness = Fitness(suite.names, suite.signs, s.fitness, s.fitness_source, weights)
  if s.fitness_source == "loss" and not suite.losses:
    raise ValueError("config: search.fitness_source is 'loss', but a scorer command gives scores alone.")
  options = Options(
    s.method, made, fitness, len(pool), s.seed, s.sigma or None, s.population or None, s.start,
    methods.trajectory(s.steps, len(pool)),
    pareto=s.objective == "pareto",
    batch=batch,
    based=methods.METHODS[s.method].needs_base and base is not None and made.scaled,
  )  # fmt: skip
  name = _proposer(s.proposer, options, suite)
  if s.granularity == AUTO and PROPOSERS[name].foresees:
    patterns = grouping.patterns("depth", pool[0].specs)
    options = dataclasses.replace(options, space=searched(patterns))
  storage.require_space(settings.folder, pool[0].nbytes)
  return Problem(
    settings, tuple(pool), base, tuple(preflight.labels(pool)), suite, fitness, name, patterns,
    options, Budget(s.budget, s.seconds or None, len(pool)), layout,
    memory, findings, manifests.make(settings, checkpoints, suite.digests(), mesh),
  )  # fmt: skip


def _checked(
  settings: Settings, pool: Sequence[Checkpoint], base: Checkpoint | None, mesh: Mesh, batch: int
) -> tuple[str, tuple[Finding, ...]]:
  """Where the pool is held beside a batch, and the findings, none of them an error."""
  placed: list[str] = []

  def memory() -> Iterator[Finding]:
    own = sharding.shardings(pool[0].specs, mesh, placing.rules(settings.placement))
    needs = methods.memory(settings.search.method, pool, base, batch)._replace(shardings=own)
    where, found = placing.choose(settings.placement.pool_memory, needs)
    placed.append(max(host.gather(where), key=placing.MEMORIES.index))  # all processes do the same
    yield from found

  findings = tuple(preflight.check(pool, base, memory=memory, values=False))
  preflight.require(findings)
  return placed[0], findings


def _check_lists(settings: Settings) -> None:
  if not settings.checkpoints:
    raise ValueError("There is no checkpoint; give at least one: --checkpoints=a,b,c.")
  if not settings.tasks:
    raise ValueError("There is no task; give at least one: --tasks=a.jsonl,b.jsonl:loss.")
  if not settings.output_dir.strip():
    raise ValueError("There is no output folder; give --output_dir=runs/x.")
  for flag in ("checkpoints", "tasks", "heldout_tasks"):
    entries = getattr(settings, flag)
    for number, entry in enumerate(entries, 1):
      if not entry.strip():
        raise ValueError(f"--{flag}: entry {number} of {len(entries)} is empty; check the commas.")


def _inputs(settings: Settings) -> Iterator[Path]:
  for path in (*settings.checkpoints, *([settings.base] if settings.base else [])):
    yield storage.path(path)
  yield from suites.files(settings)


def _check_outputs(settings: Settings, checkpoints: Sequence[Checkpoint]) -> None:
  """Outputs never lie on or in an input; inputs may lie in the output folder, but not under its names."""
  folder, inputs = settings.folder, list(_inputs(settings))
  storage.refuse_inside(folder, inputs, "--output_dir")
  there = folder.resolve()  # links may lead into it
  files = [file for one in checkpoints for file in one.files() if file.resolve().is_relative_to(there)]
  for name in folders.NAMES:
    storage.refuse_inside(folder / name, inputs, "--output_dir")
    storage.refuse_around(folder / name, [*inputs, *files], "--output_dir")
