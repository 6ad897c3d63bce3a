"""Where a study's examples lie."""

from pathlib import Path
from typing import NamedTuple


class Data(NamedTuple):
  """Task files of a study, see `evals.tasks.load`.

  Attributes:
    tokenizer: content of `tokenizer.json`.
    train: training examples of each held-in data set.
    tasks: examples to evaluate on, of every held-in and held-out data set, as `path` or `path:metric`; no
      prompt of theirs is in a training file.
    pretrain, instruct: corpora of these two stages by name; the loss is that of the targets.
  """

  tokenizer: str
  train: dict[str, Path]
  tasks: dict[str, Path]
  pretrain: dict[str, Path]
  instruct: dict[str, Path]
