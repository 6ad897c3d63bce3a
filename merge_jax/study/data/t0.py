"""T0's data sets held in, BIG-bench's tasks held out: the paper's data, from archives that the user has.

- *Rows, not lines, are split*: what T0 made of one source row, in all its templates, is on one side, and
  the last fifth of the rows is evaluated, since neighbours share passages. Training rows that share a run of
  13 words with anything that is evaluated are left out, and so are pieces of the bases' corpora.
- *One line a row* is evaluated, its template in turn: lines of one row are as good as copies, and intervals
  from examples that are copies would be too narrow. Every template is trained on.
- *Choices*: where a template has few different answers these are the choices; else those that a prompt of
  the row lists. Short free answers and long texts are scored by `options.metrics`.
- *Lines that are longer* than `options.max_characters` are left out: a cut might remove the answer.
- A target begins with the space that stands between it and its prompt, here and in BIG-bench.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from merge_jax import decoding, storage
from merge_jax.errors import unknown
from merge_jax.evals.metrics import METRICS
from merge_jax.study import data
from merge_jax.study.data import Data, leaks, once, t0_bigbench, t0_corpora, t0_rows, t0_sources, write_lines
from merge_jax.study.data.t0_rows import Record, answer, guessing, length
from merge_jax.study.data.t0_sources import ROWS, SOURCES
from merge_jax.training.puzzles import END, PAD

VERSION = 2
"""Of what is written; part of the folder's name."""
ABOUT = "about.json"
"""What was made: examples, rows left out, and what guessing gives."""

