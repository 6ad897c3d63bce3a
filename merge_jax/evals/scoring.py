"""Scores of all tasks for one set of parameters, in one jitted program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array

from merge_jax.evals.batching import Batches, Bucket
from merge_jax.evals.tasks import Task

Apply = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Examples:
  """What every example of every task scored; a score is a ratio of sums.

  Attributes:
    tasks: names in order; `metrics` theirs; `counts` their numbers of examples.
    values: float64 `[4, examples]`: numerator and denominator of the metric, then of the loss.
  """

  tasks: tuple[str, ...]
  metrics: tuple[str, ...]
  counts: tuple[int, ...]
  values: npt.NDArray[np.float64]

  def of(self, task: int, loss: bool = False) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Numerators and denominators of one task's examples."""
    start = sum(self.counts[:task])
    part = self.values[:, start : start + self.counts[task]]
    return (part[2], part[3]) if loss else (part[0], part[1])

  def scores(self, loss: bool = False) -> dict[str, float]:
    """The score of each task by its metric, or its loss."""
    result = {}
    for i, name in enumerate(self.tasks):
      top, bottom = self.of(i, loss)
      result[name] = float(top.sum() / bottom.sum())
    return result


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A pure function `(params, batches) -> [4, examples]` and the data to call it with.

  Attributes:
    function: traceable; combine it with a merge in one `jit`.
    batches: device arrays, passed as an argument (a closure would bake them in as constants).
    tasks: whose examples are scored.
  """

  function: Callable[[Any, Any], Array]
  batches: Any
  tasks: tuple[Task, ...]

  def read(self, values: Array) -> Examples:
    """The function's result on the host."""
    return Examples(
      tuple(task.name for task in self.tasks),
      tuple(task.metric for task in self.tasks),
      tuple(len(task.examples) for task in self.tasks),
      np.asarray(values, np.float64),
    )


def make_scorer(
  apply: Apply,
  tasks: Sequence[Task],
  batches: Batches,
  *,
  dtype: Any = None,
  selects: bool = True,
) -> Scorer:
  """Scores tasks with a model's `apply`.

  Args:
    apply: `(params, tokens, asked) -> logits [rows, asked, vocabulary]`, or with `selects=False`
      any `(params, tokens) -> logits [rows, time, vocabulary]`.
    tasks: the tasks that `batches` was packed from.
    batches: from `pack(encode(tasks, …))`.
    dtype: computation dtype handed to `apply(…, dtype=)`, or None.
    selects: whether `apply` takes the positions that are asked for.

  Returns:
    A `Scorer`; jit `scorer.function` alone or together with a merge.
  """
  call = functools.partial(apply, dtype=dtype) if dtype is not None else apply

  def rows(params: Any, bucket: Bucket) -> tuple[Array, Array, Array]:
    """Negative log-likelihood, number of tokens and whether all are most likely, of each row."""

    def chunk(one: Bucket) -> tuple[Array, Array, Array]:
      if selects:
        logits = call(params, one.tokens, one.positions)
      else:
        logits = jnp.take_along_axis(call(params, one.tokens), one.positions[:, :, None], axis=1)
      logits = logits.astype(jnp.float32)
      at_target = jnp.take_along_axis(logits, one.targets[:, :, None], axis=-1)[..., 0]
      losses = jax.nn.logsumexp(logits, axis=-1) - at_target
      wrong = (jnp.argmax(logits, axis=-1) != one.targets) & (one.mask > 0)
      # A NaN must not vanish behind a mask: scores of a broken model are NaN.
      broken = jnp.where(one.mask > 0, losses, 0.0)
      exact = jnp.where(jnp.isnan(broken.sum(1)), jnp.nan, (~wrong.any(1)).astype(jnp.float32))
      return broken.sum(1), jnp.sum(one.mask, axis=1), exact

    if bucket.tokens.shape[0] == 1:
      return chunk(jax.tree.map(lambda x: x[0], bucket))
    return jax.tree.map(lambda x: x.reshape(-1), jax.lax.map(chunk, bucket))

  tables = [_choice_table(task) for task in tasks]

  def function(params: Any, data: tuple[tuple[Bucket, ...], Array]) -> Array:
    buckets, order = data
    parts = [rows(params, bucket) for bucket in buckets]
    losses, counts, exact = (jnp.concatenate(x)[order] for x in zip(*parts, strict=True))
    results, start = [], 0
    for task, (table, answers) in zip(tasks, tables, strict=True):
      right = start + answers
      top, bottom = losses[right], counts[right]
      ones = jnp.ones_like(top)
      if task.metric == "loss":
        metric = (top, bottom)
      elif task.metric == "exact_match":
        metric = (exact[right], ones)
      else:
        index = start + np.maximum(table, 0)
        costs = losses[index]
        if task.metric == "choice_accuracy_normalized":
          costs = costs / counts[index]
        costs = jnp.where(table >= 0, costs, jnp.inf)
        chosen = jnp.argmin(costs, axis=1)
        hit = (chosen == answers - table[:, 0]).astype(jnp.float32)
        metric = (jnp.where(jnp.isnan(top), jnp.nan, hit), ones)
      results.append(jnp.stack([*metric, top, bottom]))
      start += int(table.max()) + 1
    return jnp.concatenate(results, axis=1)

  data = jax.device_put((batches.buckets, batches.order))
  return Scorer(function, data, tuple(tasks))


def _choice_table(task: Task) -> tuple[np.ndarray, np.ndarray]:
  """Row numbers of each example's choices `[n, most]` (-1: none), and of its right one `[n]`."""
  counts = np.array([len(example.targets) for example in task.examples])
  starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
  places = np.arange(counts.max())[None]
  table = np.where(places < counts[:, None], starts[:, None] + places, -1)
  answers = starts + np.array([example.answer for example in task.examples])
  return table.astype(np.int32), answers.astype(np.int32)
