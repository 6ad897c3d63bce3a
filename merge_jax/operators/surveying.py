"""Whole-model statistics of models in memory.

Eagerly each tensor is looked at by a jitted function of its own, compiled once a shape, whatever the number
of layers; under an outer `jit` or `vmap` all become part of that program.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import leafwise, selection
from merge_jax.operators.core import Leaf, Operator, PyTree, Surveyed, Total
from merge_jax.operators.naming import Axes

SAMPLE = 16384  # keys of a model, from which the first thresholds are guessed

States = tuple[selection.Search, ...]


def survey(
  operator: Operator, leaves: Sequence[Leaf], axes: Sequence[Axes], surveyed: Surveyed, size: int
) -> PyTree:
  """The operator's next survey, after those in `surveyed`, over all its tensors of `size` elements."""
  one = operator.survey()[len(surveyed)]
  traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((operator, leaves, surveyed)))
  pairs = list(zip(leaves, axes, strict=True))
  if isinstance(one, Total):
    return one.finish(_added([leafwise.measure(operator, x, surveyed, a) for x, a in pairs], traced))
  states = tuple(selection.start(size, k) for k in one.ranks(size, len(leaves[0].experts)))
  every = max(1, size // SAMPLE)
  samples = _sorted([leafwise.sample(operator, x, surveyed, a, every) for x, a in pairs], traced)

  def tally(thresholds: tuple[Array, ...]) -> tuple[Any, ...]:
    return _added([leafwise.tally(operator, thresholds, x, surveyed, a) for x, a in pairs], traced)

  if traced:
    states = jax.lax.while_loop(
      lambda states: ~_found(states), lambda s: _narrow(s, *(_probed(s, samples, tally))), states
    )
  else:
    while not bool(_found(states)):
      states = _narrow(states, *_probed(states, samples, tally))
  return tuple(state.low for state in states)


def _added(parts: list[PyTree], traced: bool) -> PyTree:
  """The sum; on the host where it can be, so that tensors may lie on any devices."""
  if traced:
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
  return jax.tree.map(lambda *x: jnp.asarray(sum(map(np.asarray, x[1:]), np.asarray(x[0]))), *parts)


def _sorted(parts: list[tuple[Array, ...]], traced: bool) -> tuple[Any, ...]:
  if traced:
    return tuple(jnp.sort(jnp.concatenate(x)) for x in zip(*parts, strict=True))
  return tuple(np.sort(np.concatenate([np.asarray(one) for one in x])) for x in zip(*parts, strict=True))


def _probed(states: States, samples: tuple[Any, ...], tally: Any) -> tuple[Any, Any]:
  thresholds = _probes(states, samples)
  return thresholds, tally(thresholds)


@jax.jit
def _probes(states: States, samples: tuple[Any, ...]) -> tuple[Array, ...]:
  return tuple(map(selection.probes, states, samples))


@jax.jit
def _narrow(states: States, thresholds: tuple[Array, ...], counts: tuple[Array, ...]) -> States:
  return tuple(map(selection.narrow, states, thresholds, counts))


@jax.jit
def _found(states: States) -> Array:
  return jnp.all(jnp.stack([selection.found(state) for state in states]))
