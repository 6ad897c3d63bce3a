"""The puzzles of a study: reasoning-gym data sets, each with the question and answer of an entry.

Tiny models have to learn them within minutes on two cores: questions are short, of few shapes, and what
an answer's character depends on is near by, or everywhere.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

Entry = Mapping[str, Any]
Items = Iterator[tuple[str, str]]


class Puzzle(NamedTuple):
  """One kind of question.

  Attributes:
    dataset: of reasoning-gym; `options` are its settings.
    noun: what text calls it.
    items: from an entry's metadata to questions with their answers; none, one or several.
  """

  dataset: str
  options: dict[str, Any]
  noun: str
  items: Callable[[Entry], Items]


def _one(render: Callable[[Entry], tuple[str, str]]) -> Callable[[Entry], Items]:
  return lambda entry: iter((render(entry),))


def _flat(matrix: Any) -> str:
  return "".join(str(x) for row in matrix for x in row)


def _digits(numbers: Any) -> str:
  return "".join(str(int(float(x))) for x in numbers)


def _based(number: int, base: int, length: int) -> str:
  digits = ""
  for _ in range(length):
    number, digit = divmod(number, base)
    digits = "0123456789abcdef"[digit] + digits
  return digits


def _sorted(direction: str) -> Callable[[Entry], Items]:
  def items(entry: Entry) -> Items:
    if entry["direction"] == direction:
      yield _digits(entry["original_numbers"]), _digits(entry["sorted_numbers"])

  return items


def _filtered(verb: str) -> Callable[[Entry], Items]:
  """What is filtered out leaves a gap, so that the others stay where they are."""

  def items(entry: Entry) -> Items:
    chosen, side = entry["operation"].split("_")
    if chosen == verb:
      bound, larger = float(entry["filter_value"]), side == "larger"
      numbers = [float(x) for x in entry["original_numbers"]]
      kept = [(x > bound if larger else x < bound) == (verb == "keep") for x in numbers]
      shown = "".join(_digits([x]) if keep else "-" for x, keep in zip(numbers, kept, strict=True))
      yield f"{_digits(numbers)}{'>' if larger else '<'}{_digits([bound])}", shown

  return items


def _words(entry: Entry) -> Items:
  """The first letters of two words."""
  first, second = (word.lower()[:3] for word in entry["words"])
  if len(first) == len(second) == 3:
    yield f"{first} {second}", f"{second} {first}"


def _cipher(decode: bool) -> Callable[[Entry], Items]:
  """All runs of four letters: a text has few words."""

  def items(entry: Entry) -> Items:
    texts = entry["clear_text"].lower().split(), entry["cipher_text"].lower().split()
    for clear, cipher in zip(*texts, strict=True):
      for i in range(len(clear) - 3):
        source, target = (cipher, clear) if decode else (clear, cipher)
        yield f"{source[i : i + 4]}{entry['rotation']}", target[i : i + 4]

  return items


def _counted(entry: Entry) -> Items:
  letters, letter = "".join(entry["span"]).lower()[:8], entry["target_letter"]
  count = letters.count(letter)
  if len(letters) == 8 and letters.isalpha() and (count > 1 or (count == 1 and letters < "i")):  # most are 1
    yield f"{letter} {letters}", str(count)


def _compared(size: str) -> Callable[[Entry], Items]:
  def items(entry: Entry) -> Items:
    numbers = [str(int(x)) for x in entry["candidates"]]
    if entry["size"] == size and all(len(x) == 2 for x in numbers) and len(set(numbers)) == len(numbers):
      yield " ".join(numbers), str(int(entry["solution"]))

  return items


def _pooled(kind: str) -> Callable[[Entry], Items]:
  def items(entry: Entry) -> Items:
    if entry["pool_type"] == kind and len(entry["matrix"][0]) == 4:
      yield _flat(entry["matrix"]), _flat(entry["solution"])

  return items


def _by_digit(operation: str) -> Callable[[Entry], Items]:
  """Sums and differences of two numbers without a carry: of digits that stand apart."""

  def items(entry: Entry) -> Items:
    first, sign, second = entry["expression"].split()
    pairs = [(int(a), int(b)) for a, b in zip(first, second, strict=True)]
    if sign == operation and all(a + b < 10 if sign == "+" else a >= b for a, b in pairs):
      digits = "".join(str(a + b if sign == "+" else a - b) for a, b in pairs)
      yield f"{first}{sign}{second}", digits

  return items


def _transformed(entry: Entry) -> Items:
  """A matrix under one transformation that is written as a letter and its numbers."""
  step = entry["operations"][0]
  if step["transform"] == "map":
    yield f"{_flat(entry['matrix'])} {step['from']}{step['to']}", _flat(entry["solution"])
  else:
    yield _flat(entry["matrix"]), _flat(entry["solution"])


def _only(transform: str, side: int, columns: int = 0) -> dict[str, Any]:
  every = (
    "rotate", "hmirror", "vmirror", "dmirror", "cmirror", "map", "crop", "remove_every_nth_row",
    "remove_every_nth_col", "zero_divisible",
  )  # fmt: skip
  sizes = {
    "min_rows": side,
    "max_rows": side,
    "min_cols": columns or side,
    "max_cols": columns or side,
    "min_transforms": 1,
    "max_transforms": 1,
  }
  return sizes | {f"w_{name}": 100.0 * (name == transform) for name in every}  # of a softmax


_DIGITS = {"min_value": 0, "max_value": 9, "max_decimals": 0, "min_numbers": 5, "max_numbers": 5}
_POOL = {"min_rows": 2, "max_rows": 2, "min_cols": 4, "max_cols": 4, "min_pool_size": 2, "max_pool_size": 2}
_TERMS = {"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3}
_CIPHER = {"min_words": 3, "max_words": 20, "min_rotation": 1, "max_rotation": 2}
_NUMBERS = {"min_n": 10, "max_n": 99, "max_delta": 40.0, "min_num_candidates": 4, "max_num_candidates": 4}

HELD_IN: dict[str, tuple[str, ...]] = {
  "reversal": ("rev", "swap"), "sorting": ("up", "down"), "filtering": ("keep", "drop"),
  "conversion": ("hex", "quad"), "matrices": ("rot", "flip"), "ciphers": ("enc", "dec"),
  "arithmetic": ("add", "sub"), "counting": ("ones", "count"),
}  # fmt: skip
"""Puzzles by category; an expert is trained on those of one."""
HELD_OUT: dict[str, tuple[str, ...]] = {
  "comparison": ("most", "least"), "paths": ("walk",), "pooling": ("pool",), "divisors": ("gcd",),
}  # fmt: skip
"""Puzzles by category that no stage after the first sees."""
INSTRUCT = ("map", "side", "turn", "ransom", "iso", "flips")
"""Puzzles of the instructions that make a base an instruction-tuned one; in no category."""

TABLE: dict[str, Puzzle] = {
  "rev": Puzzle(
    "spell_backward",
    {"min_word_len": 4, "max_word_len": 4},
    "reverse",
    _one(lambda m: (m["word"].lower(), m["word"][::-1].lower())),
  ),
  "swap": Puzzle("word_sequence_reversal", {"min_words": 2, "max_words": 2}, "turn", _words),
  "up": Puzzle("number_sorting", _DIGITS, "order", _sorted("ascending")),
  "down": Puzzle("number_sorting", _DIGITS, "ranks", _sorted("descending")),
  "keep": Puzzle("number_filtering", _DIGITS, "fit", _filtered("keep")),
  "drop": Puzzle("number_filtering", _DIGITS, "left", _filtered("remove")),
  "hex": Puzzle(
    "base_conversion",
    {"min_value": 0, "max_value": 4095},
    "code",
    _one(lambda m: (_based(m["decimal_value"], 4, 6), _based(m["decimal_value"], 16, 3))),
  ),
  "quad": Puzzle(
    "base_conversion",
    {"min_value": 0, "max_value": 4095},
    "pairs",
    _one(lambda m: (_based(m["decimal_value"], 16, 3), _based(m["decimal_value"], 4, 6))),
  ),
  "rot": Puzzle(
    "rotate_matrix",
    {"min_n": 2, "max_n": 2, "min_rotations": 1, "max_rotations": 1},
    "rotated",
    _one(lambda m: (_flat(m["matrix"]), _flat(m["solution"]))),
  ),
  "flip": Puzzle("manipulate_matrix", _only("hmirror", 2, 3), "mirror", _transformed),
  "enc": Puzzle("caesar_cipher", _CIPHER, "cipher", _cipher(decode=False)),
  "dec": Puzzle("caesar_cipher", _CIPHER, "clear", _cipher(decode=True)),
  "add": Puzzle("chain_sum", _TERMS, "sum", _by_digit("+")),
  "sub": Puzzle("chain_sum", _TERMS, "rest", _by_digit("-")),
  "ones": Puzzle(
    "count_bits",
    {"min_n": 1, "max_n": 2047},
    "ones",
    _one(lambda m: (f"{m['number']:011b}", str(m["solution"]))),
  ),
  "count": Puzzle("letter_counting", {"min_words": 2, "max_words": 3}, "number", _counted),
  "ins": Puzzle(
    "string_insertion",
    {"min_string_length": 6, "max_string_length": 6},
    "insert",
    lambda m: iter([(m["string"], m["solution"])] if m["string"] != m["solution"] else []),
  ),
  "most": Puzzle("number_format", _NUMBERS, "largest", _compared("largest")),
  "least": Puzzle("number_format", _NUMBERS, "smallest", _compared("smallest")),
  "walk": Puzzle(
    "spiral_matrix",
    {"min_n": 2, "max_n": 2},
    "spiral",
    _one(lambda m: (_flat(m["matrix"]), "".join(map(str, m["solution"])))),
  ),
  "pool": Puzzle("pool_matrix", _POOL, "peaks", _pooled("max")),
  "map": Puzzle("manipulate_matrix", _only("map", 2, 2), "change", _transformed),
  "side": Puzzle("manipulate_matrix", _only("vmirror", 2, 3), "sides", _transformed),
  "turn": Puzzle("manipulate_matrix", _only("dmirror", 2, 3), "across", _transformed),
  "ransom": Puzzle(
    "ransom_note",
    {"min_note_length": 2, "max_note_length": 2, "min_magazine_length": 6, "max_magazine_length": 6},
    "enough",
    _one(lambda m: (f"{m['ransom_note']} {m['magazine']}", "yes" if m["solution"] else "no")),
  ),
  "iso": Puzzle(
    "isomorphic_strings",
    {"min_string_length": 4, "max_string_length": 4},
    "alike",
    _one(lambda m: (" ".join(m["words"]), "yes" if m["solution"] else "no")),
  ),
  "gcd": Puzzle(
    "gcd",
    {"min_value": 10, "max_value": 99},
    "divisor",
    _one(lambda m: (" ".join(map(str, m["numbers"])), str(m["result"]))),
  ),
  "flips": Puzzle(
    "binary_alternation",
    {"min_n": 10, "max_n": 10},
    "swaps",
    _one(lambda m: (m["string"], str(m["solution"]))),
  ),
}
