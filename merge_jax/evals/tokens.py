"""From texts to token ids, with the tokenizer that lies beside a checkpoint."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from tokenizers import Tokenizer

from merge_jax import storage
from merge_jax.checkpoints import sidecars
from merge_jax.decoding import convert, decode
from merge_jax.errors import in_library, shown
from merge_jax.evals import chat
from merge_jax.evals.chat import Chat

T = TypeVar("T")

FILES = (
  "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
  "special_tokens_map.json", *chat.NAMES,
)  # fmt: skip
"""The files beside a checkpoint that decide how texts are asked, read and ended."""

SPECIAL = ("tokenizer_config.json", "special_tokens_map.json")
"""The files that name special tokens; the first that does counts."""
ANSWER = "It is so."
"""What is looked for in a template's text, to see what stands behind an answer."""

_Id = Annotated[int, Meta(ge=0, lt=2**31)]


class _ModelConfig(msgspec.Struct, frozen=True):
  """Of `config.json` and `generation_config.json`."""

  eos_token_id: _Id | list[_Id] | None = None


class _AddedToken(msgspec.Struct, frozen=True):
  content: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
  eos_token: str | _AddedToken | None = None


class _SpecialTokens(_TokenizerConfig, frozen=True):
  """Those that chat templates name."""

  bos_token: str | _AddedToken | None = None
  unk_token: str | _AddedToken | None = None
  pad_token: str | _AddedToken | None = None


class _Eos(msgspec.Struct, frozen=True):
  eos: _Id | None


