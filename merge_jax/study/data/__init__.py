"""Where the examples of a study come from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tokenizers import Tokenizer

from merge_jax import decoding, storage
from merge_jax.errors import in_library
from merge_jax.evals import tasks as task_files


class Data(NamedTuple):
  """Task files by name, and the tokenizer of the models that are trained on them.

  Attributes:
    tokenizer: content of `tokenizer.json`.
    train: training examples of the held-in tasks.
    tasks: examples to evaluate on, of every held-in and held-out task; no prompt of them is in any
      training file.
    pretrain, instruct: corpora of the first two stages.
  """

  tokenizer: str
  train: dict[str, Path]
  tasks: dict[str, Path]
  pretrain: dict[str, Path]
  instruct: dict[str, Path]


class Files(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """Options of the source "files": paths of what is trained on; tasks are named in the study's categories.

  Attributes:
    tokenizer: a `tokenizer.json`.
    train: of every held-in task, by its name.
    pretrain, instruct: corpora by name.
  """

  tokenizer: str = ""
  train: dict[str, str] = {}
  pretrain: dict[str, str] = {}
  instruct: dict[str, str] = {}


def from_files(options: Mapping[str, Any]) -> Data:
  """The data of a study whose files are there; see `Files`.

  Raises:
    ValueError, FileNotFoundError: options that cannot be, files that are not there.
  """
  given = decoding.convert(dict(options), Files, "config: data.options")
  parts = (given.train, given.pretrain, given.instruct)
  train, pretrain, instruct = ({n: task_files.path_of(one) for n, one in part.items()} for part in parts)
  return Data(tokenizer(given.tokenizer) if given.tokenizer else "", train, {}, pretrain, instruct)


def tokenizer(path: str) -> str:
  """The content of a `tokenizer.json`; ValueError if it is none."""
  content = storage.read_bytes(storage.path(path))
  with in_library(f"config.data.options.tokenizer: {path} is not a tokenizer"):
    Tokenizer.from_buffer(content)
  return content.decode()


def once(folder: Path, kind: str, said: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
  """A folder in `folder` that is written whole or not at all, or is there: its name is a digest of `said`."""
  digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
  target = folder / f"{kind}-{digest}"
  if not target.is_dir():
    with storage.new_folder(target) as partial:
      write(partial)
  return target


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes a task file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
