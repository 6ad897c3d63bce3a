"""What a candidate is scored on: real task files with their tokenizer, or rows of a given length."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merge_jax.evals import metrics, splits
from merge_jax.evals import tasks as task_files
from merge_jax.evals.batching import encode
from merge_jax.evals.branches import Rows
from merge_jax.evals.tasks import Example, Task
from merge_jax.evals.tokens import Tokens

MOST = 10**8
"""Tokens of a candidate that a plan takes: its rows are packed as those of a search are."""


class Workload(NamedTuple):
  """The examples that a candidate of the search is scored on.

  Attributes:
    tasks: their examples.
    rows: of tokens.
    finals: tokens of a finalist on the other splits, in shares of those of the search.
    tokens: the tokenizer; None where no text is generated.
  """

  tasks: tuple[Task, ...]
  rows: Rows
  finals: float
  tokens: Tokens | None = None

  @property
  def examples(self) -> int:
    """Number of examples."""
    return sum(len(task.examples) for task in self.tasks)


def of_numbers(count: int, examples: int, length: int, target_length: int) -> Workload:
  """Tasks with targets, all rows of one length.

  Args:
    count: of tasks.
    examples: of each, in the search's split.
    length: tokens of a row, its target included.
    target_length: tokens of its target.

  Raises:
    ValueError: a number that is not positive, a target that leaves no prompt, or too many tokens.

  >>> of_numbers(2, 64, 257, 32).examples
  128
  """
  numbers = {"num_tasks": count, "examples": examples, "length": length, "target_length": target_length}
  for name, value in numbers.items():
    if value < 1:
      raise ValueError(f"--{name} is {value}; expected 1 or more.")
  if target_length >= length:
    raise ValueError(f"--target_length is {target_length}; expected less than --length = {length}.")
  if count * examples * length > MOST:
    raise ValueError(
      f"--num_tasks, --examples and --length make {count * examples * length} tokens; expected at most "
      f"{MOST}."
    )
  metric = next(iter(metrics.METRICS))
  tasks = tuple(Task(f"task{i}", metric, (Example("prompt", ("target",)),) * examples) for i in range(count))
  row = np.zeros(length, np.int32)
  rows = Rows([row] * (count * examples), [length - target_length] * (count * examples))
  return Workload(tasks, rows, finals=1.5)


def of_files(
  specs: Sequence[str],
  tokenizer: Path,
  vocabulary: int,
  max_length: int,
  fractions: tuple[float, float, float],
) -> Workload:
  """Task files, split as a search splits them.

  Args:
    specs: `path` or `path:metric`.
    tokenizer: a folder with `tokenizer.json`.
    vocabulary, max_length: of the model.
    fractions: of search, validation and test.

  Raises:
    ValueError, OSError: what `launch.recycle` would refuse.
  """
  tokens = Tokens.from_folder(tokenizer)
  made = splits.split(task_files.load_all(specs), fractions).tasks
  count = {
    split: sum(len(example.targets) for task in tasks for example in task.examples)
    for split, tasks in made.items()
  }
  search = made[splits.SPLITS[0]]
  rows = encode(search, tokens, vocabulary=vocabulary, max_length=max_length)
  rest = sum(count.values()) - count[splits.SPLITS[0]]
  return Workload(tuple(search), rows, rest / max(count[splits.SPLITS[0]], 1), tokens)
