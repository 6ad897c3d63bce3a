"""Built-in tasks as a suite: encoded, packed and scored with a merge in one program."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from merge_jax import sharding
from merge_jax.checkpoints.placement import NONE
from merge_jax.evals.answers import Answers
from merge_jax.evals.batching import Batches, encode, pack
from merge_jax.evals.branches import Group, Rows, columns, groups
from merge_jax.evals.generation import Generate, generates, prepare
from merge_jax.evals.metrics import METRICS
from merge_jax.evals.objective import JittedObjective, Merge
from merge_jax.evals.scoring import Scorer, make_scorer
from merge_jax.evals.streamed import StreamedObjective
from merge_jax.evals.suite import Suite, TaskInfo
from merge_jax.evals.tasks import Task, units
from merge_jax.evals.tokens import Tokens
from merge_jax.operators.naming import AxesRules
from merge_jax.sharding import Layout

PyTree = Any


class TaskSuite(Suite):
  """Built-in tasks, scored by a model's `apply`.

  Args:
    tasks: by split; the first split's are those of the fitness.
    apply: `(params, tokens, positions) -> logits`, or with `selects=False` `(params, tokens) -> logits`; see
      `make_scorer`.
    selects: whether `apply` takes the positions that are asked for; it computes no other logits then.
    generate: of the model, see `merge_jax.models.Model`; None: no task may be scored by generated texts.
    branches: whether `apply` takes `branches=`, too; without, choices of several tokens repeat their prompt.
    tokens: the tokenizer.
    vocabulary: size of the model's.
    max_length: most tokens of an example, or None.
    append_eos, max_shapes, batch_tokens: see `encode` and `pack`.
    dtype: of the computation, given to `apply` as `dtype=`; None: it takes none, or has its own.
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
    selects: bool = True,
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
    self._apply, self._selects, self._dtype, self._files, self._mesh = apply, selects, dtype, files, mesh
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
    smooth: str = "",
  ) -> JittedObjective | StreamedObjective:
    """Merge and evaluation as one program a method and split; of a pool that is held elsewhere, two."""
    scorers = self.scorers(competitors, smooth)
    if all(isinstance(merge, Merge) for merge in merges.values()):
      return JittedObjective(merges, scorers, batch, layout, in_turn=in_turn)
    return StreamedObjective(merges, scorers, layout)

  def scorers(self, competitors: int = 0, smooth: str = "") -> dict[str, Scorer]:
    """What scores parameters, by split; for the arguments see `objective`."""
    return {
      split: make_scorer(
        self._apply, self._tasks[split], batches, dtype=self._dtype, selects=self._selects, mesh=self._mesh,
        competitors=competitors if split == self.splits[0] else 0,
        smooth=split == smooth and self._can_be_smoothed(split),
        generation=self._generations[split],
      )
      for split, batches in self._batches.items()
    }  # fmt: skip

  @property
  def answers(self) -> Answers | None:
    """How outputs on the first split are read; None where a metric cannot be smoothed."""
    first = self.splits[0]
    return Answers.of(self._tasks[first], self._batches[first]) if self._can_be_smoothed(first) else None

  def _can_be_smoothed(self, split: str) -> bool:
    return all(METRICS[task.metric].smooth for task in self._tasks[split])


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
