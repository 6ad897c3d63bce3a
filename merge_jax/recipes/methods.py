"""The methods of mergekit 0.1.5 under its own names of parameters, and the operator that each is.

The operator computes mergekit's formula with semantics "mergekit", the authors' with "paper"; the arithmetic
is float32 in both.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from merge_jax.errors import shown
from merge_jax.recipes import parameters
from merge_jax.recipes.parameters import Scalar

Values = Mapping[str, Any]
"""Resolved parameters: arrays `[K]` of what each model has of its own, else scalars."""


class Parameter(NamedTuple):
  """A parameter of a method in mergekit's format.

  Attributes:
    name: in recipes.
    default: what it is where a recipe is silent under (mergekit, paper); None: it must be given.
    per_model: whether each model has its own.
    low, high: its range.
    kind: what it is.
  """

  name: str
  default: tuple[Scalar, Scalar] | None
  per_model: bool = False
  low: float = float("-inf")
  high: float = float("inf")
  kind: Literal["number", "flag", "whole"] = "number"

  def read(self, value: Scalar, where: str) -> float | bool | int:
    """A value of its kind and range; ValueError otherwise."""
    if self.kind == "flag":
      return parameters.flag(value, f"{where}{self.name}")
    number = parameters.number(value, f"{where}{self.name}", self.low, self.high)
    if self.kind == "whole":
      if number != int(number):
        raise ValueError(f"{where}{self.name} is {shown(value)}; expected a whole number.")
      return int(number)
    return number


Base = Literal["no", "optional", "required", "input"]


class Method(NamedTuple):
  """A method of mergekit's.

  Attributes:
    factory: the operator's, in `merge_jax`.
    parameters: what a recipe may say.
    arguments: `(values, elements, mergekit)` to the factory's arguments; `elements` of the tensor,
      `mergekit` whether its semantics hold.
    base: "no": a rule without one (mergekit then averages one that `models:` does not list in, as one more);
      "input": the base is the first of the models; else whether task vectors need it.
    fewest, most: how many models it takes, the base apart ("input": the base among them).
    weighted: whether each model has a weight.
    alone: whether a single model is itself in mergekit, whatever its weight.
    along: the axis of a tensor that mergekit's rows run along.
  """

  factory: str
  parameters: tuple[Parameter, ...]
  arguments: Callable[[Values, int, bool], dict[str, Any]]
  base: Base = "required"
  fewest: int = 1
  most: int | None = None
  weighted: bool = False
  alone: bool = False
  along: Callable[[Values], int] = lambda v: -1

  @property
  def of_base_alone(self) -> bool:
    """Whether the base alone is a merge: of no task vectors, as when only an adapter goes into a model."""
    return self.base == "required" and self.fewest == 1 and self.most is None


def _flag(name: str, mergekit: bool, paper: bool | None = None) -> Parameter:
  return Parameter(name, (mergekit, mergekit if paper is None else paper), kind="flag")


_WEIGHT = Parameter("weight", None, per_model=True)
_LAMBDA = Parameter("lambda", (1.0, 1.0))


def _density(paper: float) -> Parameter:
  return Parameter("density", (1.0, paper), True, 0.0, 1.0)


def _sum(v: Values, _: int, mergekit: bool) -> dict[str, Any]:
  return {"scaling": v["lambda"], "normalize": v["normalize"]}


def _rescale(v: Values, mergekit: bool, paper: str = "inverse") -> dict[str, Any]:
  return {"rescale": ("l1" if mergekit else paper) if v["rescale"] else "none"}


def _agree(v: Values, mergekit: bool, divisor: str = "count") -> dict[str, Any]:
  """Election and mean; mergekit elects weighted task vectors (its Q2), 0 counts as positive."""
  if mergekit:
    by = {"divisor": "weights" if v["normalize"] else "none", "election": "weighted", "zero_sign": "positive"}
  else:
    by = {"divisor": divisor if v["normalize"] else "none"}
  return {"scaling": v["lambda"], **by}


def _exactly(count: Any, elements: int) -> np.ndarray:
  """What keeps `count` of `elements`: that number; of more than uint32 has, a density near it."""
  if elements < 1 << 32:
    return np.asarray(count, np.uint32)
  density = np.where(count > 0, (count + 0.5) / elements, 0.0)
  return np.where(count >= elements, 1.0, density).astype(np.float32)


def _kept(density: Any, elements: int) -> Any:
  """mergekit's count: none from density 0, else at least one; its product is float64."""
  share = np.asarray(density, np.float64)
  return np.where(share <= 0, 0.0, np.maximum(1, np.floor(share * elements)))


def _trim(v: Values, elements: int, mergekit: bool) -> dict[str, Any]:
  if not mergekit:
    return {"density": v["density"]}
  density = _exactly(_kept(v["density"], elements), elements)
  return {"density": density, "scope": "tensor", "keep": "exact"}


