"""Small tasks that a tiny model learns in seconds, from reasoning-gym (extra `data`).

The library's questions are whole sentences; here its entries are written compactly, one character
a token, so that two CPU cores train a real pool in minutes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models

from merge_jax import storage

END, PAD = "<|end|>", "<|pad|>"


class Puzzle(NamedTuple):
  """A reasoning-gym data set, its options, and how an entry's metadata become prompt and target."""

  dataset: str
  options: dict[str, Any]
  render: Callable[[dict[str, Any]], tuple[str, str]]


def _digit(number: str) -> str:
  return str(int(float(number)))


def _digits(matrix: list[list[int]]) -> str:
  return "".join(str(x) for row in matrix for x in row)


PUZZLES = {
  "reverse": Puzzle(
    "spell_backward",
    {"min_word_len": 3, "max_word_len": 6},
    lambda m: (f"reverse {m['word']}=", m["word"][::-1]),
  ),
  "insert": Puzzle(
    "string_insertion",
    {"min_string_length": 5, "max_string_length": 9},
    lambda m: (f"insert {m['string']}=", m["solution"]),
  ),
  "rotate": Puzzle(
    "rotate_matrix",
    {"min_n": 3, "max_n": 3, "min_rotations": 1, "max_rotations": 2},
    lambda m: (f"rotate{m['num_rotations']} {_digits(m['matrix'])}=", _digits(m["solution"])),
  ),
  "sort": Puzzle(
    "number_sorting",
    {"min_numbers": 5, "max_numbers": 5, "min_value": 0, "max_value": 9, "max_decimals": 0},
    lambda m: (
      f"{'up' if m['direction'] == 'ascending' else 'down'} "
      f"{' '.join(str(int(float(x))) for x in m['original_numbers'])}=",
      " ".join(str(int(float(x))) for x in m["sorted_numbers"]),
    ),
  ),
  "words": Puzzle(
    "word_sequence_reversal",
    {"min_words": 2, "max_words": 2},
    lambda m: (f"words {' '.join(m['words'])}=", " ".join(reversed(m["words"]))),
  ),
  "hex": Puzzle(
    "base_conversion",
    {"min_base": 2, "max_base": 16, "min_value": 256, "max_value": 65535},
    lambda m: (f"hex {m['decimal_value']:b}=", f"{m['decimal_value']:x}"),
  ),
  "filter": Puzzle(
    "number_filtering",
    {"min_numbers": 6, "max_numbers": 6, "min_value": 0, "max_value": 9, "max_decimals": 0},
    lambda m: (
      f"{m['operation'].replace('_', ' ')} {_digit(m['filter_value'])} "
      f"{''.join(map(_digit, m['original_numbers']))}=",
      "".join(map(_digit, m["result"])) or "none",
    ),
  ),
}


def generate(name: str, count: int, seed: int, longest: int = 32) -> list[dict[str, str]]:
  """Makes `count` different examples `{"prompt", "target"}` of one puzzle.

  Args:
    name: a key of `PUZZLES`.
    count: how many; entries that repeat a prompt or are too long are skipped.
    seed: item i of the library depends on `seed + i`: space seeds wider than what is drawn.
    longest: characters of prompt and target together.

  Raises:
    ValueError: if the puzzle has too few different prompts.
  """
  import reasoning_gym

  puzzle, limit = PUZZLES[name], 4 * count + 100
  data = reasoning_gym.create_dataset(puzzle.dataset, size=limit, seed=seed, **puzzle.options)
  found: dict[str, str] = {}
  for i in range(limit):
    prompt, target = puzzle.render(data[i]["metadata"])
    if len(prompt) + len(target) <= longest and prompt.isascii() and target.isascii():
      found.setdefault(prompt, target)
    if len(found) == count:
      return [{"prompt": p, "target": t} for p, t in found.items()]
  raise ValueError(f"Puzzle {name!r} gave {len(found)} different examples; {count} were asked for.")


def tokenizer() -> Tokenizer:
  """Printable ASCII, a character a token, with end-of-text and padding."""
  characters = [chr(code) for code in range(32, 127)]
  vocabulary = {token: i for i, token in enumerate([PAD, END, *characters])}
  result = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
  result.decoder = decoders.Fuse()
  result.add_special_tokens([PAD, END])
  return result


def write_jsonl(path: Path, records: list[dict[str, str]]) -> None:
  """Writes one JSON object a line; the file appears whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  storage.write_text(path, "".join(json.dumps(record) + "\n" for record in records))
