"""The result in words: a sentence and a table for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merge_jax.search.final import KNOWN, label
from merge_jax.search.loop import FINALS

SURE = 1.96
"""Errors beyond which a difference is more than chance gives, as in `evals.uncertainty`."""


def number(value: float | None, format: str = ".3f") -> str:
  """A score for people.

  >>> number(0.5), number(None)
  ('0.500', '–')
  """
  return "–" if value is None else f"{value:{format}}"


def gain(value: float | None, error: float | None) -> str:
  """A difference with its error, as far as they are known.

  >>> gain(0.01234, 0.005), gain(None, None)
  ('+0.012 ± 0.005', '')
  """
  if value is None:
    return ""
  return f"{value:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def headline(result: Mapping[str, Any]) -> str:
  """What is selected, its score, and its gains over the best single checkpoint and the uniform soup.

  >>> row = {"method": "linear", "weights": [0.0, 1.0], "numbers": {}, "test": {"average": 0.5}}
  >>> same = [{"row": "best_single", "gain": 0.0, "stderr": 0.0}]
  >>> result = {"rows": [row | {"name": name} for name in ("best_single", "selected")], "differences": same}
  >>> headline(result | {"checkpoints": ["code", "math"], "tasks": [{}]})
  'The single checkpoint math scores 0.500 on test examples.'
  """
  rows = {row["name"]: row for row in result["rows"]}
  differences = {line["row"]: line for line in result["differences"]}
  tasks, selected = len(result["tasks"]), rows["selected"]
  text = f"{_called(selected, result['checkpoints'])} scores {number(selected['test']['average'])}"
  text += " on test examples" + (f", mean of {tasks} tasks" if tasks > 1 else "")
  gains = []
  for name, spoken in (("best_single", "the best single checkpoint"), ("uniform", "the uniform soup")):
    line = differences.get(name)
    if line is None or line["gain"] is None or _same(rows[name], selected):
      continue
    found = f"{gain(line['gain'], line['stderr'])} against {spoken}"
    gains.append(f"{found} ({number(rows[name]['test']['average'])})" if name == "best_single" else found)
  return text + (f": {', '.join(gains)}" if gains else "") + "."


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  return all(one[key] == other[key] for key in ("method", "weights", "numbers"))


def _called(row: Mapping[str, Any], checkpoints: Sequence[str]) -> str:
  """What a row is.

  >>> _called({"method": "linear", "weights": [0.0, 1.0]}, ["code", "math"])
  'The single checkpoint math'
  >>> _called({"method": "linear", "weights": [0.5, 0.5]}, ["code", "math"])
  'The merge of 2 checkpoints'
  >>> _called({"method": "linear", "weights": [0.5, 0.0, 0.5]}, ["code", "math", "law"])
  'The merge of 2 of 3 checkpoints'
  >>> _called({"method": "ties", "weights": [0.0, 0.0]}, ["code", "math"])
  'The base'
  """
  weights = np.atleast_2d(row["weights"])
  (used,) = np.nonzero(weights.any(axis=0))
  if not used.size:
    return "The base"
  if row["method"] == "linear" and used.size == 1 and (weights[:, used] == 1).all():
    return f"The single checkpoint {checkpoints[used[0]]}"
  of = f"{used.size} of " if used.size < len(checkpoints) else ""
  return f"The merge of {of}{len(checkpoints)} checkpoint{'s' if len(checkpoints) > 1 else ''}"


def verdict(result: Mapping[str, Any]) -> str | None:
  """Whether the search found more than the known points have; None where they cannot be compared.

  >>> found = {"over": "greedy", "gain": 0.02, "stderr": 0.005, "shown": True}
  >>> verdict({"selected_from": "search_best", "gained": found})
  'The search found more: +0.020 ± 0.005 over greedy, the best of the points that need none.'
  >>> verdict({"selected_from": "search_best", "gained": found | {"gain": -0.02, "shown": False}})
  'The search lost on the test examples: -0.020 ± 0.005 against greedy, the best of the points that need ...'
  >>> verdict({"selected_from": "uniform", "gained": found})
  'Validation examples prefer uniform, which needs no search either, to greedy, the best of the points ...'
  >>> verdict({"selected_from": "greedy", "gained": found})
  'The search found nothing that validation shows to be better than greedy, the best of the points that ...'
  """
  found = result.get("gained")
  if found is None or found["gain"] is None:
    return None
  known = f"{label(found['over'])}, the best of the points that need none"
  if result["selected_from"] == found["over"]:
    return f"The search found nothing that validation shows to be better than {known}."
  if result["selected_from"] in KNOWN:
    chosen = label(result["selected_from"])
    return f"Validation examples prefer {chosen}, which needs no search either, to {known}."
  told = gain(found["gain"], found["stderr"])
  if found["shown"] is None:
    return f"The search gains {told} over {known}; its error is not known."
  if found["shown"]:
    return f"The search found more: {told} over {known}."
  if found["gain"] < -SURE * found["stderr"]:
    return f"The search lost on the test examples: {told} against {known}."
  return f"No gain is shown: {told} over {known}: within what chance gives."


def trust(result: Mapping[str, Any]) -> list[str]:
  """How far the answer can be trusted: what could be seen, why it was chosen, how much of it was luck."""
  lines = [told] if (told := verdict(result)) is not None else []
  least = {line["row"]: line.get("detectable") for line in result["differences"]}
  against = {"best_single": "best single checkpoint", "uniform": "uniform soup"}
  seen = [(name, over) for name, over in against.items() if least.get(name)]
  if seen:
    gains = " or ".join(f"{least[name]:.3f} over the {over}" for name, over in seen)
    count = sum(task["examples"].get("test", 0) for task in result["tasks"])
    units = result.get("units", {}).get("test", count)
    of = "" if units == count else f", which are {units} independent units"
    # Of a scorer that lists what each example scored the number is not known.
    examples = f"these {count} test examples{of}" if count else "the test examples"
    lines.append(f"A gain below {gains} could not be seen with {examples}.")
  if (choice := result.get("choice")) is not None:
    lines.append(f"Why {label(choice['name'])}: {choice['why']}")
  (row,) = (row for row in result["rows"] if row["name"] == "selected")
  for split in ("search", "validation"):
    if (corrected := row.get(f"{split}_corrected")) is not None:
      lines.append(
        f"On {split} examples, which chose it, it scores {number(row[split]['average'])}; with the luck of "
        f"being chosen taken away, {number(corrected['average'])}."
      )
  if result["selected_from"] in FINALS:
    score = number(row["search"]["average"])
    lines.append(f"On search examples, which it was made from, it scores {score}: too good, not corrected.")
  if result.get("not_corrected"):
    lines.append(f"Search scores are too good, and cannot be corrected: {result['not_corrected']}.")
  return lines


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
    found = differences.get(row["name"])
    line.append("" if found is None else gain(found["gain"], found["stderr"]))
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
