"""SCE: select what varies between models, calculate their weights, erase what disagrees."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import counting, selection
from merge_jax.operators.core import STATIC, PyTree, check_number, pytree
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.reduce import Reducer
from merge_jax.operators.sparsify import Deltas, Sparsifier
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

  >>> block = KeepVariance(0.5)
  >>> deltas = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, -2.0, 2.0])
  >>> block.apply(block.fit(deltas, (None, None), ()), deltas)[0].tolist()
  [0.0, 2.0, 0.0]
  """

  select_topk: ArrayLike = 1.0

  def __post_init__(self) -> None:
    check_number("select_topk", self.select_topk, 0.0, 1.0)

  def fit(self, deltas: Deltas, keys: tuple[Array | None, ...], surveyed: PyTree) -> PyTree:
    variance = _variance(deltas)
    differ = counting.carry(counting.count(variance > 0))
    fraction = jnp.asarray(self.select_topk, jnp.float32)
    return selection.largest([selection.magnitude(variance)], [counting.fraction(differ, fraction)])[0]

  def apply(self, fitted: PyTree, deltas: Deltas) -> Deltas:
    kept = self.kept(fitted, deltas)
    return tuple(jnp.where(kept | ~jnp.isfinite(d), d, 0.0) for d in deltas)

  def kept(self, fitted: PyTree, deltas: Deltas) -> Array:
    """Which positions are kept."""
    return selection.reaches(selection.magnitude(_variance(deltas)), fitted) | (
      jnp.asarray(self.select_topk) >= 1
    )


keep_variance = KeepVariance


def _variance(deltas: Deltas) -> Array:
  """Of a population, `Σ (τᵢ - mean)² / K`, scaled so that tiny task vectors do not underflow."""
  largest = jnp.max(jnp.stack([jnp.max(jnp.where(jnp.isfinite(d), jnp.abs(d), 0.0)) for d in deltas]))
  _, power = jnp.frexp(jnp.where(largest == 0, 1.0, largest))
  scaled = tuple(jnp.ldexp(d, -power) for d in deltas)
  share = jnp.full(len(deltas), 1.0 / len(deltas), deltas[0].dtype)
  mean = weighted_sum(scaled, share)
  return weighted_sum(tuple((d - mean) ** 2 for d in scaled), share)


@pytree
class EnergyMean(Reducer):
  """Mean of the elements that agree with the elected sign, weighted by the energy of each model's tensor.

      cᵢ = mean(τᵢ²)     e = sign(Σ τᵢ), + for 0     τ = Σ [sign(τᵢ) = e] cᵢ τᵢ / Σ [sign(τᵢ) = e] cᵢ

  Attributes:
    select: positions that the energies are of, or None for all: the authors merge all positions.
    floor: energies whose sum is below it count as equal: 0, or mergekit's 1e-6.

  Weights are refused.
  """

  select: KeepVariance | None = None
  floor: float = dataclasses.field(default=0.0, metadata=STATIC)
  weightless = True

  def reduce(self, deltas: Deltas, weights: Array, surveyed: PyTree) -> Array:
    chosen = deltas
    if self.select is not None:
      chosen = self.select.apply(self.select.fit(deltas, (None,) * len(deltas), ()), deltas)
    energies = _energies(chosen, self.floor)
    total = sum(deltas[1:], deltas[0])
    elected = jnp.where(total >= 0, 1.0, -1.0)
    agreeing = tuple((d * elected > 0).astype(total.dtype) for d in deltas)
    top = sum((a * c * d for a, c, d in zip(agreeing, energies, deltas, strict=True)), jnp.zeros_like(total))
    scale = sum((a * c for a, c in zip(agreeing, energies, strict=True)), jnp.zeros_like(total))
    merged = top / jnp.where(scale == 0, 1.0, scale)
    return jnp.where(jnp.isfinite(total), merged, total)


def _energies(deltas: Deltas, floor: float) -> Array:
  """Shares `[K]` of the models in the energy of a tensor; equal ones where there is none."""
  clean = tuple(jnp.where(jnp.isfinite(d), d, 0.0) for d in deltas)
  largest = jnp.max(jnp.stack([jnp.max(jnp.abs(d)) for d in clean]))
  _, power = jnp.frexp(jnp.where(largest == 0, 1.0, largest))
  scaled = jnp.stack([jnp.mean(jnp.ldexp(d, -power) ** 2) for d in clean])
  whole = jnp.sum(scaled)
  none = (whole == 0) | (jnp.ldexp(whole, 2 * power) < floor)
  return jnp.where(none, 1.0 / len(deltas), scaled / jnp.where(whole == 0, 1.0, whole))


def sce(select_topk: ArrayLike = 1.0, *, masked: bool = False, floor: float = 0.0) -> TaskVector:
  """SCE: weights from the energy of what varies most between models, then a merge of what agrees in sign.

  Args:
    select_topk: fraction of the positions that is selected by variance; the authors use 0.1 and 1.
    masked: merge the selected positions alone (the paper's text, mergekit); off, the selection only
      makes the weights, and all positions are merged (the authors' code).
    floor: energies whose sum is below it count as equal; mergekit has 1e-6, which is most real
      fine-tunes.

  Weights are refused. With one model nothing varies: the masked form gives the base.
  Source: FuseChat: Knowledge Fusion of Chat Models (arXiv 2408.07990).

  >>> import merge_jax as mj
  >>> base = {"w": jnp.zeros(2)}
  >>> experts = [{"w": jnp.array([3.0, 1.0])}, {"w": jnp.array([1.0, -0.5])}]
  >>> mj.merge(mj.sce(), experts, base=base)["w"].round(3).tolist()
  [2.778..., 1.0]
  """
  select = KeepVariance(select_topk)
  return (
    TaskVector((select,), EnergyMean(None, floor)) if masked else TaskVector((), EnergyMean(select, floor))
  )
