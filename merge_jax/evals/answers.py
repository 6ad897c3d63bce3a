"""What a model says where answers are: enough to foresee every answer of models in between.

Logits move smoothly with the weights of a merge, scores do not. So of each evaluated model we keep the row
losses and, at every target position of exact-match tasks, how far the strongest competitors lie above the
target's logit. A surrogate predicts these numbers at other weights; `smoothing` makes scores of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_jax.evals import metrics
from merge_jax.evals.batching import Batches
from merge_jax.evals.metrics import CHOICES, EXACT, LOSS
from merge_jax.evals.smoothing import Part, Piece, Table, relevant
from merge_jax.evals.tasks import Task, size_table, target_table, units


class Details(NamedTuple):
  """What a scorer's function gives beside scores, as the devices have it.

  Attributes:
    losses: float32 `[rows]`.
    gaps: float16 `[…, A, C]` of each bucket.
    rivals: int32 likewise.
  """

  losses: Any
  gaps: tuple[Any, ...]
  rivals: tuple[Any, ...]


Outputs = Mapping[str, np.ndarray]
"""Of one model, as they are kept.

    losses  float32 `[rows]`, negative log-likelihood of each row's target in nats
    gaps    float16 `[positions, C]`, logits of the strongest competitors less the target's, descending
    rivals  int32 `[positions, C]`, which tokens they are
"""


@dataclasses.dataclass(frozen=True)
class Answers:
  """Where the answers of a list of tasks lie.

  Attributes:
    parts: by task, in order.
    places: int `[positions]`, where those of exact tasks lie among all positions of all buckets.
    groups: int64 `[examples]`, the independent unit of each (see `tasks.units`).
  """

  parts: tuple[Part, ...]
  places: np.ndarray
  groups: np.ndarray

  @classmethod
  def of(cls, tasks: Sequence[Task], batches: Batches) -> "Answers":
    """Those of tasks and the batches that were packed of them."""
    lengths, first_of_row, start = [], [], 0
    for bucket in batches.buckets:
      count, asked = bucket.tokens[..., 0].size, bucket.positions.shape[-1]
      mask = bucket.mask.reshape(count, -1, asked) > 0  # [rows, choices of one, positions]
      lengths.append(mask.sum(axis=2).reshape(-1))
      first = start + asked * np.arange(count)[:, None] + mask.argmax(axis=2)
      first_of_row.append(first.reshape(-1))
      start += count * asked
    lengths, first_of_row = (np.concatenate(x)[batches.order] for x in (lengths, first_of_row))
    parts, places, row = [], [], 0
    for task in tasks:
      table, right = target_table(task)
      table = np.where(table >= 0, table + row, -1)
      rows = table[np.arange(len(right)), right[:, 0]]
      metric = metrics.named(task.metric)
      divisors = np.ones(table.shape)
      if metric.smooth == CHOICES and metric.divisor:
        sizes = size_table(task) if metric.divisor == "sizes" else lengths[np.maximum(table, 0)]
        sizes = np.where(table >= 0, sizes, 0).astype(np.float64)
        mean = sizes.sum(axis=1, keepdims=True) / (table >= 0).sum(axis=1, keepdims=True)
        divisors = np.where(sizes > 0, sizes / mean, 1.0)
      own = lengths[rows] if metric.smooth == EXACT else np.zeros(len(rows), int)
      parts.append(Part(metric.smooth, table, right[:, 0], divisors, lengths[rows].astype(np.float64), own))
      if metric.smooth == EXACT:
        places += [at + np.arange(n) for at, n in zip(first_of_row[rows], own, strict=True)]
      row += int((table >= 0).sum())
    return cls(tuple(parts), np.concatenate([*places, np.zeros(0, int)]).astype(np.int64), units(tasks))

  def read(self, details: Details) -> Outputs:
    """Outputs from what a scorer's function gave."""
    kept = {"losses": np.asarray(details.losses, np.float32)}
    for name, parts in (("gaps", details.gaps), ("rivals", details.rivals)):
      every = [np.asarray(part).reshape(-1, part.shape[-1]) for part in parts]
      kept[name] = np.concatenate(every)[self.places]
    return kept

  def table(self, outputs: Sequence[Outputs], losses: bool = False) -> Table:
    """Numbers of several models, column by column the same.

    Args:
      outputs: of the models.
      losses: of the right rows alone, whatever the metrics: for a fitness of losses.
    """
    columns, tasks, weights, pieces, start = [], [], [], [], 0
    for number, part in enumerate(self.parts):
      size = int(part.lengths.sum())
      if losses or part.kind == LOSS:
        rows = part.table[np.arange(len(part.right)), part.right]
        values = np.stack([one["losses"][rows] for one in outputs])
        weights.append(np.ones(len(rows)))
        pieces.append(Piece(LOSS, part))
      elif part.kind == CHOICES:
        values = np.stack([one["losses"][np.maximum(part.table, 0)] / part.divisors for one in outputs])
        weights.append((part.table >= 0).reshape(-1).astype(np.float64))
        pieces.append(Piece(CHOICES, part))
      else:
        some = [(one["gaps"][start : start + size], one["rivals"][start : start + size]) for one in outputs]
        values, position, chances = relevant(some)
        weights.append(chances)
        starts = np.flatnonzero(np.diff(position, prepend=-1))
        example = np.repeat(np.arange(len(part.right)), part.lengths)
        pieces.append(Piece(EXACT, part, starts, example[position[starts]]))
      start += size
      flat = values.reshape(len(outputs), -1).astype(np.float32)
      columns.append(flat)
      tasks.append(np.full(flat.shape[1], number))
    values = np.concatenate(columns, axis=1)
    return Table(values, np.concatenate(tasks), np.concatenate(weights), tuple(pieces), self.groups)
