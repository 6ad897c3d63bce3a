"""What a number of a recipe is for one tensor: scopes, filters, gradients over layers.

A parameter is a scalar, a gradient (a list over the layers of a slice), a value for tensors whose name
contains a text, or a list of those:

    0.5        [0, 0.5, 1]        {value: 0.5, filter: mlp}        [{value: 0.5, filter: mlp}, {value: 1}]

Of several scopes (a model's own, its slice's, its module's, the recipe's) the first that says something of
a tensor counts; within a list the first filter that matches. These are mergekit's rules.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from merge_jax.errors import shown, unknown

Scalar = bool | int | float | str


class Setting(NamedTuple):
  """A value, or a gradient of values, for the tensors whose names contain `filter`, or all (None)."""

  values: tuple[Scalar, ...]
  filter: str | None = None


Settings = Mapping[str, tuple[Setting, ...]]
"""What one scope says, by parameter."""


def parse(raw: Any, where: str) -> tuple[Setting, ...]:
  """Reads any form of a parameter.

  Raises:
    ValueError: another form, an empty list, an unknown key; `where` names it.

  >>> parse([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], "t")
  (Setting(values=(0, 1), filter='mlp'), Setting(values=(0.5,), filter=None))
  """
  if isinstance(raw, list) and any(isinstance(item, Mapping) for item in raw):
    for i, item in enumerate(raw):
      if not isinstance(item, Mapping):
        raise ValueError(
          f"{where}[{i}] is {shown(item)} in a list of filters; write {{value: {shown(item)}}}."
        )
    return tuple(_filtered(item, f"{where}[{i}]") for i, item in enumerate(raw))
  if isinstance(raw, Mapping):
    return (_filtered(raw, where),)
  return (Setting(_values(raw, where)),)


def _filtered(raw: Mapping[Any, Any], where: str) -> Setting:
  for key in raw:
    if key not in ("value", "filter"):
      raise ValueError(unknown("field", str(key), ("value", "filter"), where))
  if "value" not in raw:
    raise ValueError(f"{where}: the field 'value' is missing.")
  name = raw.get("filter")
  if name is not None and not isinstance(name, str):
    raise ValueError(f"{where}.filter is {shown(name)}; expected a part of a tensor's name.")
  return Setting(_values(raw["value"], f"{where}.value"), None if name in ("*", "") else name)


def _values(raw: Any, where: str) -> tuple[Scalar, ...]:
  items = raw if isinstance(raw, list) else [raw]
  if not items:
    raise ValueError(f"{where} is an empty list; expected a value, or values over the layers.")
  for item in items:
    if not isinstance(item, Scalar) or (isinstance(item, int) and abs(item) > sys.float_info.max):
      raise ValueError(
        f"{where} is {shown(raw)}; expected a number, true or false, a word, or a list of them."
      )
  return tuple(items)


def lookup(
  parameter: str, scopes: Iterable[tuple[Settings, str]], t: float, steps: bool = False
) -> Scalar | None:
  """The value of a parameter for one tensor, or None where no scope says anything.

  Args:
    parameter: its name.
    scopes: first those that win; each with the tensor's name that its filters look at.
    t: where in its slice the tensor lies, see `position`.
    steps: whether a gradient of numbers steps, too: they stand for true and false.

  >>> own, shared = {"t": parse({"filter": "mlp", "value": 1}, "t")}, {"t": parse([0, 0.5], "t")}
  >>> [lookup("t", [(own, name), (shared, name)], 1.0) for name in ("layers.9.mlp", "layers.9.attn")]
  [1, 0.5]
  """
  for settings, name in scopes:
    for setting in settings.get(parameter, ()):
      if setting.filter is None or setting.filter in name:
        return at(setting.values, t, steps)
  return None


def at(values: Sequence[Scalar], t: float, steps: bool = False) -> Scalar:
  """A gradient at `t`: numbers are interpolated, words and booleans step, or all with `steps`.

  >>> at((0, 1, 0.5), 0.25), at((0, 1, 0.5), 1.0), at((True, False), 0.5)
  (0.5, 0.5, True)
  """
  if len(values) == 1:
    return values[0]
  numbers = [_as_number(value) for value in values]
  place = t * (len(values) - 1)
  i = int(place)
  low, high = numbers[i], numbers[min(i + 1, len(values) - 1)]
  if steps or low is None or high is None or None in numbers:
    return values[i]
  return low if place == i else (1 - (place - i)) * low + (place - i) * high


def _as_number(value: Scalar) -> float | int | None:
  """A number, also one that is written as a word: YAML reads `1e-5` as one."""
  if isinstance(value, bool):
    return None
  if isinstance(value, str):
    try:
      return float(value)
    except ValueError:
      return None
  return value


def position(layer: int, count: int) -> float:
  """`t` of a layer in a slice of `count`: i / (L - 1), 1 if it is alone; 0 is for tensors outside of layers.

  >>> position(0, 5), position(1, 5), position(0, 1)
  (0.0, 0.25, 1.0)
  """
  return 1.0 if count == 1 else layer / (count - 1)


def number(value: Scalar, where: str, low: float = float("-inf"), high: float = float("inf")) -> float:
  """A finite number within a range, also where it is written as a word.

  Raises:
    ValueError: anything else; `where` names it.

  >>> number("1e-5", "epsilon")
  1e-05
  """
  try:
    found = float("nan") if isinstance(value, bool) else float(value)
  except (ValueError, OverflowError):
    found = float("nan")
  if not abs(found) <= 3e38 or not low <= found <= high:  # what float32 holds
    span = "a finite number" if high == float("inf") else f"a number between {low:g} and {high:g}"
    span = f"a number of at least {low:g}" if high == float("inf") and low > float("-inf") else span
    raise ValueError(f"{where} is {shown(value)}; expected {span}.")
  return found


def flag(value: Scalar, where: str) -> bool:
  """True or false, 1 or 0, also where they are written as words.

  Raises:
    ValueError: anything else; `where` names it.

  >>> flag(1, "normalize"), flag("no", "normalize")
  (True, False)
  """
  found = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else value
  if found not in (True, False):
    raise ValueError(f"{where} is {shown(value)}; expected true or false.")
  return bool(found)


_FLAGS = dict(true=True, yes=True, on=True, false=False, no=False, off=False) | {"1": True, "0": False}
