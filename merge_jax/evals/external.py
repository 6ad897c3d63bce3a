"""Scores from any program: it gets a model folder and writes a JSON file of scores."""

import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class ScorerError(RuntimeError):
  """The command failed, ran out of time or wrote no usable scores."""


class Command(NamedTuple):
  """An external scorer.

  Attributes:
    template: e.g. `python eval.py {model_dir} {scores_json}`; `{split}` ("search", "validation" or
      "test") may be among its words. It is split like a shell does, but runs without one.
    tasks: names that the scores must have.
    timeout: seconds for one call.
    retries: further calls after a failed one.
    nan: what a call that still fails counts as: "fail" ends the search, "worst" gives NaN scores.
  """

  template: str
  tasks: tuple[str, ...]
  timeout: float = 3600.0
  retries: int = 1
  nan: str = "fail"

  def check(self) -> None:
    """Raises ValueError for a template or policy that cannot work."""
    for word in ("{model_dir}", "{scores_json}"):
      if word not in self.template:
        raise ValueError(f"--scorer_command has no {word}; got {self.template!r}.")
    try:
      self.words("m", "s", "search")
    except (KeyError, IndexError, ValueError) as error:
      raise ValueError(f"--scorer_command {self.template!r} cannot be filled in: {error!r}.") from None
    if self.nan not in ("fail", "worst"):
      raise ValueError(f"The NaN policy is {self.nan!r}; expected 'fail' or 'worst'.")
    if not self.tasks:
      raise ValueError("--scorer_command needs the names of its scores: --tasks=name,name.")

  def words(self, model_dir: str, scores_json: str, split: str) -> list[str]:
    """The command line."""
    places = {"model_dir": model_dir, "scores_json": scores_json, "split": split}
    return [word.format(**places) for word in shlex.split(self.template)]

  @property
  def splits(self) -> bool:
    """Whether the command can tell splits apart."""
    return "{split}" in self.template

  def __call__(self, model_dir: Path, split: str) -> dict[str, float]:
    """Runs the command, and again if it fails.

    Raises:
      ScorerError: it failed every time, and the policy is "fail".
    """
    problem = ""
    for _ in range(self.retries + 1):
      try:
        return self._run(model_dir, split)
      except ScorerError as error:
        problem = str(error)
    if self.nan == "worst":
      return dict.fromkeys(self.tasks, math.nan)
    raise ScorerError(problem)

  def _run(self, model_dir: Path, split: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="merge_jax_scores_") as folder:
      path = Path(folder) / "scores.json"
      words = self.words(str(model_dir), str(path), split)
      try:
        done = subprocess.run(words, timeout=self.timeout, capture_output=True, text=True)
      except subprocess.TimeoutExpired:
        raise ScorerError(f"{words[0]} took longer than {self.timeout:g} seconds.") from None
      except OSError as error:
        raise ScorerError(f"{words[0]} cannot be run: {error}.") from None
      if done.returncode:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ScorerError(f"{shlex.join(words)} ended with status {done.returncode}: {tail}")
      if not path.is_file():
        raise ScorerError(f"{shlex.join(words)} wrote no {path.name}.")
      return parse_scores(path.read_text(), self.tasks)


def parse_scores(text: str, tasks: Sequence[str]) -> dict[str, float]:
  """Scores `{task: number}`; null is NaN. ScorerError if a task is missing or not a number."""
  try:
    scores: Any = json.loads(text)
  except json.JSONDecodeError as error:
    raise ScorerError(f"The scores are not valid JSON: {error}.") from None
  if not isinstance(scores, dict):
    raise ScorerError(f"The scores are a {type(scores).__name__}; expected an object.")
  result = {}
  for task in tasks:
    value = scores.get(task, "missing")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
      raise ScorerError(f"The score of task {task!r} is {value!r}; expected a number.")
    result[task] = math.nan if value is None else float(value)
  return result
