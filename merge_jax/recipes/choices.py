"""The operator and the weights of each tensor: a recipe's parameters, resolved.

Numbers may differ from tensor to tensor; all operators of a method still have one structure and one form
of numbers, so that a stream compiles once for each shape.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from merge_jax.errors import shown
from merge_jax.operators import Operator
from merge_jax.operators.naming import Axes
from merge_jax.recipes import methods, own, own_methods, parameters
from merge_jax.recipes.parameters import Settings
from merge_jax.recipes.schema import EMPTY, Input, Rule


class Tensor(NamedTuple):
  """What numbers depend on.

  Attributes:
    name: in the result; filters of parameters that all models share look at it.
    names: in each expert; filters of parameters that each model has its own of look at them.
    elements: number of elements.
    t: place in its slice, see `parameters.position`.
    scopes: settings of slice, module and recipe, the inner ones first.
  """

  name: str
  names: tuple[str, ...]
  elements: int
  t: float
  scopes: tuple[Settings, ...]


class Choice(NamedTuple):
  """A factory's arguments for one tensor, and the weights; arrays `[K]` where each model has its own.

  Attributes:
    method: as the recipe calls it.
    factory: ours.
    arguments: of the factory.
    weights: of the models, or None.
    along: the axis that rows run along; None: all but the first.
    told: the recipe's parameters of this tensor, for people.
  """

  method: str
  factory: str
  arguments: Mapping[str, Any]
  weights: tuple[float, ...] | None
  along: int | None = None
  told: Mapping[str, Any] = EMPTY

  def axes(self, ndim: int) -> Axes:
    """What the axes of a tensor mean to a rule that looks at rows."""
    if self.along is None or ndim < 2:
      return Axes()
    return Axes(out=tuple(axis for axis in range(ndim) if axis != self.along % ndim))


def of_mergekit(
  name: str, experts: Sequence[Input], tensor: Tensor, *, mergekit: bool, task_vectors: bool
) -> Choice:
  """The choice for one tensor of a recipe in mergekit's format.

  Raises:
    ValueError: a parameter that is missing, with model and tensor, or outside its range; weights that sum
      to 0 and are divided by.
  """
  method = methods.MERGEKIT[name]
  if method.of_base_alone and not task_vectors:
    return Choice(name, "passthrough", {}, None)
  values: dict[str, Any] = {"task_vectors": task_vectors}
  for parameter in method.parameters:
    default = None if parameter.default is None else parameter.default[not mergekit]
    found = []
    for i, expert in enumerate(experts if parameter.per_model else experts[:1]):
      scopes = [(settings, tensor.name) for settings in tensor.scopes]
      if parameter.per_model:
        scopes = [(settings, tensor.names[i]) for settings in (expert.settings, *tensor.scopes)]
      value = parameters.lookup(parameter.name, scopes, tensor.t, parameter.kind == "flag")
      value = default if value is None else value
      of = f" of {expert.label}" if parameter.per_model else ""
      if value is None:
        raise ValueError(
          f"{name} needs {parameter.name}{of} for tensor {tensor.name!r}; the recipe has none."
        )
      found.append(parameter.read(value, f"{name}: tensor {tensor.name!r}{of}: "))
    values[parameter.name] = np.asarray(found, np.float64) if parameter.per_model else found[0]
  if mergekit and method.alone and len(experts) == 1:
    return Choice(name, "passthrough", {}, None)
  weights = tuple(float(weight) for weight in values["weight"]) if method.weighted else None
  arguments = method.arguments(values, tensor.elements, mergekit)
  if arguments.get("normalize", False) and weights is not None and abs(sum(weights)) < 1e-8:
    if not mergekit or "scaling" not in arguments:
      key = next(one.name for one in method.parameters if one.name.startswith("normalize"))
      raise ValueError(
        f"{name}: the weights {list(weights)} of tensor {tensor.name!r} sum to 0, and it divides by their "
        f"sum; change them, or set {key}: false."
      )
    arguments["normalize"] = False  # mergekit divides a sum of task vectors by 1 there
  told = {key: value for key, value in values.items() if key not in ("task_vectors", "weight")}
  return Choice(name, method.factory, arguments, weights, method.along(values) if mergekit else None, told)


def of_own(
  default: str, rule: Rule | None, experts: Sequence[Input], tensor: Tensor, schedule: Sequence[float] | None
) -> Choice:
  """The choice for one tensor of a recipe in our format; errors as of `of_mergekit`.

  What the recipe and its models say of the `default` method says nothing of another one that a rule names:
  one word may mean two things. Weights are the models' own.
  """
  arguments: dict[str, Any] = {}
  method = default if rule is None else rule.method
  where = f"{method}: tensor {tensor.name!r}: "
  scopes = [(own.rule_settings(rule, ""), tensor.name)] if rule is not None else []
  shared = [*scopes, *((settings, tensor.name) for settings in tensor.scopes)]
  bare = [expert._replace(settings={}) for expert in experts]
  of_method, told = (experts, shared) if method == default else (bare, scopes)
  for key in own_methods.keywords(method):
    if key in own_methods.OWN[method]:
      found = _of_models(key, rule, of_method, tensor, told)
      if all(value is None for value in found):
        continue
      missing = next((e.label for e, value in zip(experts, found, strict=True) if value is None), None)
      default = own_methods.keywords(method)[key].default
      if missing is not None and not isinstance(default, int | float):
        raise ValueError(f"{where}{key} of {missing} is missing; give each model one, or all the same.")
      numbers = [default if value is None else value for value in found]
      arguments[key] = np.asarray([own_methods.read(method, key, n, where) for n in numbers], np.float64)
    elif (value := parameters.lookup(key, told, tensor.t)) is not None:
      arguments[key] = own_methods.read(method, key, value, where)
  weights = schedule
  if schedule is None:
    given = _of_models("weight", rule, experts, tensor, shared)
    if any(value is not None for value in given):
      missing = next((e.label for e, value in zip(experts, given, strict=True) if value is None), None)
      if missing is not None:
        raise ValueError(f"{where}weight of {missing} is missing; give each model one, or none.")
      weights = [parameters.number(value, f"{where}weight") for value in given if value is not None]
  own_weights = None if weights is None else tuple(map(float, weights))
  return Choice(method, method, arguments, own_weights, told=arguments)


def _of_models(
  key: str, rule: Rule | None, experts: Sequence[Input], tensor: Tensor, scopes: list[tuple[Settings, str]]
) -> list[parameters.Scalar | None]:
  found = []
  for expert, name in zip(experts, tensor.names, strict=True):
    inner = [] if rule is None else [(own.rule_settings(rule, expert.label), name)]
    found.append(parameters.lookup(key, [*inner, (expert.settings, name), *scopes], tensor.t))
  return found


def operators(choices: Sequence[Choice]) -> list[Operator]:
  """The operator of each choice; numbers have one form in all of one method.

  A number of each model's own is a scalar where it never differs between models, and float32.

  Raises:
    ValueError: the factory refuses its arguments.
  """
  own_of_model = {
    (choice.method, key)
    for choice in choices
    for key, value in choice.arguments.items()
    if isinstance(value, np.ndarray) and value.ndim and not np.all(value == value.flat[0])
  }
  made: dict[Any, Operator] = {}
  found = []
  for choice in choices:
    arguments = {k: _form(v, (choice.method, k) in own_of_model) for k, v in choice.arguments.items()}
    key = (choice.factory, *((name, np.asarray(value).tobytes()) for name, value in arguments.items()))
    if key not in made:
      made[key] = _make(choice, arguments)
    found.append(made[key])
  return found


def _form(value: Any, of_each_model: bool) -> Any:
  if isinstance(value, np.ndarray):
    kind = np.uint32 if value.dtype == np.uint32 else np.float32  # counts are exact
    return value.astype(kind) if of_each_model or not value.ndim else kind(value.flat[0])
  return np.float32(value) if isinstance(value, float) else value


def _make(choice: Choice, arguments: Mapping[str, Any]) -> Operator:
  for key, parameter in own_methods.keywords(choice.factory).items():
    if parameter.default is parameter.empty and key not in arguments:
      raise ValueError(f"{choice.method} needs {key}; the recipe has none.")
  make = own_methods.factory(choice.factory)
  try:
    return make(**arguments)
  except ValueError:
    try:  # again with plain numbers, which read better in a sentence
      return make(**{key: _plain(value) for key, value in arguments.items()})
    except ValueError as error:
      raise ValueError(f"{choice.method}: {error}") from None


def _plain(value: Any) -> Any:
  """float32 as its shortest decimals."""
  if getattr(value, "dtype", None) != np.float32:
    return value
  return value.astype(str).astype(float).tolist()


def copies(choice: Choice, operator: Operator, count: int) -> bool:
  """Whether the result is the only model as it is."""
  if count != 1:
    return False
  if choice.factory == "passthrough":
    return bool(np.all(choice.arguments.get("scale", 1.0) == 1.0))
  averages = choice.factory == "uniform" or (choice.factory == "linear" and operator.normalize)
  return averages or (choice.factory == "linear" and choice.weights in (None, (1.0,)))


def structure(operator: Operator) -> Any:
  """What operators share that one compilation and one survey serve.

  Operators with statistics of the whole model share them only if their numbers are equal, too.
  """
  leaves, tree = jax.tree.flatten(operator)
  form = tuple((np.shape(leaf), str(np.asarray(leaf).dtype)) for leaf in leaves)
  whole = any(one.whole for one in operator.survey())
  numbers = tuple(np.asarray(leaf).tobytes() for leaf in leaves) if whole else ()
  return tree, form, numbers


def require_models(choice: Choice, operator: Operator, count: int, by_rule: bool) -> None:
  """Raises ValueError if an operator takes another number of models, or no weights and gets some.

  What a rule chose does not look at the models' weights where it needs none.
  """
  if operator.models not in (None, count):
    plural = "" if operator.models == 1 else "s"
    raise ValueError(f"{choice.method} merges {operator.models} model{plural}, got {count}.")
  if operator.weightless and choice.weights is not None and not by_rule:
    raise ValueError(f"{choice.method} takes no weights, got {shown(choice.weights)}; remove them.")
  if operator.normalize and choice.weights is not None and abs(sum(choice.weights)) < 1e-8:
    raise ValueError(
      f"{choice.method}: the weights {list(choice.weights)} sum to 0; it divides by their sum."
    )
