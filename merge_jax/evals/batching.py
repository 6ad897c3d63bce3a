"""Packs the rows of all tasks into few fixed shapes with little padding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.errors import shown
from merge_jax.evals import prompting, requests
from merge_jax.evals.branches import Branches, Group, Rows, columns
from merge_jax.evals.tasks import Task
from merge_jax.evals.tokens import Tokens


class Bucket(NamedTuple):
  """Rows of similar length, padded on the right; C chunks of R rows.

  Attributes:
    tokens: int32 `[C, R, T]`; the last token of a target is only predicted, never read, so it is left out.
    positions: int32 `[C, R, A]`, the columns whose next token is a target token.
    targets: int32 `[C, R, A]`, these tokens.
    mask: float32 `[C, R, A]`, 1 for target tokens, 0 for padding; `[C, R, M, A]`, 1 for those of each choice,
      where rows hold up to M of them.
    branches: of the last columns, if they are branches.
  """

  tokens: np.ndarray
  positions: np.ndarray
  targets: np.ndarray
  mask: np.ndarray
  branches: Branches | None = None


class Batches(NamedTuple):
  """The rows of a list of tasks, ready for a jitted scorer.

  Attributes:
    buckets: padded rows.
    order: int32 `[rows]`, where in the concatenated buckets, each flattened, the target of each row lies.
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
  counts: list[int] = []
  rows = Rows([], [], counts)
  ids = vocabulary or 2**31
  for task in tasks:
    if any(example.asked and example.asked.pairs for example in task.examples):
      _encode_pairs(task, tokens, rows, counts, max_length, ids)
      continue
    prompts, end = prompting.prompts(task, tokens), tokens.end(append_eos, task.options.chat)
    texts = [text for example in task.examples for text in example.targets]
    targets = iter(tokens.targets(texts, append_eos=False))
    for number, (example, prompt) in enumerate(zip(task.examples, prompts, strict=True), 1):
      at = f"line {example.line}" if example.line else f"example {number}"
      where = f"Task {task.name!r}, {at} ({shown(example.prompt, 40)})"
      counts.append(len(example.targets))
      for text in example.targets:
        target = next(targets)
        if not prompt or not target:
          what = "prompt" if not prompt else f"target {shown(text, 40)}"
          raise ValueError(f"{where}: a {what} without tokens cannot be scored.")
        row = prompt + target + end
        if max_length is not None and len(row) > max_length:
          raise ValueError(f"{where} has {len(row)} tokens with its target; the model takes {max_length}.")
        if max(row) >= ids:
          raise ValueError(f"{where}: {tokens.source} gives id {max(row)}; the model's vocabulary has {ids}.")
        rows.ids.append(np.asarray(row, np.int32))
        rows.starts.append(len(prompt))
  return rows


def _encode_pairs(
  task: Task, tokens: Tokens, rows: Rows, counts: list[int], max_length: int | None, vocabulary: int
) -> None:
  """Adds the rows of a task that another library asks; long ones lose their beginning, as they do there."""
  for number, example in enumerate(task.examples, 1):
    pairs = example.asked.pairs if example.asked else ()
    found = [requests.pair(tokens, *texts) for texts in pairs]
    for context, continuation in found:
      try:
        row = requests.row(context, continuation, max_length or 2**31)
      except ValueError as error:
        raise ValueError(f"Task {task.name!r}, example {number}: {error}") from None
      if row.max() >= vocabulary:
        raise ValueError(
          f"Task {task.name!r}, example {number}: {tokens.source} gives id {row.max()}; the model's "
          f"vocabulary has {vocabulary}."
        )
      rows.ids.append(row)
      rows.starts.append(len(row) - len(continuation))
    shared = all(context == found[0][0] for context, _ in found) and len(set(rows.starts[-len(found) :])) == 1
    counts += [len(found)] if shared else [1] * len(found)


LOGITS = 1 << 28
"""Most logits of one forward pass in each part that its rows are divided into: 1 GiB in float32."""


