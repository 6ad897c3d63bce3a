"""From texts to token ids, with the tokenizer that lies beside a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from tokenizers import Tokenizer

from merge_jax import storage
from merge_jax.decoding import convert, decode
from merge_jax.errors import in_library, shown

T = TypeVar("T")

_Id = Annotated[int, Meta(ge=0, lt=2**31)]


class _ModelConfig(msgspec.Struct, frozen=True):
  """Of `config.json` and `generation_config.json`."""

  eos_token_id: _Id | list[_Id] | None = None


class _AddedToken(msgspec.Struct, frozen=True):
  content: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
  eos_token: str | _AddedToken | None = None


class _Eos(msgspec.Struct, frozen=True):
  eos: _Id | None


class Tokens:
  """A tokenizer and its end-of-text token.

  Prompt and target are tokenized apart and joined. The prompt gets the special tokens that the
  tokenizer's post-processor puts there; the end-of-text token is appended to the target.

  Args:
    tokenizer: of the `tokenizers` library.
    eos: id of the end-of-text token, or None.
    source: file of the tokenizer, for errors.

  Raises:
    ValueError: an end-of-text id that cannot be one.
  """

  def __init__(self, tokenizer: Tokenizer, eos: int | None, source: str = "The tokenizer"):
    self.tokenizer, self.source = tokenizer, source
    self.eos = convert({"eos": eos}, _Eos, source).eos

  @classmethod
  def from_folder(cls, folder: str | Path) -> "Tokens":
    """Reads `tokenizer.json`; the end-of-text id from the generation, model or tokenizer config.

    Raises:
      FileNotFoundError: no `tokenizer.json`.
      ValueError: one of the files cannot be read, or the end-of-text token is not in the tokenizer.
    """
    folder = storage.path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
      raise FileNotFoundError(f"{folder} has no tokenizer.json; built-in tasks need one.")
    content = path.read_bytes()
    with in_library(f"{path} is not a tokenizer"):
      tokenizer = Tokenizer.from_buffer(content)
      tokenizer.no_padding()
      tokenizer.no_truncation()
    return cls(tokenizer, _eos(folder, tokenizer), str(path))

  def prompts(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, special tokens included."""
    return self._ids(texts, special=True)

  def targets(self, texts: Sequence[str], append_eos: bool = True) -> list[list[int]]:
    """Token ids of targets, with the end-of-text token unless told otherwise."""
    return [ids + self.end(append_eos) for ids in self._ids(texts, special=False)]

  def end(self, append_eos: bool = True) -> list[int]:
    """What ends every target: the end-of-text token, or nothing."""
    return [self.eos] if append_eos and self.eos is not None else []

  def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
    for text in texts:
      try:
        text.encode()
      except UnicodeEncodeError:
        raise ValueError(f"The text {shown(text)} has a lone surrogate; it cannot be tokenized.") from None
    with in_library(f"{self.source} failed"):
      return [e.ids for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=special)]


def _eos(folder: Path, tokenizer: Tokenizer) -> int | None:
  for name in ("generation_config.json", "config.json"):
    config = _read(folder / name, _ModelConfig)
    value = config.eos_token_id if config else None
    value = next(iter(value), None) if isinstance(value, list) else value
    if value is not None:
      if tokenizer.id_to_token(value) is None:
        raise ValueError(f"{folder / name}: eos_token_id is {value}; tokenizer.json has no such token.")
      return value
  read = _read(folder / "tokenizer_config.json", _TokenizerConfig)
  token = read.eos_token if read else None
  token = token.content if isinstance(token, _AddedToken) else token
  if not token:
    return None
  value = tokenizer.token_to_id(token)
  if value is None:
    where = folder / "tokenizer_config.json"
    raise ValueError(f"{where}: eos_token is {shown(token)}; tokenizer.json has no such token.")
  return value


def _read(path: Path, kind: type[T]) -> T | None:
  if not path.exists():
    return None
  if not path.is_file():
    raise ValueError(f"{path} is not a regular file.")
  return decode(path.read_bytes(), kind, str(path))
