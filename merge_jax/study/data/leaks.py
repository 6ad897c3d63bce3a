"""Whether texts share passages: runs of 13 words that stand in both."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

LENGTH = 13
WORDING = 4
"""Words that are a wording where more than half of the texts of a kind have them in a row."""


def runs(text: str, length: int = LENGTH) -> set[int]:
  """Hashes of all runs of `length` words, told apart within one process; case and punctuation are ignored.

  >>> runs("One, two three", 2) == runs("one two - THREE!", 2)
  True
  >>> len(runs("one two three", 2))
  2
  """
  return set(_runs(_words(text), length))


def of_rows(texts: Sequence[str], length: int = LENGTH, wording: int = WORDING) -> list[set[int]]:
  """Runs of each text that do not reach into the wording that more than half of the texts share.

  >>> texts = ["Please read the text: a b c", "Please read the text: d b c", "Please read the text: e b"]
  >>> [len(found) for found in of_rows(texts, 2)]
  [2, 2, 1]
  """
  rows = [_words(text) for text in texts]
  counts = Counter(run for words in rows for run in set(_runs(words, wording)))
  common = {run for run, count in counts.items() if 2 * count > len(texts)}
  return [{run for part in _between(words, common, wording) for run in _runs(part, length)} for words in rows]


def _words(text: str) -> list[str]:
  return re.findall(r"\w+", text.casefold())


def _runs(words: Sequence[str], length: int) -> list[int]:
  return [hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)]


def _between(words: Sequence[str], common: set[int], wording: int) -> Iterable[list[str]]:
  """The parts of a text that no common run covers."""
  free = [True] * len(words)
  for i, run in enumerate(_runs(words, wording)):
    if run in common:
      free[i : i + wording] = [False] * wording
  part: list[str] = []
  for word, kept in zip(words, free, strict=True):
    if kept:
      part.append(word)
    elif part:
      yield part
      part = []
  yield part
