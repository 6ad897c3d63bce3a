"""What every checkpoint offers, whatever its format."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

SIDECARS = (
  "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
  "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
  "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "training.json",
)  # fmt: skip
"""Files beside the tensors that a merged checkpoint carries over, where they are."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint that is open: its tensors are known, none is read.

  Attributes:
    path: its folder.
    format: a name in `FORMATS`.
    specs: shape and dtype by canonical name; a tied tensor appears once.
    aliases: tied names that were left out, to their canonical ones.
    config: content of `config.json`, or None.
    structure: what the format needs to write alike (a pytree structure), or None.
    reader: reads tensors by name, as host arrays; those of mapped files are not copied.
  """

  path: Path
  format: str
  specs: Mapping[str, jax.ShapeDtypeStruct]
  aliases: Mapping[str, str]
  config: Mapping[str, Any] | None
  structure: Any
  reader: Callable[[Iterable[str]], dict[str, np.ndarray]]

  @property
  def name(self) -> str:
    """The folder's name."""
    return self.path.name

  @property
  def nbytes(self) -> int:
    """Bytes of all tensors in their stored dtypes."""
    return sum(spec.size * np.dtype(spec.dtype).itemsize for spec in self.specs.values())

  @property
  def parameters(self) -> int:
    """Number of elements of all floating tensors."""
    inexact = (s for s in self.specs.values() if jax.numpy.issubdtype(s.dtype, np.inexact))
    return sum(spec.size for spec in inexact)

  def read(self, name: str) -> np.ndarray:
    """One tensor on the host."""
    return self.reader([name])[name]

  def load(self, shardings: Mapping[str, jax.sharding.Sharding] | None = None) -> dict[str, Array]:
    """All tensors on the devices: sharded by name, or whole on the default one.

    Each device's part is read from the file alone.
    """
    values = self.reader(self.specs)
    if shardings is None:
      return {name: jax.device_put(value) for name, value in values.items()}
    return {name: _place(value, shardings[name]) for name, value in values.items()}


def _place(value: np.ndarray, sharding: jax.sharding.Sharding) -> Array:
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def read_config(folder: Path) -> dict[str, Any] | None:
  """`config.json`, or None if there is none; ValueError if it is not a JSON object."""
  path = folder / "config.json"
  if not path.is_file():
    return None
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}: not valid JSON ({error}).") from None
  if not isinstance(config, dict):
    raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}.")
  return config


def tied(config: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, str]:
  """Aliases that the config declares: a head that is the embedding."""
  names = set(names)
  if not config or not config.get("tie_word_embeddings", False):
    return {}
  pairs = {"lm_head.weight": "model.embed_tokens.weight"}
  return {a: c for a, c in pairs.items() if a in names and c in names}


def copy_sidecars(source: Path, target: Path) -> None:
  """Copies config, tokenizer and chat template files that there are."""
  for name in SIDECARS:
    if (source / name).is_file():
      shutil.copyfile(source / name, target / name)
