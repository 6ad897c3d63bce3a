"""Our methods in recipes: a parameter is a keyword of the factory `merge_jax.NAME`, and its default holds."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from merge_jax.errors import shown, unknown
from merge_jax.recipes import parameters
from merge_jax.recipes.parameters import Scalar

_PLAIN = (
  "linear", "uniform", "slerp", "nuslerp", "multislerp", "karcher", "passthrough", "task_arithmetic", "sce",
  "model_stock", "nearswap", "arcee_fusion", "ram", "ram_plus", "consensus", "pcb", "widen", "fisher",
  "regmean", "tsv", "iso_c", "iso_cts", "knots",
)  # fmt: skip
OWN: Mapping[str, tuple[str, ...]] = dict.fromkeys(_PLAIN, ()) | {
  "ties": ("density",),
  "dare_linear": ("density",),
  "dare_ties": ("density",),
  "della": ("density", "epsilon"),
  "della_linear": ("density", "epsilon"),
  "breadcrumbs": ("density", "gamma"),
  "breadcrumbs_ties": ("density", "gamma"),
  "consensus": ("threshold",),
}
"""Our methods by name, with the parameters that each model may have its own of; weights apart."""


def factory(name: str) -> Callable[..., Any]:
  """The factory `merge_jax.NAME`.

  Raises:
    ValueError: this version has none.
  """
  import merge_jax

  found = getattr(merge_jax, name, None)
  if found is None:
    raise ValueError(f"The method {name} is not in this version of merge_jax ({merge_jax.__version__}).")
  return found


@functools.cache
def keywords(name: str) -> Mapping[str, inspect.Parameter]:
  """The arguments of a factory that a recipe can say: numbers, words, true or false.

  >>> {key: parameter.default for key, parameter in keywords("task_arithmetic").items()}
  {'scaling': 1.0, 'normalize': False}
  """
  plain = (bool, int, float, str, type(None), type)  # `Parameter.empty`, where it must be given, is a type
  found = inspect.signature(factory(name)).parameters
  return {key: one for key, one in found.items() if isinstance(one.default, plain)}


def read(name: str, key: str, value: Scalar, where: str) -> Scalar:
  """A value for an argument of a factory, of the kind that its default has; the factory checks the rest.

  Raises:
    ValueError: another kind.

  >>> read("ties", "density", "2e-1", "")
  0.2
  """
  parameter = keywords(name)[key]
  if isinstance(parameter.default, bool):
    return parameters.flag(value, f"{where}{key}")
  if isinstance(parameter.default, str):
    if not isinstance(value, str):
      raise ValueError(f"{where}{key} is {shown(value)}; expected a word such as {parameter.default!r}.")
    return value
  number = parameters.number(value, f"{where}{key}")
  if parameter.annotation in (int, int | None, "int", "int | None"):
    if number != int(number):
      raise ValueError(f"{where}{key} is {shown(value)}; expected a whole number.")
    return int(number)
  return number


def require(name: str, where: str) -> None:
  """Raises ValueError with the nearest name if a method of our own format is not known."""
  if name not in OWN:
    raise ValueError(unknown("method", name, OWN, where))
