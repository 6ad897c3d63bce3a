"""An operator on one leaf as it is stored: any float dtype, rows as `[out, in]`, a stack of slices.

Each function is jitted on its own, so that an eager merge, or a stream, compiles once for each shape
and holds one tensor in float32 at a time; under an outer `jit` they become one program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import counting, layout, naming, selection
from merge_jax.operators.core import Leaf, Operator, PyTree, Ranks, Surveyed, Total
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


def _over_stack(
  function: Callable, shared: tuple[Any, ...], axes: Axes, leaf: Leaf, *rest: PyTree, alike: bool = False
) -> PyTree:
  """Applies `function(*shared, leaf, *rest)` to each slice as the operator, the first of `shared`, wants it.

  `rest` is stacked in front, and so are the results; where they are `alike`, they are laid out as the leaf.
  """

  def on_slice(shared: tuple[Any, ...], leaf: Leaf, *rest: PyTree) -> PyTree:
    return function(*shared, _wide(shared[0], axes, leaf), *rest)

  if axes.stack is None:
    return on_slice(shared, leaf, *rest)
  in_axes: Any = Leaf(axes.stack, None if leaf.base is None else axes.stack, 0, 0)  # type: ignore[arg-type]
  mapped = jax.vmap(on_slice, in_axes=(None, in_axes, *[0] * len(rest)))
  return layout.over_shards(mapped, leaf.experts[0], axes.stack, alike)(shared, leaf, *rest)


def _next(operator: Operator, surveyed: Surveyed) -> Any:
  return operator.survey()[len(surveyed)]


@functools.partial(jax.jit, static_argnames="axes")
def measure(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """What one leaf adds to the operator's next survey, a `Total`, after those in `surveyed`."""

  def measured(operator: Operator, one: Leaf, surveyed: Surveyed) -> PyTree:
    return _next(operator, surveyed).measure(one, surveyed)

  part = _over_stack(measured, (operator,), axes, leaf, surveyed)
  if axes.stack is None:
    return part
  if _next(operator, surveyed).kind == "largest":
    return jax.tree.map(lambda x: jnp.max(x, axis=0), part)
  return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), part)


def finish(operator: Operator, index: int, total: PyTree, size: int) -> PyTree:
  """The result of one of the operator's surveys, a `Total`, from the sum of what its leaves add."""
  survey: Any = operator.survey()[index]
  return total if survey.finish is None else survey.finish(total, np.float32(size))


