"""What a task can be scored by: one row a metric, and nobody else knows a metric by its name."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.errors import unknown


class Likelihoods(NamedTuple):
  """What a model says of the targets of a task's n examples, each padded to c targets.

  Attributes:
    losses: float32 `[n, c]`, negative log-likelihood of each target in nats.
    tokens: float32 `[n, c]`, number of its tokens.
    exact: float32 `[n, c]`, 1 where every token is the most likely one, given those before.
    exists: bool `[n, c]`, false for padding.
    right: int32 `[n, 1]`, position of the right target.
    sizes: float32 `[n, c]`, characters of each target.
    sharp: float32 `[n, c]`, the losses with all logits over `SMOOTHING`; None where they are not asked for.

  A broken model's losses and exactness are NaN, and its scores must be.
  """

  losses: Array
  tokens: Array
  exact: Array
  exists: Array
  right: Array
  sizes: Array
  sharp: Array | None = None

  def of_right(self, values: Array) -> Array:
    """The right targets' column of `values`: `[n]`."""
    return jnp.take_along_axis(values, self.right, axis=1)[:, 0]


EXACT, CHOICES, LOSS = "exact", "choices", "loss"
"""How a score can be smoothed: see `merge_jax.evals.smoothing`."""
SMOOTHING = 0.5
"""Temperature of a smoothed score; 1 rewards certainty more than right answers."""
Ratio = tuple[Array, Array]
"""Numerator and denominator of each example, float32 `[n]`; a score is a ratio of their sums."""


@dataclasses.dataclass(frozen=True)
class Metric:
  """One way to score a task.

  Attributes:
    name: as in `path:metric`.
    description: one line for people.
    sign: +1 where a higher score is better, -1 for a loss.
    needs: what every line of the task must have: "targets", "choices", or "either".
    format: how a score is printed.
    compute: traceable, from likelihoods to each example's share of the score.
    smooth: how it is smoothed: `EXACT`, `CHOICES`, `LOSS`, or "" if it cannot be.
    divisor: what losses of choices are divided by: "tokens", "sizes", or "" for nothing.
    generates: texts are generated, and those with the right answer are added to each example's share.
  """

  name: str
  description: str
  sign: float
  needs: str
  format: str
  compute: Callable[[Likelihoods], Ratio]
  smooth: str = ""
  divisor: str = ""
  generates: bool = False

  def fits(self, kind: str) -> bool:
    """Whether lines with "targets" or "choices" can be scored."""
    return self.needs in (kind, "either")


def loss(given: Likelihoods) -> Ratio:
  """Negative log-likelihood and tokens of each example's right target: float32 `[n]` each."""
  return given.of_right(given.losses), given.of_right(given.tokens)


def smoothed(metric: Metric, given: Likelihoods) -> Array:
  """Each example's numerator of the smoothed score, float32 `[n]`; its denominator is the metric's.

      exact     Π softmax(logits / τ)[target] over the right target's tokens
      choices   softmax(-costs / τ)[right]
      loss      the loss

  with τ = `SMOOTHING`. Costs are losses; where the metric divides them by tokens or sizes, they are scaled by
  the mean of these over the choices, so that τ means the same. Decisions have become chances: models that
  differ little can be told apart.
  """
  if metric.smooth == LOSS:
    return given.of_right(given.losses)
  if metric.smooth == EXACT:
    assert given.sharp is not None  # asked for wherever scores are smoothed
    return jnp.exp(-given.of_right(given.sharp))
  costs = given.losses
  if metric.divisor:
    sizes = jnp.where(given.exists, given.sizes if metric.divisor == "sizes" else given.tokens, 0.0)
    mean = sizes.sum(axis=1, keepdims=True) / given.exists.sum(axis=1, keepdims=True, dtype=sizes.dtype)
    costs = costs * mean / jnp.where(sizes > 0, sizes, mean)
  costs = jnp.where(given.exists, costs, jnp.inf)
  return given.of_right(jax.nn.softmax(-costs / SMOOTHING, axis=1))


def _exact_match(given: Likelihoods) -> Ratio:
  exact = given.of_right(given.exact)
  return exact, jnp.ones_like(exact)


def _generate_match(given: Likelihoods) -> Ratio:
  """Nothing yet, and NaN of a broken model."""
  losses = given.of_right(given.losses)
  return jnp.where(jnp.isnan(losses), losses, 0.0), jnp.ones_like(losses)


def _choice_accuracy(given: Likelihoods) -> Ratio:
  return _chosen_is_right(given, given.losses)


def _choice_accuracy_normalized(given: Likelihoods) -> Ratio:
  return _chosen_is_right(given, given.losses / given.tokens)


def _choice_accuracy_per_character(given: Likelihoods) -> Ratio:
  return _chosen_is_right(given, given.losses / given.sizes)


def _chosen_is_right(given: Likelihoods, costs: Array) -> Ratio:
  chosen = jnp.argmin(jnp.where(given.exists, costs, jnp.inf), axis=1)
  hit = (chosen == given.right[:, 0]).astype(jnp.float32)
  broken = jnp.isnan(given.of_right(given.losses))
  return jnp.where(broken, jnp.nan, hit), jnp.ones_like(hit)


METRICS: dict[str, Metric] = {
  metric.name: metric
  for metric in (
    Metric(
      "exact_match",
      "share of examples whose every target token is the most likely one; with the end-of-text token "
      "this is what greedy decoding gives",
      1.0, "targets", ".3f", _exact_match, EXACT,
    ),
    Metric(
      "choice_accuracy",
      "share of examples whose right choice has the highest log-likelihood",
      1.0, "choices", ".3f", _choice_accuracy, CHOICES,
    ),
    Metric(
      "choice_accuracy_normalized",
      "the same with the log-likelihood divided by the number of tokens",
      1.0, "choices", ".3f", _choice_accuracy_normalized, CHOICES, "tokens",
    ),
    Metric(
      "choice_accuracy_per_character",
      "the same with the log-likelihood divided by the number of characters",
      1.0, "choices", ".3f", _choice_accuracy_per_character, CHOICES, "sizes",
    ),
    Metric(
      "loss",
      "mean negative log-likelihood in nats over all target tokens",
      -1.0, "either", ".4f", loss, LOSS,
    ),
    Metric(
      "generate_match",
      "share of examples whose answer is found in the text that greedy decoding writes",
      1.0, "targets", ".3f", _generate_match, generates=True,
    ),
  )
}  # fmt: skip
"""By name; the first that fits a task's lines is their default."""


def named(name: str, where: str = "") -> Metric:
  """The metric of a name.

  Raises:
    ValueError: no such metric.

  >>> named("loss").sign
  -1.0
  """
  if name not in METRICS:
    raise ValueError(unknown("metric", name, METRICS, where))
  return METRICS[name]


def default(kind: str) -> Metric:
  """What lines with "targets" or "choices" are scored by if nothing else is said.

  >>> default("targets").name, default("choices").name
  ('exact_match', 'choice_accuracy')
  """
  return next(metric for metric in METRICS.values() if metric.fits(kind))
