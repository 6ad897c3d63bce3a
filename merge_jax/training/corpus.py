"""Training examples on the host, and the batches that are drawn from them."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.evals.batching import Bucket, encode
from merge_jax.evals.tasks import Example, Task
from merge_jax.evals.tokens import Tokens
from merge_jax.training.recipe import Recipe, shares

SHORTEST = 32
"""Shapes are not made shorter than this many tokens: each costs a compilation."""
WINDOW = 20
"""Steps whose examples are drawn at once, and sorted into batches of like lengths."""


class Corpus(NamedTuple):
  """Rows of token ids, end to end and without padding.

  Attributes:
    ids: int32 `[tokens]`.
    starts: int64 `[rows]`, where each row begins.
    lengths: int64 `[rows]`, its tokens.
    prompts: int64 `[rows]`, those of its prompt; the others are targets.
    names: of the tasks.
    first: int64 `[tasks]`, the first row of each; `counts`, how many it has.
    shapes: pairs of most tokens that are read and most targets of a row, increasing.
    paired: whether as many further rows follow those of the tasks: the wrong answer to each.
  """

  ids: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray
  prompts: np.ndarray
  names: tuple[str, ...]
  first: np.ndarray
  counts: np.ndarray
  shapes: tuple[tuple[int, int], ...]
  paired: bool = False

  def digest(self) -> str:
    """SHA-256 of rows and tasks."""
    total = hashlib.sha256(repr(self.names).encode())
    for array in (self.ids, self.lengths, self.prompts, self.counts):
      total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def corpus(
  tasks: Sequence[Task],
  tokens: Tokens,
  *,
  max_length: int | None = None,
  vocabulary: int | None = None,
  paired: bool = False,
) -> Corpus:
  """Encodes the right answers of all tasks.

  Shapes are the longest row, its half, its quarter, … down to `SHORTEST` tokens, so padding at most
  doubles a batch whose rows are alike; rows that are all short have one shape.

  Args:
    tasks: the tasks.
    tokens: the tokenizer.
    max_length: of the model.
    vocabulary: of the model.
    paired: a row for each pair of the right answer and a wrong choice, for preferences.

  Raises:
    ValueError: a row that is longer than the model takes, or a token outside its vocabulary; pairs of a task
      without choices.
  """
  pairs = [_pairs(task) if paired else [(e, e.answer, e.answer) for e in task.examples] for task in tasks]
  first = [_answers(task, [(e, at) for e, at, _ in some]) for task, some in zip(tasks, pairs, strict=True)]
  second = [_answers(task, [(e, at) for e, _, at in some]) for task, some in zip(tasks, pairs, strict=True)]
  rows = encode([*first, *second] if paired else first, tokens, max_length=max_length, vocabulary=vocabulary)
  ids, lengths = np.concatenate(rows.ids), np.array([len(row) for row in rows.ids])
  counts, prompts = np.array([len(some) for some in pairs]), np.array(rows.starts)
  return Corpus(
    ids, _before(lengths), lengths, prompts, tuple(task.name for task in tasks), _before(counts), counts,
    _shapes(lengths, prompts), paired,
  )  # fmt: skip


def _pairs(task: Task) -> list[tuple[Example, int, int]]:
  """Each example with the places of its right and of a wrong choice."""
  found = [(e, e.answer, at) for e in task.examples for at in range(len(e.targets)) if at != e.answer]
  if not found:
    raise ValueError(
      f"Task {task.name!r} has targets; preferences (dpo_beta) need choices, of which one is right."
    )
  return found


def _answers(task: Task, chosen: Sequence[tuple[Example, int]]) -> Task:
  """A task with one answer each."""
  examples = tuple(e._replace(targets=(e.targets[at],), answer=0) for e, at in chosen)
  return dataclasses.replace(task, examples=examples)


def batches(
  data: Corpus, recipe: Recipe, start: int, most: int = 1, every: int = 0
) -> Iterator[tuple[Bucket, int]]:
  """The batches of steps `start`, `start + 1`, …, stacked by calls, each call with its real tokens.

  An example's task is drawn by its share, then one of the task's rows uniformly. Where there are several
  shapes, the examples of `WINDOW` steps are sorted by length and cut into batches, whose order is drawn:
  each example is as likely as before, and a batch holds rows of like lengths. Of pairs a batch holds twice
  the rows: right, wrong, right, ….

  Args:
    data: from `corpus`.
    recipe: its `mixture`, `batch_size`, `steps` and `seed` decide.
    start: the step to begin at; what comes after depends neither on it nor on the recipe's `steps`.
    most: steps of a call, at most `WINDOW`; 1 where there are several shapes.
    every: calls also end at multiples of this step.

  Raises:
    ValueError: a mixture that does not fit the data.
  """
  parts, key = shares(recipe.mixture, data.names), jax.random.key(recipe.seed)
  run = most if len(data.shapes) == 1 else 1
  for window in range(start - start % WINDOW, recipe.steps, WINDOW):
    of_window = jax.random.fold_in(key, window)
    drawn = _draw(jax.random.split(of_window, WINDOW), parts, data.first, data.counts, recipe.batch_size)
    rows = np.asarray(drawn)
    if len(data.shapes) > 1:
      ordered = rows.ravel()[np.argsort(_lengths(data, rows.ravel()), kind="stable")]
      order = jax.random.permutation(jax.random.fold_in(of_window, WINDOW), WINDOW)
      rows = ordered.reshape(rows.shape)[np.asarray(order)]
    if data.paired:
      rows = np.stack([rows, rows + data.counts.sum()], axis=-1).reshape(len(rows), -1)
    at, end = max(start, window), min(window + WINDOW, recipe.steps)
    while at < end:
      after = min(at + run, end, at - at % every + every if every else end)
      chosen = rows[at - window : after - window]
      yield batch(data, chosen), int(data.lengths[chosen].sum()) - chosen.size
      at = after


def _lengths(data: Corpus, rows: np.ndarray) -> np.ndarray:
  """Of rows; of pairs that of the longer."""
  own = data.lengths[rows]
  return np.maximum(own, data.lengths[rows + data.counts.sum()]) if data.paired else own


def batch(data: Corpus, rows: np.ndarray) -> Bucket:
  """Rows `[…]` in the smallest shape that holds them: `[…, tokens]` and `[…, targets]`.

  The last token of a row is only predicted, never read.
  """
  lengths, prompts, starts = (x[rows][..., None] for x in (data.lengths, data.prompts, data.starts))
  length, asked = next(shape for shape in data.shapes if shape[0] >= lengths.max() - 1)
  read, of_target = np.arange(length), np.arange(asked)
  mask = of_target < lengths - prompts
  tokens = np.where(read < lengths - 1, data.ids[np.where(read < lengths - 1, starts + read, 0)], 0)
  targets = np.where(mask, data.ids[np.where(mask, starts + prompts + of_target, 0)], 0)
  positions = np.where(mask, prompts - 1 + of_target, 0)
  tokens, positions, targets = (x.astype(np.int32) for x in (tokens, positions, targets))
  return Bucket(tokens, positions, targets, mask.astype(np.float32))


@functools.partial(jax.jit, static_argnames="size")
def _draw(keys: Array, parts: Array, first: Array, counts: Array, size: int) -> Array:
  """Rows `[steps, size]`, a key a step."""

  def one(key: Array) -> Array:
    of_task, of_row = jax.random.split(key)
    task = jax.random.choice(of_task, len(parts), (size,), p=parts)
    places = jax.random.uniform(of_row, (size,)) * counts[task].astype(jnp.float32)
    return first[task] + jnp.minimum(places.astype(jnp.int32), counts[task] - 1)

  return jax.vmap(one)(keys)


def _shapes(lengths: np.ndarray, prompts: np.ndarray) -> tuple[tuple[int, int], ...]:
  sizes = [int(lengths.max()) - 1]
  while (half := -(-sizes[-1] // 2)) >= SHORTEST:
    sizes.append(half)
  asked = lengths - prompts
  inside = [(size, lengths - 1 <= size) for size in sizes[::-1]]
  return tuple((size, int(asked[rows].max())) for size, rows in inside if rows.any())


def _before(counts: np.ndarray) -> np.ndarray:
  """Sums of the counts before each."""
  return np.cumsum(counts) - counts
