"""Disjoint search, validation and test examples, by construction.

The split of an example is a hash of its prompt: the same prompt lands in the same split, whatever
task, file or order it comes in. Nothing a search has seen can be in a test.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from merge_jax.evals.tasks import Example, Task

SPLITS = ("search", "validation", "test")


class Splits(NamedTuple):
  """Tasks by split, and what was dropped.

  Attributes:
    tasks: for each of `SPLITS` the tasks with that split's examples.
    duplicates: number of examples dropped because prompt and targets stood there before.
    shared: number of prompts that stand in more than one task.
  """

  tasks: dict[str, list[Task]]
  duplicates: int
  shared: int


def position(prompt: str, seed: int) -> float:
  """A number in [0, 1) from the prompt, white space at its ends apart.

  >>> position("2 + 2 =", 0) == position(" 2 + 2 = ", 0)
  True
  """
  text = f"{seed}\0{prompt.strip()}".encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def split(
  tasks: Sequence[Task],
  fractions: tuple[float, float, float] = (0.4, 0.2, 0.4),
  *,
  seed: int = 0,
  limits: Sequence[int | None] = (None, None, None),
) -> Splits:
  """Splits every task's examples into search, validation and test.

  Args:
    tasks: as loaded.
    fractions: expected shares, summing to at most 1. 0 leaves a split empty.
    seed: another seed, another assignment.
    limits: for each split at most this many examples a task; None for all.

  Raises:
    ValueError: fractions or limits that cannot be, or a task without an example in a split that has a
      share.
  """
  if len(fractions) != 3 or not all(f >= 0 for f in fractions) or not sum(fractions) <= 1 + 1e-9:
    raise ValueError(f"Split fractions are {tuple(fractions)}; expected three, 0 or more, at most 1 in sum.")
  if len(limits) != 3 or any(limit is not None and limit < 0 for limit in limits):
    raise ValueError(f"Split limits are {tuple(limits)}; expected three, each 0 or more, or None for all.")
  ends = (fractions[0], fractions[0] + fractions[1], fractions[0] + fractions[1] + fractions[2])
  result: dict[str, list[Task]] = {name: [] for name in SPLITS}
  duplicates = 0
  seen_in: dict[str, str] = {}
  shared = set()
  for task in tasks:
    parts: dict[str, list[tuple[float, Example]]] = {name: [] for name in SPLITS}
    seen: set[Example] = set()
    for example in task.examples:
      prompt = example.prompt.strip()
      if example in seen:
        duplicates += 1
        continue
      seen.add(example)
      if seen_in.setdefault(prompt, task.name) != task.name:
        shared.add(prompt)
      at = position(prompt, seed)
      name = next((name for name, end in zip(SPLITS, ends, strict=True) if at < end), None)
      if name is not None:
        parts[name].append((at, example))
    for name, share, limit in zip(SPLITS, fractions, limits, strict=True):
      if share > 0 and not parts[name]:
        raise ValueError(
          f"Task {task.name!r}: none of its {len(seen)} different examples fell into the {name} "
          f"split ({share:.0%} expected); give more examples or other fractions."
        )
      chosen = tuple(example for _, example in sorted(parts[name])[:limit])
      result[name].append(dataclasses.replace(task, examples=chosen))
  return Splits(result, duplicates, len(shared))
