"""Reducers: how the task vectors of all models become one."""

import abc
import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import counting
from merge_jax.operators.core import Leaf, PyTree, Survey, Surveyed, Total
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.pytrees import STATIC, check_choice, pytree
from merge_jax.operators.sparsify import Block, Deltas


class Reducer(Block, abc.ABC):
  """How the task vectors of all models become one; `normalize`, `weightless` as for an operator."""

  normalize: bool = False
  weightless: bool = False

  @abc.abstractmethod
  def reduce(self, deltas: Deltas, weights: Array, surveyed: Surveyed) -> Array:
    """The reduced task vector from K of one shape and weights `[K]`; non-finite where one of them is.

    `surveyed` are the results of the reducer's own surveys.
    """


@pytree
class WeightedSum(Reducer):
  """`Σ wᵢ τᵢ`, or `Σ wᵢ τᵢ / Σ wᵢ` with `normalize`."""

  normalize: bool = dataclasses.field(default=False, metadata=STATIC)
  elementwise = True

  def reduce(self, deltas: Deltas, weights: Array, surveyed: Surveyed) -> Array:
    total = weighted_sum(deltas, weights)
    return total / jnp.sum(weights) if self.normalize else total


Election = Literal["unweighted", "weighted"]
Divisor = Literal["count", "weights", "none"]
ZeroSign = Literal["majority", "positive", "neither"]


@pytree
class AgreeingMean(Reducer):
  """Mean, or sum, of the elements whose sign agrees with the elected one.

      e = sign(Σ τᵢ)        A_i = [sign(τᵢ) = e]        τ = Σ A_i wᵢ τᵢ / D

  Attributes:
    election: on task vectors as they are (TIES authors, PEFT), or times their weights (mergekit).
    divisor: D is the number of agreeing models (authors), the sum of their weights (mergekit's
      `normalize`), or 1: the sum over the agreeing.
    zero_sign: of an element whose sum is 0: the sign of most elements of the model (authors;
      negative if that is 0 too), positive (mergekit, PEFT), or neither, so that it stays 0.

  Raises:
    ValueError: an unknown variant.
  """

  election: Election = dataclasses.field(default="unweighted", metadata=STATIC)
  divisor: Divisor = dataclasses.field(default="count", metadata=STATIC)
  zero_sign: ZeroSign = dataclasses.field(default="majority", metadata=STATIC)
  elementwise = True

  def __post_init__(self) -> None:
    check_choice("election", self.election, get_args(Election))
    check_choice("divisor", self.divisor, get_args(Divisor))
    check_choice("zero_sign", self.zero_sign, get_args(ZeroSign))

  def survey(self) -> tuple[Survey, ...]:
    return (Total(_signs, _majority, kind="count"),) if self.zero_sign == "majority" else ()

  def reduce(self, deltas: Deltas, weights: Array, surveyed: Surveyed) -> Array:
    voters = tuple(w * d for w, d in zip(weights, deltas, strict=True))
    # A weight's sign counts where weighted task vectors vote.
    signs = voters if self.election == "weighted" else deltas
    total = sum(signs[1:], signs[0])
    elected = jnp.sign(total)
    if self.zero_sign != "neither":
      filler = surveyed[0].astype(total.dtype) if self.zero_sign == "majority" else 1.0
      elected = jnp.where(elected == 0, filler, elected)
    agreeing = tuple((s * elected > 0).astype(total.dtype) for s in signs)
    merged = sum((a * v for a, v in zip(agreeing, voters, strict=True)), jnp.zeros_like(total))
    if self.divisor == "count":
      merged = merged / jnp.maximum(sum(agreeing[1:], agreeing[0]), 1.0)
    elif self.divisor == "weights":
      scale, most = weighted_sum(agreeing, weights), weighted_sum(agreeing, jnp.abs(weights))
      none = jnp.abs(scale) <= 4.0 * jnp.finfo(scale.dtype).eps * most  # weights that cancel leave rounding
      merged = merged / jnp.where(none, 1.0, scale)
    return jnp.where(jnp.isnan(total), total, merged)  # nobody agrees with NaN


def _signs(leaf: Leaf, _: Surveyed) -> PyTree:
  """How many elements of the summed task vectors are positive, and negative."""
  total = sum(leaf.experts[1:], leaf.experts[0])
  return counting.count(total > 0), counting.count(total < 0)


def _majority(total: PyTree, _: Array) -> Array:
  positive, negative = map(counting.carry, total)
  return 1.0 - 2.0 * counting.at_least(negative, positive).astype(np.float32)
