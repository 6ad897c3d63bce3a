"""What is kept of mergekit's results: names, shapes, dtypes, and a sample of the elements."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merge_jax import checkpoints
from tests.conformance import pools

PATH = Path(__file__).with_name("goldens.npz")
STRIDE = 7
KEYS = ("model_type", "vocab_size", "num_hidden_layers", "n_layer", "dtype", "tie_word_embeddings")
"""What of `config.json` is compared."""


class Golden(NamedTuple):
  """A result: what its config says, its tokens, dtypes and shapes by name, and samples by name."""

  config: dict[str, Any]
  tokens: list[str]
  specs: dict[str, Any]
  samples: dict[str, np.ndarray]


def read(folder: Path) -> Golden:
  """Samples of a result; rows of embeddings go by the text of their token, padding last."""
  opened = checkpoints.open(folder)
  specs, samples = {}, {}
  for name, spec in sorted(opened.specs.items()):
    specs[name] = [str(spec.dtype), list(spec.shape)]
    value = opened.read(name).astype(np.float32)
    samples[name] = (by_token(folder, value) if _embeds(name) else value).reshape(-1)[::STRIDE]
  said = dict(opened.config or {})
  said["dtype"] = said.get("torch_dtype", said.get("dtype"))
  config = {key: said[key] for key in KEYS if key in said}
  return Golden(config, sorted(_ids(folder)), specs, samples)


def _embeds(name: str) -> bool:
  return name.split(".")[-2] in ("embed_tokens", "lm_head", "wte")


def by_token(folder: Path, value: np.ndarray) -> np.ndarray:
  """Rows in the order of the tokens' texts: which ids new tokens get is mergekit's chance."""
  ids = _ids(folder)
  rows = [ids[text] for text in sorted(ids)]
  return value[[*rows, *(i for i in range(len(value)) if i not in set(rows))]]


def _ids(folder: Path) -> dict[str, int]:
  return pools.vocabulary(json.loads((folder / "tokenizer.json").read_text()))


def write(results: dict[str, Golden]) -> None:
  """Stores samples, an array a recipe."""
  rest = {name: one[:-1] for name, one in results.items()}
  arrays = {name: np.concatenate(list(one.samples.values())) for name, one in results.items()}
  np.savez_compressed(PATH, rest=np.frombuffer(json.dumps(rest).encode(), np.uint8), **arrays)


def load() -> dict[str, Golden]:
  """All goldens by recipe."""
  with np.load(PATH) as stored:
    rest = json.loads(stored["rest"].tobytes())
    return {name: Golden(*one, _split(one[-1], stored[name])) for name, one in rest.items()}


def _split(specs: dict[str, Any], flat: np.ndarray) -> dict[str, np.ndarray]:
  sizes = [-(-int(np.prod(shape)) // STRIDE) for _, shape in specs.values()]
  return dict(zip(specs, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))