def pack(
  rows: Rows,
  *,
  groups: Sequence[Group] | None = None,
  max_shapes: int = 4,
  batch_tokens: int = 16_384,
  vocabulary: int = 1,
  multiple: int = 1,
) -> Batches:
  """Sorts rows by length into at most `max_shapes` shapes with the least padding.

  Args:
    rows: from `encode`.
    groups: from `groups`, rows that share their prompt; None: each by itself.
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
  every: Sequence[Group] = [(row,) for row in range(len(rows.ids))] if groups is None else groups
  stems, tails = np.array([columns(rows, group) for group in every]).T
  lengths = stems + tails
  # Long prompts with short choices and short ones with long choices would pad each other.
  order = np.lexsort((lengths, np.where(tails == 0, 0, np.where(tails <= stems, 1, 2))))
  ends = cuts(stems[order], tails[order], max_shapes)
  buckets, places, start, base = [], np.zeros(len(rows.ids), np.int32), 0, 0
  for end in ends:
    chosen = [every[i] for i in order[start:end]]
    stem, tail = int(stems[order[start:end]].max()), int(tails[order[start:end]].max())
    asked = max(sum(len(rows.ids[i]) - rows.starts[i] for i in group) for group in chosen)
    logits = len(chosen) * asked * vocabulary
    chunks, height = passes(len(chosen), stem + tail, logits, batch_tokens, multiple)
    most = max(map(len, chosen))
    for at, group in enumerate(chosen):
      places[list(group)] = base + at * most + np.arange(len(group))
    base += chunks * height * most
    buckets.append(bucket(rows, chosen, chunks, height, (stem, tail), asked))
    start = end
  padded = sum(one.tokens.size for one in buckets)
  return Batches(tuple(buckets), places, int(lengths.sum()), padded)


def passes(count: int, length: int, logits: int, batch_tokens: int, multiple: int) -> tuple[int, int]:
  """How many forward passes so many rows take, and the rows of each.

  Args:
    count, length: of the rows.
    logits: of all of them.
    batch_tokens, multiple: see `pack`.
  """
  chunks = max(-(-count * length // batch_tokens), -(-logits // (LOGITS * multiple)))
  height = -(-count // (chunks * multiple)) * multiple
  return -(-count // height), height  # no pass is padding alone


def bucket(
  rows: Rows, chosen: Sequence[Group], chunks: int, height: int, lengths: tuple[int, int], asked: int
) -> Bucket:
  """The chosen groups, in order, as one padded bucket; what they do not fill is padding with mask 0.

  Args:
    rows: of tokens.
    chosen: which of them are packed as one.
    chunks, height: of the bucket.
    lengths: columns before the branches, and those of the branches.
    asked: most target tokens of a group.
  """
  count, (stem, tail) = chunks * height, lengths
  tokens = np.zeros((count, stem + tail), np.int32)
  positions, targets = np.zeros((2, count, asked), np.int32)
  mask = np.zeros((count, max(map(len, chosen)), asked), np.float32)
  branches = Branches(
    np.ones(count, np.int32), np.zeros((count, tail), np.int32), np.full((count, tail), -1, np.int32)
  )
  for at, group in enumerate(chosen):
    shared, _ = columns(rows, group)
    branches.starts[at] = shared
    tokens[at, :shared] = rows.ids[group[0]][:shared]
    column = target = 0
    for number, row in enumerate(group):
      ids, first = rows.ids[row], rows.starts[row]
      own, wanted = len(ids) - 1 - shared, len(ids) - first
      tokens[at, stem + column : stem + column + own] = ids[shared:-1]
      branches.places[at, column : column + own] = np.arange(shared, shared + own)
      branches.numbers[at, column : column + own] = number + 1
      before = np.arange(first - 1, len(ids) - 1)
      where = np.where(before < shared, before, stem + column + before - shared)
      positions[at, target : target + wanted] = where
      targets[at, target : target + wanted] = ids[first:]
      mask[at, number, target : target + wanted] = 1.0
      column, target = column + own, target + wanted
  if mask.shape[1] == 1:
    mask = mask[:, 0]

  def chunked(x: np.ndarray) -> np.ndarray:
    return x.reshape(chunks, height, *x.shape[1:])

  behind = Branches(*map(chunked, branches)) if tail else None
  return Bucket(chunked(tokens), chunked(positions), chunked(targets), chunked(mask), behind)


def cuts(stems: np.ndarray, tails: np.ndarray, max_shapes: int) -> list[int]:
  """Ends of at most `max_shapes` runs of rows in their order, with the least padding.

  A run is as wide as its longest stem and its longest tail. Rows of one length in turn stay together; of
  rows without tails in order of their length no cuts are better.
  """
  starts = np.concatenate([[0], np.flatnonzero(np.diff(stems + tails)) + 1])
  below = np.concatenate([starts, [len(stems)]])
  longest = [np.maximum.reduceat(x, starts) for x in (stems, tails)]
  shapes = min(max_shapes, len(starts))
  best = np.full((shapes + 1, len(below)), np.inf)  # padded tokens up to the i-th length in so many runs
  best[0, 0] = 0.0
  choice = np.zeros(best.shape, np.int64)
  for i in range(1, len(below)):
    width = sum(np.maximum.accumulate(x[:i][::-1])[::-1] for x in longest)
    costs = best[:-1, :i] + (below[i] - below[:i]) * width
    choice[1:, i] = costs.argmin(axis=1)
    best[1:, i] = costs.min(axis=1)
  count, i, ends = int(best[:, -1].argmin()), len(starts), []
  while i > 0:
    ends.append(int(below[i]))
    i = int(choice[count, i])
    count -= 1
  return ends[::-1]
