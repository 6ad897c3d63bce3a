"""Takes from another model what stands out: large differences in rows whose softmax differs."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.operators import counting, selection
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed
from merge_jax.operators.differences import task_vectors
from merge_jax.operators.pytrees import pytree


@pytree
class ArceeFusion(Operator):
  """The other model where it is important, the base elsewhere; weights are refused.

      I = |θ₁ - θ₀| KL(P ‖ Q)        P = softmax(θ₁) + 10⁻⁸, Q = softmax(θ₀) + 10⁻⁸, along rows of [out, in]
      θ = θ₁ where I ≥ median(I) + 1.5 (Q₃(I) - Q₁(I)), else θ₀

  Raises:
    ValueError: not exactly one model beside the base.

  Quantiles are of one tensor and exact, the sorted scores at `⌊q (n - 1)⌋` (mergekit draws a million of
  larger tensors). A vector is one row. Rows of one element have KL 0, so that all of the other model is
  taken.

  Source: mergekit's documentation (no paper).

  >>> import merge_jax as mj
  >>> ends = {"w": jnp.zeros(8)}, {"w": jnp.array([3.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1, 0.2])}
  >>> mj.merge(arcee_fusion(), [ends[1]], base=ends[0])["w"].tolist()
  [3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
  """

  models = 1
  needs_base = True
  weightless = True
  by_rows = True

  def prepare(self, leaf: Leaf, surveyed: Surveyed) -> PyTree:
    """The divergence of each row `[rows, 1]`, and the threshold of the scores."""
    base, (delta,) = task_vectors(leaf)
    divergence = _divergence(leaf.experts[0], base)
    scores = jnp.abs(delta) * divergence
    bits = selection.magnitude(scores)

    # The values at `⌊q (n - 1)⌋` in ascending order.
    ranks = [scores.size - math.floor(q * (scores.size - 1)) for q in (0.25, 0.5, 0.75)]
    thresholds = selection.kth([bits] * 3, [counting.limbs(k) for k in ranks]).low
    low, middle, high = (jnp.min(jnp.where(bits >= one, scores, jnp.inf)) for one in thresholds)
    return divergence, (1.0 - 1e-6) * (middle + 1.5 * (high - low))  # scores that equal it are so rounded

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    (other,), (base, (delta,)), (divergence, threshold) = leaf.experts, task_vectors(leaf), prepared
    chosen = jnp.where(jnp.abs(delta) * divergence >= threshold, other, base)
    return jnp.where(jnp.isfinite(delta), chosen, delta)


arcee_fusion = ArceeFusion


def _divergence(x: Array, base: Array) -> Array:
  """KL of each row `[rows, 1]`, exact for rows that hardly differ.

  With `r = P/Q - 1` it is `Σ Q ((1 + r) log(1 + r) - r)`, since P and Q have one sum; r comes from the
  differences of logits. The plain formula cancels where r is small.
  """
  delta = x - base
  least, most = (f(delta, axis=1, keepdims=True) for f in (jnp.min, jnp.max))
  near = delta - jnp.clip(0.0, least, most)  # what all logits gain changes nothing: alone it leaves exactly 0
  softmax = jax.nn.softmax(base, axis=1)
  rough = jnp.max(jnp.abs(near), axis=1, keepdims=True) > 1.0
  near = jnp.where(rough, 0.0, near)
  shift = jnp.log1p(jnp.sum(softmax * jnp.expm1(near), axis=1, keepdims=True))
  q = softmax + 1e-8
  r = softmax * jnp.expm1(near - shift) / q
  r = jnp.where(rough, (jax.nn.softmax(x, axis=1) + 1e-8) / q - 1.0, r)
  r = jnp.maximum(r, jnp.finfo(r.dtype).epsneg - 1.0)
  small = jnp.abs(r) < 1e-2
  series = r * r * (1 / 2 - r * (1 / 6 - r * (1 / 12 - r * (1 / 20 - r / 30))))
  return jnp.sum(q * jnp.where(small, series, (1.0 + r) * jnp.log1p(r) - r), axis=1, keepdims=True)
