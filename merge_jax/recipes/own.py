"""Reads our own recipe format.

    method: ties                     # a name of `import merge_jax`: ties, linear, task_arithmetic, …
    base: org/base                   # for methods that need one
    models:                          # by label, or a list of paths
      code: {path: runs/code, weight: 0.5, density: 0.2}
      math: {path: org/math, adapter: org/math-lora, statistics: math_fisher.safetensors}
    parameters: {scaling: 1.0, scope: model}     # keywords of the method
    rules:                           # the first pattern that matches a tensor's whole name wins
      - {tensors: ".*norm.*", method: linear}
      - {tensors: ".*mlp.*", parameters: {density: 0.1, weight: {code: 1.0, math: 0.2}}}
    dtype: bfloat16                  # of the result; else that of the base, or of the first model
    seed: 0

Any parameter may be a value, a list over the layers, or `{value, filter}`, as `parameters.py` says. In
place of weights, `schedule: {name: minus_sqrt}` takes them from each model's `step`. A rule with another
method takes weights alone from outside of it. Further keys: `tokenizer` and `chat_template` as in mergekit's
format, `semantics` (paper), `name`.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from merge_jax import decoding
from merge_jax.errors import shown, unknown
from merge_jax.operators import naming
from merge_jax.recipes import mergekit, own_methods, parameters, schema
from merge_jax.recipes.parameters import Setting, Settings
from merge_jax.recipes.schema import Input, Module, Recipe, Rule, Slice


class _Top(msgspec.Struct, forbid_unknown_fields=True):
  method: str
  models: dict[str, Any] | list[Any]
  base: Any = None
  parameters: dict[str, Any] | None = None
  rules: list[Any] | None = None
  dtype: str | None = None
  seed: int = 0
  semantics: str = "paper"
  schedule: dict[str, Any] | None = None
  tokenizer: Any = None
  chat_template: str | None = None
  name: str | None = None


class _Rule(msgspec.Struct, forbid_unknown_fields=True):
  tensors: str
  method: str | None = None
  parameters: dict[str, Any] | None = None


PLACES = ("path", "revision", "adapter", "adapter_revision", "statistics", "step")
"""What an entry of `models` says beside parameters."""


def detect(raw: Any) -> bool:
  """Whether a document is written in our format."""
  return isinstance(raw, Mapping) and "method" in raw


def read(raw: Any, where: str, text: str = "") -> Recipe:
  """Reads a document in our format.

  Raises:
    ValueError: an unknown or misspelled key, method, parameter or dtype, a pattern that is no regular
      expression, values of other types. One sentence, which begins with `where`.

  >>> recipe = read({"method": "linear", "models": {"a": "x/a", "b": {"path": "x/b", "weight": 2}}}, "r.yml")
  >>> [one.label for one in recipe.modules[0].slices[0].inputs]
  ['a', 'b']
  """
  top = decoding.convert(raw, _Top, where)
  own_methods.require(top.method, where)
  if top.dtype is not None and top.dtype not in schema.DTYPES:
    raise ValueError(unknown("dtype", top.dtype, schema.DTYPES, where))
  if top.semantics != "paper":
    raise ValueError(
      f"{where}: semantics is {shown(top.semantics)}; our own format has the papers' alone: for mergekit's "
      "numbers set its variants (scope, election, …) under parameters."
    )
  if not 0 <= top.seed < 1 << 32:
    raise ValueError(f"{where}: seed is {top.seed}; expected a whole number from 0 to {(1 << 32) - 1}.")
  if not top.models:
    raise ValueError(f"{where}: models is empty; give at least one.")
  pairs = [("", one) for one in top.models] if isinstance(top.models, list) else list(top.models.items())
  named = isinstance(top.models, dict)
  inputs = tuple(
    _input(top.method, label, one, f"{where}: models" + (f".{label}" if named else f"[{i}]"))
    for i, (label, one) in enumerate(pairs)
  )
  rules = tuple(
    _rule(top.method, decoding.convert(one, _Rule, f"{where}: rules[{i}]"), inputs, f"{where}: rules[{i}]")
    for i, one in enumerate(top.rules or ())
  )
  base = None if top.base is None else _base(top.base, f"{where}: base")
  settings = _settings(top.method, top.parameters, f"{where}: parameters")
  told = (key for one in (settings, *(rule.settings for rule in rules)) for key in one)
  if top.schedule is not None and any(key.partition(" ")[0] == "weight" for key in told):
    raise ValueError(f"{where}: has a schedule, and weights in parameters or rules; remove one of them.")
  return Recipe(
    top.method, (Module((Slice(inputs),)),), "own", base=base, settings=settings, rules=rules,
    dtype=top.dtype, tokenizer=mergekit.tokenizer(top.tokenizer, f"{where}: tokenizer"),
    chat_template=top.chat_template, name=top.name, seed=top.seed,
    schedule=_schedule(top.schedule, inputs, f"{where}: schedule"), text=text,
  )  # fmt: skip


def _base(raw: Any, where: str) -> schema.Model:
  for key in raw if isinstance(raw, Mapping) else ():
    if key not in PLACES[:4]:
      raise ValueError(unknown("field", str(key), PLACES[:4], where))
  return _input("uniform", "", raw, where).model


def _input(method: str, label: str, raw: Any, where: str) -> Input:
  if isinstance(raw, str):
    return Input(schema.model(raw, where), label=label)
  if not isinstance(raw, Mapping):
    raise ValueError(f"{where} is {shown(raw)}; expected a path, or {{path: …, weight: …}}.")
  own = ("weight", *own_methods.OWN[method])
  for key in raw:
    if key not in (*PLACES, *own):
      raise ValueError(unknown("field", str(key), (*PLACES, *own), where))
  for key in PLACES[:-1]:
    if not isinstance(raw.get(key, ""), str):
      raise ValueError(f"{where}.{key} is {shown(raw[key])}; expected a string.")
  if not raw.get("path"):
    raise ValueError(f"{where}: the field 'path' is missing.")
  model = schema.Model(raw["path"], *(raw.get(key) for key in PLACES[1:4]))
  if model.adapter is None and model.revision is None:
    model = schema.model(raw["path"], where)
  settings = {key: parameters.parse(raw[key], f"{where}.{key}") for key in own if key in raw}
  step = None if "step" not in raw else parameters.number(raw["step"], f"{where}.step", 0.0)
  return Input(model, settings, None, label, raw.get("statistics"), step)


def _settings(method: str, raw: Mapping[str, Any] | None, where: str) -> Settings:
  known = ("weight", *own_methods.keywords(method)) if raw else ()
  for key in raw or ():
    if key not in known:
      raise ValueError(unknown(f"parameter of {method}", str(key), known, where))
  return {key: parameters.parse(value, f"{where}.{key}") for key, value in (raw or {}).items()}


def _rule(default: str, raw: _Rule, inputs: tuple[Input, ...], where: str) -> Rule:
  method = raw.method or default
  own_methods.require(method, f"{where}.method")
  try:
    naming.compiled((raw.tensors,))
  except ValueError as error:
    raise ValueError(f"{where}.tensors: {error}") from None
  shared: dict[str, Any] = {}
  by_model: dict[str, Any] = {}
  labels = [one.label for one in inputs if one.label]
  for key, value in (raw.parameters or {}).items():
    each = isinstance(value, Mapping) and not set(value) <= {"value", "filter"}
    (by_model if each else shared)[key] = value
  settings = dict(_settings(method, shared, f"{where}.parameters"))
  for key, values in by_model.items():
    if key not in ("weight", *own_methods.OWN[method]):
      raise ValueError(
        f"{where}.parameters.{key} is {shown(values)}; {key} is one for all models of {method}."
      )
    if not labels:
      raise ValueError(
        f"{where}.parameters.{key} is {shown(values)}, by labels, and models is a list, which has none; "
        "write models: {LABEL: {path: …}, …}."
      )
    for label, value in ((str(label), value) for label, value in values.items()):
      if label not in labels:
        raise ValueError(unknown("model", label, labels, f"{where}.parameters.{key}"))
      settings[own_key(key, label)] = parameters.parse(value, f"{where}.parameters.{key}.{label}")
  return Rule(raw.tensors, method, settings)


def own_key(parameter: str, label: str) -> str:
  """The key in a rule's settings of what one model has of its own."""
  return f"{parameter} {label}"


def rule_settings(rule: Rule, label: str) -> Settings:
  """What a rule says of one model: its own values, then those of all."""
  suffix = f" {label}"
  own = {
    key.removesuffix(suffix): value for key, value in rule.settings.items() if label and key.endswith(suffix)
  }
  shared: dict[str, tuple[Setting, ...]] = {k: v for k, v in rule.settings.items() if " " not in k}
  return shared | own


def _schedule(
  raw: Mapping[str, Any] | None, inputs: tuple[Input, ...], where: str
) -> tuple[str, Mapping[str, Any]] | None:
  if raw is None:
    return None
  if not isinstance(raw.get("name"), str):
    raise ValueError(f"{where}: the field 'name' is missing.")
  for one in inputs:
    if one.step is None:
      raise ValueError(f"{where}: the model {one.label or str(one.model)!r} has no step; give each one.")
    if "weight" in one.settings:
      raise ValueError(
        f"{where}: the model {one.label or str(one.model)!r} has a weight, too; remove one of them."
      )
  return raw["name"], {key: value for key, value in raw.items() if key != "name"}
