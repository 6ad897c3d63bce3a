"""What a recipe says, in one form for all: our own format and mergekit's are both read to a `Recipe`.

`models` is one slice with all layers of each model; `slices` stack layers; `modules` are the parts of a
model of several (an encoder and a decoder). See `own.py` and `mergekit.py` for what a user writes.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from merge_jax import storage
from merge_jax.errors import shown, unknown
from merge_jax.recipes.parameters import Settings

Semantics = Literal["mergekit", "paper"]
DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Dtypes that a result may be asked in."""


KEYS = ("model", "lora", "override_architecture", "path", "revision")
"""Of a reference to a model that is no word."""
EMPTY: Mapping[str, Any] = MappingProxyType({})


class Model(NamedTuple):
  """Where a model lies: a folder, file or name on the hub, and a LoRA adapter on top of it."""

  path: str
  revision: str | None = None
  adapter: str | None = None
  adapter_revision: str | None = None

  def __str__(self) -> str:
    text = self.path + (f"@{self.revision}" if self.revision else "")
    if self.adapter is None:
      return text
    return f"{text}+{self.adapter}" + (f"@{self.adapter_revision}" if self.adapter_revision else "")


class Input(NamedTuple):
  """A model of a slice.

  Attributes:
    model: which.
    settings: its own parameters.
    layers: half-open range of its layers; None for all of them.
    label: its name in tables and random keys; "" for the model's.
    statistics: file with what was measured of it, or None.
    step: of the run that it is a checkpoint of, for schedules.
  """

  model: Model
  settings: Settings = EMPTY
  layers: tuple[int, int] | None = None
  label: str = ""
  statistics: str | None = None
  step: float | None = None


class Slice(NamedTuple):
  """Layers of the result, each made from one layer of every input."""

  inputs: tuple[Input, ...]
  settings: Settings = EMPTY
  base: Model | None = None


class Module(NamedTuple):
  """Slices on top of each other; `name` is that of a part of the model, None where it has but one."""

  slices: tuple[Slice, ...]
  settings: Settings = EMPTY
  name: str | None = None


class Rule(NamedTuple):
  """Other parameters, or another method, for the tensors whose whole name a pattern matches."""

  pattern: str
  method: str
  settings: Settings


class Tokenizer(NamedTuple):
  """Which tokenizer the result has; `tokens` and `source` are as `tokenizers.plan` takes them."""

  source: str = "union"
  tokens: Mapping[str, Any] = EMPTY
  pad_to_multiple_of: int | None = None


class Recipe(NamedTuple):
  """A merge.

  Attributes:
    method: a name in the table of methods of its format.
    modules: what is merged.
    origin: the format that it was written in.
    base: the common ancestor, also of slices that do not name one.
    settings: parameters of the whole recipe.
    rules: exceptions by tensor name; the first match wins.
    dtype: of the result; None: in our format that of the base or first model, in mergekit's one that holds
      the numbers of all, tensor by tensor.
    schedule: weights from the steps of checkpoints: a name and its numbers, or None.
    notes: what was accepted without effect.
    text: the recipe as it was written.
  """

  method: str
  modules: tuple[Module, ...]
  origin: Literal["mergekit", "own"]
  base: Model | None = None
  settings: Settings = EMPTY
  rules: tuple[Rule, ...] = ()
  dtype: str | None = None
  tokenizer: Tokenizer | None = None
  chat_template: str | None = None
  name: str | None = None
  seed: int = 0
  schedule: tuple[str, Mapping[str, Any]] | None = None
  notes: tuple[str, ...] = ()
  text: str = ""

  @property
  def leader(self) -> Model:
    """Whose config, tokenizer and other files the result gets: the base, or the first model."""
    return self.base or self.modules[0].slices[0].inputs[0].model

  def models(self) -> tuple[Model, ...]:
    """Every model once, the leader first."""
    return tuple(dict.fromkeys(self._models()))

  def _models(self) -> Iterator[Model]:
    yield self.leader
    for module in self.modules:
      for part in module.slices:
        if part.base is not None:
          yield part.base
        yield from (one.model for one in part.inputs)


def model(raw: Any, where: str) -> Model:
  """Reads `path[@revision][+adapter[@revision]]`, or `{model, lora}`, each a path or `{path, revision}`.

  What exists as a whole is a path, whatever characters it has; revisions of names on the hub stay part of
  the path, for `checkpoints.hub` to read.

  Raises:
    ValueError: neither, or an unknown key; `where` names it.

  >>> model("org/name+org/adapter", "models[0]")
  Model(path='org/name', revision=None, adapter='org/adapter', adapter_revision=None)
  """
  if isinstance(raw, str) and raw.strip():
    raw = raw.rstrip("/") or raw  # one folder has one name
    first, plus, last = raw.rpartition("+")
    if not plus or storage.path(raw).exists():
      return Model(raw)
    if not first or not last:
      raise ValueError(f"{where} is {shown(raw)}; expected MODEL+ADAPTER.")
    return Model(first, adapter=last)
  if isinstance(raw, Mapping):
    if stranger := next((key for key in raw if key not in KEYS), None):
      raise ValueError(unknown("field", str(stranger), KEYS, where))
    inner, adapter = raw.get("model", raw), raw.get("lora")
    if isinstance(inner, str) and adapter is None:
      return model(inner, f"{where}.model")
    path, revision = _path(inner, f"{where}.model")
    if path is not None:
      return Model(path, revision, *_path(adapter, f"{where}.lora"))
  raise ValueError(f"{where} is {shown(raw)}; expected a folder, or a name on the Hugging Face hub.")


def _path(raw: Any, where: str) -> tuple[str | None, str | None]:
  if raw is None or (isinstance(raw, str) and raw.strip()):
    return raw, None
  if isinstance(raw, Mapping) and set(raw) <= {"path", "revision"} and isinstance(raw.get("path"), str):
    revision = raw.get("revision")
    if revision is None or isinstance(revision, str):
      return raw["path"], revision
  raise ValueError(f"{where} is {shown(raw)}; expected a path, or {{path: …, revision: …}}.")
