"""Disjoint search, validation and test examples, by construction.

Examples that share a prompt, a `group` or, without one, an `id` are one unit, whatever task, file or order
they come in; so are units that share an example. The split of a unit is a hash of its group, or of its prompt
where it has none. Nothing a search has seen can be in a test.
"""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from merge_jax.evals.tasks import Example, Task

SPLITS = ("search", "validation", "test")


class Splits(NamedTuple):
  """Tasks by split, and what was dropped.

  Attributes:
    tasks: for each of `SPLITS` the tasks with that split's examples; `group` of each names its unit.
    duplicates: number of examples dropped because prompt and targets stood there before.
    shared: number of prompts that stand in more than one task.
    groups: number of units that have several prompts.
    repeated: number of ids that stand in one task with several prompts, and without a group.
  """

  tasks: dict[str, list[Task]]
  duplicates: int
  shared: int
  groups: int = 0
  repeated: int = 0


def position(prompt: str, seed: int) -> float:
  """A number in [0, 1) from the prompt, white space at its ends apart.

  >>> position("2 + 2 =", 0) == position(" 2 + 2 = ", 0)
  True
  """
  text = f"{seed}\0{prompt.strip()}".encode("utf-8", "surrogatepass")
  return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def units_of_prompts(tasks: Sequence[Task]) -> dict[str, tuple[bool, str]]:
  """The unit of every prompt: its smallest group, or where it has none (true) its smallest prompt."""
  parents: dict[tuple[str, str], tuple[str, str]] = {}

  def root(key: tuple[str, str]) -> tuple[str, str]:
    while (parent := parents.setdefault(key, key)) != key:
      parents[key] = parents[parent]
      key = parent
    return key

  for example, prompt in _prompts(tasks):
    own = root(("prompt", prompt))
    if example.unit:
      parents[own] = root(("unit", example.unit))
  names: dict[tuple[str, str], tuple[bool, str]] = {}
  for example, prompt in _prompts(tasks):
    own, name = root(("prompt", prompt)), (not example.group, example.group or prompt)
    names[own] = min(name, names.get(own, name))
  return {prompt: names[root(("prompt", prompt))] for _, prompt in _prompts(tasks)}


def _prompts(tasks: Sequence[Task]) -> Iterator[tuple[Example, str]]:
  return ((example, example.prompt.strip()) for task in tasks for example in task.examples)


def _repeated(tasks: Sequence[Task]) -> int:
  """Ids that are no groups' and stand in one task with several prompts."""
  found: dict[tuple[str, str], set[str]] = defaultdict(set)
  for task in tasks:
    for example, prompt in _prompts([task]):
      if example.id and not example.group:
        found[task.name, example.id].add(prompt)
  return sum(len(prompts) > 1 for prompts in found.values())


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
  duplicates, units = 0, {prompt: name for prompt, (_, name) in units_of_prompts(tasks).items()}
  seen_in: dict[str, str] = {}
  shared = set()
  for task in tasks:
    parts: dict[str, list[tuple[float, Example]]] = {name: [] for name in SPLITS}
    seen: set[tuple[object, ...]] = set()
    for example, prompt in _prompts([task]):
      if example[:3] in seen:
        duplicates += 1
        continue
      seen.add(example[:3])
      if seen_in.setdefault(prompt, task.name) != task.name:
        shared.add(prompt)
      at = position(units[prompt], seed)
      name = next((name for name, end in zip(SPLITS, ends, strict=True) if at < end), None)
      if name is not None:
        parts[name].append((at, example._replace(group=units[prompt])))
    for name, share, limit in zip(SPLITS, fractions, limits, strict=True):
      if share > 0 and not parts[name]:
        if len(seen) > 1 and len({units[prompt] for _, prompt in _prompts([task])}) == 1:
          raise ValueError(
            f"Task {task.name!r}: its {len(seen)} examples share one prompt, id or group, which one split "
            "gets whole, so that the others would have none; give them prompts, ids or groups of their own."
          )
        raise ValueError(
          f"Task {task.name!r}: none of its {len(seen)} different examples fell into the {name} "
          f"split ({share:.0%} expected); give more examples or other fractions."
        )
      chosen = tuple(example for _, example in sorted(parts[name])[:limit])
      result[name].append(dataclasses.replace(task, examples=chosen))
  several = sum(count > 1 for count in Counter(units.values()).values())
  return Splits(result, duplicates, len(shared), several, _repeated(tasks))
