"""PCB-Merging: task vectors compete, element by element, inside each model and between models."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import counting, selection
from merge_jax.operators.core import Leaf, Operator, PyTree, Ranked, Survey, Surveyed, Total
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import check_number, pytree
from merge_jax.operators.selection import Cut
from merge_jax.operators.sums import exponent, scaled


@pytree
class PCB(Operator):
  """Parameter competition balancing: a mean of task vectors by scores, of which few are above 0.

      aᵢ = |τᵢ| between its quantiles q and 1 - q        bᵢ = aᵢ from 0 to 1        τᵢ = θᵢ - θ₀
      sᵢ = exp(K bᵢ²) tanh(τᵢ Σⱼ τⱼ), raised to its quantile 1 - r, from 0 to 1
      θ = θ₀ + Σ wᵢ sᵢ sign(τᵢ) aᵢ / Σ sᵢ

  Attributes:
    density: r, the fraction of scores above 0; the authors use 0.05 … 0.1.
    q: fraction of magnitudes that is cut off at both ends; 1e-4 in the authors' merging script, 1e-2 in
      their experiments.

  Quantiles and ranges are of a whole model, of n elements: those at `⌊qn⌋` and `⌊(1 - q) n⌋ - 1` of the
  sorted magnitudes and at `⌊(1 - r) n⌋` of the sorted scores, from 0 on. Where a range is empty b or s
  is 0. Weights scale models and default to 1.2, the authors' choice without validation data. The base stays
  where no score is above 0; one model is not given back. The whole model is surveyed four times, scores
  after magnitudes. Derivatives take quantiles and ranges for constants.

  Raises:
    ValueError: a concrete density or q outside [0, 1], [0, 0.5].

  Source: Parameter Competition Balancing for Model Merging (arXiv 2410.02396).

  >>> import merge_jax as mj
  >>> models = [{"w": jnp.array([1.0, 2.0, 3.0, -4.0])}, {"w": jnp.array([1.0, -3.0, 1.0, 0.0])}]
  >>> mj.merge(pcb(0.5, q=0.0), models, [1.0, 1.0], base={"w": jnp.zeros(4)})["w"].tolist()
  [0.0, -3.0, 0.0, -4.0]
  """

  density: ArrayLike = 0.1
  q: ArrayLike = dataclasses.field(default=1e-4, kw_only=True)
  needs_base = True

  def __post_init__(self) -> None:
    check_number("density", self.density, 0.0, 1.0)
    check_number("q", self.q, 0.0, 0.5)

  def default_weights(self, count: int) -> np.ndarray:
    return np.full(count, 1.2)

  def survey(self) -> tuple[Survey, ...]:
    """The range of each model's magnitudes, then that of its scores: cuts, and what they leave open."""

    def scores(leaf: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
      return _scored(task_vectors(leaf)[1], _values(_magnitude, *surveyed[:2]))

    return (
      *_order(selection.magnitude, lambda leaf, _: task_vectors(leaf)[1], self._magnitudes),
      *_order(_encode, scores, self._scores),
    )

  def _magnitudes(self, size: Array) -> tuple[Array, Array]:
    """Ranks of the least and the largest, from the largest on; limbs."""
    low, high = (counting.minus(size, counting.fraction(size, x)) for x in (self.q, _rest(self.q)))
    return low, counting.carry(high + counting.limbs(1))

  def _scores(self, size: Array) -> tuple[Array, Array]:
    return counting.minus(size, counting.fraction(size, _rest(self.density))), counting.limbs(1)

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """For each model the range of its magnitudes, and that of its scores."""
    return _values(_magnitude, *surveyed[:2]), _values(_decode, *surveyed[2:])

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    base, deltas = task_vectors(leaf)
    magnitudes, ranges = prepared
    shares = []
    for score, (low, high) in zip(_scored(deltas, magnitudes), ranges, strict=True):
      above = _encode(score) > _encode(low) + _NEAR
      shares.append(jnp.where(above, _from_0_to_1(score, low, high), 0.0))
    whole, merged = sum(shares[1:], shares[0]), jnp.zeros_like(base)
    whole = jnp.where(whole == 0, 1.0, whole)
    for weight, share, delta, limits in zip(weights, shares, deltas, magnitudes, strict=True):
      merged = merged + weight * (share / whole) * jnp.sign(delta) * _clamped(delta, limits)
    total = sum(deltas[1:], deltas[0])
    return base + jnp.where(jnp.isfinite(total), merged, total)


pcb = PCB

Range = tuple[Array, Array]  # two float32 numbers
_NEAR = np.uint32(4)  # programs may round a score differently: what is 8 units above the least is the least


def _clamped(delta: Array, limits: Range) -> Array:
  low, high = (x.astype(delta.dtype) for x in limits)
  return jnp.clip(jnp.abs(delta), low, high)


def _from_0_to_1(x: Array, low: Array, high: Array) -> Array:
  low, high = low.astype(x.dtype), high.astype(x.dtype)
  return jnp.clip((x - low) / jnp.where(high == low, 1.0, high - low), 0.0, 1.0)


def _scored(deltas: tuple[Array, ...], magnitudes: Sequence[Range]) -> tuple[Array, ...]:
  """`exp(K bᵢ²) tanh(τᵢ Σⱼ τⱼ)`, times a constant: tiny products do not underflow, exp does not overflow."""
  largest = jnp.max(jnp.stack([high for _, high in magnitudes])).astype(deltas[0].dtype)
  power = jnp.clip(exponent(jnp.where(largest == 0, 1.0, largest)), -63, 0)
  (up,) = scaled([jnp.ones_like(largest)], power)
  total, scores = sum(deltas[1:], deltas[0]) * up, []
  for delta, limits in zip(deltas, magnitudes, strict=True):
    b = _from_0_to_1(_clamped(delta, limits), *limits)
    raised = delta * up * total
    product = raised / up / up
    tanh = jnp.where(jnp.abs(product) < 1e-4, raised, jnp.tanh(product) * (up * up))
    scores.append(jnp.exp(len(deltas) * (b * b - 1.0)) * tanh)
  return tuple(scores)


def _encode(x: Array) -> Array:
  """Keys below 2^31 that order like signed numbers, but for the last bit of float32; NaN is the least."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  ordered = jnp.where(bits >> 31 == 0, bits | selection.TOP, ~bits)
  return jnp.where(jnp.isnan(x), np.uint32(0), ordered >> 1)


def _decode(key: Array) -> Array:
  ordered = key << 1
  return _magnitude(jnp.where(ordered >> 31 == 0, ~ordered, ordered ^ selection.TOP))


def _magnitude(key: Array) -> Array:
  return jax.lax.bitcast_convert_type(key, jnp.float32)


def _rest(share: Any) -> Any:
  """1 - share, in float32."""
  return np.float32(1) - (share.astype(np.float32) if isinstance(share, Array) else np.float32(share))


def _order(
  key: Callable[[Array], Array],
  values: Callable[[Leaf, Surveyed], tuple[Array, ...]],
  ranks: Callable[[Array], Sequence[Array]],
) -> tuple[Ranked, Total]:
  """Surveys that find the keys at two ranks of each model.

  A cut only separates the k largest keys from the rest. Where that is all it does, one key lies between
  it and the cut above k - 1: their sum, over all tensors, is that key.
  """

  def keys(leaf: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
    return tuple(map(key, values(leaf, surveyed)))

  def both(size: Array, count: int, _: Surveyed) -> list[Array]:
    one = counting.limbs(1)
    found = []
    for k in ranks(size):
      k = counting.smaller(counting.larger(k, one), size)
      found += [k, counting.minus(k, counting.smaller(k, one))]
    return found * count

  def missed(leaf: Leaf, surveyed: Surveyed) -> list[Array]:
    """For each model and rank 1 + the keys between a cut and the one above, summed."""
    found, cuts = [], surveyed[-1]
    for x, *pairs in zip(map(key, values(leaf, surveyed)), *[iter(cuts)] * 4, strict=True):
      for cut, above in (pairs[:2], pairs[2:]):
        between = jnp.where((x >= cut.low) & (x < above.low), x + np.uint32(1), np.uint32(0))
        found.append(jnp.sum(between, dtype=jnp.uint32))
    return found

  return Ranked(keys, both, each=4), Total(missed)


def _values(decode: Callable[[Array], Array], cuts: Sequence[Cut], sums: Sequence[Array]) -> list[Range]:
  """The two numbers at the ranks of each model, from the results of `_order`."""
  keys = []
  for cut, above, total in zip(cuts[::2], cuts[1::2], sums, strict=True):
    between = jnp.clip(total - np.uint32(1), cut.low, above.low)  # 0: the key is the one above, too
    keys.append(
      decode(jnp.where(cut.high - cut.low <= 1, cut.low, jnp.where(total == 0, above.low, between)))
    )
  return list(zip(keys[::2], keys[1::2], strict=True))
