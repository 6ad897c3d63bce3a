"""Lifts an operator from one tensor to whole models: `merge`, `prepare`, `combine`."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.errors import shown
from merge_jax.operators import layout, leafwise, naming, planning, surveying
from merge_jax.operators.core import Leaf, Operator, PyTree, Route, Surveyed, Weights
from merge_jax.operators.naming import AxesRules
from merge_jax.operators.planning import Entry, Plan, plan
from merge_jax.operators.pytrees import STATIC, has_one_per_model, pytree, require_one

BY_POSITION = (
  "are given by position, but inside a program models by name lose their order, since JAX sorts dicts; give "
  "them by name, too, or the models as a list with names=."
)


@pytree
class Prepared:
  """A pool ready to be combined, its sources by reference; an ordinary argument of a jitted function."""

  operator: Operator | Route
  leaves: dict[str, Leaf]
  prepared: dict[str, PyTree]
  plan: Plan = dataclasses.field(metadata=STATIC)
  treedef: Any = dataclasses.field(metadata=STATIC)
  names: tuple[int | str, ...] = dataclasses.field(metadata=STATIC)
  """Of the models, or their positions."""
  ordered: bool = dataclasses.field(metadata=STATIC)
  """Whether they are in the order that they were given in, so that numbers by position are theirs."""

  @property
  def count(self) -> int:
    """Number of models."""
    return len(self.leaves[self.plan.entries[0].name].experts)

  @property
  def wide(self) -> bool:
    """Whether some tensor is computed in float64."""
    return any(x.dtype == jnp.float64 for x in jax.tree.leaves(self.leaves))

  def slices(self) -> Iterator[tuple[str, Leaf]]:
    """The tensors that are merged, by the names that they have one by one: slices where leaves are stacks."""
    for entry in self.plan.entries:
      leaf, stack = self.leaves[entry.name], entry.axes.stack
      for i, name in enumerate(entry.slices if entry.merged else ()):
        yield name, leaf if stack is None else _slice(leaf._replace(keys=None), np.int32(i), stack)


@functools.partial(jax.jit, static_argnums=2)
def _slice(leaf: Leaf, index: Array, stack: int) -> Leaf:
  def take(x: Array, axis: int) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, axis, keepdims=False)

  measured = jax.tree.map(lambda x: take(x, 0), leaf.statistics)  # stacked in front
  cut = jax.tree.map(lambda x: take(x, stack), leaf._replace(statistics=None))
  return cut._replace(statistics=measured)


WeightsLike = ArrayLike | Sequence[ArrayLike] | Mapping[str, ArrayLike] | Weights | None


def prepare(
  operator: Operator | Route,
  experts: Sequence[PyTree] | Mapping[str, PyTree],
  *,
  base: PyTree | None = None,
  key: Array | None = None,
  statistics: Sequence[Mapping[str, PyTree]] | Mapping[str, Mapping[str, PyTree]] | None = None,
  axes: AxesRules = (),
  names: Iterable[str] | None = None,
) -> Prepared:
  """Does once what does not depend on the weights, for many `combine`s of one pool.

  Sources are kept by reference, numpy arrays too where their memory is aligned: leave them unchanged.

  Args:
    operator: the merge rule.
    experts: K parameter trees with the same names and shapes, as a sequence, or by model name
      (then random masks do not depend on the order of the models). JAX sorts dicts that are arguments of
      a program, so there weights and other numbers of each model must be by name, too.
    base: the tree that task vectors are taken from, for operators that need one.
    key: seed of random operators; one key per (model, tensor) is derived from it.
    statistics: for each expert what was measured of it, by tensor name; in order, or by model name.
    axes: rules for leaves that are not `[out, in]`, or stacked; see `Axes`.
    names: for a sequence of experts: a name for each, as a mapping has them.

  Returns:
    A pytree to pass to `combine`, also through `jit`.

  Raises:
    ValueError: models that differ in names, shapes or kind of dtype; complex tensors, and float64
      ones without `jax_enable_x64`; a base, key, statistics or number of models that the operator
      needs and does not get; a base that it does not use (what else it does not use is not looked at).

  >>> import merge_jax as mj
  >>> prepared = mj.prepare(mj.task_arithmetic(), [{"w": jnp.array([1.0, 2.0])}], base={"w": jnp.ones(2)})
  >>> [mj.combine(prepared, [weight])["w"].tolist() for weight in (1.0, 0.5)]
  [[1.0, 2.0], [1.0, 1.5]]
  """
  ids, leaves, treedef = planning.match(experts, base, statistics, names)
  ordered = planning.in_order(experts)
  if not ordered and isinstance(statistics, Sequence):
    raise ValueError(f"Statistics {BY_POSITION}")
  planned = plan(operator, {name: leaf.experts[0] for name, leaf in leaves.items()}, axes)
  label, parts = type(operator).__name__, operator.parts
  needs_base = any(part.needs_base for part in parts)
  if needs_base and base is None:
    raise ValueError(f"{label} works on differences to a base: pass base=.")
  if base is not None and not needs_base:
    raise ValueError(f"{label} does not use a base: leave base= out, or list it among the experts.")
  if key is None and any(part.needs_key for part in parts):
    raise ValueError(f"{label} is random: pass key=jax.random.key(seed).")
  if key is not None:
    naming.require_key(key)
    key = planning.beside(key, leaves.values())
  for part in parts:
    require_one(part, len(ids))
    if not ordered and has_one_per_model(part):
      raise ValueError(f"Numbers of each model of {type(part).__name__} {BY_POSITION}")
  for entry in planned.entries:
    leaves[entry.name] = _input(parts[entry.part], entry, leaves[entry.name], ids, key)
  prepared = {}
  for index, part in enumerate(parts):
    entries = planned.of(index)
    for entry, surveyed in zip(entries, _surveys(part, entries, leaves), strict=True):
      prepared[entry.name] = leafwise.prepare(part, leaves[entry.name], surveyed, entry.axes)
  return Prepared(operator, leaves, prepared, planned, treedef, tuple(ids), ordered)


def _input(part: Operator, entry: Entry, leaf: Leaf, models: Sequence[int | str], key: Array | None) -> Leaf:
  """A tensor as its rule gets it: without a base that is not used, on devices, with its random keys."""
  if part.models not in (None, len(models)):
    raise ValueError(f"{type(part).__name__} merges {part.models} models, got {len(models)}.")
  leaf = leaf._replace(base=leaf.base if part.needs_base else None)
  if not entry.merged:
    planning.require_equal(entry.name, leaf)
    return leaf
  # 64-byte aligned host memory is used in place, not copied
  leaf = layout.alike(jax.tree.map(lambda x: x if isinstance(x, Array) else jax.device_put(x), leaf))
  measured, count = jax.tree.leaves(leaf.statistics), len(entry.slices)
  if entry.axes.stack is not None and any(np.shape(x)[:1] != (count,) for x in measured):
    where = f"Statistics of tensor {entry.name!r}"
    raise ValueError(f"{where}: expected those of its {count} layers, stacked in front.")
  planning.require_together(entry.name, leaf)
  if key is None or not part.needs_key:
    return leaf
  keys = [[naming.key_of(key, model, one) for one in entry.slices] for model in models]
  return leaf._replace(keys=tuple(_per_slice(entry, of_model) for of_model in keys))


def _surveys(part: Operator, entries: Sequence[Entry], leaves: Mapping[str, Leaf]) -> list[Surveyed]:
  """The results of all surveys of one of an operator's parts, for each of its tensors."""
  chosen, axes = [leaves[entry.name] for entry in entries], [entry.axes for entry in entries]
  size = sum(math.prod(entry.shape) for entry in entries)
  whole: list[PyTree] = []
  surveyed: list[Surveyed] = [()] * len(entries)
  for ready in range(1 + sum(one.whole for one in part.survey()) if entries else 0):
    if ready:
      whole.append(surveying.survey(part, chosen, axes, surveyed, size))
    rows = zip(chosen, axes, surveyed, strict=True)
    surveyed = [surveying.extend(part, leaf, one, have, whole) for leaf, one, have in rows]
  return surveyed


