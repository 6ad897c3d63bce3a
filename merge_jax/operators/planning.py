"""What is settled before any work, from names, shapes and dtypes: which models match, who merges what.

Merges in memory and pools that are searched start from a `Plan`; recipes, which restack layers and rename
tensors, settle the same in `recipes/build.py`.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.errors import shown, unknown
from merge_jax.operators import naming
from merge_jax.operators.core import Leaf, Operator, PyTree, Route
from merge_jax.operators.naming import Axes, AxesRules
from merge_jax.operators.pytrees import same


def merges(dtype: Any, where: str) -> bool:
  """Whether tensors of a dtype merge: floating ones do, all others are carried over.

  Raises:
    ValueError: complex numbers, and floating ones wider than JAX computes with here.

  >>> merges(jnp.dtype("bfloat16"), "w"), merges(jnp.dtype("int8"), "w")
  (True, False)
  """
  if jnp.issubdtype(dtype, jnp.complexfloating):
    raise ValueError(f"{where} is {dtype}; complex tensors do not merge: pass real and imaginary parts.")
  floating = jnp.issubdtype(dtype, jnp.floating)
  if floating and dtype.itemsize > (8 if jax.config.read("jax_enable_x64") else 4):
    wider = ", or set JAX_ENABLE_X64=1" if dtype.itemsize == 8 else ""
    raise ValueError(f"{where} is {dtype}, which JAX would narrow: cast it{wider}.")
  return floating


def require_floating(dtype: Any) -> None:
  """Raises ValueError for what is no floating dtype."""
  try:
    known = jnp.dtype(dtype)
  except TypeError:
    raise ValueError(f"dtype is {shown(dtype)}; expected a floating one, for example 'bfloat16'.") from None
  if not merges(known, "dtype"):
    raise ValueError(f"dtype is {known}; expected a floating one.")


class Entry(NamedTuple):
  """What happens to one tensor.

  Attributes:
    name: its canonical name.
    shape: its shape, the stack included.
    merged: whether it is merged; integer, boolean and empty tensors are carried over.
    part: which of the operator's `parts` merges it; under `jit` only an index tells them apart.
    axes: what its axes mean.
    slices: names of its slices along `axes.stack`, or its own: keys and rows of weights go by them.
  """

  name: str
  shape: tuple[int, ...]
  merged: bool
  part: int
  axes: Axes
  slices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """An entry for each tensor, in the order of the tree; hashable, and static under `jit`."""

  entries: tuple[Entry, ...]

  def of(self, part: int) -> tuple[Entry, ...]:
    """The tensors that one of the operator's `parts` merges: what its surveys cover."""
    return tuple(entry for entry in self.entries if entry.merged and entry.part == part)


def plan(operator: Operator | Route, specs: PyTree, axes: AxesRules = ()) -> Plan:
  """Plans a merge from what is known before a tensor is read.

  Args:
    operator: the merge rule.
    specs: by canonical name, or as a tree, anything with a shape and a dtype (`jax.ShapeDtypeStruct`, an
      array).
    axes: rules for leaves that are not `[out, in]`, or stacked; see `Axes`.

  Raises:
    ValueError: something that is no operator, or none that JAX can trace; a tensor that no pattern of a route
      matches, whose axes do not fit, or whose dtype neither merges nor is carried over.

  >>> import jax
  >>> import merge_jax as mj
  >>> operator = mj.route((r".*norm", mj.uniform()), (r".*", mj.ties()))
  >>> specs = {"mlp": jax.ShapeDtypeStruct((4, 2), "float32"), "step": jax.ShapeDtypeStruct((), "int32")}
  >>> [(entry.name, entry.merged, entry.part) for entry in plan(operator, specs).entries]
  [('mlp', True, 1), ('step', False, 1)]
  >>> plan(operator, {"layer": specs}).entries[0].name
  'layer.mlp'
  """
  if not isinstance(operator, Operator | Route):
    raise ValueError(f"{shown(operator)} is no operator; pass what a factory returns, as mj.linear().")
  _require_traceable(operator)
  if not isinstance(specs, Mapping) or not all(hasattr(spec, "shape") for spec in specs.values()):
    specs = naming.flatten(specs)[0]
  entries = []
  for name, spec in specs.items():
    shape = tuple(spec.shape)
    merged = merges(spec.dtype, f"Tensor {name!r}") and math.prod(shape) > 0
    own, slices = naming.axes_of(name, shape, axes)
    index, *others = dict.fromkeys(map(operator.index, slices or (name,)))  # a stack may have no layers
    if others:
      raise ValueError(
        f"Tensor {name!r}: several patterns of the route match its layers, which are one array; write "
        "patterns that match all of them, or pass the layers one by one."
      )
    entries.append(Entry(name, shape, merged, index, own, slices))
  return Plan(tuple(entries))