Count = Annotated[int, Meta(ge=0, le=10**7)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
  """What is made of the archives.

  Attributes:
    t0, bigbench: archives, or folders of the same layout.
    tokenizer: a `tokenizer.json`; "" trains byte-level BPE on the training texts, with `vocabulary` tokens.
    max_characters: of a prompt with its longest target, in UTF-8: no line has more tokens than this. Pieces
      of text have half of it.
    test: share of the rows that are evaluated.
    heldout_examples: most of a held-out task.
    metrics: by kind of data set, see `t0_sources.Source`.
    corpora: whether bases are to be trained, and texts for them made.
    text: a text file or a folder of `*.txt` to pretrain on, beside what is there; "" for none.
    puzzles: of each generator among the instructions; `readings`, questions about texts.
  """

  t0: str
  bigbench: str
  tokenizer: str = ""
  vocabulary: Annotated[int, Meta(ge=300, le=65536)] = 4096
  max_characters: Annotated[int, Meta(ge=100)] = 2000
  test: Annotated[float, Meta(gt=0, lt=1)] = 0.2
  heldout_examples: Annotated[int, Meta(ge=1)] = 400
  metrics: dict[str, str] = {}
  corpora: bool = True
  text: str = ""
  puzzles: Count = 300
  readings: Count = 6000


METRIC = {"choices": "choice_accuracy", "answer": "loss", "text": "loss"}
"""By kind, unless `Options.metrics` says otherwise: small models do not give free answers exactly."""


def make(folder: Path, options: Mapping[str, Any], seed: int = 0) -> Data:
  """Writes the task files of a study, or finds them; 20 CPU-seconds for the whole archives.

  Args:
    folder: they are written to a folder in it, whole or not at all, whose name tells options and archives
      apart; what is there is kept.
    options: see `Options`.
    seed: of the order of choices and of what the corpora draw.

  Raises:
    ValueError, FileNotFoundError: options or archives that cannot be used.
  """
  chosen = decoding.convert(dict(options), Options, "config.data.options")
  for kind, metric in chosen.metrics.items():
    if kind not in METRIC:
      raise ValueError(unknown("kind of data set", kind, METRIC, "config.data.options.metrics"))
    if metric not in METRICS or not METRICS[metric].fits("choices" if kind == "choices" else "targets"):
      fitting = [m.name for m in METRICS.values() if m.fits("choices" if kind == "choices" else "targets")]
      raise ValueError(unknown(f"metric of {kind!r}", metric, fitting, "config.data.options.metrics"))
  for name, source in _sources().items():
    if not 0 < len(t0_rows.test_rows(source, chosen.test)) < ROWS:
      raise ValueError(
        f"config.data.options.test is {chosen.test}: no row of {name!r} is left to train or to evaluate on."
      )
  if chosen.tokenizer:
    data.tokenizer(chosen.tokenizer)
  sources = {"t0": chosen.t0, "bigbench": chosen.bigbench} | {
    name: path for name in ("tokenizer", "text") if (path := getattr(chosen, name))
  }
  said = msgspec.to_builtins(chosen) | {name: _identity(name, path) for name, path in sources.items()}
  said |= {"seed": seed, "version": VERSION}
  return _found(once(folder, "t0", said, lambda partial: _write(partial, chosen, seed)))


def _sources() -> dict[str, t0_sources.Source]:
  return {name: source for group in SOURCES.values() for name, source in group.items()}


def _identity(name: str, given: str) -> str:
  """Of an input's content, whatever it is called."""
  path = storage.path(given)
  if not given or not path.exists():
    raise FileNotFoundError(f"config.data.options.{name}: {given!r} is no file or folder.")
  if path.is_dir():
    return storage.digest([file for file in path.rglob("*") if file.is_file()], path)
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _found(folder: Path) -> Data:
  about = json.loads((folder / ABOUT).read_text())

  def inside(part: str) -> dict[str, Path]:
    return {file.stem: file for file in sorted((folder / part).glob("*.jsonl"))}

  tasks = {name: Path(f"{file}:{about['tasks'][name]['metric']}") for name, file in inside("tasks").items()}
  return Data(
    (folder / "tokenizer.json").read_text("utf-8"),
    inside("train"),
    tasks,
    inside("pretrain"),
    inside("instruct"),
  )


def _write(folder: Path, options: Options, seed: int) -> None:
  def shuffle(key: str, values: list[Any]) -> None:
    random.Random(f"{seed}/{key}").shuffle(values)

  sources = _sources()
  wanted = {source.archive or name for name, source in sources.items()}
  wanted |= set(t0_sources.PASSAGES) if options.corpora else set()
  archive = t0_sources.read_t0(storage.path(options.t0), tuple(sorted(wanted)))
  tasks = t0_bigbench.read(storage.path(options.bigbench), shuffle)
  for name, lines in tasks.items():
    shuffle(name, lines)
    fitting = [line for line in lines if length(line) <= options.max_characters]
    tasks[name] = fitting[: options.heldout_examples]

  templates = {name: t0_sources.taken(name, source, archive) for name, source in sources.items()}
  passages = {name: t0_rows.passages(of_one) for name, of_one in templates.items()}
  test = {name: t0_rows.test_rows(source, options.test) for name, source in sources.items()}
  evaluated = {run for name, rows in test.items() for row in rows for run in passages[name][row]}
  for lines in tasks.values():
    evaluated.update(*leaks.of_rows([line["prompt"] for line in lines]))
  about: dict[str, Record] = {name: {"kind": "choices"} for name in tasks}
  lines_of = {
    name: t0_rows.records(name, source, templates[name], test[name], options.max_characters)
    for name, source in sources.items()
  }
  asked = {line["prompt"] for lines in tasks.values() for line in lines}
  asked |= {line["prompt"] for name, rows in test.items() for row in rows for line in lines_of[name][row]}
  train: dict[str, list[Record]] = {}
  for name, source in sources.items():
    others = [row for row in range(ROWS) if row not in test[name]]
    clean = [row for row in others if not passages[name][row] & evaluated]
    tasks[name] = [lines_of[name][row][0] for row in test[name] if lines_of[name][row]]
    train[name] = [line for row in clean for line in lines_of[name][row] if line["prompt"] not in asked]
    about[name] = {"kind": source.kind, "train": len(train[name]), "rows_left_out": len(others) - len(clean)}
  for name, of_one in about.items():
    if not tasks[name]:
      raise ValueError(
        f"No line of {name!r} is left to evaluate on: all have no two choices, or are longer than "
        f"options.max_characters, {options.max_characters}."
      )
    if not train.get(name, True):
      raise ValueError(
        f"No line of {name!r} is left to train on: {of_one['rows_left_out']} rows share passages with what "
        "is evaluated, the others' lines are asked there, too, have no two choices, or are longer than "
        f"options.max_characters, {options.max_characters}."
      )
    of_one |= {"metric": (METRIC | options.metrics)[of_one["kind"]], "test": len(tasks[name])}
    of_one |= guessing(tasks[name], train.get(name, ())) if of_one["kind"] == "choices" else {}

  corpora = _corpora(options, archive, evaluated, asked, seed) if options.corpora else {}
  files = {
    f"train/{name}": [{"prompt": x["prompt"], "target": answer(x)} for x in lines]
    for name, lines in train.items()
  } | corpora  # fmt: skip
  if options.tokenizer:
    tokenizer = data.tokenizer(options.tokenizer)
  else:
    texts = [line["prompt"] + line["target"] for lines in files.values() for line in lines]
    tokenizer = train_tokenizer(texts, options.vocabulary)
  for file, lines in (files | {f"tasks/{name}": lines for name, lines in tasks.items()}).items():
    write_lines(folder / f"{file}.jsonl", lines)
  (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
  sizes = {name: len(lines) for name, lines in corpora.items()}
  storage.write_json(folder / ABOUT, {"tasks": about, "corpora": sizes})


def _corpora(
  options: Options,
  archive: Mapping[str, t0_rows.Templates],
  evaluated: set[int],
  asked: set[str],
  seed: int,
) -> dict[str, list[Record]]:
  """The bases' corpora by file, without what shares a run of words or a prompt with what is evaluated."""
  documents = [text for name in t0_sources.PASSAGES for text in t0_corpora.passages(archive[name])]
  documents += t0_corpora.documentation()
  if options.text:
    where = storage.path(options.text)
    given = sorted(where.rglob("*.txt")) if where.is_dir() else [where]
    documents += [file.read_text("utf-8", "replace") for file in given]
  most = options.max_characters
  pieces = dict.fromkeys(piece for text in documents for piece in t0_corpora.chunks(text, most // 2))
  short = [piece for piece in pieces if len(piece.split()) > 1 and len(piece.encode()) <= most]
  clean = [piece for piece in short if not leaks.runs(piece) & evaluated]
  lines = [*t0_corpora.readings(clean, options.readings, seed), *t0_corpora.puzzles(options.puzzles, seed)]
  fitting = [line for line in lines if length(line) <= most and line["prompt"] not in asked]
  corpora: dict[str, list[Record]] = {
    "pretrain/text": [t0_corpora.as_text(piece) for piece in clean],
    "instruct/instructions": [x for x in fitting if not leaks.runs(x["prompt"] + x["target"]) & evaluated],
  }
  return {name: lines for name, lines in corpora.items() if lines}


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
  """Byte-level BPE, every digit a token, with padding (0) and end of text (1): content of tokenizer.json."""
  result = Tokenizer(models.BPE())
  digits = pre_tokenizers.Digits(individual_digits=True)
  result.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
  result.decoder = decoders.ByteLevel()
  result.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=vocabulary, special_tokens=[PAD, END], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )  # fmt: skip
  return result.to_str()
