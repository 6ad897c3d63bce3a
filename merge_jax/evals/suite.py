"""Suites: what scores are. Built-in tasks, an external command and a user's function have one face."""

import abc
import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from merge_jax import sharding
from merge_jax.checkpoints.placement import NONE
from merge_jax.evals.answers import Answers
from merge_jax.evals.batching import Batches, encode, pack
from merge_jax.evals.branches import Group, Rows, columns, groups
from merge_jax.evals.external import Command
from merge_jax.evals.generation import Generate, generates, prepare
from merge_jax.evals.metrics import METRICS
from merge_jax.evals.objective import FunctionObjective, JittedObjective, Merge
from merge_jax.evals.scoring import Scorer, make_scorer
from merge_jax.evals.splits import SPLITS
from merge_jax.evals.streamed import StreamedObjective
from merge_jax.evals.tasks import Task, units
from merge_jax.evals.tokens import Tokens
from merge_jax.operators.naming import AxesRules
from merge_jax.sharding import Layout

PyTree = Any


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
  ) -> JittedObjective | StreamedObjective | FunctionObjective:
    """What scores the merges of a pool: `Merge`s, or what makes parameters of a point (`at`).

    Args:
      merges: by method.
      batch, layout, in_turn: see `JittedObjective`.
      competitors: see `make_scorer`; on the first split, where outputs can be had (`answers`).
    """


