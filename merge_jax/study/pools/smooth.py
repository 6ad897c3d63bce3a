"""Scores that have gradients: the metrics of tasks, smoothed by a temperature."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.evals import metrics
from merge_jax.evals.batching import Bucket
from merge_jax.evals.tasks import Task, size_table, target_table

Smoothed = Callable[[Any, tuple[tuple[Bucket, ...], Array]], Array]


def smoothed(apply: Callable[..., Array], tasks: Sequence[Task], temperature: float) -> Smoothed:
  """A function `(params, (buckets, order)) -> score`, the mean over tasks, higher is better.

      exact_match        mean of Π softmax(logits / τ)[target] over the target's tokens
      choice accuracies  mean of softmax(-costs / τ)[right] over the choices, costs as those of the metric
      loss               minus the loss, which is smooth

  A gradient holds the activations of all rows: that of few thousand short ones is for small models.

  Args:
    apply: `(params, tokens, positions) -> logits`.
    tasks: that `evals.pack(evals.encode(tasks, …))` made the buckets and the order of.
    temperature: τ.
  """
  tables = [(*target_table(task), size_table(task)) for task in tasks]

  def passed(params: Any, one: Bucket) -> tuple[Array, Array, Array]:
    """Of each row: log-likelihood at the temperature and at 1, number of tokens."""
    logits = apply(params, one.tokens, one.positions).astype(jnp.float32)
    at_target = jnp.take_along_axis(logits, one.targets[:, :, None], axis=-1)[..., 0]

    def total(scale: float) -> Array:
      found = at_target / scale - jax.nn.logsumexp(logits / scale, axis=-1)
      return jnp.sum(jnp.where(one.mask > 0, found, 0.0), axis=1)

    return total(temperature), total(1.0), jnp.sum(one.mask, axis=1)

  def score(params: Any, data: tuple[tuple[Bucket, ...], Array]) -> Array:
    buckets, order = data
    parts = [jax.lax.map(lambda one: passed(params, one), bucket) for bucket in buckets]
    every = [jnp.concatenate([x.reshape(-1) for x in some])[order] for some in zip(*parts, strict=True)]
    found, start = [], 0
    for task, (table, right, sizes) in zip(tasks, tables, strict=True):
      soft, plain, counts = (x[start + np.maximum(table, 0)] for x in every)
      divisors = {"tokens": counts, "sizes": jnp.asarray(sizes)}
      found.append(_score(task.metric, soft, plain, divisors, table >= 0, right, temperature))
      start += int((table >= 0).sum())
    return jnp.mean(jnp.stack(found))

  return score


def _score(
  metric: str,
  soft: Array,
  plain: Array,
  divisors: dict[str, Array],
  exists: np.ndarray,
  right: np.ndarray,
  temperature: float,
) -> Array:
  def of_right(values: Array) -> Array:
    return jnp.take_along_axis(values, jnp.asarray(right), axis=1)[:, 0]

  rule = metrics.named(metric)
  if rule.smooth == metrics.LOSS:
    return jnp.sum(of_right(plain)) / jnp.sum(of_right(divisors["tokens"]))
  if rule.smooth == metrics.EXACT:
    return jnp.mean(jnp.exp(of_right(soft)))
  costs = -plain / jnp.maximum(divisors[rule.divisor], 1.0) if rule.divisor else -plain
  chances = jax.nn.softmax(jnp.where(jnp.asarray(exists), -costs / temperature, -jnp.inf), axis=1)
  return jnp.mean(of_right(chances))
