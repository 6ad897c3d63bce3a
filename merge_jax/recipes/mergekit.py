"""Reads mergekit's recipe format: https://github.com/arcee-ai/mergekit, as of version 0.1.5.

    merge_method: ties
    base_model: org/base
    models:                                # or slices: [{sources: [{model, layer_range, parameters}]}],
      - model: org/code                    # or modules: {name: {models | slices, parameters}}
        parameters: {weight: 0.5, density: [0.2, 0.6]}
      - model: org/math+org/adapter
        parameters: {weight: 0.5, density: {value: 0.3, filter: mlp}}
    parameters: {normalize: true, lambda: 1.0}
    dtype: bfloat16
    tokenizer_source: union                # or tokenizer: {source, tokens, pad_to_multiple_of}
    chat_template: auto

What is not known is an error with the nearest name; what mergekit takes and never uses is a note.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from merge_jax import decoding
from merge_jax.errors import unknown
from merge_jax.recipes import layers, methods, parameters, schema
from merge_jax.recipes.parameters import Settings
from merge_jax.recipes.schema import Input, Module, Recipe, Slice, Tokenizer

UNUSED = {
  "int8_mask",
  "embed_slerp",
  *(one.name for method in methods.MERGEKIT.values() for one in method.parameters),
}
"""Parameters that recipes carry along from one method to another, without effect there."""
PARTS = ("models", "slices", "modules")


class _Parts(msgspec.Struct, forbid_unknown_fields=True):
  models: list[Any] | None = None
  slices: list[Any] | None = None
  parameters: dict[str, Any] | None = None


class _Top(msgspec.Struct, forbid_unknown_fields=True):
  merge_method: str
  models: list[Any] | None = None
  slices: list[Any] | None = None
  modules: dict[str, Any] | None = None
  base_model: Any = None
  dtype: str | None = None
  out_dtype: str | None = None
  parameters: dict[str, Any] | None = None
  tokenizer_source: Any = None
  tokenizer: dict[str, Any] | None = None
  chat_template: str | None = None
  name: str | None = None


class _Model(msgspec.Struct, forbid_unknown_fields=True):
  model: Any
  parameters: dict[str, Any] | None = None


class _Source(msgspec.Struct, forbid_unknown_fields=True):
  model: Any
  layer_range: Any
  parameters: dict[str, Any] | None = None


class _Slice(msgspec.Struct, forbid_unknown_fields=True):
  sources: list[Any]
  base_model: Any = None
  parameters: dict[str, Any] | None = None
  residual_weight: Any = None


class _Tokenizer(msgspec.Struct, forbid_unknown_fields=True):
  source: Any = "union"
  tokens: dict[str, Any] | None = None
  pad_to_multiple_of: int | None = None


T = TypeVar("T", bound=msgspec.Struct)


def _fields(raw: Any, kind: type[T], where: str) -> T:
  """As `decoding.convert`; a parameter outside of `parameters` is told where it belongs."""
  for name in raw if isinstance(raw, Mapping) else ():
    if name in UNUSED:
      raise ValueError(f"{where}: {name} has no effect there, in mergekit neither; put it under parameters.")
  return decoding.convert(raw, kind, where)


def detect(raw: Any) -> bool:
  """Whether a document is written in mergekit's format."""
  return isinstance(raw, Mapping) and "merge_method" in raw


def read(raw: Any, where: str, text: str = "") -> Recipe:
  """Reads a document in mergekit's format.

  Raises:
    ValueError: an unknown or misspelled key, method, parameter or dtype; none or several of `models`,
      `slices` and `modules`; values of other types. One sentence, which begins with `where`.

  >>> read({"merge_method": "passthrough", "models": [{"model": "org/a"}]}, "r.yml").models()[0].path
  'org/a'
  """
  top = _fields(raw, _Top, where)
  if top.merge_method not in methods.MERGEKIT:
    raise ValueError(unknown("merge_method", top.merge_method, methods.MERGEKIT, where))
  reader = _Reader(methods.MERGEKIT[top.merge_method], top.merge_method, top.parameters or ())
  given = [part for part in PARTS if getattr(top, part) is not None]
  if len(given) != 1:
    got = " and ".join(given) or "none"
    raise ValueError(f"{where}: got {got} of {', '.join(PARTS)}; expected exactly one of them.")
  if top.tokenizer is not None and top.tokenizer_source is not None:
    raise ValueError(f"{where}: got tokenizer and tokenizer_source; expected one of them.")
  if top.modules is not None:
    found = tuple(
      reader.module(
        decoding.convert(value, _Parts, f"{where}: modules.{name}"), f"{where}: modules.{name}", name
      )
      for name, value in top.modules.items()
    )
    if not found:
      raise ValueError(f"{where}: modules is empty; name at least one.")
  else:
    found = (reader.module(_Parts(top.models, top.slices), where, None),)
  dtypes = {name: (getattr(top, name) or "").removeprefix("torch.") for name in ("out_dtype", "dtype")}
  for name, dtype in dtypes.items():
    if dtype and dtype not in schema.DTYPES:
      raise ValueError(unknown(name, dtype, schema.DTYPES, where))
  return Recipe(
    method=top.merge_method,
    modules=found,
    origin="mergekit",
    base=None if top.base_model is None else schema.model(top.base_model, f"{where}: base_model"),
    settings=reader.settings(top.parameters, f"{where}: parameters", own=False),
    dtype=dtypes["out_dtype"] or dtypes["dtype"] or None,
    tokenizer=tokenizer(
      top.tokenizer_source if top.tokenizer is None else top.tokenizer, f"{where}: tokenizer"
    ),
    chat_template=top.chat_template,
    name=top.name,
    notes=tuple(dict.fromkeys(reader.notes)),
    text=text,
  )


