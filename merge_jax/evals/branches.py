"""Choices that share their prompt: a row holds it once, and what differs as branches behind it.

A token of a branch sees its prompt and what stands before it in its branch, and has the position that it
would have if both stood alone. Choices of one token each need no branches: all are read after the prompt.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Group = tuple[int, ...]
"""Numbers of the rows of `Rows` that one packed row holds: one, or the choices of an example."""


class Branches(NamedTuple):
  """What is known of packed rows whose last B columns are branches.

  Attributes:
    starts: int32 `[C, R]`, tokens of each prompt; between them and the branches is padding.
    places: int32 `[C, R, B]`, position of each token after its prompt and what is before it in its branch.
    numbers: int32 `[C, R, B]`, which branch it is of, from 1; -1 for padding.
  """

  starts: np.ndarray
  places: np.ndarray
  numbers: np.ndarray


class Rows(NamedTuple):
  """Token sequences, each a prompt with one target.

  Attributes:
    ids: int32 arrays, prompt and target joined.
    starts: where each target starts.
    targets: how many rows in turn are those of one example; empty where it is not known.
  """

  ids: list[np.ndarray]
  starts: list[int]
  targets: Sequence[int] = ()


def groups(rows: Rows, branches: bool) -> list[Group]:
  """Which rows are packed as one.

  Args:
    rows: from `encode`.
    branches: whether the model takes them; without, choices of several tokens repeat their prompt.

  >>> two = Rows([np.array([5, 6, 7]), np.array([5, 6, 8, 9])], [2, 2], [2])
  >>> groups(two, branches=True), groups(two, branches=False)
  ([(0, 1)], [(0,), (1,)])
  """
  result: list[Group] = []
  start = 0
  for count in rows.targets or [1] * len(rows.ids):
    group = tuple(range(start, start + count))
    shared = branches or not any(len(rows.ids[row]) - 1 - rows.starts[row] for row in group)
    result += [group] if shared else [(row,) for row in group]
    start += count
  return result


def columns(rows: Rows, group: Group) -> tuple[int, int]:
  """Tokens of a packed row that are read: those before its branches, and those in them.

  The last token of a target is only predicted. A row by itself has no branches.
  """
  first = group[0]
  if len(group) == 1:
    return len(rows.ids[first]) - 1, 0
  return rows.starts[first], sum(len(rows.ids[row]) - 1 - rows.starts[row] for row in group)