def _require_traceable(operator: Operator | Route) -> None:
  """Raises ValueError for an operator, or a part of one, that is no pytree of numbers."""
  for path, value in jax.tree_util.tree_flatten_with_path(operator)[0]:
    if isinstance(value, Operator):
      raise ValueError(f"{type(value).__name__} is no pytree; put @merge_jax.pytree above the class.")
    if not isinstance(value, int | float) and not hasattr(value, "dtype"):
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      raise ValueError(
        f"{type(operator).__name__}: {name} is {shown(value)}, which is no number; declare such a field with "
        "dataclasses.field(metadata=merge_jax.STATIC), a block's class with @merge_jax.pytree."
      )


def match(
  experts: Any, base: PyTree | None, statistics: Any, names: Iterable[str] | None = None
) -> tuple[list[int | str], dict[str, Leaf], Any]:
  """The experts' names or positions, all tensors by name, and the structure of the first expert.

  Raises:
    ValueError: models, or statistics, that do not have the same tensors; names that are not theirs.
  """
  names = None if names is None else tuple(names)
  if isinstance(experts, Sequence) and not isinstance(experts, str):
    if names is not None and len(set(names)) != len(experts):
      raise ValueError(f"The names are {shown(list(names))}; expected a different one for each expert.")
    experts = dict(zip(range(len(experts)) if names is None else names, experts, strict=True))
  elif names is not None:
    raise ValueError("names= is for a list of trees; trees by model name have theirs.")
  elif not isinstance(experts, Mapping):
    raise ValueError(f"The experts are {shown(experts)}; pass a list of trees, or trees by model name.")
  elif any(jax.tree_util.all_leaves([tree]) for tree in experts.values()):
    raise ValueError("The experts are one tree of tensors; pass a list of trees, or trees by model name.")
  if not experts:
    raise ValueError("There is no model to merge; give at least one expert.")
  labelled = [*((f"expert {one!r}", tree) for one, tree in experts.items()), ("the base", base)]
  for label, tree in labelled:
    if isinstance(tree, str | os.PathLike):
      raise ValueError(
        f"{label} is {shown(tree)}; expected a tree of arrays, as checkpoints.open(path).load() gives."
      )
  trees = {f"expert {one!r}": tree for one, tree in experts.items()}
  models = {label: _tensors(tree, label) for label, tree in trees.items()}
  if base is not None:
    models["the base"] = _tensors(base, "the base")
  (first, tensors), *others = models.items()
  if not tensors:
    raise ValueError("The models have no tensors.")
  for label, other in others:
    _require_same(first, tensors, label, other)
  measured = None if statistics is None else _statistics(statistics, list(experts), tensors)
  leaves = {
    name: Leaf(
      tuple(models[label][name] for label in trees),
      None if base is None else models["the base"][name],
      statistics=None if measured is None else tuple(one.get(name) for one in measured),
    )
    for name in tensors
  }
  return list(experts), leaves, jax.tree.structure(trees[first])


def _statistics(
  given: Any, ids: Sequence[int | str], tensors: Mapping[str, Any]
) -> list[Mapping[str, PyTree]]:
  """What was measured of each model, by tensor, in the models' order; of what does not merge it may lack."""
  found = given
  if isinstance(given, Mapping):
    if stranger := next((one for one in given if one not in ids), None):
      raise ValueError(unknown("model", str(stranger), list(map(str, ids)), "statistics"))
    found = [given.get(one) for one in ids]
  elif len(given) != len(ids):
    raise ValueError(f"There are {len(given)} statistics for {len(ids)} experts; give one each.")
  for one, measured in zip(ids, found, strict=True):
    where = f"statistics of expert {one!r}"
    if not isinstance(measured, Mapping):
      raise ValueError(f"{where}: got {shown(measured)}; expected what was measured, by tensor name.")
    if stranger := next((name for name in measured if name not in tensors), None):
      raise ValueError(unknown("tensor", stranger, tensors, where))
    floating = (name for name, value in tensors.items() if merges(value.dtype, name) and value.size)
    if missing := next((name for name in floating if name not in measured), None):
      raise ValueError(f"{where}: tensor {missing!r} is missing.")
  for one, measured in zip(ids, found, strict=True):
    for name, value in measured.items():
      if any(not hasattr(x, "shape") for x in jax.tree.leaves(value)):
        raise ValueError(
          f"statistics of expert {one!r}: tensor {name!r} has {shown(value, 60)}; expected arrays."
        )
  return list(found)