class TaskSuite(Suite):
  """Built-in tasks, scored by a model's `apply`.

  Args:
    tasks: by split; the first split's are those of the fitness.
    apply: `(params, tokens, positions) -> logits`, see `make_scorer`.
    generate: of the model, see `merge_jax.models.Model`; None: no task may be scored by generated texts.
    branches: whether `apply` takes `branches=`, too; without, choices of several tokens repeat their prompt.
    tokens: the tokenizer.
    vocabulary: size of the model's.
    max_length: most tokens of an example, or None.
    append_eos, max_shapes, batch_tokens: see `encode` and `pack`.
    dtype: of the computation.
    mesh: divides the rows of each pass; None: the default device.
    stacks, axes: leaves of the model that are stacks of layers, see `merge_jax.models.Model`.
    files: the task files.
    inputs: digests of what else scores depend on, by name.
    notes: what the user should know.

  Raises:
    ValueError: an example that the tokenizer or the model cannot take.
  """

  losses = True

  def __init__(
    self,
    tasks: Mapping[str, Sequence[Task]],
    apply: Callable[..., Any],
    tokens: Tokens,
    *,
    vocabulary: int,
    branches: bool = False,
    generate: Generate | None = None,
    max_length: int | None = None,
    append_eos: bool = True,
    max_shapes: int = 4,
    batch_tokens: int = 65_536,
    dtype: Any = None,
    mesh: Mesh | None = None,
    stacks: Mapping[str, tuple[str, ...]] = NONE,
    axes: AxesRules = (),
    files: Sequence[Path] = (),
    inputs: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
  ):
    self._tasks = {split: list(chosen) for split, chosen in tasks.items() if any(t.examples for t in chosen)}
    self.splits, self.notes = tuple(self._tasks), tuple(notes)
    first = self._tasks[self.splits[0]]
    self.tasks = tuple(
      TaskInfo(task.name, task.metric, METRICS[task.metric].sign, METRICS[task.metric].format)
      for task in first
    )
    self._apply, self._dtype, self._files, self._mesh = apply, dtype, files, mesh
    self.stacks, self.axes, self._inputs = stacks, axes, dict(inputs or {})
    multiple = 1 if mesh is None else sharding.row_count(mesh)
    rows = {
      split: encode(chosen, tokens, append_eos=append_eos, max_length=max_length, vocabulary=vocabulary)
      for split, chosen in self._tasks.items()
    }
    packed = {split: groups(some, branches) for split, some in rows.items()}
    self._batches: dict[str, Batches] = {
      split: pack(
        some, groups=packed[split], max_shapes=max_shapes, batch_tokens=batch_tokens, vocabulary=vocabulary,
        multiple=multiple,
      )
      for split, some in rows.items()
    }  # fmt: skip
    self._generations = {
      split: prepare(
        generate, chosen, rows[split], tokens, vocabulary=vocabulary, max_length=max_length,
        max_shapes=max_shapes, batch_tokens=batch_tokens, multiple=multiple,
      )
      for split, chosen in self._tasks.items()
    }  # fmt: skip
    if any(len(packed[split]) > len(some.targets) for split, some in rows.items()):
      self.notes += (
        "Each choice is scored in a row of its own, prompt included: the model takes no branches.",
      )
    self._tokens = {split: _tokens(self._tasks[split], some, packed[split]) for split, some in rows.items()}
    self._rows = {split: _digest(self._tasks[split], some) for split, some in rows.items()}

  def sizes(self, split: str) -> dict[str, int]:
    """Number of examples by task."""
    return {task.name: len(task.examples) for task in self._tasks[split]}

  def groups(self, split: str) -> np.ndarray | None:
    """Which independent unit each example belongs to."""
    return units(self._tasks[split])

  def ids(self, split: str) -> dict[str, list[str]]:
    """Names of the examples, "" where one has none."""
    named = {task.name: [example.id for example in task.examples] for task in self._tasks[split]}
    return {name: names for name, names in named.items() if any(names)}

  def tokens(self, split: str, tasks: Collection[str] | None = None) -> int:
    """Tokens of one evaluation, padding apart; on some of the tasks, if they are given."""
    counts = self._tokens[split]
    return sum(counts[name] for name in (counts if tasks is None else tasks))

  def identity(self) -> str:
    """SHA-256 of what is scored, wherever it was read from: rows, answers, metrics and dtype, by split."""
    return hashlib.sha256(repr((self._rows, str(self._dtype))).encode()).hexdigest()

  def digests(self) -> dict[str, str]:
    """SHA-256 of the task files, by path, and of what else scores depend on."""
    read = {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files}
    return read | self._inputs

  def describe(self) -> list[tuple[str, str]]:
    """A line a split."""
    return [
      (split, ", ".join(f"{task.name} {len(task.examples)} ({task.metric})" for task in tasks)
       + f"; {self.tokens(split):,} tokens")
      for split, tasks in self._tasks.items()
    ]  # fmt: skip

  def objective(
    self,
    merges: Mapping[str, Any],
    batch: int = 1,
    layout: Layout | None = None,
    *,
    in_turn: bool = False,
    competitors: int = 0,
  ) -> JittedObjective | StreamedObjective:
    """Merge and evaluation as one program a method and split; of a pool that is held elsewhere, two."""
    scorers = self.scorers(competitors)
    if all(isinstance(merge, Merge) for merge in merges.values()):
      return JittedObjective(merges, scorers, batch, layout, in_turn=in_turn)
    return StreamedObjective(merges, scorers, layout)

  def scorers(self, competitors: int = 0) -> dict[str, Scorer]:
    """What scores parameters, by split; with outputs on the first, see `objective`."""
    return {
      split: make_scorer(
        self._apply, self._tasks[split], batches, dtype=self._dtype, mesh=self._mesh,
        competitors=competitors if split == self.splits[0] else 0,
        generation=self._generations[split],
      )
      for split, batches in self._batches.items()
    }  # fmt: skip

  @property
  def answers(self) -> Answers | None:
    """How outputs on the first split are read; None where a metric cannot be smoothed."""
    first = self.splits[0]
    if any(not METRICS[task.metric].smooth for task in self._tasks[first]):
      return None
    return Answers.of(self._tasks[first], self._batches[first])


