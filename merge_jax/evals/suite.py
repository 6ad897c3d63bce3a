"""The face of suites, which say what scores are: built-in tasks, a user's function, an external command."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from merge_jax.checkpoints.placement import NONE
from merge_jax.evals.answers import Answers
from merge_jax.evals.objective import FunctionObjective, JittedObjective
from merge_jax.evals.splits import SPLITS
from merge_jax.evals.streamed import StreamedObjective
from merge_jax.operators.naming import AxesRules
from merge_jax.sharding import Layout


class TaskInfo(NamedTuple):
  """What a reader of scores has to know of a task.

  Attributes:
    name, metric: as they are called.
    sign: +1 where higher is better, -1 where lower is.
    format: how a score is printed, such as ".3f".
  """

  name: str
  metric: str
  sign: float = 1.0
  format: str = ".3f"


class Suite(abc.ABC):
  """The face of every suite.

  Attributes:
    tasks: those of the fitness, in order.
    splits: names that `evaluate` of its objective takes.
    losses: whether evaluations have losses beside scores.
    notes: what the user should know.
    stacks, axes: leaves of the scored model that are stacks of a checkpoint's tensors; none: its own names.
  """

  tasks: tuple[TaskInfo, ...]
  splits: tuple[str, ...] = SPLITS
  losses: bool = False
  notes: tuple[str, ...] = ()
  stacks: Mapping[str, tuple[str, ...]] = NONE
  axes: AxesRules = ()

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the tasks."""
    return tuple(task.name for task in self.tasks)

  @property
  def signs(self) -> tuple[float, ...]:
    """Signs of the tasks."""
    return tuple(task.sign for task in self.tasks)

  def sizes(self, split: str) -> dict[str, int]:
    """Number of examples by task; empty where it is not known."""
    return {}

  def groups(self, split: str) -> np.ndarray | None:
    """Which independent unit each example belongs to, see `tasks.units`; None where it is not known."""
    return None

  def expect(self, split: str, counts: tuple[int, ...]) -> None:
    """Raises ValueError if evaluations of a split are of other numbers of examples, by task, than before."""
    del split, counts  # those of files do not change

  def ids(self, split: str) -> dict[str, list[str]]:
    """Names of the examples, of tasks whose files have them."""
    return {}

  def tokens(self, split: str) -> int:
    """Tokens of one evaluation; 0 where it is not known."""
    return 0

  @property
  def answers(self) -> Answers | None:
    """How outputs on the first split are read; None where evaluations have none."""
    return None

  def digests(self) -> dict[str, str]:
    """SHA-256 of every file that scores depend on, by path, and of what else they do, by name."""
    return {}

  @abc.abstractmethod
  def describe(self) -> list[tuple[str, str]]:
    """Lines for people: a word and a text each."""

  @abc.abstractmethod
  def objective(
    self,
    merges: Mapping[str, Any],
    batch: int = 1,
    layout: Layout | None = None,
    *,
    in_turn: bool = False,
    competitors: int = 0,
    smooth: str = "",
  ) -> JittedObjective | StreamedObjective | FunctionObjective:
    """What scores the merges of a pool: `Merge`s, or what makes parameters of a point (`at`).

    Args:
      merges: by method; the known points of a search are merges by "linear", see `search.proposer`.
      batch, layout, in_turn: see `JittedObjective`.
      competitors: see `make_scorer`; on the first split, where outputs can be had (`answers`).
      smooth: a split on which scores are smoothed, too, where they can be.
    """