class Tokens:
  """A tokenizer and its end-of-text token.

  Prompt and target are tokenized apart and joined. The prompt gets the special tokens that the
  tokenizer's post-processor puts there, but no end of text; that token is appended to the target, or in a
  chat the one that its template ends answers with.

  Args:
    tokenizer: of the `tokenizers` library.
    eos: id of the end-of-text token, or None.
    source: file of the tokenizer, for errors.
    ends: tokens that end a generated text; None for the end-of-text token.
    folder: where a chat template may lie.

  Raises:
    ValueError: an end-of-text id that cannot be one.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    eos: int | None,
    source: str = "The tokenizer",
    *,
    ends: Sequence[int] | None = None,
    folder: Path | None = None,
  ):
    self.tokenizer, self.source, self._folder = tokenizer, source, folder
    self.eos = convert({"eos": eos}, _Eos, source).eos
    self.ends = tuple(self.end() if ends is None else ends)
    self._read: dict[int, tuple[list[str], list[str]]] = {}

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
    ends = _ends(folder, tokenizer)
    return cls(tokenizer, next(iter(ends), None), str(path), ends=ends, folder=folder)

  @functools.cached_property
  def chat(self) -> Chat:
    """The chat template beside the tokenizer.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    files, folder = {}, self._folder
    if folder is not None:
      files = {name: (folder / name).read_bytes() for name in chat.NAMES if (folder / name).is_file()}
    special = {name: self._special(name) for name in _SpecialTokens.__struct_fields__}
    template = chat.of(files)
    if template is None:
      raise ValueError(f"{folder or self.source} has no chat template, which tasks with chat messages need.")
    return Chat(template, {n: t for n, t in special.items() if t}, f"The chat template of {folder}")

  @functools.cached_property
  def first(self) -> int | None:
    """The token that texts begin with, where the files beside the tokenizer name one."""
    token = self._special("bos_token")
    found: int | None = self.tokenizer.token_to_id(token) if token else None
    return found

  def _special(self, name: str) -> str | None:
    """A special token by the name that the files beside the tokenizer have for it."""
    if self._folder is None:
      return None
    read = (_read(self._folder / file, _SpecialTokens) for file in SPECIAL)
    return next(filter(None, (_content(getattr(one, name, None)) for one in read)), None)

  @functools.cached_property
  def answered(self) -> int | None:
    """What ends an answer in a chat: what the template writes behind one, where that ends texts."""
    try:
      behind = self.chat([("user", "?"), ("assistant", ANSWER)], asked=False).rpartition(ANSWER)[2]
    except ValueError:  # a template that writes no answers
      return self.eos
    (ids,) = self._ids([behind], special=False)
    return next((one for one in ids[:1] if one in self.ends), self.eos)

  def prompts(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Token ids of prompts, special tokens included, but where texts hold theirs (`special=False`)."""
    return self._ids(texts, special)

  def targets(self, texts: Sequence[str], append_eos: bool = True) -> list[list[int]]:
    """Token ids of targets, with the end-of-text token unless told otherwise."""
    return [ids + self.end(append_eos) for ids in self._ids(texts, special=False)]

  def text(self, ids: Iterable[int]) -> str:
    """What generated tokens say, without those that end a text, and what is negative."""
    kept = [one for one in map(int, ids) if one >= 0 and one not in self.ends]
    with in_library(f"{self.source} failed"):
      return self.tokenizer.decode(kept, skip_special_tokens=True)

  def vocabulary(self, size: int) -> tuple[list[str], list[str]]:
    """How each of the first `size` tokens reads behind another one, and alone; "" where there is none."""
    if size in self._read:
      return self._read[size]
    count = min(self.tokenizer.get_vocab_size(with_added_tokens=True), size)
    with in_library(f"{self.source} failed"):
      # Behind another token, since some decoders drop a first space.
      first = self.tokenizer.encode("a", add_special_tokens=False).ids[-1:]
      before = len(self.tokenizer.decode(first))
      texts = self.tokenizer.decode_batch([[*first, i] for i in range(count)], skip_special_tokens=True)
      alone = self.tokenizer.decode_batch([[i] for i in range(count)], skip_special_tokens=True)
    none = [""] * (size - count)
    self._read[size] = [text[before:] for text in texts] + none, alone + none
    return self._read[size]

  def end(self, append_eos: bool = True, chat: bool = False) -> list[int]:
    """What ends a target: the end-of-text token, that of an answer in a chat, or nothing."""
    token = self.answered if chat and append_eos else self.eos
    return [token] if append_eos and token is not None else []

  def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
    for text in texts:
      try:
        text.encode()
      except UnicodeEncodeError:
        raise ValueError(f"The text {shown(text)} has a lone surrogate; it cannot be tokenized.") from None
    with in_library(f"{self.source} failed"):
      found = self.tokenizer.encode_batch(list(texts), add_special_tokens=special)
      return [self._open(e.ids, e.special_tokens_mask) if special else e.ids for e in found]

  def _open(self, ids: list[int], added: list[int]) -> list[int]:
    """Tokens of a text that goes on, without the end that some post-processors put behind it."""
    end = len(ids)
    while end and added[end - 1] and ids[end - 1] in self.ends:
      end -= 1
    return ids[:end] or ids


def _ends(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The end-of-text tokens, the one of targets first; of a list the others need not be there.

  It is the one that the tokenizer calls so, if a list has it: models that chat list the ends of documents
  and of turns, in any order.
  """
  read = _read(folder / "tokenizer_config.json", _TokenizerConfig)
  token = _content(read.eos_token) if read else None
  own = tokenizer.token_to_id(token) if token else None
  for name in ("generation_config.json", "config.json"):
    config = _model_config(folder, name)
    given = config.eos_token_id if config else None
    values = given if isinstance(given, list) else [] if given is None else [given]
    if values:
      first = own if own in values else values[0]
      if tokenizer.id_to_token(first) is None:
        raise ValueError(f"{folder / name}: eos_token_id is {first}; tokenizer.json has no such token.")
      return tuple(dict.fromkeys((first, *values)))
  if not token:
    return ()
  if own is None:
    where = folder / "tokenizer_config.json"
    raise ValueError(f"{where}: eos_token is {shown(token)}; tokenizer.json has no such token.")
  return (own,)


def _model_config(folder: Path, name: str) -> _ModelConfig | None:
  if name != "config.json":
    return _read(folder / name, _ModelConfig)
  content = sidecars.read_config(folder) or {}  # elsewhere some hold Infinity, which is no JSON
  ends = {key: content[key] for key in _ModelConfig.__struct_fields__ if key in content}
  return convert(ends, _ModelConfig, str(folder / name))


def _content(token: str | _AddedToken | None) -> str | None:
  return token.content if isinstance(token, _AddedToken) else token


def _read(path: Path, kind: type[T]) -> T | None:
  if not path.exists():
    return None
  if not path.is_file():
    raise ValueError(f"{path} is not a regular file.")
  return decode(path.read_bytes(), kind, str(path))