def _tokens(tasks: Sequence[Task], rows: Rows, packed: Sequence[Group]) -> dict[str, int]:
  """Tokens that are read or written for each task, at most."""
  counts = [sum(len(example.targets) for example in task.examples) for task in tasks]
  owners = np.repeat(np.arange(len(tasks)), counts)
  total = np.zeros(len(tasks), np.int64)
  for group in packed:
    total[owners[group[0]]] += sum(columns(rows, group))
    if generates(task := tasks[owners[group[0]]]):
      total[owners[group[0]]] += rows.starts[group[0]] + task.options.max_tokens
  return {task.name: int(count) for task, count in zip(tasks, total, strict=True)}


def _digest(tasks: Sequence[Task], rows: Rows) -> str:
  """SHA-256 of one split."""
  shape: list[Any] = [
    (task.name, task.metric, [(len(e.targets), e.answer) for e in task.examples]) for task in tasks
  ]
  # Of generated texts the strings of targets and what is done with them matter, too.
  shape += [(t.options, [e.targets for e in t.examples]) for t in tasks if generates(t)]
  total = hashlib.sha256(repr((shape, rows.starts)).encode("utf-8", "surrogatepass"))
  for ids in rows.ids:
    total.update(len(ids).to_bytes(4, "big") + ids.tobytes())
  return total.hexdigest()


class FunctionSuite(Suite):
  """Any function `(params, split) -> {task: score}`.

  Args:
    tasks: names, with +1 where a higher score is better and -1 where a lower one is.
    score: the function, called on the host.

  >>> import merge_jax as mj
  >>> import numpy as np
  >>> from merge_jax import search
  >>> pool = [{"w": np.array([1.0, 0.0], np.float32)}, {"w": np.array([0.0, 1.0], np.float32)}]
  >>> merge = Merge(lambda source, weights, _: mj.combine(source, weights), mj.prepare(mj.linear(), pool))
  >>> suite = FunctionSuite({"middle": 1.0}, lambda params, split: {"middle": float(params["w"].min())})
  >>> fitness = search.Fitness(suite.names, suite.signs)
  >>> options = search.Options("linear", search.space("simplex", 2), fitness, count=2)
  >>> found = search.search(
  ...   search.proposer("line_search", options), suite.objective({"linear": merge}), search.Journal(),
  ...   fitness, search.Budget(10),
  ... )
  >>> max(found.records, key=lambda record: record.fitness).point.weights
  (0.5, 0.5)
  """

  def __init__(self, tasks: Mapping[str, float], score: Callable[[PyTree, str], Mapping[str, float]]):
    self.tasks = tuple(TaskInfo(name, "score", sign) for name, sign in tasks.items())
    self._score = score

  def describe(self) -> list[tuple[str, str]]:
    """The names of the scores."""
    return [("scores", ", ".join(self.names))]

  def objective(
    self,
    merges: Mapping[str, Any],
    batch: int = 1,
    layout: Layout | None = None,
    *,
    in_turn: bool = False,
    competitors: int = 0,
  ) -> FunctionObjective:
    """One call of the function a candidate, whatever the batch."""
    return FunctionObjective(merges, self._score)


class CommandSuite(FunctionSuite):
  """An external scorer: every candidate is written as a folder, and a command scores it.

  Args:
    command: see `Command`; checked here.
    write: `(folder, params)`, writes a candidate.
    scratch: where candidates are written and removed again; made where it does not exist.

  Raises:
    ValueError: a command that cannot work.
  """

  def __init__(self, command: Command, write: Callable[[Path, PyTree], None], scratch: Path):
    command.check()
    super().__init__(dict.fromkeys(command.tasks, 1.0), self._call)
    self._command, self._write, self._scratch = command, write, scratch
    if not command.splits:
      self.notes = (
        "The scorer command has no {split}: search, validation and test are the same examples, so the "
        "reported scores are optimistic.",
      )

  def describe(self) -> list[tuple[str, str]]:
    """The command."""
    return [("scorer", self._command.template), *super().describe()]

  def _call(self, params: PyTree, split: str) -> Mapping[str, float]:
    self._scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
      model_dir = Path(folder) / "model"
      model_dir.mkdir()
      self._write(model_dir, params)
      return self._command(model_dir, split, folder=Path(folder))
