"""Packs the rows of all tasks into few fixed shapes with little padding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.errors import shown
from merge_jax.evals.tasks import Task
from merge_jax.evals.tokens import Tokens


class Rows(NamedTuple):
  """Token sequences, each a prompt with one target.

  Attributes:
    ids: int32 arrays, prompt and target joined.
    starts: where each target starts.
  """

  ids: list[np.ndarray]
  starts: list[int]


class Bucket(NamedTuple):
  """Rows of similar length, padded on the right; C chunks of R rows.

  Attributes:
    tokens: int32 `[C, R, T]`; the last token of a row is only predicted, never read, so it is left out.
    positions: int32 `[C, R, A]`, the positions whose next token is a target token.
    targets: int32 `[C, R, A]`, these tokens.
    mask: float32 `[C, R, A]`, 1 for target tokens, 0 for padding.
  """

  tokens: np.ndarray
  positions: np.ndarray
  targets: np.ndarray
  mask: np.ndarray


class Batches(NamedTuple):
  """The rows of a list of tasks, ready for a jitted scorer.

  Attributes:
    buckets: padded rows.
    order: int32 `[rows]`, where in the concatenated buckets each row lies.
    tokens: number of real tokens; `padded`, with padding.
  """

  buckets: tuple[Bucket, ...]
  order: np.ndarray
  tokens: int
  padded: int


def encode(
  tasks: Sequence[Task],
  tokens: Tokens,
  *,
  append_eos: bool = True,
  max_length: int | None = None,
  vocabulary: int | None = None,
) -> Rows:
  """One row for each example, or for each choice of each example, in order.

  Args:
    tasks: the tasks.
    tokens: the tokenizer.
    append_eos: end each target with the end-of-text token.
    max_length: of the model; a longer row is an error.
    vocabulary: of the model; a token id outside it is an error.

  Raises:
    ValueError: a row that is too long or has an id the model does not know, a prompt without tokens
      (nothing predicts its target), or a target that has none of its own.
  """
  rows = Rows([], [])
  end, ids = tokens.end(append_eos), vocabulary or 2**31
  for task in tasks:
    prompts = tokens.prompts([example.prompt for example in task.examples])
    texts = [text for example in task.examples for text in example.targets]
    targets = iter(tokens.targets(texts, append_eos=False))
    for number, (example, prompt) in enumerate(zip(task.examples, prompts, strict=True), 1):
      where = f"Task {task.name!r}, example {number} ({shown(example.prompt, 40)})"
      for text in example.targets:
        target = next(targets)
        if not prompt or not target:
          what = "prompt" if not prompt else f"target {shown(text, 40)}"
          raise ValueError(f"{where}: a {what} without tokens cannot be scored.")
        row = prompt + target + end
        if max_length is not None and len(row) > max_length:
          raise ValueError(f"{where} has {len(row)} tokens; the model takes {max_length}.")
        if max(row) >= ids:
          raise ValueError(f"{where}: {tokens.source} gives id {max(row)}; the model's vocabulary has {ids}.")
        rows.ids.append(np.asarray(row, np.int32))
        rows.starts.append(len(prompt))
  return rows


LOGITS = 1 << 28
"""Most logits of one forward pass in each part that its rows are divided into: 1 GiB in float32."""


def pack(
  rows: Rows, *, max_shapes: int = 4, batch_tokens: int = 16_384, vocabulary: int = 1, multiple: int = 1
) -> Batches:
  """Sorts rows by length into at most `max_shapes` shapes with the least padding.

  Args:
    rows: from `encode`.
    max_shapes: each is compiled once.
    batch_tokens: padded tokens in one forward pass.
    vocabulary: its size bounds the positions that one pass asks for, so that logits fit in memory.
    multiple: of which the rows of each pass are; the parts that a mesh divides them into.

  Raises:
    ValueError: no rows, or a number that is not positive.
  """
  for name, value in (
    ("max_shapes", max_shapes), ("batch_tokens", batch_tokens), ("vocabulary", vocabulary),
    ("multiple", multiple),
  ):  # fmt: skip
    if value < 1:
      raise ValueError(f"{name} is {value}; expected 1 or more.")
  if not rows.ids:
    raise ValueError("There are no examples to score.")
  lengths = np.array([len(row) - 1 for row in rows.ids])
  order = np.argsort(lengths, kind="stable")
  ends = _cuts(lengths[order], max_shapes)
  buckets, places, start, base = [], np.zeros(len(order), np.int32), 0, 0
  for end in ends:
    chosen = order[start:end]
    length = int(lengths[chosen].max())
    asked = int(max(len(rows.ids[i]) - rows.starts[i] for i in chosen))
    logits = len(chosen) * asked * vocabulary
    chunks = max(-(-len(chosen) * length // batch_tokens), -(-logits // (LOGITS * multiple)))
    height = -(-len(chosen) // (chunks * multiple)) * multiple
    chunks = -(-len(chosen) // height)  # no pass is padding alone
    places[chosen] = base + np.arange(len(chosen))
    base += chunks * height
    buckets.append(bucket(rows, chosen, chunks, height, length, asked))
    start = end
  padded = sum(one.tokens.size for one in buckets)
  return Batches(tuple(buckets), places, int(lengths.sum()), padded)


def bucket(
  rows: Rows, chosen: Sequence[int] | np.ndarray, chunks: int, height: int, length: int, asked: int
) -> Bucket:
  """The chosen rows, in order, as one padded bucket; what they do not fill is padding with mask 0."""
  tokens = np.zeros((chunks * height, length), np.int32)
  positions = np.zeros((chunks * height, asked), np.int32)
  targets = np.zeros((chunks * height, asked), np.int32)
  mask = np.zeros((chunks * height, asked), np.float32)
  for at, row in enumerate(chosen):
    ids, first = rows.ids[row], rows.starts[row]
    count = len(ids) - first
    tokens[at, : len(ids) - 1] = ids[:-1]
    positions[at, :count] = np.arange(first - 1, len(ids) - 1)
    targets[at, :count] = ids[first:]
    mask[at, :count] = 1.0
  shape = (chunks, height)
  return Bucket(*(x.reshape(*shape, x.shape[-1]) for x in (tokens, positions, targets, mask)))


def _cuts(lengths: np.ndarray, max_shapes: int) -> list[int]:
  """Ends of at most `max_shapes` runs of sorted lengths, with the least padding (exact)."""
  values, counts = np.unique(lengths, return_counts=True)
  below = np.concatenate([[0], np.cumsum(counts)])
  best = np.array([0.0] + [np.inf] * len(values))  # padded tokens up to the i-th distinct length
  history = []
  for _ in range(min(max_shapes, len(values))):
    new, choice = np.zeros(len(best)), np.zeros(len(best), np.int64)
    for i in range(1, len(best)):
      costs = best[:i] + (below[i] - below[:i]) * values[i - 1]
      choice[i] = np.argmin(costs)
      new[i] = costs[choice[i]]
    best = np.minimum(best, new)
    history.append((new, choice))
  shapes = int(np.argmin([new[-1] for new, _ in history]))
  ends, i = [], len(values)
  while i > 0:
    ends.append(int(below[i]))
    i = int(history[shapes][1][i])
    shapes = max(shapes - 1, 0)
  return ends[::-1]
