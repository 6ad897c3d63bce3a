"""What the bases of a T0 study are trained on: plain text, then instructions that are none of the tasks.

*Text*: news and encyclopedic paragraphs from T0's data sets that are not held in; the documentation of the
running Python; the user's own files. No question, answer, label or wording of a task.

*Instructions*: reasoning-gym's questions as they are worded there (arithmetic, sorting, dates, ciphers, …),
and questions about pieces of the text that any text answers by itself: copy, find, count, choose what
stands there. They teach to read an instruction and a text and to answer shortly, by letter, word or
sentence, and are none of T0's categories nor of the held-out ones; puzzles of logic are left out. BIG-bench
must not be trained on, and the archive's Self-Instruct seeds have summaries, sentiment and the like.
"""

import inspect
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from merge_jax.study.data.entries import entries
from merge_jax.study.data.t0_sources import Line

PIECE = 700
"""Characters of a piece that questions are about, at most."""
SHORTEST = 80
"""Characters of a line that is a passage rather than a title or a wording."""

PUZZLES = (
  "chain_sum", "basic_arithmetic", "products", "lcm", "gcd", "fraction_simplification", "prime_factorization",
  "count_bits", "base_conversion", "number_format", "number_sorting", "number_filtering", "leg_counting",
  "calendar_arithmetic", "time_intervals", "spell_backward", "letter_counting", "word_sorting",
  "word_sequence_reversal", "caesar_cipher", "isomorphic_strings", "rotate_matrix", "ransom_note",
)  # fmt: skip


def passages(templates: Mapping[str, Sequence[Line]]) -> Iterator[str]:
  """The texts of a data set, one a row: long lines that several templates show, wordings apart."""
  rows = len(next(iter(templates.values())))
  shown = []
  for row in range(rows):
    lines: Counter[str] = Counter()
    for template in templates.values():
      both = f"{template[row].prompt}\n{template[row].target}".split("\n")
      lines.update(list(dict.fromkeys(line for line in both if len(line) >= SHORTEST)))
    shown.append([line for line, count in lines.items() if count > 1])
  everywhere = Counter(line for several in shown for line in several)
  seen: set[str] = set()
  for several in shown:
    fresh = [line for line in several if line not in seen and 2 * everywhere[line] <= rows]
    seen.update(fresh)
    if fresh:
      yield "\n".join(fresh)


def documentation() -> Iterator[str]:
  """Prose of the running Python: its language reference, and long docstrings of the standard library."""
  from pydoc_data import topics  # half a megabyte

  yield from topics.topics.values()
  root = Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(root.rglob("*.py")):
    if not {"site-packages", "test", "tests"} & set(path.relative_to(root).parts):
      code = path.read_text(encoding="utf-8", errors="ignore")
      for text in re.findall(r'(?:\A|:\n)\s*r?"""(.*?)"""', code, re.DOTALL):
        if len(text) >= 300:
          yield inspect.cleandoc(text)


def chunks(text: str, most: int) -> Iterator[str]:
  """A text in pieces of at most `most` characters that end at white space; a short rest is left out.

  >>> list(chunks("one two three four five six seven", 14))
  ['one two three', 'four five six']
  """
  while len(text := text.strip()) > most // 2:
    end = len(text) if len(text) <= most else max(text.rfind(space, 1, most + 1) for space in " \n")
    end = end if end > 0 else most
    yield text[:end].rstrip()
    text = text[end:]


def as_text(piece: str) -> dict[str, str]:
  """A line whose loss is that of all but the first word."""
  first = piece.split(maxsplit=1)[0]
  return {"prompt": first, "target": piece[len(first) :]}


def puzzles(count: int, seed: int) -> Iterator[dict[str, str]]:
  """`count` questions of each of `PUZZLES`.

  Raises:
    ValueError: reasoning-gym cannot be imported.
  """
  if not count:
    return
  for number, name in enumerate(PUZZLES):
    try:
      data = entries(name, count, seed + 10**6 * number)
    except ImportError:
      raise ValueError(
        "options.puzzles needs reasoning-gym; pip install 'merge-jax[data]', or set it to 0."
      ) from None
    for i in range(count):
      item = data[i]
      if answer := str(item["answer"]).strip():
        yield {"prompt": item["question"].strip(), "target": f" {answer}"}


