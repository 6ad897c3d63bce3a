"""Typed reading of JSON and settings: msgspec, with errors in one sentence.

What is read is declared as a `msgspec.Struct`; ranges are part of its types, as in
`Annotated[int, Meta(ge=1)]`.
"""

import math
import re
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from merge_jax.errors import shown, unknown

T = TypeVar("T")

_WORDS = {
  "int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false", "array": "a list",
  "object": "an object", "null": "null",
}  # fmt: skip


def decode(text: bytes, kind: type[T], where: str) -> T:
  """Reads JSON as `kind`.

  Args:
    text: UTF-8, a byte-order mark allowed.
    kind: what `msgspec` can decode: a Struct, `dict[str, float]`, ….
    where: file, or file and line, for errors.

  Raises:
    ValueError: not JSON, or not of this kind; one sentence that names the place.

  >>> decode(b'{"a": 1}', dict[str, int], "x.json")
  {'a': 1}
  >>> decode(b'{"a": ', dict[str, int], "x.json")
  Traceback (most recent call last):
  ValueError: x.json: not valid JSON (Input data was truncated).
  """
  text = text.removeprefix(b"\xef\xbb\xbf")
  try:
    try:
      return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
      raise ValueError(_sentence(error, msgspec.json.decode(text), kind, where)) from None
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(" - at")[0]
    raise ValueError(f"{where}: not valid JSON ({reason}).") from None


def convert(value: Any, kind: type[T], where: str) -> T:
  """Plain data (nested dicts, lists, numbers) as `kind`; numbers must be finite.

  Raises:
    ValueError: an unknown field, with the nearest valid name, or a value that is not of its type or range.
  """
  try:
    result = msgspec.convert(value, kind)
  except msgspec.ValidationError as error:
    raise ValueError(_sentence(error, value, kind, where)) from None
  except UnicodeEncodeError as error:
    raise ValueError(f"{where}: the text {shown(error.object)} is not valid Unicode.") from None
  for path, number in _floats(value):
    if not math.isfinite(number):
      raise ValueError(f"{where}: {path} is {number}; expected a finite number.")
  return result


def _sentence(error: Exception, raw: Any, kind: Any, where: str) -> str:
  what, of_key, at = str(error).partition(" - at `key` in `")
  if not of_key:
    what, _, at = str(error).partition(" - at `")
  path = at.removesuffix("`").removeprefix("$").removeprefix(".")
  parts = re.findall(r"[^.\[\]]+", path)
  field = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
  if field:
    inside = f" in {path}" if path else ""
    return unknown(f"field{inside}", field[1], _names(kind, parts, raw), where)
  missing = re.fullmatch(r"Object missing required field `(.*)`", what)
  if missing:
    inside = f" of {path}" if path else ""
    return f"{where}: the field {missing[1]!r}{inside} is missing."
  if what.startswith("Invalid enum value"):
    return unknown(path, _value(raw, parts), _names(kind, parts, raw), where)
  expected = re.sub(r", got .*", "", what.removeprefix("Expected "), flags=re.DOTALL)
  expected = re.sub(r"`(.*?)`", lambda m: " or ".join(_WORDS.get(w, w) for w in m[1].split(" | ")), expected)
  value = _value(raw, parts)
  name = path or "the content"
  if of_key:
    key = shown(next((key for key in value if not isinstance(key, str)), value))
    return f"{where}: a key of {name} is {key}; expected {expected} in quotes (in numbers a point, no comma)."
  if not what.startswith("Expected"):
    return f"{where}: {name} is {shown(value)}; {what[:1].lower()}{what[1:]}."
  return f"{where}: {name} is {shown(value)}; expected {expected}."


def _value(raw: Any, parts: list[str]) -> Any:
  for part in parts:
    try:
      raw = raw[int(part)] if isinstance(raw, list | tuple) else raw[part]
    except (KeyError, IndexError, ValueError, TypeError):
      return raw  # "[...]": some value of a mapping
  return raw


def _names(kind: Any, parts: list[str], raw: Any) -> list[str]:
  """Names of the fields of the Struct, or of the choices, at a path of types."""
  for part in parts:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
      kind = typing.get_type_hints(kind).get(part)
  structs = [one for one in typing.get_args(kind) if hasattr(one, "__struct_config__")]
  value = _value(raw, parts)
  for one in structs:  # of several, the one that a tag tells
    config = one.__struct_config__
    if config.tag is not None and isinstance(value, dict) and value.get(config.tag_field) == config.tag:
      return [config.tag_field, *one.__struct_encode_fields__]
  kind = structs[0] if len(structs) == 1 else kind
  if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
    return list(kind.__struct_encode_fields__)
  return list(typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else []


def _floats(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
  if isinstance(value, float):
    yield path, value
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from _floats(item, f"{path}.{key}" if path else str(key))
  elif isinstance(value, list | tuple):
    for i, item in enumerate(value):
      yield from _floats(item, f"{path}[{i}]")


LARGEST = 1e100
"""Of the numbers of tasks: their sums and products with scores stay finite."""


def nameable(name: str) -> bool:
  """Whether `shares` can name a task: it splits at commas and `=`, and drops blanks around names.

  >>> nameable("code"), nameable("a,b"), nameable("a=b"), nameable(" a")
  (True, False, False, False)
  """
  return not ("," in name or "=" in name or name != name.strip())


def shares(text: str, where: str = "task numbers", pair: str = "task=number") -> dict[str, float]:
  """Numbers by task name from `task=number,…`, of which one is positive; none from an empty text.

  `pair` says what names and numbers are, for errors.

  Raises:
    ValueError: as `by_task`, or all of them 0.
  """
  result = by_task(text, where, pair)
  if result and not any(result.values()):
    raise ValueError(f"{where}: got {shown(text)}; at least one number must be above 0.")
  return result


def by_task(text: str, where: str = "task numbers", pair: str = "task=number") -> dict[str, float]:
  """Numbers by task name from `task=number,…`; all may be 0, as where tasks that are left out have 1.

  Raises:
    ValueError: a name that is missing or stands twice, or a number that is not from 0 to `LARGEST`.

  >>> by_task("code=2,math=0.5")
  {'code': 2.0, 'math': 0.5}
  """
  result: dict[str, float] = {}
  for item in text.split(",") if text else ():
    name, _, value = (part.strip() for part in item.partition("="))
    try:
      number = float(value)
    except ValueError:
      number = math.nan
    if not name or not 0 <= number <= LARGEST:
      raise ValueError(
        f"{where}: got {shown(item)}; expected {pair}, 0 or more (at most {LARGEST:g}), for example "
        "code=0.8,math=0.2."
      )
    if name in result:
      kind = pair.partition("=")[0]
      raise ValueError(f"{where}: got {shown(text)}; {kind} {name!r} stands twice, give it one number.")
    result[name] = number
  return result