def _ties(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return _trim(v, n, mergekit) | _agree(v, mergekit) | _rescale(v, mergekit, "l1")


def _dare_linear(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"density": v["density"]} | _sum(v, n, mergekit) | _rescale(v, mergekit)


def _dare_ties(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"density": v["density"]} | _agree(v, mergekit) | _rescale(v, mergekit)


def _outliers(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  """mergekit counts in the whole tensor, and cuts fewer outliers where too few would remain."""
  if not mergekit:
    return {"density": v["density"], "gamma": v["gamma"]} | _rescale(v, mergekit, "l1")
  kept = np.floor(np.asarray(v["density"], np.float64) * n)
  top = np.minimum(np.floor(np.asarray(v["gamma"], np.float64) * n), n - kept)
  cut = {"density": _exactly(kept, n), "gamma": _exactly(top, n), "scope": "tensor"}
  return cut | _rescale(v, mergekit)


def _della(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"density": v["density"], "epsilon": v["epsilon"]} | _rescale(v, mergekit)


def _weights(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"normalize": v["normalize"]}


def _slerp(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"t": v["t"]} | ({"lerp_above": 0.9995} if mergekit else {})


def _nuslerp(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  by = "tensor" if v["nuslerp_flatten"] else "column" if v["nuslerp_row_wise"] and not mergekit else "row"
  return {"by": by, "task_vectors": v["task_vectors"]}


def _multislerp(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"normalize": v["normalize_weights"], "eps": v["eps"], "task_vectors": v["task_vectors"]}


def _karcher(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  """In float32 the mean stands still long before the many thousand steps that some recipes ask for."""
  return {"max_iter": min(v["max_iter"], 10_000), "tol": v["tol"]}


def _model_stock(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"by": "row" if v["filter_wise"] else "tensor"} | (
    {"clamp": False, "floor": 1e-6} if mergekit else {}
  )


def _sce(v: Values, n: int, mergekit: bool) -> dict[str, Any]:
  return {"select_topk": v["select_topk"]} | ({"masked": True, "floor": 1e-6} if mergekit else {})


def _same(*names: str) -> Callable[[Values, int, bool], dict[str, Any]]:
  return lambda v, n, mergekit: {name: v[name] for name in names}


_SUM = (_WEIGHT, _LAMBDA)
_EPSILON = Parameter("epsilon", (0.15, 0.0), True, 0.0, 0.5)
_GAMMA = Parameter("gamma", (0.01, 0.01), True, 0.0, 1.0)

MERGEKIT: Mapping[str, Method] = {
  "linear": Method("linear", (_WEIGHT, _flag("normalize", True)), _weights, "no", weighted=True),
  "slerp": Method("slerp", (Parameter("t", None),), _slerp, "input", 2, 2),
  "nuslerp": Method(
    "nuslerp", (_WEIGHT, _flag("nuslerp_flatten", True), _flag("nuslerp_row_wise", False)), _nuslerp,
    "optional", 2, 2, weighted=True, along=lambda v: 0 if v["nuslerp_row_wise"] else -1,
  ),
  "multislerp": Method(
    "multislerp", (_WEIGHT, _flag("normalize_weights", True), Parameter("eps", (1e-8, 1e-8), low=0.0)),
    _multislerp, "optional", weighted=True, alone=True,
  ),
  "karcher": Method(
    "karcher",
    (
      Parameter("max_iter", (10, 10), low=0, kind="whole"),
      Parameter("tol", (1e-5, 1e-5), low=0.0),
    ),
    _karcher, "no",
  ),
  "task_arithmetic": Method(
    "task_arithmetic", (*_SUM, _flag("normalize", False)), _sum, weighted=True
  ),
  "ties": Method(
    "ties", (*_SUM, _density(0.2), _flag("normalize", True), _flag("rescale", False)), _ties, weighted=True
  ),
  "dare_linear": Method(
    "dare_linear", (*_SUM, _density(1.0), _flag("normalize", False), _flag("rescale", True)), _dare_linear,
    weighted=True,
  ),
  "dare_ties": Method(
    "dare_ties", (*_SUM, _density(1.0), _flag("normalize", False, True), _flag("rescale", True)), _dare_ties,
    weighted=True,
  ),
  "breadcrumbs": Method(
    "breadcrumbs", (*_SUM, _density(1.0), _GAMMA, _flag("normalize", False), _flag("rescale", False)),
    lambda v, n, m: _outliers(v, n, m) | _sum(v, n, m), weighted=True,
  ),
  "breadcrumbs_ties": Method(
    "breadcrumbs_ties",
    (*_SUM, _density(1.0), _GAMMA, _flag("normalize", False), _flag("rescale", False)),
    lambda v, n, m: _outliers(v, n, m) | _agree(v, m), weighted=True,
  ),
  "della": Method(
    "della", (*_SUM, _density(1.0), _EPSILON, _flag("normalize", True), _flag("rescale", True)),
    lambda v, n, m: _della(v, n, m) | _agree(v, m, "weights"), weighted=True, along=lambda v: 1,
  ),
  "della_linear": Method(
    "della_linear", (*_SUM, _density(1.0), _EPSILON, _flag("normalize", False), _flag("rescale", True)),
    lambda v, n, m: _della(v, n, m) | _sum(v, n, m), weighted=True, along=lambda v: 1,
  ),
  "sce": Method("sce", (Parameter("select_topk", (1.0, 1.0), low=0.0, high=1.0),), _sce),
  "model_stock": Method("model_stock", (_flag("filter_wise", False),), _model_stock, fewest=2),
  "nearswap": Method("nearswap", (Parameter("t", None, low=0.0),), _same("t"), most=1),
  "arcee_fusion": Method("arcee_fusion", (), lambda v, n, m: {}, most=1),
  "passthrough": Method("passthrough", (Parameter("scale", (1.0, 1.0), True),), _same("scale"), "no", most=1),
  "ram": Method("ram", (Parameter("epsilon", (1e-5, 1e-5), low=0.0),), _same("epsilon")),
  "ramplus_tl": Method(
    "ram_plus",
    (Parameter("r", (0.1, 0.1)), Parameter("alpha", (0.2, 0.2)), Parameter("epsilon", (1e-5, 1e-5), low=0.0)),
    lambda v, n, m: _same("r", "alpha", "epsilon")(v, n, m) | {"scope": "tensor"},
  ),
}  # fmt: skip
"""All methods of mergekit 0.1.5."""
