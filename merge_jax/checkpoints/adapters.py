"""PEFT LoRA adapters (arXiv 2106.09685), materialised tensor by tensor: W + s·B·A."""

import dataclasses
import difflib
import hashlib
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from merge_jax import storage
from merge_jax.checkpoints import huggingface, lora, pickles
from merge_jax.checkpoints.base import Checkpoint, Index
from merge_jax.checkpoints.views import View

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
_BLOCK = 1 << 22  # elements that are computed at once in float64


class Update(NamedTuple):
  """What is added to a tensor.

  Attributes:
    a, b: names of A `[r, in, ...]` and B `[out, r, ...]` in the adapter's file.
    scale: of B A.
    turned: the tensor is `[in, out]`: an embedding, or GPT-2's Conv1D.
  """

  a: str
  b: str
  scale: float
  turned: bool


@dataclasses.dataclass(frozen=True)
class Adapted(View):
  """A model with an adapter; its tensors are computed when they are read.

  Attributes:
    folder: the adapter's.
    weights: its tensors.
    updates: by tensor of the model.
    replaced: tensors that the adapter holds whole (`modules_to_save`), by tensor of the model.
  """

  folder: Path
  weights: Checkpoint
  updates: Mapping[str, Update]
  replaced: Mapping[str, str]

  @property
  def name(self) -> str:
    """Both names."""
    return f"{self.source.name}+{self.folder.name}"

  @property
  def where(self) -> str:
    """Both folders."""
    return f"{self.source.where}+{self.folder}"

  @property
  def places(self) -> tuple[Path, ...]:
    """Those of the model, and the adapter's."""
    return (*self.source.places, self.folder)

  def files(self) -> tuple[Path, ...]:
    """Those of the model and of the adapter."""
    return (*self.source.files(), *self._own())

  def digest(self) -> str:
    """A SHA-256 of both digests."""
    both = self.source.digest() + storage.digest(self._own(), self.folder)
    return hashlib.sha256(both.encode()).hexdigest()

  def _own(self) -> tuple[Path, ...]:
    return (self.folder / "adapter_config.json", *self.weights.files())

  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    main = self.aliases.get(name, name)
    if main in self.replaced:
      value = self.weights.read(self.replaced[main], index)
    else:
      value = self.source._stored(name, index)
    if main not in self.updates:
      return value
    update = self.updates[main]
    a, b = (self.weights.read(n).astype(np.float64) for n in (update.a, update.b))
    b = b.reshape(b.shape[:2])
    left, right = (a.T, b.T) if update.turned else (b, a)
    rows, *rest = index or (slice(None),)
    return _add(value, left[rows], right[(slice(None), *rest)], update.scale)


def _add(value: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
  """value + scale · left · right, rounded once to float32.

  Products are summed in float64: in float32 the order of the sum, and so the result, depends on the
  number of threads.
  """
  result = np.array(value, np.float32, order="C")
  width = math.prod(result.shape[1:])
  flat, factor = result.reshape(len(result), width), right.reshape(len(right), width)
  step, scaled = max(1, _BLOCK // max(1, width)), scale * left
  room = np.empty((min(step, len(flat)), width))
  with np.errstate(over="ignore", invalid="ignore"):
    for i in range(0, len(flat), step):
      rows = flat[i : i + step]
      total = np.matmul(scaled[i : i + step], factor, out=room[: len(rows)])
      total += rows
      rows[...] = total
  return result


def with_adapter(checkpoint: Checkpoint, folder: str | Path) -> Checkpoint:
  """A model with a PEFT LoRA adapter: W + s·B·A, s = alpha / r or alpha / √r; no tensor is read yet.

  Adapted tensors are float32, whatever the model is stored in; `result_dtype` is the model's. Adapters of
  linear layers, GPT-2's Conv1D, convolutions and embeddings are read, and modules that were saved whole.
  Names fit with and without a common prefix such as `model.` on either side.

  Args:
    checkpoint: the model that the adapter was trained on.
    folder: with `adapter_config.json` and `adapter_model.safetensors`.

  Raises:
    FileNotFoundError: there is no such folder, or it lacks one of both files.
    ValueError: no plain LoRA; a factor without its partner; a tensor that the model does not have, ties to
      another one, or has in another shape; another rank than the config's.
  """
  folder = storage.path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder}: there is no such folder.")
  config = lora.read_config(folder / "adapter_config.json")
  file, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
  if pickled.exists() and not file.exists():
    raise ValueError(pickles.refusal(pickled, [pickled]))
  weights = huggingface.open_file(file)
  factors, whole = _parts(weights)
  targets = [*whole, *(f"{module}.weight" for module, _ in factors)]
  places = _places(dict.fromkeys(targets), checkpoint, file)
  replaced = {places[target]: name for target, name in whole.items()}
  updates: dict[str, Update] = {}
  for (module, kind), pair in factors.items():
    place = places[f"{module}.weight"]
    if len(pair) == 1 or place in updates:
      raise ValueError(f"{file}: tensor {min(pair.values())!r} is not one of a pair of A and B.")
    updates[place] = _update(config, module, bool(kind), pair, checkpoint.specs[place], weights)
  _refuse_ambiguous(config, updates, checkpoint, file)
  specs = dict(checkpoint.specs)
  for place, name in replaced.items():
    if weights.specs[name].shape != specs[place].shape:
      raise ValueError(
        f"{file}: tensor {name!r} is {list(weights.specs[name].shape)}, in the model "
        f"{list(specs[place].shape)}; if tokens were added in training, add them to the model first."
      )
    specs[place] = weights.specs[name]
  specs |= {place: jax.ShapeDtypeStruct(specs[place].shape, np.float32) for place in updates}
  return Adapted(
    checkpoint.path,
    specs,
    checkpoint.aliases,
    checkpoint.config,
    checkpoint,
    folder,
    weights,
    updates,
    replaced,
  )


def _parts(weights: Checkpoint) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, str]]:
  """Names of A and B by module and kind, and of the tensors that are saved whole, by tensor."""
  factors: dict[tuple[str, str], dict[str, str]] = {}
  whole: dict[str, str] = {}
  for name in weights.specs:
    plain = name.removeprefix("base_model.model.")
    if match := _FACTOR.fullmatch(plain):
      group, key = factors.setdefault((match[1], match[2] or ""), {}), match[3]
    elif "lora_" in plain:
      raise ValueError(f"{weights.path}: tensor {name!r} is of no plain LoRA, which alone is read.")
    else:
      group, key = whole, _WRAPPERS.sub("", plain)
    if key in group:
      raise ValueError(f"{weights.path}: tensors {group[key]!r} and {name!r} are for the same place.")
    group[key] = name
  return factors, whole


