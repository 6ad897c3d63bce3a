"""When generated texts end: an automaton over tokens, so that a jitted loop knows longer strings."""

import re
from collections.abc import Sequence

import numpy as np


def automaton(
  texts: Sequence[str],
  stops: Sequence[tuple[str, ...]],
  ends: Sequence[int],
  openings: Sequence[str] | None = None,
) -> tuple[np.ndarray, list[int]]:
  """One automaton for several sets of strings.

  A state is how far some string of a set has been written. Strings that begin and end within tokens are
  found, too.

  Args:
    texts: of each token of the vocabulary, as it reads inside a text.
    stops: sets of strings; each may be empty.
    ends: tokens that end every text.
    openings: of each token, as it reads where a text begins, if some decoder drops a space there.

  Returns:
    int32 `[states, vocabulary]`, the state after a token, -1 where a text ends; the first state of each set.

  >>> moves, (start,) = automaton(["a", "b", "ab", ""], [("aab",)], [3])
  >>> one = moves[start, 0]
  >>> bool(moves[one, 2] == -1), bool(moves[one, 1] == start), bool(moves[start, 3] == -1)
  (True, True, True)
  """
  tables, first, states = [], {}, 0
  for strings in dict.fromkeys(stops):
    table, start = _moves(texts, strings), 0
    if strings and openings is not None and list(openings) != list(texts):
      silent = [not text and not opening for text, opening in zip(texts, openings, strict=True)]
      start = len(table)
      table = np.concatenate([table, np.where(silent, start, _moves(openings, strings, 1))])
    table[:, list(ends)] = -1
    first[strings] = states + start
    tables.append(np.where(table < 0, -1, table + states))
    states += len(table)
  return np.concatenate(tables).astype(np.int32), [first[strings] for strings in stops]


def _moves(texts: Sequence[str], strings: tuple[str, ...], count: int | None = None) -> np.ndarray:
  """The automaton of one set: `[states, vocabulary]` from 0, where nothing is written; its first `count`."""
  letters = sorted({letter for string in strings for letter in string})
  begun = sorted({"", *(string[:i] for string in strings for i in range(len(string)))})
  number = {text: i for i, text in enumerate(begun)}

  def after(text: str) -> int:
    if any(text.endswith(string) for string in strings):
      return -1
    return next(number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)

  by_letter = np.array(
    [[after(text + letter) for letter in letters] + [number[""]] for text in begun], np.int32
  )
  others = re.compile(f"[^{''.join(map(re.escape, letters))}]+" if letters else r"(?s:.+)")
  other = next(one for one in map(chr, range(len(letters) + 1)) if one not in letters)
  code = {letter: i for i, letter in enumerate(letters)}
  coded = [[code.get(letter, len(letters)) for letter in others.sub(other, text)] for text in texts]
  width = max(map(len, coded), default=0)
  padded = np.full((width, len(texts)), -1, np.int32)
  for token, codes in enumerate(coded):
    padded[: len(codes), token] = codes
  moves = np.repeat(np.arange(len(begun), dtype=np.int32)[:count, None], len(texts), axis=1)
  for column in padded:
    moves = np.where((column >= 0) & (moves >= 0), by_letter[moves, column], moves)
  return moves