def _per_slice(entry: Entry, values: Sequence[Any]) -> Any:
  """What belongs to the slices of a stacked leaf, stacked; or to the leaf itself."""
  return values[0] if entry.axes.stack is None else jnp.stack(values)


def _by_name(prepared: Prepared, weights: Any) -> Weights:
  """The weights with a pattern for every row, as arrays and valid for the operators that use them."""
  if prepared.operator.weightless:
    raise ValueError(f"{type(prepared.operator).__name__} takes no weights; use linear() for a weighted one.")
  given = isinstance(weights, Weights)
  if isinstance(weights, Mapping):
    weights = by_position(weights, prepared.names)
  elif not prepared.ordered:
    raise ValueError(f"Weights {BY_POSITION}")
  values = planning.beside(_numbers(weights.values if given else weights), prepared.leaves.values())
  if values.ndim != (2 if given else 1) or values.shape[-1] != prepared.count:
    raise ValueError(f"Weights of shape {values.shape} do not fit {prepared.count} models.")
  result = Weights(values, weights.patterns) if given else Weights(values[None], ("(?s:.*)",))
  if not isinstance(values, jax.core.Tracer):
    _require_usable(prepared, result, np.asarray(values))
  return result


def _require_usable(prepared: Prepared, weights: Weights, concrete: np.ndarray) -> None:
  """Raises ValueError for weights that are not finite, or sum to 0 where a rule divides by their sum.

  `concrete` are their values: inside a program what JAX computes, rows of them for example, is traced.
  """
  if not prepared.wide:
    with np.errstate(over="ignore"):
      concrete = concrete.astype(np.float32)  # what it is computed with
  if not np.all(np.isfinite(concrete)):
    raise ValueError(f"The weights are {shown(concrete.tolist())}; expected finite numbers.")
  merged = (entry for entry in prepared.plan.entries if entry.merged)
  used = {(entry.part, weights.index(one)) for entry in merged for one in entry.slices}
  for index, row in used:
    part, numbers = prepared.operator.parts[index], concrete.reshape(-1, prepared.count)[row]
    least = np.finfo(numbers.dtype).tiny  # less is flushed, also a reciprocal, by which programs may multiply
    numbers = np.where(np.abs(numbers) < least, 0, numbers)
    with np.errstate(over="ignore"):
      total = numbers.sum(dtype=numbers.dtype)
    if part.normalize and not max(least, 1e-8 * np.abs(numbers).max()) < abs(total) < 1 / least:
      raise ValueError(
        f"The weights of {type(part).__name__} sum to {total:g}, by which it divides; pass others."
      )


