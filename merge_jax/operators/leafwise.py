"""An operator on one leaf as it is stored: any float dtype, rows as `[out, in]`, a stack of slices.

Each function is jitted on its own, so that an eager merge, or a stream, compiles once for each shape
and holds one tensor in float32 at a time; under an outer `jit` they become one program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.operators import counting, naming, selection
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed
from merge_jax.operators.naming import Axes
from merge_jax.operators.selection import Cut


def _wide(operator: Operator, axes: Axes, leaf: Leaf) -> Leaf:
  """A leaf, or slice of one, as rules get it."""
  inputs = leaf.experts if leaf.base is None else (*leaf.experts, leaf.base)
  dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in inputs) else jnp.float32

  def view(x: Array) -> Array:
    x = x.astype(dtype)  # fused with what follows, not a pass of its own
    return naming.as_matrix(x, axes.unstacked()) if operator.by_rows else x

  base = None if leaf.base is None else view(leaf.base)
  return leaf._replace(experts=tuple(map(view, leaf.experts)), base=base)


def _over_stack(function: Callable, operator: Operator, axes: Axes, leaf: Leaf, *rest: PyTree) -> PyTree:
  """Applies `function(leaf, *rest)` to each slice as the operator wants it; `rest` is stacked in front."""

  def on_slice(leaf: Leaf, *rest: PyTree) -> PyTree:
    return function(_wide(operator, axes, leaf), *rest)

  if axes.stack is None:
    return on_slice(leaf, *rest)
  in_axes = Leaf(axes.stack, None if leaf.base is None else axes.stack, 0, 0)  # type: ignore[arg-type]
  return jax.vmap(on_slice, in_axes=(in_axes, *[0] * len(rest)))(leaf, *rest)


@functools.partial(jax.jit, static_argnames="axes")
def measure(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """What one leaf adds to the operator's next survey, a `Total`, after those in `surveyed`."""

  def measured(one: Leaf, surveyed: Surveyed) -> PyTree:
    survey: Any = operator.survey()[len(surveyed)]
    return survey.measure(operator.observe(one, surveyed))

  part = _over_stack(measured, operator, axes, leaf, surveyed)
  return part if axes.stack is None else jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), part)


def _keys(operator: Operator, leaf: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
  survey: Any = operator.survey()[len(surveyed)]
  return survey.keys(operator.observe(leaf, surveyed))


@functools.partial(jax.jit, static_argnames="axes")
def keys(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> tuple[Array, ...]:
  """The keys of the operator's next survey, a `Ranked`; stacked in front where the leaf is."""
  return _over_stack(functools.partial(_keys, operator), operator, axes, leaf, surveyed)


@functools.partial(jax.jit, static_argnames=("index", "count"))
def ranks(operator: Operator, index: int, size: Array, count: int) -> Sequence[Array]:
  """The ranks that one of the operator's surveys, a `Ranked`, asks for."""
  survey: Any = operator.survey()[index]
  return survey.ranks(size, count)


@functools.partial(jax.jit, static_argnames=("axes", "every"))
def sample(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes, every: int) -> tuple[Array, ...]:
  """About one in `every` of these keys, flat."""

  def some(one: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
    return tuple(selection.strided(x, every) for x in _keys(operator, one, surveyed))

  return tuple(x.reshape(-1) for x in _over_stack(some, operator, axes, leaf, surveyed))


@functools.partial(jax.jit, static_argnames="axes")
def tally(operator: Operator, thresholds: Array, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> Array:
  """How many of S arrays of these keys reach each of their thresholds `[S, 4]`: limbs `[S, 4, 3]`."""

  def count(one: Leaf, surveyed: Surveyed) -> Array:
    pairs = zip(_keys(operator, one, surveyed), thresholds, strict=True)
    return jnp.stack([counting.tally(*pair) for pair in pairs])

  counts = _over_stack(count, operator, axes, leaf, surveyed)
  return counts if axes.stack is None else jnp.sum(counts, axis=0, dtype=counts.dtype)


@functools.partial(jax.jit, static_argnames="axes")
def ties(
  operator: Operator, cuts: Sequence[Cut], leaf: Leaf, surveyed: Surveyed, axes: Axes
) -> tuple[Array, ...]:
  """For each array of these keys `selection.ties` along the first axis whose `last` is not known."""
  pairs = zip(_keys(operator, _wide(operator, axes, leaf), surveyed), cuts, strict=True)
  return tuple(selection.ties(x, cut) for x, cut in pairs)


@functools.partial(jax.jit, static_argnames="axes")
def cuts(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> Sequence[Cut]:
  """The result of the operator's next survey, a `Ranked` of one tensor, in one program."""

  def found(one: Leaf, surveyed: Surveyed) -> Sequence[Cut]:
    survey: Any = operator.survey()[len(surveyed)]
    bits = _keys(operator, one, surveyed)
    ranks = survey.ranks(counting.limbs(bits[0].size), len(one.experts))
    if survey.exact:
      return selection.largest(bits, ranks)
    states = selection.kth(bits, ranks)
    return [Cut(low, high) for low, high in zip(states.low, states.high, strict=True)]

  return _over_stack(found, operator, axes, leaf, surveyed)


@functools.partial(jax.jit, static_argnames="axes")
def prepare(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """`Operator.prepare` for one leaf, stacked in front where the leaf is."""
  return _over_stack(operator.prepare, operator, axes, leaf, surveyed)


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
