"""The merge rules that a job can search, one row each."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding

from merge_jax import operators as mj
from merge_jax.checkpoints import Checkpoint
from merge_jax.errors import unknown
from merge_jax.evals import Merge
from merge_jax.operators.contrib import trajectory as along
from merge_jax.operators.naming import AxesRules
from merge_jax.preflight import Needs
from merge_jax.search.point import Point
from merge_jax.search.space import SPACES

PyTree = Any


class Method(NamedTuple):
  """A merge rule as a search sees it.

  Attributes:
    operator: made once.
    spaces: of the weights that make sense for it.
    needs_base: whether the pool is held beside a base.
  """

  operator: Callable[[], mj.Operator]
  spaces: tuple[str, ...]
  needs_base: bool


METHODS: dict[str, Method] = {
  "linear": Method(lambda: mj.linear(normalize=False), ("simplex", "softmax"), False),
  "task_arithmetic": Method(mj.task_arithmetic, ("free", "simplex", "softmax"), True),
}


def check(method: str, space: str) -> None:
  """Raises ValueError for an unknown method, or a space that its weights cannot come from."""
  if method not in METHODS:
    raise ValueError(unknown("search method", method, METHODS))
  if space not in SPACES:
    raise ValueError(unknown("search space", space, SPACES))
  if space not in METHODS[method].spaces:
    raise ValueError(
      f"config: search.method {method!r} cannot be searched in space {space!r}; expected one of "
      f"{', '.join(METHODS[method].spaces)}."
    )


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


def merges(
  names: tuple[str, ...], experts: list[PyTree], base: PyTree | None, axes: AxesRules = ()
) -> dict[str, Merge]:
  """The pool prepared for each method, by name.

  Args:
    names: keys of `METHODS`.
    experts: the pool's parameters.
    base: the common ancestor's; None takes the mean of the pool where a method needs one.
    axes: leaves that are stacks of layers.
  """
  result = {}
  for name in dict.fromkeys(names):
    operator = METHODS[name].operator()
    if METHODS[name].needs_base and base is None:
      base = mj.merge(mj.uniform(), experts)
    prepared = mj.prepare(operator, experts, base=base if METHODS[name].needs_base else None, axes=axes)
    result[name] = Merge(_combine, prepared)
  return result


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
    found[method] = Merge(_combine, dataclasses.replace(prepared, leaves=leaves))
  return found


def _combine(prepared: mj.Prepared, weights: Any, numbers: Mapping[str, Any]) -> PyTree:
  del numbers  # none of these rules has one that is searched
  return mj.combine(prepared, weights)


def memory(method: str, pool: Sequence[Checkpoint], base: Checkpoint | None, batch: int) -> Needs:
  """What a search holds on the devices: the pool, a base where the method needs one, a batch of merges."""
  held = [checkpoint.specs for checkpoint in pool]
  if METHODS[method].needs_base:
    held.append((base or pool[0]).specs)  # the mean of the pool has the shapes of its members
  return Needs(tuple(held), pool[0].specs, batch)