class _Reader:
  """Reads the parts that have parameters of one method; collects notes."""

  def __init__(self, method: methods.Method, name: str, shared: Collection[str]):
    self._known = {one.name: one for one in method.parameters}
    self._name, self._shared = name, shared
    self.notes: list[str] = []

  def settings(self, raw: Mapping[str, Any] | None, where: str, *, own: bool) -> Settings:
    """The parameters of a scope; `own` if it is a model's, which holds those of a model alone."""
    found = {}
    for name, value in (raw or {}).items():
      if name not in self._known:
        if name not in UNUSED:
          raise ValueError(unknown(f"parameter of {self._name}", name, (*self._known, "int8_mask"), where))
        self.notes.append(f"{name} has no effect on {self._name}")
        continue
      if own and not self._known[name].per_model:
        of_all = f"{name} is one for all models of {self._name}"
        if name not in self._shared and value not in (self._known[name].default or ())[:1]:
          raise ValueError(f"{where}: {of_all}; put it under the recipe's own parameters.")
        self.notes.append(f"{of_all}: under one of them it has no effect")
        continue
      found[name] = parameters.parse(value, f"{where}.{name}")
    return found

  def module(self, parts: _Parts, where: str, name: str | None) -> Module:
    if (parts.models is None) == (parts.slices is None):
      raise ValueError(f"{where}: expected exactly one of models, slices.")
    settings = self.settings(parts.parameters, f"{where}.parameters", own=False)
    if parts.models is not None:
      return Module((Slice(self._models(parts.models, f"{where}: models")),), settings, name)
    if not parts.slices:
      raise ValueError(f"{where}: slices is empty; give at least one.")
    slices = tuple(self._slice(one, f"{where}: slices[{i}]") for i, one in enumerate(parts.slices))
    if not any(first < end for part in slices for first, end in [part.inputs[0].layers or (0, 0)]):
      raise ValueError(
        f"{where}: the slices hold no layer; expected layer_range: [first, end], the end excluded."
      )
    return Module(slices, settings, name)

  def _models(self, raw: list[Any], where: str) -> tuple[Input, ...]:
    if not raw:
      raise ValueError(f"{where} is empty; give at least one model.")
    found = []
    for i, one in enumerate(raw):
      place = f"{where}[{i}]"
      item = _fields({"model": one} if isinstance(one, str) else one, _Model, place)
      found.append(Input(self._model(item.model, place), self.settings(item.parameters, place, own=True)))
    return tuple(found)

  def _slice(self, raw: Any, where: str) -> Slice:
    one = _fields(raw, _Slice, where)
    if one.residual_weight is not None:
      raise ValueError(
        f"{where}: residual_weight was never used by mergekit and has no meaning here; remove it."
      )
    if not one.sources:
      raise ValueError(f"{where}.sources is empty; give at least one model.")
    inputs = []
    for i, source in enumerate(one.sources):
      place = f"{where}.sources[{i}]"
      item = _fields(source, _Source, place)
      model, settings = self._model(item.model, place), self.settings(item.parameters, place, own=True)
      inputs.append(Input(model, settings, layers.check_range(item.layer_range, place)))
    lengths = [end - first for first, end in (x.layers for x in inputs if x.layers is not None)]
    if len(set(lengths)) > 1:
      raise ValueError(f"{where}: the sources have {lengths} layers; expected as many of each.")
    base = None if one.base_model is None else schema.model(one.base_model, f"{where}.base_model")
    return Slice(tuple(inputs), self.settings(one.parameters, f"{where}.parameters", own=False), base)

  def _model(self, raw: Any, where: str) -> schema.Model:
    if isinstance(raw, Mapping) and raw.get("override_architecture") is not None:
      self.notes.append("override_architecture has no effect: merging needs names and shapes alone")
    return schema.model(raw, f"{where}.model")


def tokenizer(raw: Any, where: str) -> Tokenizer | None:
  """Reads `base`, `union`, a model, or `{source, tokens, pad_to_multiple_of}`; errors as of `read`."""
  if raw is None:
    return None
  whole = isinstance(raw, Mapping) and not {"model", "path"} & set(raw)
  spec = decoding.convert(raw if whole else {"source": raw}, _Tokenizer, where)
  pad, source = spec.pad_to_multiple_of, spec.source
  if pad is not None and not 0 < pad <= 1 << 20:
    raise ValueError(f"{where}.pad_to_multiple_of is {pad}; expected a number from 1 to {1 << 20}.")
  if not isinstance(source, str) or not source:
    source = str(schema.model(source, f"{where}.source"))
  tokens = {text: _named(one, f"{where}.tokens[{text!r}]") for text, one in (spec.tokens or {}).items()}
  return Tokenizer(source, tokens, pad)


def _named(raw: Any, where: str) -> Any:
  """What is said of a token, with labels in place of models that are spelled as objects."""
  source = raw.get("source") if isinstance(raw, Mapping) else None
  if not isinstance(source, Mapping):
    return raw
  if "kind" not in source:
    return {**raw, "source": str(schema.model(source, f"{where}.source"))}
  if isinstance(source.get("model"), Mapping):
    return {**raw, "source": {**source, "model": str(schema.model(source["model"], f"{where}.source.model"))}}
  return raw