def in_order(experts: Any) -> bool:
  """Whether models given by name are in the order that they were given in: in a program JAX sorts dicts."""
  if not isinstance(experts, Mapping) or len(experts) == 1:
    return True
  return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(list(experts.values())))


def _tensors(tree: PyTree, label: str) -> dict[str, Any]:
  """The arrays of one model by name, on the host or a device as they came."""
  arrays = {}
  for name, value in naming.flatten(tree)[0].items():
    if type(value) is float:  # as JAX reads it; numpy's float64 would count as too wide
      value = np.asarray(value, jax.dtypes.canonicalize_dtype(float))
    arrays[name] = value if isinstance(value, Array) else _native(np.asarray(value))
    if arrays[name].dtype == object:
      raise ValueError(f"Tensor {name!r} in {label} is {shown(value)}; expected an array.")
  return arrays


def _native(x: np.ndarray) -> np.ndarray:
  """An array in this machine's order of bytes: JAX takes no other."""
  return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _require_same(first: str, flat: dict[str, Any], label: str, other: dict[str, Any]) -> None:
  if other.keys() != flat.keys():
    name = min(other.keys() ^ flat.keys())
    where = label if name in flat else first
    raise ValueError(f"Tensor {name!r} is missing in {where}; all models need the same tensors.")
  for name, value in other.items():
    expected, tensor = flat[name], f"Tensor {name!r}"
    if value.shape != expected.shape:
      raise ValueError(
        f"{tensor} has shape {value.shape} in {label} but {expected.shape} in {first}; only models of "
        "one architecture merge."
      )
    if merges(value.dtype, f"{tensor} in {label}") != merges(expected.dtype, f"{tensor} in {first}"):
      raise ValueError(
        f"{tensor} is {value.dtype} in {label} but {expected.dtype} in {first}; a tensor is floating in "
        "all models or in none."
      )


def require_together(name: str, leaf: Leaf) -> None:
  """Raises ValueError if one model's tensor was put on other devices, or in other memory, than another's."""
  arrays = leaf.experts if leaf.base is None else (*leaf.experts, leaf.base)
  placed = [(x.devices(), x.sharding.memory_kind) for x in arrays if _placed(x)]
  if any(one != placed[0] for one in placed):
    where = shown([[*sorted(map(str, devices)), kind] for devices, kind in placed], 160)
    raise ValueError(
      f"Tensor {name!r} lies on other devices, or in other memory, in one model than in another: {where}; "
      "bring them together with jax.device_put."
    )


def beside(x: Any, leaves: Iterable[Leaf]) -> Any:
  """Weights or a key, as an array that goes anywhere if they were put on other devices than a tensor."""
  firsts = (leaf.experts[0] for leaf in leaves)
  if not _placed(x) or not any(_placed(first) and first.devices() != x.devices() for first in firsts):
    return x
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    data = jnp.asarray(np.asarray(jax.random.key_data(x)))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
  return jnp.asarray(np.asarray(x))


def _placed(x: Any) -> bool:
  """Whether it was put on devices, where what is computed with it must lie, too."""
  return isinstance(x, Array) and not isinstance(x, jax.core.Tracer) and x.committed


def require_equal(name: str, leaf: Leaf) -> None:
  """Raises ValueError if a tensor that does not merge differs between concrete models."""
  first, *others = leaf.experts if leaf.base is None else (*leaf.experts, leaf.base)
  if any(isinstance(value, jax.core.Tracer) for value in (first, *others)):
    return
  if not same(first, *others):
    raise ValueError(
      f"Tensor {name!r} of dtype {first.dtype} differs between the models; only floating tensors "
      "merge. Make it equal, or leave it out."
    )
