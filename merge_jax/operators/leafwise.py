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

from merge_jax.operators import counting, naming, selection
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
def measure(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """What one leaf adds to the operator's next survey, a `Total`, after those in `surveyed`."""

  def measured(one: Leaf) -> PyTree:
    survey: Any = operator.survey()[len(surveyed)]
    return survey.measure(operator.observe(one, surveyed))

  part = _over_stack(measured, operator, axes, leaf)
  return part if axes.stack is None else jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), part)


def _keys(operator: Operator, leaf: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
  survey: Any = operator.survey()[len(surveyed)]
  return survey.keys(operator.observe(leaf, surveyed))


@functools.partial(jax.jit, static_argnames="axes")
def keys(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> tuple[Array, ...]:
  """The keys of the operator's next survey, a `Ranked`; stacked in front where the leaf is."""
  return _over_stack(lambda one: _keys(operator, one, surveyed), operator, axes, leaf)


@functools.partial(jax.jit, static_argnames=("axes", "every"))
def sample(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes, every: int) -> tuple[Array, ...]:
  """About one in `every` of these keys, flat."""

  def some(one: Leaf) -> tuple[Array, ...]:
    return tuple(selection.strided(x, every) for x in _keys(operator, one, surveyed))

  return tuple(x.reshape(-1) for x in _over_stack(some, operator, axes, leaf))


@functools.partial(jax.jit, static_argnames="axes")
def tally(
  operator: Operator, thresholds: tuple[Array, ...], leaf: Leaf, surveyed: Surveyed, axes: Axes
) -> tuple[Array, ...]:
  """How many of these keys reach each threshold `[4]`: limbs `[4, 3]` for each array of keys."""

  def count(one: Leaf) -> tuple[Array, ...]:
    return tuple(map(counting.tally, _keys(operator, one, surveyed), thresholds))

  counts = _over_stack(count, operator, axes, leaf)
  return counts if axes.stack is None else tuple(jnp.sum(x, axis=0, dtype=x.dtype) for x in counts)


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


@functools.partial(jax.jit, static_argnames=("axes", "dtype"))
def merge(
  operator: Operator, leaf: Leaf, surveyed: Surveyed, weights: Array, axes: Axes, dtype: Any
) -> Array:
  """`combine` of what `prepare` finds, as one program: for a leaf that is merged once."""
  return combine(operator, leaf, prepare(operator, leaf, surveyed, axes), weights, axes, dtype)