def readings(texts: Sequence[str], count: int, seed: int) -> Iterator[dict[str, str]]:
  """`count` questions about pieces of texts, see `QUESTIONS`.

  Args:
    texts: with sentences.
    count: of lines; fewer where texts are few.
    seed: of what is drawn.
  """
  draw, names, found = random.Random(f"readings/{seed}"), sorted(QUESTIONS), 0
  for _ in range(4 * count if texts else 0):
    sentences, elsewhere = (_sentences(draw.choice(texts)) for _ in range(2))
    text = " ".join(sentences)
    words, others = _words(text), [word for word in _words(" ".join(elsewhere)) if word not in text]
    if len(sentences) < 2 or len(words) < 8 or len(others) < 8:
      continue
    wordings, answer = QUESTIONS[draw.choice(names)](draw, sentences, words, others)
    wording = draw.choice(wordings)
    prompt = f"{wording}\n{text}" if draw.random() < 0.5 else f"{text}\n{wording}"
    yield {"prompt": prompt, "target": f" {answer}"}
    found += 1
    if found == count:
      return


def _sentences(text: str) -> list[str]:
  piece = " ".join(next(chunks(text, PIECE), "").split())
  found = re.findall(r"\S[^.!?]*[.!?](?=\s|$)", piece)
  return [sentence for sentence in found if 4 <= len(sentence.split()) <= 30][:6]


def _words(text: str) -> list[str]:
  return sorted(set(re.findall(r"\b[a-z]{4,}\b", text)))


Asked = tuple[tuple[str, ...], str]
"""Wordings, and the answer."""


def _first(draw: random.Random, sentences: list[str], words: list[str], others: list[str]) -> Asked:
  return ("Copy the first sentence of the text.", "Write down how the text begins."), sentences[0]


def _last(draw: random.Random, sentences: list[str], words: list[str], others: list[str]) -> Asked:
  return ("Copy the last sentence of the text.", "Write down how the text ends."), sentences[-1]


def _find(draw: random.Random, sentences: list[str], words: list[str], others: list[str]) -> Asked:
  word = draw.choice(words)
  sentence = next(sentence for sentence in sentences if word in sentence)
  return (
    f'Copy the first sentence that has "{word}" in it.',
    f'Where does the text say "{word}" first? Write down that sentence.',
  ), sentence


def _contains(draw: random.Random, sentences: list[str], words: list[str], others: list[str]) -> Asked:
  there = draw.random() < 0.5
  word = draw.choice(words if there else others)
  return (
    f'Does the text have the word "{word}"? Yes or no?',
    f'Can you find "{word}" in the text?',
  ), "Yes" if there else "No"


def _which(draw: random.Random, sentences: list[str], words: list[str], others: list[str]) -> Asked:
  right = draw.choice(words)
  options = [right, *draw.sample(others, 3)]
  draw.shuffle(options)
  by_letter = draw.random() < 0.5
  listed = "\n".join(
    f"{letter}: {option}" if by_letter else f"- {option}"
    for letter, option in zip("ABCD", options, strict=True)
  )
  answer = "ABCD"[options.index(right)] if by_letter else right
  return (
    f"Which of these words does the text have?\n{listed}",
    f"Choose what the text has.\n{listed}",
  ), answer


def _count(draw: random.Random, sentences: list[str], words: list[str], others: list[str]) -> Asked:
  return ("How many sentences does the text have?", "Count the sentences."), str(len(sentences))


def _after(draw: random.Random, sentences: list[str], words: list[str], others: list[str]) -> Asked:
  parts = draw.choice(sentences).split()
  at = draw.randrange(2, len(parts))
  return (
    f'Which word stands right after "{parts[at - 2]} {parts[at - 1]}"?',
    f'Look for "{parts[at - 2]} {parts[at - 1]}" in the text. What is the next word there?',
  ), parts[at]


QUESTIONS: dict[str, Callable[[random.Random, list[str], list[str], list[str]], Asked]] = {
  "first": _first, "last": _last, "find": _find, "contains": _contains, "which": _which, "count": _count,
  "after": _after,
}  # fmt: skip
