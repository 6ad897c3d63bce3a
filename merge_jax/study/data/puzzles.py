"""Task files of a study from reasoning-gym (extra `data`): text, instructions, questions and choices.

Text to pretrain on speaks of every skill, as text at large does; instructions are `skill question=answer`, a
format that a base does not know; held-out tasks ask in a third format, with four choices. Items to evaluate
on are told in none of them.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from merge_jax import decoding
from merge_jax.errors import unknown
from merge_jax.evals.splits import position
from merge_jax.study.data import Data, once, write_lines
from merge_jax.study.data.entries import entries
from merge_jax.study.data.puzzle_table import TABLE
from merge_jax.training import puzzles

VERSION = 3
"""Of what is written from the same options."""
TEXTS = ("{noun} of {x}:", "a {noun}, {x},")
INSTRUCTION = "{noun} {x}="
QUESTION = "{noun} {x}:"
CHOICES = 4
FRUITLESS = 3000
"""After so many entries without a new item there are no more."""

_Count = Annotated[int, Meta(ge=1, le=100_000)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """What is written; names are of `TABLE`.

  Attributes:
    held_in: puzzles that experts are trained on.
    held_out: puzzles that are asked in other words with choices; only text has them.
    instruct: puzzles of the instructions; they are never evaluated.
    train, evaluation: at most so many items a puzzle to train and to evaluate on.
    share: of a puzzle's items that are kept for evaluation.
  """

  held_in: tuple[str, ...]
  held_out: tuple[str, ...]
  instruct: tuple[str, ...]
  train: _Count = 5000
  evaluation: _Count = 200
  share: Annotated[float, Meta(gt=0, lt=1)] = 0.08


@dataclasses.dataclass(frozen=True)
class Items:
  """Questions and answers of a puzzle, to train and to evaluate on."""

  train: list[tuple[str, str]]
  evaluation: list[tuple[str, str]]


def make(folder: Path, options: Mapping[str, Any], seed: int = 0) -> Data:
  """Writes the task files of a study, or finds them.

  Args:
    folder: they are written to a folder in it, whole or not at all, whose name tells options apart; what is
      there is kept.
    options: see `Options`.
    seed: another one gives other items.

  Raises:
    ValueError: options that cannot be used, or a puzzle with too few items.
    ModuleNotFoundError: reasoning-gym is missing.
  """
  chosen = decoding.convert(dict(options), Options, "config.data.options")
  every = (*chosen.held_in, *chosen.held_out, *chosen.instruct)
  check(every, "config.data.options")
  said = msgspec.to_builtins(chosen) | {"seed": seed, "version": VERSION}

  def write(partial: Path) -> None:
    for name in every:
      _write(partial, name, chosen, seed)

  target = once(folder, "puzzles", said, write)
  return Data(
    puzzles.tokenizer().to_str(),
    train={name: target / "train" / f"{name}.jsonl" for name in chosen.held_in},
    tasks={name: target / "tasks" / f"{name}.jsonl" for name in (*chosen.held_in, *chosen.held_out)},
    pretrain={name: target / "pretrain" / f"{name}.jsonl" for name in every},
    instruct={name: target / "instruct" / f"{name}.jsonl" for name in chosen.instruct},
  )


def check(names: Sequence[str], where: str) -> None:
  """Raises ValueError for a puzzle that is not known, or that stands twice."""
  for i, name in enumerate(names):
    if name not in TABLE:
      raise ValueError(unknown("puzzle", name, TABLE, where))
    if name in names[:i]:
      raise ValueError(f"{where}: puzzle {name!r} stands twice; a puzzle has one part.")


def _write(folder: Path, name: str, options: Options, seed: int) -> None:
  items = draw(name, options, seed)
  files = {"pretrain": texts(name, items.train)}
  if name in options.instruct:
    files["instruct"] = instructions(name, items.train)
  elif name in options.held_in:
    files |= {"train": instructions(name, items.train), "tasks": instructions(name, items.evaluation)}
  else:
    files["tasks"] = with_choices(name, items.evaluation, QUESTION, f"{seed} {name}")
  for part, records in files.items():
    write_lines(folder / part / f"{name}.jsonl", records)


def draw(name: str, options: Options, seed: int) -> Items:
  """Different items of a puzzle, in the order in which they are drawn.

  An item's part is a hash of its question and answer, whichever asks for the other: it has the same part in
  every puzzle, and in the inverse one.

  Raises:
    ValueError: too few of them to evaluate on.
  """
  puzzle, limit = TABLE[name], 20 * (options.train + options.evaluation) + 2000
  first = (seed * len(TABLE) + list(TABLE).index(name)) * 1_000_000
  drawn = entries(puzzle.dataset, limit, first, **puzzle.options)
  items, seen, last = Items([], []), set[str](), 0
  for i in range(limit):
    for question, answer in puzzle.items(drawn[i]["metadata"]):
      if (
        question in seen or not (question + answer).isascii()
      ):  # of names in texts; no model has their tokens
        continue
      seen.add(question)
      last = i
      kept = position("|".join(sorted((question, answer))), 0) < options.share
      part, most = (items.evaluation, options.evaluation) if kept else (items.train, options.train)
      if len(part) < most:
        part.append((question, answer))
    full = len(items.train) == options.train and len(items.evaluation) == options.evaluation
    if full or i > last + FRUITLESS:
      break
  if 2 * len(items.evaluation) < min(options.evaluation, 100) or not items.train:
    how = "Raise" if items.train else "Lower"
    raise ValueError(
      f"Puzzle {name!r} gave {len(items.train)} items to train and {len(items.evaluation)} to evaluate on; "
      f"{options.evaluation} were asked for. {how} config.data.options.share."
    )
  return items


def texts(name: str, items: Sequence[tuple[str, str]]) -> Iterator[dict[str, str]]:
  """Sentences of two kinds; the loss is that of what can be foreseen.

  A question is random, so predicting it teaches nothing: with the loss of all characters a model of 0.8M
  parameters chose held-out answers by chance after 1500 steps, without it half of them well. Answers stand
  as far from their questions as in all other formats: tiny models are slow to learn distances.
  """
  for i, (question, answer) in enumerate(items):
    yield {"prompt": TEXTS[i % len(TEXTS)].format(noun=TABLE[name].noun, x=question), "target": answer}


def instructions(name: str, items: Sequence[tuple[str, str]]) -> Iterator[dict[str, str]]:
  """The format of held-in tasks and of instructions."""
  for question, answer in items:
    yield {"prompt": INSTRUCTION.format(noun=TABLE[name].noun, x=question), "target": answer}


def with_choices(
  name: str, items: Sequence[tuple[str, str]], wording: str, seed: str
) -> Iterator[dict[str, Any]]:
  """The format of held-out tasks: choices of one length, in an order that says nothing."""
  for question, answer in items:
    random_ = random.Random(f"{seed} {question}")
    choices = [answer, *wrong(question, answer, random_)]
    random_.shuffle(choices)
    prompt = wording.format(noun=TABLE[name].noun, x=question)
    yield {"prompt": prompt, "choices": choices, "answer": choices.index(answer)}


def wrong(question: str, answer: str, random_: random.Random) -> list[str]:
  """Other answers that look right.

  The other words of the question where the answer is one of them, else the answer with two characters in
  each other's place, or where that gives too few, with one that is another of the question.
  """
  words = question.split()
  if answer in words and len(words) >= CHOICES:
    return random_.sample([word for word in words if word != answer], CHOICES - 1)
  found: list[str] = []
  characters = sorted(set(question + answer + "0123456789" * answer.isdigit()) - {" "})
  for attempt in range(1000):
    other = list(answer)
    i, j = random_.randrange(len(answer)), random_.randrange(len(answer))
    if attempt < 100:
      other[i], other[j] = other[j], other[i]
    else:
      other[i] = random_.choice(characters)
    if (text := "".join(other)) != answer and text not in found:
      found.append(text)
    if len(found) == CHOICES - 1:
      return found
  raise ValueError(f"Question {question!r} with answer {answer!r} has too few different characters.")


def llama(hidden: int, layers: int, heads: int = 4) -> dict[str, Any]:
  """Content of `config.json` of a small model for the puzzles' tokenizer."""
  return {
    "architectures": ("LlamaForCausalLM",), "model_type": "llama", "vocab_size": 97,
    "hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "num_hidden_layers": layers,
    "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "eos_token_id": 1,
    "pad_token_id": 0, "initializer_range": hidden**-0.5,
  }  # fmt: skip
