"""The result in words: a sentence and a table for the console."""

from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None, format: str = ".3f") -> str:
  """A score for people.

  >>> number(0.5), number(None)
  ('0.500', '–')
  """
  return "–" if value is None else f"{value:{format}}"


def headline(result: Mapping[str, Any]) -> str:
  """The gain over the best single checkpoint, its error, and what the selected merge is."""
  rows = {row["name"]: row for row in result["rows"]}
  differences = {line["row"]: line for line in result["differences"]}
  count, tasks = len(result["checkpoints"]), len(result["tasks"])
  selected = rows["selected"]["test"]["average"]
  text = f"The merge of {count} checkpoints scores {number(selected)} on test examples, mean of {tasks} tasks"
  if tasks == 1:
    text = f"The merge of {count} checkpoints scores {number(selected)} on test examples"
  gain = differences.get("best_single")
  if gain is None or gain["gain"] is None:
    return text + "."
  error = "" if gain["stderr"] is None else f" ± {gain['stderr']:.3f}"
  best = number(rows["best_single"]["test"]["average"])
  more = f"{text}: {gain['gain']:+.3f}{error} against the best single checkpoint ({best})"
  soup = differences.get("uniform")
  if soup is not None and soup["gain"] is not None:
    spread = "" if soup["stderr"] is None else f" ± {soup['stderr']:.3f}"
    more += f", {soup['gain']:+.3f}{spread} against the uniform soup"
  return more + "."


def console(result: Mapping[str, Any]) -> str:
  """Test scores of every row, aligned, with the mean and the paired gain of the selected merge."""
  tasks = {task["name"]: task["format"] for task in result["tasks"]}
  differences = {line["row"]: line for line in result["differences"]}
  header = ["", *tasks, "average", "±", "selected gains"]
  lines = [header]
  for row in result["rows"]:
    errors = row["test_stderr"]
    line = [label(row["name"]), *(number(row["test"][task], form) for task, form in tasks.items())]
    line += [number(row["test"]["average"]), number(errors["average"]) if errors else "–"]
    gain = differences.get(row["name"])
    if gain is None or gain["gain"] is None:
      line.append("")
    else:
      error = "" if gain["stderr"] is None else f" ± {gain['stderr']:.3f}"
      line.append(f"{gain['gain']:+.3f}{error}")
    lines.append(line)
  return aligned(lines)


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
  """A table of texts; the first `left` columns begin below each other, the others end so.

  >>> print(aligned([["", "gsm8k"], ["uniform", ".5"]]))
           gsm8k
  uniform     .5
  """
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def label(name: str) -> str:
  """A row's name for people.

  >>> label("best_on_code")
  'best on code'
  """
  return name.replace("_", " ")
