"""The merge rules that a job can search, one row each."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding

from merge_jax import operators as mj
from merge_jax.checkpoints import Checkpoint
from merge_jax.errors import unknown
from merge_jax.evals import Merge
from merge_jax.operators.contrib import trajectory as along
from merge_jax.operators.naming import AxesRules
from merge_jax.preflight import Needs
from merge_jax.search.point import Point
from merge_jax.search.space import NO_NUMBERS, SPACES, Along, Number

PyTree = Any


class Method(NamedTuple):
  """A merge rule as a search sees it.

  Attributes:
    operator: from its numbers; those that are not searched have the values that they have here.
    spaces: of the weights that make sense for it.
    needs_base: whether the pool is held beside a base.
    numbers: that can be searched, by name.
    models: how many it merges; 0 for any number.
  """

  operator: Callable[..., mj.Operator]
  spaces: tuple[str, ...]
  needs_base: bool
  numbers: Mapping[str, Number] = NO_NUMBERS
  models: int = 0


ON_SIMPLEX = ("simplex", "softmax")
ANY_SPACE = ("free", *ON_SIMPLEX)
SCALING = Number(0.0, 3.0, 1.0)
TRIMMED = {"density": Number(0.02, 1.0, 0.2, log=True), "scaling": SCALING}
DROPPED = {"density": Number(0.05, 1.0, 0.5), "scaling": SCALING}

METHODS: dict[str, Method] = {
  "linear": Method(lambda: mj.linear(normalize=False), (*ON_SIMPLEX, "trajectory"), False),
  "task_arithmetic": Method(mj.task_arithmetic, ANY_SPACE, True, {"scaling": SCALING}),
  "ties": Method(mj.ties, ANY_SPACE, True, TRIMMED),
  "dare_linear": Method(functools.partial(mj.dare_linear, density=0.5), ANY_SPACE, True, DROPPED),
  "dare_ties": Method(functools.partial(mj.dare_ties, density=0.5), ANY_SPACE, True, DROPPED),
  "breadcrumbs": Method(functools.partial(mj.breadcrumbs, density=0.2), ANY_SPACE, True, TRIMMED),
  "slerp": Method(mj.slerp, ON_SIMPLEX, False, models=2),
  "karcher": Method(mj.karcher, ON_SIMPLEX, False),
}


def check(method: str, space: str, count: int = 0) -> None:
  """Raises ValueError for an unknown method, a space that it has no use for, or another number of models."""
  if method not in METHODS:
    raise ValueError(unknown("search method", method, METHODS))
  if space not in SPACES:
    raise ValueError(unknown("search space", space, SPACES))
  if space not in METHODS[method].spaces:
    raise ValueError(
      f"config: search.method {method!r} cannot be searched in space {space!r}; expected one of "
      f"{', '.join(METHODS[method].spaces)}."
    )
  if count and METHODS[method].models not in (0, count):
    raise ValueError(
      f"config: search.method {method!r} merges {METHODS[method].models} models; got {count} checkpoints."
    )


def refuse_memory(method: str, memory: str) -> None:
  """Raises ValueError for a rule with statistics of whole models, of a pool that is not on the devices."""
  surveys = METHODS[method].operator().survey()
  if memory != "device" and any(getattr(survey, "whole", False) for survey in surveys):
    raise ValueError(
      f"config: search.method {method!r} needs statistics of whole models, so that its pool must be in "
      f"device memory, not on {memory}: --pool_memory=device, with more devices if it does not fit."
    )


def numbers(method: str, names: str) -> dict[str, Number]:
  """The numbers of a method that are searched, from their names with commas between.

  Raises:
    ValueError: a name that the method has no number of, or twice.

  >>> list(numbers("ties", "density,scaling"))
  ['density', 'scaling']
  """
  given = [name.strip() for name in names.split(",")] if names.strip() else []
  if given and not METHODS[method].numbers:
    raise ValueError(
      f"config: search.numbers is {names!r}, but {method} has none beside its weights; leave it out"
      + (" (t of slerp is the weight of the second model)." if method == "slerp" else ".")
    )
  for i, name in enumerate(given):
    if name not in METHODS[method].numbers:
      raise ValueError(
        unknown(f"number of {method}", name, METHODS[method].numbers, "config: search.numbers")
      )
    if name in given[:i]:
      raise ValueError(f"config: search.numbers has {name!r} twice.")
  return {name: METHODS[method].numbers[name] for name in given}


def schedules(steps: Sequence[float]) -> Along | None:
  """Weights along a run by window and power of the decay, for the space `trajectory`; None without steps."""
  if not steps:
    return None
  order = np.argsort(steps, kind="stable")

  def weights(window: int, power: float) -> np.ndarray:
    found = np.zeros(len(steps))
    found[order] = along.from_decay(lambda x: 1.0 - x**power, np.asarray(steps)[order], window=window)
    return found

  return weights


def trajectory(steps: Sequence[float], count: int) -> tuple[Point, ...]:
  """Merges along the run whose checkpoints are the pool, if steps are given; ValueError for other steps."""
  if not steps:
    return ()
  if len(steps) != count or len(set(steps)) < count:
    raise ValueError(
      f"config: search.steps has {len(steps)} numbers, {len(set(steps))} of them different; expected one for "
      f"each of {count} checkpoints."
    )
  return tuple(Point(tuple(map(float, weights))) for weights in along.candidates(steps))


class Sources(NamedTuple):
  """A pool that is merged anew for every point, since numbers of the rule are searched."""

  experts: tuple[PyTree, ...]
  base: PyTree | None
  key: Array | None


def merges(
  names: tuple[str, ...],
  experts: Mapping[str, PyTree] | Sequence[PyTree],
  base: PyTree | None,
  axes: AxesRules = (),
  *,
  patterns: tuple[str, ...] = (),
  searched: Collection[str] = (),
  seed: int = 0,
) -> dict[str, Merge]:
  """The pool ready for each method, by name.

  Args:
    names: keys of `METHODS`.
    experts: the pool's parameters; random methods go by their names.
    base: the common ancestor's; None takes the mean of the pool where a method needs one.
    axes: leaves that are stacks of layers.
    patterns: of the rows of weights, where a point has several.
    searched: methods whose numbers are searched; others are prepared once.
    seed: of random methods.
  """
  by_name = isinstance(experts, Mapping)
  models = tuple(experts if by_name else map(str, range(len(experts))))
  trees = tuple(experts.values() if isinstance(experts, Mapping) else experts)  # a dict would be sorted
  result = {}
  for name in dict.fromkeys(names):
    method = METHODS[name]
    if method.needs_base and base is None:
      base = mj.merge(mj.uniform(), trees)
    own, key = base if method.needs_base else None, key_of(method.operator(), seed)
    if name in searched:
      anew = functools.partial(_merge_anew, method.operator, models, axes, patterns)
      result[name] = Merge(anew, Sources(trees, own, key))
    else:
      prepared = mj.prepare(method.operator(), trees, base=own, key=key, axes=axes, names=models)
      result[name] = Merge(functools.partial(_combine, patterns), prepared)
  return result


def key_of(operator: mj.Operator, seed: int) -> Array | None:
  """The key of a random rule; None for others."""
  return jax.random.key(seed) if operator.needs_key else None


def weights_of(weights: Any, patterns: tuple[str, ...]) -> Any:
  """Weights as operators take them: `[K]`, or rows `[G, K]` with the patterns of their tensors."""
  return mj.Weights(weights, patterns) if weights.ndim == 2 else weights


def _merge_anew(
  make: Callable[..., mj.Operator],
  names: tuple[str, ...],
  axes: AxesRules,
  patterns: tuple[str, ...],
  source: Sources,
  weights: Any,
  numbers: Mapping[str, Any],
) -> PyTree:
  chosen = weights_of(weights, patterns)
  return mj.merge(
    make(**numbers), source.experts, chosen, base=source.base, key=source.key, axes=axes, names=names
  )


def _combine(
  patterns: tuple[str, ...], prepared: mj.Prepared, weights: Any, numbers: Mapping[str, Any]
) -> PyTree:
  del numbers  # none is searched
  return mj.combine(prepared, weights_of(weights, patterns))


def abstract(
  names: tuple[str, ...],
  experts: list[PyTree],
  base: PyTree,
  shardings: Mapping[str, Sharding],
  axes: AxesRules = (),
) -> dict[str, Merge]:
  """What `merges` makes of shapes alone (`jax.ShapeDtypeStruct`): for programs that are compiled, not run."""

  def sources(experts: list[PyTree], base: PyTree) -> dict[str, mj.Prepared]:
    return {name: merge.source for name, merge in merges(names, experts, base, axes).items()}

  def placed(name: str, leaf: mj.Leaf) -> mj.Leaf:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]), leaf)

  found = {}
  for method, prepared in jax.eval_shape(sources, experts, base).items():
    leaves = {name: placed(name, leaf) for name, leaf in prepared.leaves.items()}
    found[method] = Merge(functools.partial(_combine, ()), dataclasses.replace(prepared, leaves=leaves))
  return found


def memory(method: str, pool: Sequence[Checkpoint], base: Checkpoint | None, batch: int) -> Needs:
  """What a search holds on the devices: the pool, a base where the method needs one, a batch of merges."""
  held = [checkpoint.specs for checkpoint in pool]
  if METHODS[method].needs_base:
    held.append((base or pool[0]).specs)  # the mean of the pool has the shapes of its members
  return Needs(tuple(held), pool[0].specs, batch)
