"""SCE: select what varies between models, calculate their weights, erase what disagrees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import counting, layout, selection
from merge_jax.operators.core import Leaf, PyTree, Ranked, Survey, Surveyed, Total
from merge_jax.operators.pytrees import STATIC, check_number, pytree
from merge_jax.operators.reduce import Reducer
from merge_jax.operators.sparsify import Deltas, Sparsifier
from merge_jax.operators.sums import exponent, maximum, rounded, scaled, totals
from merge_jax.operators.task_vector import TaskVector


@pytree
class KeepVariance(Sparsifier):
  """Keeps the positions of a tensor whose variance over the models is largest, in all models.

  Attributes:
    select_topk: fraction of the positions with a variance above 0 that is kept, in [0, 1]; 1 keeps all
      positions.

  The first in row-major order are the largest among equals. Not finite values are kept.

  Raises:
    ValueError: a concrete fraction outside [0, 1].

  >>> import merge_jax as mj
  >>> experts = [{"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([1.0, -2.0, 2.0])}]
  >>> rule = mj.TaskVector((keep_variance(0.5),))
  >>> mj.merge(rule, experts, [1.0, 0.0], base={"w": jnp.zeros(3)})["w"].tolist()
  [0.0, 2.0, 0.0]
  """

  select_topk: ArrayLike = 1.0
  elementwise = True

  def __post_init__(self) -> None:
    check_number("select_topk", self.select_topk, 0.0, 1.0)

  def survey(self) -> tuple[Survey, ...]:
    """How large the task vectors are, how many positions vary, and where the largest variances end."""

    def varying(leaf: Leaf, _: Surveyed) -> Array:
      spread = functools.reduce(jnp.maximum, leaf.experts) - functools.reduce(jnp.minimum, leaf.experts)
      return counting.count(spread > 0)

    def keys(leaf: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
      return (selection.magnitude(_variance(leaf.experts, surveyed[0])),)

    def ranks(size: Array, count: int, surveyed: Surveyed) -> tuple[Array, ...]:
      return (counting.fraction(surveyed[1], self.select_topk),)

    return (
      _largest(),
      Total(varying, lambda total, _: counting.carry(total), whole=False, kind="count"),
      Ranked(keys, ranks, whole=False, exact=True),
    )

  def fit(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    most, _, (cut,) = surveyed
    return most, cut

  def apply(self, fitted: PyTree, deltas: Deltas) -> Deltas:
    kept = self.kept(fitted, deltas)
    return tuple(jnp.where(kept | ~jnp.isfinite(d), d, 0.0) for d in deltas)

  def kept(self, fitted: PyTree, deltas: Deltas) -> Array:
    """Which positions are kept."""
    most, cut = fitted
    kept = selection.reaches(selection.magnitude(_variance(deltas, most)), cut)
    return kept | (jnp.asarray(self.select_topk) >= 1)


keep_variance = KeepVariance


def _finite(x: Array) -> Array:
  return jnp.where(jnp.isfinite(x), x, 0.0)


def _largest() -> Total:
  """The survey of the largest finite magnitude of all models."""

  def measure(leaf: Leaf, _: Surveyed) -> Array:
    sizes = (jnp.abs(x) for x in leaf.experts)
    return maximum(functools.reduce(jnp.maximum, (jnp.where(x < jnp.inf, x, 0.0) for x in sizes)))

  return Total(measure, whole=False, kind="largest")


def _variance(deltas: Deltas, most: Array) -> Array:
  """Times K, `Σ (τᵢ - mean)²`, scaled so that tiny ones do not underflow; the same bits in all programs."""
  deltas = tuple(map(rounded, scaled(deltas, exponent(most))))
  mean = rounded(sum(deltas[1:], deltas[0]) * (1.0 / len(deltas)))
  squares = [rounded((delta - mean) ** 2) for delta in deltas]
  return sum(squares[1:], squares[0])


def _kept(select: KeepVariance, leaf: Leaf, surveyed: Surveyed) -> Array:
  """Which positions are selected; of flat tensors, as streams have them, computed once.

  XLA would compute variances again in the square of each model, but fuses no branches. JAX cannot map
  branches over a stack on an explicit mesh.
  """

  def kept() -> Array:
    return select.kept(select.fit(leaf, surveyed), leaf.experts)

  first = leaf.experts[0]
  if first.ndim != 1 or layout.explicit(first) is not None:
    return kept()
  return jax.lax.cond(surveyed[0] > 0, kept, lambda: jnp.zeros_like(first, bool))


@pytree
class EnergyMean(Reducer):
  """Mean of the elements that agree with the elected sign, weighted by the energy of each model's tensor.

      cᵢ = mean(τᵢ²)     e = sign(Σ τᵢ), + for 0     τ = Σ [sign(τᵢ) = e] cᵢ τᵢ / Σ [sign(τᵢ) = e] cᵢ

  Attributes:
    select: positions that the energies are of, or None for all.
    masked: what is not selected is left out of the mean, too.
    floor: energies whose sum is below it count as equal: 0, or mergekit's 1e-6.

  Weights are refused.

  Raises:
    ValueError: a concrete floor that is no finite number from 0 on.
  """

  select: KeepVariance | None = None
  masked: bool = dataclasses.field(default=False, metadata=STATIC)
  floor: ArrayLike = 0.0
  weightless = True
  elementwise = True

  def __post_init__(self) -> None:
    check_number("floor", self.floor, 0.0)

  def survey(self) -> tuple[Survey, ...]:
    """Those of the selection, or how large the task vectors are; the squares of what is selected."""

    def squares(leaf: Leaf, surveyed: Surveyed) -> Array:
      finite = tuple(x * x for x in scaled([*map(_finite, leaf.experts)], exponent(surveyed[0])))
      if self.select is not None:
        kept = _kept(self.select, leaf, surveyed[:3])
        finite = tuple(jnp.where(kept, x, 0.0) for x in finite)
      return jnp.stack(totals(finite))

    mean = Total(squares, lambda sums, size: sums / size.astype(sums.dtype), whole=False)
    return *((_largest(),) if self.select is None else self.select.survey()), mean

  def reduce(self, deltas: Deltas, weights: Array, surveyed: Surveyed) -> Array:
    energies = _shares(surveyed[-1], exponent(surveyed[0]), self.floor)
    if self.masked and self.select is not None:
      deltas = self.select.apply(self.select.fit(Leaf(deltas), surveyed[:3]), deltas)
    summed = sum(deltas[1:], deltas[0])
    elected = jnp.where(summed >= 0, 1.0, -1.0)
    agreeing = tuple((d * elected > 0).astype(summed.dtype) for d in deltas)
    top = sum((a * c * d for a, c, d in zip(agreeing, energies, deltas, strict=True)), jnp.zeros_like(summed))
    scale = sum((a * c for a, c in zip(agreeing, energies, strict=True)), jnp.zeros_like(summed))
    merged = top / jnp.where(scale == 0, 1.0, scale)
    return jnp.where(jnp.isfinite(summed), merged, summed)


def _shares(squares: Array, power: Array, floor: ArrayLike) -> Array:
  """Shares `[K]` of the models in the energy of a tensor; equal ones where there is none."""
  whole = jnp.sum(squares)
  (least,) = scaled([jnp.asarray(floor, whole.dtype)], 2 * power)
  none = (whole == 0) | (whole < least)
  return jnp.where(none, 1.0 / len(squares), squares / jnp.where(whole == 0, 1.0, whole))


def sce(select_topk: ArrayLike = 1.0, *, masked: bool = False, floor: ArrayLike = 0.0) -> TaskVector:
  """SCE: weights from the energy of what varies most between models, then a merge of what agrees in sign.

  Args:
    select_topk: fraction of the positions that is selected by variance; the authors use 0.1 and 1.
    masked: merge the selected positions alone (the paper's text, mergekit); off, the selection only
      makes the weights, and all positions are merged (the authors' code).
    floor: energies whose sum is below it count as equal; mergekit has 1e-6, which is most real
      fine-tunes.

  Raises:
    ValueError: a concrete number out of its range.

  Weights are refused. With one model nothing varies: the masked form gives the base.
  Source: FuseChat: Knowledge Fusion of Chat Models (arXiv 2408.07990).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros(2)}
  >>> experts = [{"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([1.0, -0.5])}]
  >>> mj.merge(mj.sce(), experts, base=base)["w"].round(3).tolist()
  [2.778..., 1.0]
  """
  select = KeepVariance(select_topk)
  return TaskVector((), EnergyMean(select, masked, floor))