def by_position(weights: Mapping[Any, ArrayLike], names: Sequence[int | str]) -> list[ArrayLike]:
  """Weights by model in the models' order; ValueError if they are not of these models."""
  for one in (*weights, *names):
    if one not in names or one not in weights:
      raise ValueError(
        f"The weights are of {list(weights)}, the models are {list(names)}; give each model one."
      )
  return [weights[one] for one in names]


def _numbers(weights: Any) -> Array:
  try:
    if any(map(np.iscomplexobj, jax.tree.leaves(weights))):
      raise TypeError  # of arrays JAX would drop the imaginary part
    return jnp.asarray(weights, float)
  except (TypeError, ValueError):
    raise ValueError(
      f"The weights are {shown(weights)}; expected a number for each model, in order."
    ) from None


def combine(prepared: Prepared, weights: WeightsLike = None, *, dtype: Any = None) -> PyTree:
  """Merges a prepared pool with these weights; all numbers may be traced.

  Args:
    prepared: what `prepare` returned.
    weights: `[K]`, one for each model by its name, or `Weights` by tensor name; None takes the operator's
      default.
    dtype: of the merged floating tensors; None keeps that of the first expert. Gradients of parameters have
      it, too: float32 keeps those that float16 or float8 would lose.

  Returns:
    A tree like the first expert, computed in float32 (float64 where an input is) and rounded once.
    Integer and boolean leaves are copies of the first expert's, on the host where that is a numpy
    array: of any width, but under `jit` what `jit` makes of them.

  Raises:
    ValueError: weights that do not fit the models, are not finite, or sum to 0 where the operator
      divides by their sum; a dtype that is not floating.

  >>> import merge_jax as mj
  >>> prepared = mj.prepare(mj.linear(), [{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 6.0])}])
  >>> jax.grad(lambda weights: mj.combine(prepared, weights)["w"].sum())(jnp.array([0.5, 0.5])).tolist()
  [-3.0, 3.0]
  """
  if dtype is not None:
    planning.require_floating(dtype)
  by_name = None if weights is None else _by_name(prepared, weights)
  rows = () if by_name is None else tuple(by_name.values)
  merged = []
  for entry in prepared.plan.entries:
    leaf, part = prepared.leaves[entry.name], prepared.operator.parts[entry.part]
    first = leaf.experts[0]
    to = first.dtype if dtype is None or not jnp.issubdtype(first.dtype, jnp.floating) else jnp.dtype(dtype)
    if not entry.merged:  # a copy: a caller may donate the result; on the host 64-bit integers are whole
      merged.append(jnp.array(first, to) if isinstance(first, Array) else np.array(first, to))
      continue
    if by_name is None:
      chosen = [part.default_weights(prepared.count)] * len(entry.slices)
    else:
      chosen = [rows[by_name.index(one)] for one in entry.slices]
    found = prepared.prepared[entry.name]
    merged.append(leafwise.combine(part, leaf, found, _per_slice(entry, chosen), entry.axes, to))
  return jax.tree.unflatten(prepared.treedef, merged)


def merge(
  operator: Operator | Route,
  experts: Sequence[PyTree] | Mapping[str, PyTree],
  weights: WeightsLike = None,
  *,
  base: PyTree | None = None,
  key: Array | None = None,
  statistics: Sequence[Mapping[str, PyTree]] | Mapping[str, Mapping[str, PyTree]] | None = None,
  axes: AxesRules = (),
  names: Iterable[str] | None = None,
  dtype: Any = None,
) -> PyTree:
  """Merges parameter trees: `combine(prepare(...), weights)`.

  Args and errors are those of `prepare` and `combine`. Works eagerly and under `jit`, on any mesh:
  shardings follow the inputs.
  Subnormal numbers are flushed to 0 by the arithmetic of CPUs; tensors that are only carried over
  keep every bit. NaN and infinity in an input are NaN or infinity in the result, and where a number of the
  operator is NaN in a program, all that it merges is.

  >>> import merge_jax as mj
  >>> experts = [{"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 6.0])}]
  >>> mj.merge(mj.linear(), experts, [0.75, 0.25])["w"].tolist()
  [1.5, 3.0]
  """
  prepared = prepare(operator, experts, base=base, key=key, statistics=statistics, axes=axes, names=names)
  return combine(prepared, weights, dtype=dtype)