@functools.partial(jax.jit, static_argnames="axes")
def keys(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> tuple[Array, ...]:
  """The keys of the operator's next survey, a `Ranked`; stacked in front where the leaf is."""

  def of_leaf(operator: Operator, leaf: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
    return _next(operator, surveyed).keys(leaf, surveyed)

  return _over_stack(of_leaf, (operator,), axes, leaf, surveyed)


def _keys(operator: Operator, leaf: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
  """An array of keys for every rank."""
  survey = _next(operator, surveyed)
  return tuple(x for x in survey.keys(leaf, surveyed) for _ in range(survey.each))


def ranks(operator: Operator, size: np.ndarray, count: int, surveyed: Surveyed) -> Sequence[Any]:
  """The ranks that the operator's next survey, a `Ranked`, asks for."""
  survey = _next(operator, surveyed)
  return survey.ranks(size, count, (None,) * len(surveyed) if survey.whole else surveyed)


@functools.partial(jax.jit, static_argnames=("axes", "every"))
def sample(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes, every: int) -> tuple[Array, ...]:
  """About one in `every` of these keys, flat."""

  def some(operator: Operator, one: Leaf, surveyed: Surveyed) -> tuple[Array, ...]:
    return tuple(selection.samples(_keys(operator, one, surveyed), every))

  return tuple(layout.whole(x).reshape(-1) for x in _over_stack(some, (operator,), axes, leaf, surveyed))


@functools.partial(jax.jit, static_argnames="axes")
def tally(operator: Operator, thresholds: Array, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> Array:
  """How many of S arrays of these keys reach each of their thresholds `[S, 4]`: limbs `[S, 4, 3]`."""

  def count(operator: Operator, thresholds: Array, one: Leaf, surveyed: Surveyed) -> Array:
    pairs = zip(_keys(operator, one, surveyed), thresholds, strict=True)
    return jnp.stack([counting.tally(*pair) for pair in pairs])

  counts = _over_stack(count, (operator, thresholds), axes, leaf, surveyed)
  return counts if axes.stack is None else jnp.sum(counts, axis=0, dtype=counts.dtype)


@functools.partial(jax.jit, static_argnames="axes")
def ties(
  operator: Operator, cuts: Sequence[Cut], leaf: Leaf, surveyed: Surveyed, axes: Axes
) -> tuple[Array, ...]:
  """For each array of these keys `selection.ties` along the first axis whose `last` is not known."""
  pairs = zip(_keys(operator, _wide(operator, axes, leaf), surveyed), cuts, strict=True)
  return tuple(selection.ties(x, cut) for x, cut in pairs)


@functools.partial(jax.jit, static_argnames="axes")
def survey_alone(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """The result of the operator's next survey, of one tensor, in one program."""
  return _over_stack(_survey, (operator,), axes, leaf, surveyed)


def _survey(operator: Operator, leaf: Leaf, surveyed: Surveyed) -> PyTree:
  survey, size = _next(operator, surveyed), leaf.experts[0].size
  if isinstance(survey, Ranks):
    return None
  if isinstance(survey, Total):
    total = survey.measure(leaf, surveyed)
    return total if survey.finish is None else survey.finish(total, jnp.float32(size))
  bits = _keys(operator, leaf, surveyed)
  ranks = survey.ranks(counting.limbs(size), len(leaf.experts), surveyed)
  if survey.exact:
    return selection.largest(bits, ranks)
  states = selection.kth(bits, ranks)
  return [Cut(low, high) for low, high in zip(states.low, states.high, strict=True)]


def prepare_alone(operator: Operator, leaf: Leaf) -> PyTree:
  """`Operator.prepare` of a leaf as rules get it, whose surveys are all of one tensor."""
  surveyed: Surveyed = ()
  for _ in operator.survey():
    surveyed = (*surveyed, _survey(operator, leaf, surveyed))
  return operator.prepare(leaf, surveyed)


@functools.partial(jax.jit, static_argnames="axes", keep_unused=True)  # tensors say which devices
def prepare(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """`Operator.prepare` for one leaf, stacked in front where the leaf is."""
  return _over_stack(type(operator).prepare, (operator,), axes, leaf, surveyed)


@functools.partial(jax.jit, static_argnames=("axes", "dtype"))
def combine(
  operator: Operator, leaf: Leaf, prepared: PyTree, weights: Array, axes: Axes, dtype: Any
) -> Array:
  """`Operator.combine` for one leaf, rounded once to `dtype`; weights `[K]`, or `[L, K]` for a stack.

  Raises:
    ValueError: the operator gives another shape than the tensor's.
  """
  shape = [size for axis, size in enumerate(leaf.experts[0].shape) if axis != axes.stack]

  def one(operator: Operator, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    first = leaf.experts[0]
    merged = operator.combine(leaf, prepared, weights.astype(first.dtype))
    if jnp.shape(merged) != first.shape:
      raise ValueError(
        f"{type(operator).__name__}: combine gave an array of shape {jnp.shape(merged)}; expected "
        f"{first.shape}, the tensor's."
      )
    merged = _poisoned(operator, merged)
    if operator.by_rows:
      merged = naming.from_matrix(merged, tuple(shape), axes.unstacked())
    return merged.astype(dtype)

  merged = _over_stack(one, (operator,), axes, leaf, prepared, weights, alike=True)
  merged = merged if axes.stack is None else jnp.moveaxis(merged, 0, axes.stack)
  return layout.as_sharded(merged, leaf.experts[0])


def _poisoned(operator: Operator, merged: Array) -> Array:
  """NaN where a number of the operator is: a program cannot refuse it, and counts and masks swallow it."""
  numbers = [jnp.any(jnp.isnan(x)) for x in jax.tree.leaves(operator)]
  return jnp.where(jnp.any(jnp.stack(numbers)), jnp.nan, merged) if numbers else merged


@functools.partial(jax.jit, static_argnames=("axes", "dtype"))
def merge(
  operator: Operator, leaf: Leaf, surveyed: Surveyed, weights: Array, axes: Axes, dtype: Any
) -> Array:
  """`combine` of what `prepare` finds, as one program: for a leaf that is merged once."""
  return combine(operator, leaf, prepare(operator, leaf, surveyed, axes), weights, axes, dtype)
