"""From T0's source rows to lines of task files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from merge_jax.study.data import leaks
from merge_jax.study.data.t0_sources import ROWS, Line, Source

FEW = 5
"""Most answers of a template that are choices."""

Record = dict[str, Any]
"""A line of a task file."""
Templates = Mapping[str, Sequence[Line]]


def test_rows(source: Source, share: float) -> list[int]:
  """The rows that are evaluated: the last of each block.

  >>> test_rows(Source("choices", blocks=((0, 10), (10, 20))), 0.2)
  [8, 9, 18, 19]
  """
  return [row for start, end in source.blocks for row in range(end - round(share * (end - start)), end)]


def passages(templates: Templates) -> list[set[int]]:
  """Runs of 13 words of each row, in any template, wordings apart."""
  prompts = [leaks.of_rows([line.prompt for line in lines]) for lines in templates.values()]
  targets = [leaks.of_rows([line.target for line in lines]) for lines in templates.values()]
  return [set[int]().union(*of_row) for of_row in zip(*prompts, *targets, strict=True)]


def records(
  name: str, source: Source, templates: Templates, test: Sequence[int], most: int
) -> list[list[Record]]:
  """Lines of each row, one a template that fits; which one is first changes from row to row.

  Args:
    name: of the data set.
    source: what it is.
    templates: those that are taken.
    test: rows that are evaluated; a template's few answers are those of the others.
    most: `length` of a line.
  """
  names = list(templates)
  labels = {
    template: sorted({line.target for row, line in enumerate(lines) if row not in test and line.target})
    for template, lines in templates.items()
  }
  result: list[list[Record]] = []
  for row in range(ROWS):
    of_prompts = _of_prompts([lines[row] for lines in templates.values()])
    found = []
    for template in names[row % len(names) :] + names[: row % len(names)]:
      line, choices = templates[template][row], labels[template]
      record: Record = {"prompt": line.prompt, "id": f"{name}/{row}/{template}"}
      if source.kind == "choices":
        choices = choices if len(choices) <= FEW else of_prompts
        if len(choices) < 2 or line.target not in choices:
          continue
        record |= {"choices": [f" {choice}" for choice in choices], "answer": choices.index(line.target)}
      else:
        record["target"] = f" {line.target}"
      if line.prompt and line.target and length(record) <= most:
        found.append(record)
    result.append(found)
  return result


def _of_prompts(lines: Sequence[Line]) -> list[str]:
  """The options that a prompt of a row lists, the answer among them."""
  return next((found for x in lines if len(found := listed(x.prompt)) > 1 and x.target in found), [])


def listed(prompt: str) -> list[str]:
  """Options that stand in lines of their own.

  >>> listed("Which one?\\n- A: red\\n- B: blue")
  ['red', 'blue']
  """
  found = []
  for line in prompt.split("\n"):
    text = line.removeprefix("- ")
    lettered = len(text) > 3 and text[0] in "ABCDE" and text[1] in ".:" and text[2] == " "
    if lettered or text != line:
      found.append(text[3:].strip() if lettered else text.strip())
  return list(dict.fromkeys(found))


def answer(record: Record) -> str:
  """The right answer of a line."""
  return str(record["choices"][record["answer"]] if "choices" in record else record["target"])


def length(record: Record) -> int:
  """Bytes of the prompt with the longest answer, as UTF-8."""
  answers = record.get("choices") or [record["target"]]
  return len(record["prompt"].encode()) + max(len(text.encode()) for text in answers)


def guessing(tested: Sequence[Record], trained: Sequence[Record]) -> dict[str, float]:
  """What guessing gives in choice tasks: `chance`, and the most frequent answer of the same template.

  Args:
    tested: lines with choices.
    trained: lines that answers are counted in; none: the tested ones.
  """
  counts: dict[str, Counter[str]] = {}
  for record in trained or tested:
    counts.setdefault(_template(record), Counter())[answer(record)] += 1
  best = {template: max(found, key=lambda text: found[text]) for template, found in counts.items()}
  right = sum(answer(record) == best.get(_template(record)) for record in tested)
  chance = sum(1 / len(record["choices"]) for record in tested)
  return {"chance": chance / len(tested), "majority": right / len(tested)}


def _template(record: Record) -> str:
  return "/".join(record["id"].split("/")[2:])
