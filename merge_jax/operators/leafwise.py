"""An operator on one leaf as it is stored: any float dtype, rows as `[out, in]`, a stack of slices.

Each function is jitted on its own, so that an eager merge, or a stream, compiles once for each shape
and holds one tensor in float32 at a time; under an outer `jit` they become one program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.operators import naming
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed
from merge_jax.operators.naming import Axes


def _over_stack(function: Callable, operator: Operator, axes: Axes, leaf: Leaf, *rest: PyTree) -> PyTree:
  """Applies `function(leaf, *rest)` to each slice as the operator wants it; `rest` is stacked in front."""
  inputs = leaf.experts if leaf.base is None else (*leaf.experts, leaf.base)
  dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in inputs) else jnp.float32

  def view(x: Array) -> Array:
    x = x.astype(dtype)  # fused with what follows, not a pass of its own
    return naming.as_matrix(x, axes.unstacked()) if operator.by_rows else x

  def on_slice(leaf: Leaf, *rest: PyTree) -> PyTree:
    base = None if leaf.base is None else view(leaf.base)
    return function(leaf._replace(experts=tuple(map(view, leaf.experts)), base=base), *rest)

  if axes.stack is None:
    return on_slice(leaf, *rest)
  in_axes = Leaf(axes.stack, None if leaf.base is None else axes.stack, 0, 0)  # type: ignore[arg-type]
  return jax.vmap(on_slice, in_axes=(in_axes, *[0] * len(rest)))(leaf, *rest)


@functools.partial(jax.jit, static_argnames="axes")
def measure(operator: Operator, carry: PyTree, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """What one leaf adds to the total of the operator's next survey, after those in `surveyed`."""
  survey = operator.survey()[len(surveyed)]
  part = _over_stack(lambda one: survey.measure(carry, operator.observe(one, surveyed)), operator, axes, leaf)
  return part if axes.stack is None else jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), part)


@functools.partial(jax.jit, static_argnames="axes")
def prepare(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """`Operator.prepare` for one leaf, stacked in front where the leaf is."""
  return _over_stack(lambda one: operator.prepare(one, surveyed), operator, axes, leaf)


@functools.partial(jax.jit, static_argnames=("axes", "dtype"))
def combine(
  operator: Operator, leaf: Leaf, prepared: PyTree, weights: Array, axes: Axes, dtype: Any
) -> Array:
  """`Operator.combine` for one leaf, rounded once to `dtype`; weights `[K]`, or `[L, K]` for a stack."""
  shape = [size for axis, size in enumerate(leaf.experts[0].shape) if axis != axes.stack]

  def one(leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    merged = operator.combine(leaf, prepared, weights.astype(leaf.experts[0].dtype))
    if operator.by_rows:
      merged = naming.from_matrix(merged, tuple(shape), axes.unstacked())
    return merged.astype(dtype)

  merged = _over_stack(one, operator, axes, leaf, prepared, weights)
  return merged if axes.stack is None else jnp.moveaxis(merged, 0, axes.stack)