def _places(targets: Collection[str], checkpoint: Checkpoint, file: Path) -> dict[str, str]:
  """Names in the model: as they are, else all others with one prefix more or less."""
  known = checkpoint.specs.keys() | checkpoint.aliases.keys()
  odd = [target for target in targets if target not in known]
  places = {target: target for target in targets}
  if odd:
    first = odd[0]
    cut = {first[: i + 1] for i, c in enumerate(first) if c == "." and first[i + 1 :] in known}
    more = {name.removesuffix(first) for name in known if name.endswith(f".{first}")}
    ways = [{t: t.removeprefix(p) for t in odd} for p in cut] + [{t: p + t for t in odd} for p in more]
    ways = [way for way in ways if known.issuperset(way.values())]
    if len(ways) != 1:
      near = difflib.get_close_matches(first, known, n=1)
      hint = f"; the nearest is {near[0]!r}" if near else ""
      tied = (checkpoint.config or {}).get("tie_word_embeddings") is True and first.endswith("lm_head.weight")
      hint = "; its head is tied to the embedding" if tied else hint
      raise ValueError(f"{file}: adapts {first!r}, which {checkpoint.path} does not have{hint}.")
    places |= ways[0]
  for target, place in places.items():
    if place in checkpoint.aliases:
      raise ValueError(
        f"{file}: adapts {target!r}, which {checkpoint.path} ties to {checkpoint.aliases[place]!r}; untie it "
        "first: store both, with tie_word_embeddings false in config.json."
      )
  if len(set(places.values())) < len(places):
    raise ValueError(f"{file}: two of its tensors are for the same one of {checkpoint.path}.")
  return places


def _update(
  config: lora.Config,
  module: str,
  embedding: bool,
  pair: Mapping[str, str],
  spec: jax.ShapeDtypeStruct,
  weights: Checkpoint,
) -> Update:
  a, b, rank = weights.specs[pair["A"]].shape, weights.specs[pair["B"]].shape, config.rank(module)
  fits = len(a) > 1 and len(b) > 1 and a[0] == b[1] == rank and math.prod(b[2:]) == 1
  straight, turned = spec.shape == (*b[:1], *a[1:]), spec.shape == (*a[1:], *b[:1])
  if embedding:
    straight, way = False, True
  else:
    way = config.fan_in_fan_out if straight and turned and len(a) == 2 else not straight
  if not fits or not (straight or (turned and len(a) == 2)):
    raise ValueError(
      f"{weights.path}: A {list(a)} and B {list(b)} of {module!r} do not fit rank {rank} of the config and "
      f"the model's {list(spec.shape)}."
    )
  if not jax.numpy.issubdtype(spec.dtype, np.floating):
    raise ValueError(
      f"{weights.path}: adapts {module!r}, whose weight is {spec.dtype}; expected a floating dtype."
    )
  return Update(pair["A"], pair["B"], config.scale(module), way)


def _refuse_ambiguous(
  config: lora.Config, updates: Mapping[str, Update], checkpoint: Checkpoint, file: Path
) -> None:
  """Square matrices go by the config, whose one flag PEFT sets anew for every kind of layer it meets."""
  shapes = {p: checkpoint.specs[p].shape for p, u in updates.items() if ".lora_embedding_" not in u.a}
  square = [place for place, shape in shapes.items() if len(shape) == 2 and shape[0] == shape[1]]
  others = [place for place, shape in shapes.items() if len(shape) == 2 and shape[0] != shape[1]]
  if square and any(updates[place].turned != config.fan_in_fan_out for place in others):
    raise ValueError(
      f"{file}: fan_in_fan_out is {str(config.fan_in_fan_out).lower()}, but other layers of this adapter are "
      f"stored the other way, so that of the square {square[0]!r} is not known."
    )
