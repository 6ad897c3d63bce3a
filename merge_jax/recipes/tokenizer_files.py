"""The files beside the tensors that belong to a tokenizer: read, carried over, extended."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from merge_jax import storage
from merge_jax.checkpoints import Checkpoint, sidecars
from merge_jax.checkpoints.views import View
from merge_jax.decoding import decode
from merge_jax.errors import in_library

NAME = "tokenizer.json"
FILES = (
  NAME, "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "spiece.model",
  "sentencepiece.bpe.model", "tiktoken.model", "qwen.tiktoken", "tekken.json", "added_tokens.json",
  "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
  "generation_config.json",
)  # fmt: skip
"""What comes from the model whose tokenizer a merge has; the generation config says where text ends."""

_SLOW = (
  "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "qwen.tiktoken",
  "tekken.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip
"""What other tokenizers than `tokenizer.json` are built from; it does not hold added tokens."""

_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def read(model: Checkpoint | Path) -> Tokenizer:
  """Reads `tokenizer.json` of a model, or of a folder.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  folder = model if isinstance(model, Path) else model.path
  path, planned = folder / NAME, _planned(model)
  if planned is None and not path.is_file():
    raise ValueError(
      f"{folder} has no {NAME}, which choosing a tokenizer needs; write one with "
      "`AutoTokenizer.from_pretrained(...).save_pretrained(...)` of transformers."
    )
  with in_library(f"{path} is not a tokenizer"):
    return Tokenizer.from_buffer(storage.read_bytes(path) if planned is None else planned[NAME])


def there(model: Checkpoint | Path) -> bool:
  """Whether a model has any tokenizer, also one that is built from other files than `tokenizer.json`."""
  return any(name in (NAME, *_SLOW) for name in of(model))


def of(model: Checkpoint | Path) -> dict[str, bytes]:
  """The files of a model, or of a folder, that belong to its tokenizer, by name."""
  if (planned := _planned(model)) is not None:
    return dict(planned)
  folder = model if isinstance(model, Path) else model.path
  return {name: storage.read_bytes(folder / name) for name in names(folder)}


def _planned(model: Checkpoint | Path) -> Mapping[str, bytes] | None:
  """What a model that is not written yet (`built.Planned`) will have; None: the files of its path."""
  while isinstance(model, View):
    model = model.source
  return getattr(model, "tokenizer", None)


def names(folder: Path) -> list[str]:
  """The names of those files."""
  templates = (path.relative_to(folder).as_posix() for path in sidecars.templates(folder))
  return [*(name for name in FILES if storage.lexists(folder / name)), *templates]


def extended(
  files: Mapping[str, bytes], tokenizer: Tokenizer, added: Sequence[str], where: str
) -> dict[str, bytes]:
  """The files of a tokenizer that got tokens: those that cannot hold them are left out."""
  result = {name: content for name, content in files.items() if name not in _SLOW}
  result["tokenizer.json"] = tokenizer.to_str(pretty=True).encode()
  settings = config(files, where)
  if isinstance(settings.get("added_tokens_decoder"), dict):  # transformers 4 reads added tokens there too
    listed = {
      str(i): {flag: getattr(token, flag) for flag in _FLAGS}
      for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
      if token.content in set(added)
    }
    settings["added_tokens_decoder"] |= listed
    result["tokenizer_config.json"] = as_json(settings)
  return result


def config(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
  """Content of `tokenizer_config.json`, of the folder `where`; empty if there is none."""
  name = "tokenizer_config.json"
  return decode(files[name], dict[str, Any], f"{where}/{name}") if name in files else {}


def as_json(value: Any) -> bytes:
  """As transformers writes it."""
  return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
