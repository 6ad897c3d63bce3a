"""Lifts an operator from one tensor to whole models: `merge`, `prepare`, `combine`.

Each tensor is merged by a jitted function of its own, so that an eager merge compiles once for
each shape and holds one tensor in float32 at a time; under an outer `jit` they become one program.
Shardings follow the inputs.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import matching, naming
from merge_jax.operators.core import STATIC, Leaf, Operator, PyTree, Route, Survey, Weights
from merge_jax.operators.naming import Axes, AxesRules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
  """A pool ready to be combined, an ordinary argument of a jitted function.

  The sources are kept by reference; `small` is what `Operator.prepare` found for each tensor.
  """

  operator: Operator | Route
  leaves: dict[str, Leaf]
  small: dict[str, PyTree]
  treedef: Any = dataclasses.field(metadata=STATIC)
  names: tuple[str, ...] = dataclasses.field(metadata=STATIC)
  axes: AxesRules = dataclasses.field(metadata=STATIC)

  @property
  def count(self) -> int:
    """Number of models."""
    return len(self.leaves[self.names[0]].experts)


WeightsLike = ArrayLike | Sequence[ArrayLike] | Weights | None


def _array(value: Any) -> Array:
  """The value on a device; 64-byte aligned host memory is used in place, not copied."""
  return value if isinstance(value, Array) else jax.device_put(np.asarray(value))


def _merges(leaf: Leaf) -> bool:
  """Integer and boolean buffers are carried over, not merged."""
  return jnp.issubdtype(leaf.experts[0].dtype, jnp.inexact)


def _as_rows(leaf: Leaf, axes: Axes) -> Leaf:
  def view(x: Array) -> Array:
    return naming.as_matrix(x, axes)

  return leaf._replace(
    experts=tuple(map(view, leaf.experts)), base=None if leaf.base is None else view(leaf.base)
  )


def _over_stack(function: Any, axes: Axes, leaf: Leaf, *rest: PyTree) -> PyTree:
  """Applies `function(leaf, *rest)` to each slice of a stacked leaf; `rest` is stacked in front."""
  at = axes.stack
  if at is None:
    return function(leaf, *rest)
  in_axes = Leaf(at, None if leaf.base is None else at, 0, 0)  # type: ignore[arg-type]
  return jax.vmap(function, in_axes=(in_axes, *[0] * len(rest)))(leaf, *rest)


@functools.partial(jax.jit, static_argnames="axes")
def _prepare_leaf(operator: Operator, leaf: Leaf, surveyed: PyTree, axes: Axes) -> PyTree:
  def one(leaf: Leaf) -> PyTree:
    view = _as_rows(leaf, axes.unstacked()) if operator.by_rows else leaf
    return operator.prepare(view, surveyed)

  return _over_stack(one, axes, leaf)


@functools.partial(jax.jit, static_argnames=("axes", "dtype"))
def _combine_leaf(
  operator: Operator, leaf: Leaf, small: PyTree, weights: Array, axes: Axes, dtype: Any
) -> Array:
  def one(leaf: Leaf, small: PyTree, weights: Array) -> Array:
    shape, flat = leaf.experts[0].shape, axes.unstacked()
    if operator.by_rows:
      merged = operator.combine(_as_rows(leaf, flat), small, weights)
      merged = naming.from_matrix(merged, shape, flat)
    else:
      merged = operator.combine(leaf, small, weights)
    return merged.astype(dtype)

  stack = axes.stack
  if stack is None:
    return one(leaf, small, weights)
  return jnp.moveaxis(_over_stack(one, axes, leaf, small, weights), 0, stack)


@functools.partial(jax.jit, static_argnames="axes")
def _survey_all(
  survey: Survey, leaves: list[Leaf], surveyed: tuple[PyTree, ...], axes: tuple[Axes, ...]
) -> PyTree:
  def total(carry: PyTree) -> PyTree:
    sums = None
    for leaf, leaf_axes in zip(leaves, axes, strict=True):
      part = _over_stack(lambda one: survey.measure(carry, one, surveyed), leaf_axes, leaf)
      if leaf_axes.stack is not None:
        part = jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), part)
      sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
    return sums

  size = sum(leaf.experts[0].size for leaf in leaves)
  first = survey.init(size, len(leaves[0].experts))
  return jax.lax.while_loop(
    lambda carry: ~survey.done(carry), lambda carry: survey.update(carry, total(carry)), first
  )


def _survey_operators(
  operator: Operator | Route, leaves: Mapping[str, Leaf], axes: Mapping[str, Axes]
) -> dict[int, tuple[PyTree, ...]]:
  """Runs the surveys of every operator of a route over the tensors that are routed to it."""
  groups: dict[int, tuple[Operator, list[str]]] = {}
  for name, leaf in leaves.items():
    part = operator.route(name)
    if _merges(leaf):
      groups.setdefault(id(part), (part, []))[1].append(name)
  results: dict[int, tuple[PyTree, ...]] = {}
  for group, (part, names) in groups.items():
    surveyed: tuple[PyTree, ...] = ()
    for survey in part.survey():
      chosen = [leaves[name] for name in names]
      result = _survey_all(survey, chosen, surveyed, tuple(axes[name] for name in names))
      surveyed = (*surveyed, result)
    results[group] = surveyed
  return results


def prepare(
  operator: Operator | Route,
  experts: Sequence[PyTree] | Mapping[str, PyTree],
  *,
  base: PyTree | None = None,
  key: Array | None = None,
  statistics: Sequence[Mapping[str, PyTree]] | None = None,
  axes: AxesRules = (),
) -> Prepared:
  """Does once what does not depend on the weights, for many `combine`s of one pool.

  Args:
    operator: the merge rule.
    experts: K parameter trees with the same names and shapes, as a sequence, or by model name
      (then random masks do not depend on the order of the models).
    base: the tree that task vectors are taken from, for operators that need one.
    key: seed of random operators; one key per (model, tensor) is derived from it.
    statistics: for each expert what was measured of it, by tensor name.
    axes: rules for leaves that are not `[out, in]`, or stacked; see `Axes`.

  Returns:
    A pytree to pass to `combine`, also through `jit`.

  Raises:
    ValueError: models that differ in names or shapes; a base, key or number of models that the
      operator needs and does not get (or gets and does not use).
  """
  ids, flats, base_flat, treedef = matching.flatten_models(experts, base)
  label = type(operator).__name__
  if operator.needs_base and base is None:
    raise ValueError(f"{label} works on differences to a base: pass base=.")
  if base is not None and not operator.needs_base:
    raise ValueError(f"{label} does not use a base: leave base= out, or list it among the experts.")
  if operator.needs_key and key is None:
    raise ValueError(f"{label} is random: pass key=jax.random.key(seed).")
  names = tuple(flats[0])
  leaves: dict[str, Leaf] = {}
  all_axes: dict[str, Axes] = {}
  small: dict[str, PyTree] = {}
  for name in names:
    arrays = [_array(flat[name]) for flat in flats]
    leaf_axes, match = naming.axes_of(name, arrays[0].ndim, axes)
    keys = None
    part = operator.route(name)
    if part.models is not None and part.models != len(ids):
      raise ValueError(f"{type(part).__name__} merges {part.models} models, got {len(ids)}.")
    if part.needs_key and key is not None:
      slices = _slices(name, match, arrays[0].shape, leaf_axes)
      of_model = [[naming.key_of(key, model, one) for one in slices] for model in ids]
      keys = tuple(ks[0] if match is None else jnp.stack(ks) for ks in of_model)
    leaves[name] = Leaf(
      tuple(arrays),
      None if base_flat is None or not part.needs_base else _array(base_flat[name]),
      keys,
      None if statistics is None else tuple(one[name] for one in statistics),
    )
    all_axes[name] = leaf_axes
    if not _merges(leaves[name]):
      matching.require_equal(name, leaves[name])
  surveyed = _survey_operators(operator, leaves, all_axes)
  for name, leaf in leaves.items():
    part = operator.route(name)
    small[name] = _prepare_leaf(part, leaf, surveyed[id(part)], all_axes[name]) if _merges(leaf) else ()
  return Prepared(operator, leaves, small, treedef, names, tuple(axes))


def _slices(name: str, match: re.Match[str] | None, shape: tuple[int, ...], axes: Axes) -> list[str]:
  if match is None or axes.stack is None:
    return [name]
  return naming.slice_names(name, match, shape[axes.stack])


def _checked(
  operator: Operator | Route, count: int, weights: ArrayLike | Sequence[ArrayLike] | Weights
) -> Array | Weights:
  if operator.weightless:
    raise ValueError(f"{type(operator).__name__} takes no weights; use linear() for a weighted one.")
  result = weights if isinstance(weights, Weights) else jnp.asarray(weights, jnp.float32)
  values = result.values if isinstance(result, Weights) else result
  if values.shape[-1:] != (count,) or values.ndim != (2 if isinstance(result, Weights) else 1):
    raise ValueError(f"Weights of shape {values.shape} do not fit {count} models.")
  if not isinstance(values, jax.core.Tracer):
    operator.validate(values)
  return result


def _row(operator: Operator, count: int, weights: Array | Weights | None, name: str) -> Array:
  if weights is None:
    return operator.default_weights(count)
  return weights.row(name) if isinstance(weights, Weights) else weights


def combine(
  prepared: Prepared,
  weights: WeightsLike = None,
  *,
  dtype: Any = None,
) -> PyTree:
  """Merges a prepared pool with these weights; all numbers may be traced.

  Args:
    prepared: what `prepare` returned.
    weights: `[K]`, or `Weights` by name; None takes the operator's default.
    dtype: of the merged floating tensors; None keeps that of the first expert.

  Returns:
    A tree like the first expert, computed in float32 and rounded once. Integer and boolean leaves
    are the first expert's.
  """
  checked = None if weights is None else _checked(prepared.operator, prepared.count, weights)
  merged = []
  for name in prepared.names:
    leaf = prepared.leaves[name]
    first = leaf.experts[0]
    if not _merges(leaf):
      merged.append(first)
      continue
    leaf_axes, match = naming.axes_of(name, first.ndim, prepared.axes)
    part = prepared.operator.route(name)
    slices = _slices(name, match, first.shape, leaf_axes)
    rows = [_row(part, prepared.count, checked, one) for one in slices]
    row = rows[0] if leaf_axes.stack is None else jnp.stack(rows)
    to = jnp.dtype(first.dtype if dtype is None else dtype)
    merged.append(_combine_leaf(part, leaf, prepared.small[name], row, leaf_axes, to))
  return jax.tree.unflatten(prepared.treedef, merged)


def merge(
  operator: Operator | Route,
  experts: Sequence[PyTree] | Mapping[str, PyTree],
  weights: WeightsLike = None,
  *,
  base: PyTree | None = None,
  key: Array | None = None,
  statistics: Sequence[Mapping[str, PyTree]] | None = None,
  axes: AxesRules = (),
  dtype: Any = None,
) -> PyTree:
  """Merges parameter trees: `combine(prepare(...), weights)`.

  Args and errors are those of `prepare` and `combine`. Works eagerly and under `jit`, on any mesh.

  >>> import merge_jax as mj
  >>> experts = [{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 6.0])}]
  >>> mj.merge(mj.linear(), experts, [0.75, 0.25])["w"].tolist()
  [1.5, 3.0]
  """
  prepared = prepare(operator, experts, base=base, key=key, statistics=statistics, axes=axes)
  return combine(prepared, weights, dtype=dtype)
