"""Which data sets of T0 a study takes, and how their files are read.

What was looked at when they were chosen (200 rows a data set, in the order of its source):

- *Constant labels*: imdb, rotten_tomatoes and dbpedia_14 have one label, wiki_qa has 96 % "No", and all of
  TREC's answers are empty. So topic has one data set, and closed-book questions are those of SciQ whose
  templates show no passage. AG News has 78 rows of one label and then 122 of another: its evaluation rows
  are the ends of both blocks.
- *Balance*: amazon_polarity, yelp_review_full, glue_qqp and paws_labeled_final have no label above 60 %.
- *Shared passages*: wiqa and wiki_hop share them across any split; rows that do are taken out of training.
- *Length*: of what is left the shorter ones.
- *Other tasks*: templates that turn the task around (write the article to a title) are left out.
"""

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import msgspec

from merge_jax.decoding import decode

ROWS = 200
"""Of a data set; a file with fewer lines was filtered, and its lines are not rows."""


class Source(NamedTuple):
  """A data set of T0.

  Attributes:
    kind: "choices" where answers are few or listed in the prompt, "answer" for short ones, "text".
    archive: its name in the archive; "" for the same.
    only, without: templates that are taken, () for all, and that are left out.
    blocks: of rows with like labels; the last of each are evaluated.
  """

  kind: Literal["choices", "answer", "text"]
  archive: str = ""
  only: tuple[str, ...] = ()
  without: tuple[str, ...] = ()
  blocks: tuple[tuple[int, int], ...] = ((0, ROWS),)


SOURCES: dict[str, dict[str, Source]] = {
  "multiple_choice_qa": {
    "cosmos_qa": Source("choices", without=("context_answer_to_question", "only_question_answer")),
    "social_i_qa": Source("choices", without=("Generate_the_question_from_the_answer",)),
  },
  "extractive_qa": {
    "adversarial_qa_dbidaf": Source("answer", without=("generate_question",)),
    "ropes": Source("answer"),
  },
  "closed_book_qa": {
    "kilt_tasks_hotpotqa": Source("answer"),
    "sciq_closed_book": Source(
      "choices", "sciq", only=("Direct_Question_Closed_Book_", "Multiple_Choice_Closed_Book_")
    ),
  },
  "sentiment": {"amazon_polarity": Source("choices"), "yelp_review_full": Source("choices")},
  "topic": {"ag_news": Source("choices", blocks=((0, 78), (78, ROWS)))},
  "structure_to_text": {
    "common_gen": Source(
      "text", without=("sentence_to_concepts", "topics_from_the_sentence", "topic_to_sentence")
    ),
    "wiki_bio": Source("text", only=("who",)),
  },
  "summarization": {
    "gigaword": Source("text", without=("reverse_writing", "write_an_article")),
    "samsum": Source("text", without=("Write_a_dialogue_that_match_this_summary",)),
  },
  "paraphrase": {
    "glue_qqp": Source("choices"),
    "paws_labeled_final": Source("choices", without=("paraphrase_task",)),
  },
}
"""Held-in data sets by category."""

PASSAGES = ("cnn_dailymail_3_0_0", "multi_news", "quoref", "wiki_hop_original", "xsum")
"""Data sets that are not held in and have long texts."""

HELD_IN = {category: tuple(sources) for category, sources in SOURCES.items()}


class Line(NamedTuple):
  """A prompt and its answer, without white space at their ends."""

  prompt: str
  target: str


class _T0Line(msgspec.Struct, frozen=True):
  prompt: str
  completion: str


def read_t0(path: Path, names: tuple[str, ...]) -> dict[str, dict[str, list[Line]]]:
  """The whole templates of data sets: `ROWS` lines each, by data set and template, sorted.

  Args:
    path: an archive or folder with files `…/data_per_template/<data set>_<template>.jsonl`.
    names: of data sets in it.

  Raises:
    ValueError: no archive, a malformed line, a data set without a whole file, a template with two.
  """

  def data_set(name: str) -> str:
    file = PurePosixPath(name)
    if file.suffix != ".jsonl" or file.parent.name != "data_per_template":
      return ""
    return max((known for known in names if file.name.startswith(f"{known}_")), key=len, default="")

  result: dict[str, dict[str, list[Line]]] = {name: {} for name in names}
  of_template: dict[str, str] = {}
  for name, content in files(path, lambda name: bool(data_set(name))):
    lines = [line for line in content.split(b"\n") if line.strip()]
    if len(lines) == ROWS:
      once_each(path, of_template, PurePosixPath(name).stem, name)
      where = f"{path}: {name}"
      records = [decode(line, _T0Line, f"{where}:{number}") for number, line in enumerate(lines, 1)]
      template = PurePosixPath(name).stem.removeprefix(f"{data_set(name)}_")
      result[data_set(name)][template] = [
        Line(tidy(one.prompt), tidy(one.completion.removesuffix("<|endoftext|>"))) for one in records
      ]
  for name, templates in result.items():
    if not templates:
      raise ValueError(
        f"{path}: data set {name!r} has no file of {ROWS} lines; expected "
        f"data_per_template/{name}_<template>.jsonl."
      )
  return {name: dict(sorted(templates.items())) for name, templates in result.items()}


def taken(name: str, source: Source, archive: Mapping[str, dict[str, list[Line]]]) -> dict[str, list[Line]]:
  """The templates of a data set that are taken.

  Raises:
    ValueError: the archive has none of them.
  """
  there = archive[source.archive or name]
  found = {
    template: lines
    for template, lines in there.items()
    if template not in source.without and (not source.only or template in source.only)
  }
  if not found:
    raise ValueError(f"T0's data set {name!r} has only {', '.join(there)}; none of these templates is taken.")
  return found


def once_each(path: Path, seen: dict[str, str], what: str, name: str) -> None:
  """Notes the file of a template or task; ValueError if there was one."""
  if what in seen:
    raise ValueError(f"{path}: holds {what!r} twice, as {seen[what]} and {name}; remove either.")
  seen[what] = name


def tidy(text: str) -> str:
  """A text without empty lines and white space at the ends of lines."""
  return "\n".join(line for line in (part.strip() for part in text.splitlines()) if line)


def files(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
  """Name and content of the wanted files of an archive or a folder.

  Raises:
    FileNotFoundError: there is nothing.
    ValueError: neither a folder nor an archive.
  """
  if path.is_dir():
    for file in sorted(path.rglob("*")):
      if file.is_file() and wanted(name := file.relative_to(path).as_posix()):
        yield name, file.read_bytes()
    return
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        if member.isfile() and wanted(member.name) and (content := archive.extractfile(member)):
          yield member.name, content.read()
  except FileNotFoundError:
    raise FileNotFoundError(f"{path}: there is no such archive or folder.") from None
  except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
    raise ValueError(f"{path}: is no archive that can be read ({error}).") from None
