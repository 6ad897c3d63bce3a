"""What a case of an operator is, the trees that all of them are tried on, and float64 helpers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import merge_jax as mj

SHAPES = {"model.layers.0.w": (16, 64), "model.norm.weight": (16,)}
KEY = jax.random.key(7)


class Case(NamedTuple):
  """An operator, what it must give, and which laws hold for it.

  Attributes:
    operator: the rule.
    reference: `(experts, base, weights)`, with statistics a fourth argument, to float64 arrays by name.
    count: number of models.
    weights: one for each model, or None for a rule that takes none.
    statistics: `(tree, seed)` to what is measured of a model, by name.
    equal: equal models give that model; with a base, models equal to it give it.
    permutes: models may be reordered with their weights.
    smooth: gradients in the weights are what finite differences say.
    elementwise: what is not finite in one element stays there.
    gathers: a tensor may be gathered on one device.
    exact: relative tolerance in float32.
  """

  operator: Any
  reference: Callable[..., dict[str, np.ndarray]]
  count: int = 3
  weights: tuple[float, ...] | None = None
  statistics: Callable[[dict[str, Any], int], dict[str, Any]] | None = None
  equal: str | None = "model"
  permutes: bool = True
  smooth: bool = True
  elementwise: bool = True
  gathers: bool = False
  exact: float = 2e-5


def make_tree(seed, scale=1.0, around=None, dtype=np.float32, shapes=None):
  generator = np.random.default_rng(seed)
  tree = {}
  for name, shape in (shapes or SHAPES).items():
    value = generator.normal(size=shape) * scale
    tree[name] = (value if around is None else around[name] + value).astype(dtype)
  return tree


BASE = make_tree(0)
EXPERTS = [make_tree(seed, 0.1, BASE) for seed in (1, 2, 3, 4)]


def wide(tree):
  return {name: np.asarray(value, np.float64) for name, value in tree.items()}


def deltas(experts, base):
  base = wide(base)
  return [{name: value - base[name] for name, value in wide(e).items()} for e in experts]


def arguments(case: Case, experts=EXPERTS, base=BASE) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Experts, and the keyword arguments of `merge`."""
  experts = list(experts[: case.count])
  kwargs: dict[str, Any] = {"base": base} if case.operator.needs_base else {}
  if case.operator.needs_key:
    kwargs["key"] = KEY
  if case.statistics is not None:
    kwargs["statistics"] = [case.statistics(tree, seed) for seed, tree in enumerate(experts)]
  return experts, kwargs


def expected(case: Case, experts=EXPERTS, base=BASE) -> dict[str, np.ndarray]:
  experts, kwargs = arguments(case, experts, base)
  more = [kwargs["statistics"]] if "statistics" in kwargs else []
  weights = (
    case.weights if case.weights is not None else np.asarray(case.operator.default_weights(case.count))
  )
  return case.reference(experts, base, weights, *more)


def merge(case: Case, experts=EXPERTS, base=BASE, **more):
  experts, kwargs = arguments(case, experts, base)
  return mj.merge(case.operator, experts, case.weights, **kwargs, **more)
