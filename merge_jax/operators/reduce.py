"""Reducers: how the task vectors of all models become one."""

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.operators import selection
from merge_jax.operators.core import STATIC

PyTree = Any


class Reducer(abc.ABC):
  """The interface; subclasses are frozen dataclasses, registered as pytrees."""

  surveys = False
  """Whether `reduce` needs the result of one pass over all sparse task vectors."""

  def measure(self, deltas: tuple[Array, ...]) -> PyTree:
    """What one tensor adds to the total."""
    return ()

  def result(self, total: PyTree) -> PyTree:
    """What `reduce` gets, from the total over all tensors."""
    return ()

  @abc.abstractmethod
  def reduce(self, deltas: tuple[Array, ...], weights: Array, surveyed: PyTree) -> Array:
    """The reduced task vector, float32, from K of one shape and weights `[K]`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum(Reducer):
  """`Σ wᵢ τᵢ`, or `Σ wᵢ τᵢ / Σ wᵢ` with `normalize`."""

  normalize: bool = dataclasses.field(default=False, metadata=STATIC)

  def reduce(self, deltas: tuple[Array, ...], weights: Array, surveyed: PyTree) -> Array:
    total = weighted_sum(deltas, weights)
    return total / jnp.sum(weights) if self.normalize else total


Election = Literal["unweighted", "weighted"]
Divisor = Literal["count", "weights", "none"]
ZeroSign = Literal["majority", "positive", "neither"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AgreeingMean(Reducer):
  """Mean, or sum, of the elements whose sign agrees with the elected one.

      e = sign(Σ τᵢ)        A_i = [sign(τᵢ) = e]        τ = Σ A_i wᵢ τᵢ / D

  Attributes:
    election: on the task vectors as they are (TIES authors, PEFT), or times their weights
      (mergekit).
    divisor: D is the number of agreeing models (authors), the sum of their weights (mergekit's
      `normalize`), or 1.
    zero_sign: of an element whose sum is 0: the sign of most elements of the model (authors;
      negative if that is 0 too), positive (mergekit, PEFT), or neither, so that it stays 0.
  """

  election: Election = dataclasses.field(default="unweighted", metadata=STATIC)
  divisor: Divisor = dataclasses.field(default="count", metadata=STATIC)
  zero_sign: ZeroSign = dataclasses.field(default="majority", metadata=STATIC)

  @property
  def surveys(self) -> bool:  # type: ignore[override]
    return self.zero_sign == "majority"

  def measure(self, deltas: tuple[Array, ...]) -> PyTree:
    total = sum(deltas[1:], deltas[0])
    return selection.count(total > 0), selection.count(total < 0)

  def result(self, total: PyTree) -> PyTree:
    positive, negative = map(selection.carry, total)
    return jnp.where(selection.at_least(negative, positive), -1.0, 1.0)

  def reduce(self, deltas: tuple[Array, ...], weights: Array, surveyed: PyTree) -> Array:
    voters = [w * d for w, d in zip(weights, deltas, strict=True)]
    total = sum(voters[1:], voters[0]) if self.election == "weighted" else sum(deltas[1:], deltas[0])
    elected = jnp.sign(total)
    if self.zero_sign != "neither":
      elected = jnp.where(elected == 0, surveyed if self.surveys else 1.0, elected)
    # A weight's sign counts where weighted task vectors vote.
    signs = voters if self.election == "weighted" else deltas
    agreeing = [(s * elected > 0).astype(jnp.float32) for s in signs]
    merged = sum((a * v for a, v in zip(agreeing, voters, strict=True)), jnp.zeros_like(total))
    if self.divisor == "none":
      return merged
    if self.divisor == "count":
      return merged / jnp.maximum(sum(agreeing[1:], agreeing[0]), 1.0)
    scale = weighted_sum(tuple(agreeing), weights)
    return merged / jnp.where(scale == 0, 1.0, scale)


def weighted_sum(arrays: tuple[Array, ...], weights: Array) -> Array:
  """`Σ wᵢ xᵢ` in float32, unrolled: a stack of K tensors would cost another pass over memory."""
  total = weights[0] * arrays[0].astype(jnp.float32)
  for i, x in enumerate(arrays[1:], 1):
    total = total + weights[i] * x.astype(jnp.float32)
  return total
