"""Task files: one JSON object a line, a prompt with its target or with choices."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from merge_jax.errors import unknown

METRICS = ("loss", "exact_match", "choice_accuracy", "choice_accuracy_normalized")
"""What a task can be scored by.

loss: mean negative log-likelihood in nats over all target tokens of the task (lower is better).
exact_match: share of examples whose every target token is the most likely one, given the target so
  far; with the end-of-text token appended this is what greedy decoding gives.
choice_accuracy: share of examples whose right choice has the highest log-likelihood.
choice_accuracy_normalized: the same with the log-likelihood divided by the number of tokens.
"""

_KEYS = {"prompt", "target", "choices", "answer", "id"}


class Example(NamedTuple):
  """One question: with choices, `answer` is the position of the right one in `targets`."""

  prompt: str
  targets: tuple[str, ...]
  answer: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
  """A named list of examples and the metric they are scored by."""

  name: str
  metric: str
  examples: tuple[Example, ...]

  @property
  def has_choices(self) -> bool:
    return self.metric.startswith("choice_accuracy")


def sign(metric: str) -> float:
  """+1 where a higher score is better, -1 for a loss."""
  return -1.0 if metric == "loss" else 1.0


def load(spec: str) -> Task:
  """Reads a task file.

  Args:
    spec: `path` or `path:metric`. Every line is `{"prompt", "target"}` or `{"prompt", "choices",
      "answer"}`, `answer` being the position of the right choice (from 0) or its text. The default
      metric is `choice_accuracy` where there are choices, else `exact_match`.

  Returns:
    The task, named as its file.

  Raises:
    ValueError: an unknown metric, or an empty, malformed or misfitting line, with file and line.
    FileNotFoundError: no such file.
  """
  path_text, metric = spec, ""
  head, _, tail = spec.rpartition(":")
  if head and "/" not in tail and not Path(spec).exists():
    path_text, metric = head, tail
    if metric not in METRICS:
      raise ValueError(unknown("metric", metric, METRICS, spec))
  path = Path(path_text)
  if not path.is_file():
    raise FileNotFoundError(f"Task file {path_text!r} does not exist.")
  examples = []
  for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
    examples.append(_parse(line, f"{path}:{place}"))
  if not examples:
    raise ValueError(f"{path}: the file has no examples.")
  with_choices = [len(example.targets) > 1 for example in examples]
  if any(with_choices) and not all(with_choices):
    number = with_choices.index(not with_choices[0]) + 1
    raise ValueError(f"{path}:{number}: a task has either choices or targets in all its lines.")
  metric = metric or ("choice_accuracy" if with_choices[0] else "exact_match")
  if metric.startswith("choice") and not with_choices[0]:
    raise ValueError(f"{path}: metric {metric!r} needs choices; the lines have targets.")
  if metric == "exact_match" and with_choices[0]:
    raise ValueError(f"{path}: metric 'exact_match' needs targets; the lines have choices.")
  return Task(path.stem, metric, tuple(examples))


def load_all(specs: Iterable[str]) -> list[Task]:
  """Reads task files and checks that their names differ."""
  tasks = [load(spec) for spec in specs]
  names = [task.name for task in tasks]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"Two task files are called {name!r}; scores are told apart by that name.")
  return tasks


def shares(text: str) -> dict[str, float]:
  """Numbers by task name from `task=number,…`; ValueError for anything else.

  >>> shares("code=2,math=0.5")
  {'code': 2.0, 'math': 0.5}
  """
  result = {}
  for item in filter(None, text.split(",")):
    name, _, value = item.partition("=")
    try:
      result[name.strip()] = float(value)
    except ValueError:
      raise ValueError(f"Got {item!r}; expected task=number, for example code=0.8,math=0.2.") from None
  return result


def _parse(line: str, where: str) -> Example:
  if not line.strip():
    raise ValueError(f"{where}: the line is empty; expected a JSON object.")
  try:
    record: Any = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: not valid JSON ({error}).") from None
  if not isinstance(record, dict):
    raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}.")
  for key in record:
    if key not in _KEYS:
      raise ValueError(unknown("field", key, _KEYS, where))
  prompt = record.get("prompt")
  if not isinstance(prompt, str):
    raise ValueError(f"{where}: 'prompt' is {prompt!r}; expected a string.")
  if ("target" in record) == ("choices" in record):
    raise ValueError(f"{where}: expected either 'target', or 'choices' with 'answer'.")
  if "target" in record:
    target = record["target"]
    if not isinstance(target, str) or not target:
      raise ValueError(f"{where}: 'target' is {target!r}; expected a string that is not empty.")
    return Example(prompt, (target,))
  choices, answer = record["choices"], record.get("answer")
  good = isinstance(choices, list) and len(choices) > 1
  if not good or not all(isinstance(choice, str) and choice for choice in choices):
    raise ValueError(f"{where}: 'choices' is {choices!r}; expected at least two strings.")
  if isinstance(answer, str) and answer in choices:
    answer = choices.index(answer)
  if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
    raise ValueError(f"{where}: 'answer' is {answer!r}; expected one of the {len(choices)} choices.")
  return Example(prompt, tuple(choices), answer)
