"""Statistics of models in memory: of all tensors of a rule, or of one.

Eagerly each tensor is looked at by jitted functions of its own, compiled once a shape, whatever the number
of layers, and what is searched is searched from the host; under an outer `jit` or `vmap` all become part of
that program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import counting, leafwise, selection
from merge_jax.operators.core import Leaf, Operator, PyTree, Ranks, Surveyed, Total
from merge_jax.operators.naming import Axes
from merge_jax.operators.selection import Cut

SAMPLE = 16384  # keys of a model, from which the first thresholds are guessed


def extend(
  operator: Operator,
  leaf: Leaf,
  axes: Axes,
  surveyed: Surveyed,
  whole: Sequence[PyTree],
  alone: Callable[..., PyTree] | None = None,
) -> Surveyed:
  """The results that one leaf has, as far as those of the whole model in `whole` allow.

  Args:
    operator, leaf, axes: the rule and one of its tensors.
    surveyed: results that it has already.
    whole: results of the surveys of the whole model, in order.
    alone: `(operator, leaf, surveyed, axes)` to the result of a survey of this tensor alone.
  """
  surveys = operator.survey()
  given = list(whole)[sum(one.whole for one in surveys[: len(surveyed)]) :]
  for one in surveys[len(surveyed) :]:
    if one.whole and not given:
      break
    result = given.pop(0) if one.whole else (alone or of_tensor)(operator, leaf, surveyed, axes)
    if one.whole and axes.stack is not None:
      count = leaf.experts[0].shape[axes.stack]
      result = jax.tree.map(lambda x, n=count: jnp.broadcast_to(x, (n, *jnp.shape(x))), result)
    surveyed = (*surveyed, result)
  return surveyed


def of_tensor(operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes) -> PyTree:
  """The result of the operator's next survey, of this tensor alone."""
  survey = operator.survey()[len(surveyed)]
  if isinstance(survey, Ranks):
    return None
  if isinstance(survey, Total) or _staged() or _traced(operator, leaf, surveyed) or axes.stack is not None:
    return leafwise.survey_alone(operator, leaf, surveyed, axes)
  rows, size = [(leaf, surveyed, axes)], leaf.experts[0].size
  states = _searched(operator, rows, size)
  cuts = [Cut(low, high) for low, high in zip(states.low, states.high, strict=True)]
  return _told_apart(operator, leaf, surveyed, axes, states, cuts) if survey.exact else cuts


def _told_apart(
  operator: Operator, leaf: Leaf, surveyed: Surveyed, axes: Axes, states: Any, cuts: list[Cut]
) -> list[Cut]:
  """Cuts with the position of the last key that is among the k largest, axis by axis."""
  shape = jax.eval_shape(leafwise.keys, operator, leaf, surveyed, axes)[0].shape
  decided = np.all(np.asarray(states.at_low) == np.asarray(states.k), axis=-1)
  need = [counting.whole(counting.minus(k, high)) for k, high in zip(states.k, states.at_high, strict=True)]
  last: list[list[int]] = [[] for _ in cuts]
  for size in shape:
    known = [cut._replace(last=jnp.array(at, jnp.int32)) for cut, at in zip(cuts, last, strict=True)]
    if decided.all():
      last = [[*at, size - 1] for at in last]
      continue
    for i, counts in enumerate(leafwise.ties(operator, known, leaf, surveyed, axes)):
      sums = np.cumsum(np.asarray(counts), dtype=np.int64)
      j = size - 1 if decided[i] else min(int(np.searchsorted(sums, need[i])), size - 1)
      need[i] -= int(sums[j - 1]) if j else 0
      last[i].append(j)
  return [cut._replace(last=jnp.array(at, jnp.int32)) for cut, at in zip(cuts, last, strict=True)]


def survey(
  operator: Operator,
  leaves: Sequence[Leaf],
  axes: Sequence[Axes],
  surveyed: Sequence[Surveyed],
  size: int,
) -> PyTree:
  """The operator's next survey of the whole model, over all its tensors of `size` elements."""
  index = len(surveyed[0])
  one, rows = operator.survey()[index], list(zip(leaves, surveyed, axes, strict=True))
  if isinstance(one, Total):
    parts = [leafwise.measure(operator, *row) for row in rows]
    total = _added(parts, _traced(parts), one.kind == "largest")
    return leafwise.finish(operator, index, total, size)
  states = _searched(operator, rows, size)
  return tuple(Cut(low, high) for low, high in zip(states.low, states.high, strict=True))


Row = tuple[Leaf, Surveyed, Axes]


def _searched(operator: Operator, rows: Sequence[Row], size: int) -> selection.Search:
  """The operator's next survey, a `Ranked`, over tensors of `size` elements."""
  traced, of, (first, surveyed, _) = _staged() or _traced(operator, rows), counting.limbs(size), rows[0]
  ranks = leafwise.ranks(operator, of, len(first.experts), surveyed)
  states = _start(of, (jnp if traced else np).stack(ranks))
  every = max(1, size // SAMPLE)
  samples = _sorted([leafwise.sample(operator, *row, every) for row in rows], traced)

  def tally(thresholds: Array) -> Array:
    return _added([leafwise.tally(operator, thresholds, *row) for row in rows], traced)

  if traced:
    return selection.search(states, samples, tally)
  while not bool(jnp.all(selection.found(states))):
    thresholds = _probes(states, samples)
    states = _narrow(states, thresholds, tally(thresholds))
  return states


def _staged() -> bool:
  """Whether a program is being traced: then every result is a tracer, whatever it is computed from."""
  return _traced(jax.lax.add(np.int32(0), np.int32(0)))


def _traced(*trees: PyTree) -> bool:
  return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees))


def _added(parts: list[PyTree], traced: bool, largest: bool = False) -> PyTree:
  """The sum, or maximum; on the host where it can be, so that tensors may lie on any devices."""
  add: Any
  if traced:
    add = jnp.maximum if largest else jnp.add
    return functools.reduce(lambda a, b: jax.tree.map(add, a, b), parts)
  add = np.maximum if largest else np.add
  return jax.tree.map(lambda *x: functools.reduce(add, map(np.asarray, x)), *parts)


def _sorted(parts: list[tuple[Array, ...]], traced: bool) -> Any:
  if traced:
    return jnp.sort(jnp.stack([jnp.concatenate(x) for x in zip(*parts, strict=True)]), axis=-1)
  return np.sort([np.concatenate([np.asarray(one) for one in x]) for x in zip(*parts, strict=True)], axis=-1)


_start = jax.jit(jax.vmap(selection.start, in_axes=(None, 0)))
_probes = jax.jit(jax.vmap(selection.probes))
_narrow = jax.jit(jax.vmap(selection.narrow))
