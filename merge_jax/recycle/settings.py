"""What a recycle job is told, as plain frozen data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from merge_jax.errors import unknown
from merge_jax.search.proposers import PROPOSERS
from merge_jax.search.space import SPACES

OPERATORS = ("linear", "task_arithmetic")


@dataclasses.dataclass(frozen=True)
class Splits:
  """How examples are divided; see `merge_jax.evals.split`.

  Attributes:
    fractions: of search, validation and test.
    seed: of the assignment.
    limits: at most this many examples a task in each split; 0 for all.
  """

  fractions: tuple[float, float, float] = (0.4, 0.2, 0.4)
  seed: int = 0
  limits: tuple[int, int, int] = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Evals:
  """How built-in tasks are scored.

  Attributes:
    append_eos: end targets with the end-of-text token.
    max_shapes: padded shapes, each compiled once.
    batch_tokens: padded tokens in one forward pass.
    dtype: of the computation, "float32" or "bfloat16".
  """

  append_eos: bool = True
  max_shapes: int = 4
  batch_tokens: int = 65_536
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Scorer:
  """An external scorer; see `merge_jax.evals.external`. No command: built-in tasks."""

  command: str = ""
  timeout: float = 3600.0
  retries: int = 1
  nan: str = "fail"


@dataclasses.dataclass(frozen=True)
class Search:
  """How weights are searched.

  Attributes:
    proposer: "line_search", "cma_es" or "random".
    space: "free" (task arithmetic on the base, or on the pool's mean where there is none),
      "simplex" (the paper's) or "softmax".
    budget: evaluations in all, the known points included.
    seconds: stop after this much evaluation time; 0 for no limit.
    seed: of the proposer.
    sigma, population: of the proposer; 0 for its defaults.
    start: "best" known point, or "uniform".
    fitness: "mean", "normalized" or "worst".
    fitness_source: "metric", "loss", or "auto".
    task_weights: of the fitness, `task=weight,…`; tasks left out have 1.
  """

  proposer: str = "cma_es"
  space: str = "free"
  budget: int = 200
  seconds: float = 0.0
  seed: int = 0
  sigma: float = 0.0
  population: int = 0
  start: str = "best"
  fitness: str = "mean"
  fitness_source: str = "metric"
  task_weights: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
  """A recycle job.

  Attributes:
    checkpoints: folders of the pool, in order.
    tasks: task files, `path` or `path:metric`; with a scorer command, names of its scores.
    output_dir: where everything is written.
    base: folder of the common ancestor, or "".
    heldout_tasks: scored for the finalists, never part of the fitness.
    allow_version_change: resume although versions of libraries changed.
  """

  checkpoints: tuple[str, ...]
  tasks: tuple[str, ...]
  output_dir: str
  base: str = ""
  heldout_tasks: tuple[str, ...] = ()
  splits: Splits = Splits()
  evals: Evals = Evals()
  scorer: Scorer = Scorer()
  search: Search = Search()
  bootstrap: int = 1000
  allow_version_change: bool = False

  def __post_init__(self) -> None:
    if not self.checkpoints:
      raise ValueError("There is no checkpoint; give at least one: --checkpoints=a,b,c.")
    if not self.tasks:
      raise ValueError("There is no task; give at least one: --tasks=a.jsonl,b.jsonl:loss.")
    if not self.output_dir:
      raise ValueError("There is no output folder; give --output_dir=runs/x.")
    if self.search.space not in SPACES:
      raise ValueError(unknown("search space", self.search.space, SPACES))
    if self.search.proposer not in PROPOSERS:
      raise ValueError(unknown("proposer", self.search.proposer, PROPOSERS))
    if len(self.checkpoints) == 1 and self.search.proposer == "cma_es":
      raise ValueError("cma_es needs at least two checkpoints; got one. Use line_search to scale it.")
    if self.search.budget < 1:
      raise ValueError(f"The budget is {self.search.budget}; expected at least 1 evaluation.")
    if len(self.splits.fractions) != 3 or not all(share > 0 for share in self.splits.fractions):
      raise ValueError(
        f"The split fractions are {self.splits.fractions}; expected three positive shares of search, "
        "validation and test."
      )
    if self.evals.dtype not in ("float32", "bfloat16"):
      raise ValueError(unknown("computation dtype", self.evals.dtype, ("float32", "bfloat16")))


_PARTS: dict[str, type] = {"splits": Splits, "evals": Evals, "scorer": Scorer, "search": Search}


def from_mapping(values: Mapping[str, Any]) -> Settings:
  """Settings from nested plain data, as a config file gives them.

  Raises:
    ValueError: an unknown key, with the nearest valid one.
  """
  parts: dict[str, Any] = {}
  known = {field.name for field in dataclasses.fields(Settings)}
  for name, value in values.items():
    if name not in known:
      raise ValueError(unknown("config key", name, known))
    parts[name] = _part(_PARTS[name], name, value) if name in _PARTS else _plain(value)
  return Settings(**parts)


def _part(kind: type, name: str, values: Mapping[str, Any]) -> Any:
  known = {field.name for field in dataclasses.fields(kind)}
  for key in values:
    if key not in known:
      raise ValueError(unknown(f"config key in {name}", key, known))
  return kind(**{key: _plain(value) for key, value in values.items()})


def _plain(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(value)
  return dict(value) if isinstance(value, Mapping) else value
