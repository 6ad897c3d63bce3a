"""From texts to token ids, with the tokenizer that lies beside a checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer


class Tokens:
  """A tokenizer and its end-of-text token.

  Prompt and target are tokenized apart and joined. The prompt gets the special tokens that the
  tokenizer's post-processor puts there; the end-of-text token is appended to the target.
  """

  def __init__(self, tokenizer: Tokenizer, eos: int | None):
    self.tokenizer, self.eos = tokenizer, eos

  @classmethod
  def from_folder(cls, folder: str | Path) -> "Tokens":
    """Reads `tokenizer.json`; the end-of-text id from the generation, model or tokenizer config.

    Raises:
      FileNotFoundError: no `tokenizer.json`.
      ValueError: it cannot be read.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
      raise FileNotFoundError(f"{folder} has no tokenizer.json; built-in tasks need one.")
    try:
      tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
      raise ValueError(f"{path} is not a tokenizer: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return cls(tokenizer, _eos(Path(folder), tokenizer))

  def prompts(self, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, special tokens included."""
    return [e.ids for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=True)]

  def targets(self, texts: Sequence[str], append_eos: bool = True) -> list[list[int]]:
    """Token ids of targets, with the end-of-text token unless told otherwise."""
    tail = [self.eos] if append_eos and self.eos is not None else []
    return [e.ids + tail for e in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _eos(folder: Path, tokenizer: Tokenizer) -> int | None:
  for name in ("generation_config.json", "config.json"):
    if (folder / name).is_file():
      value = json.loads((folder / name).read_text()).get("eos_token_id")
      value = value[0] if isinstance(value, list) and value else value
      if isinstance(value, int):
        return value
  if (folder / "tokenizer_config.json").is_file():
    token = json.loads((folder / "tokenizer_config.json").read_text()).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(token) if token else None
  return None
