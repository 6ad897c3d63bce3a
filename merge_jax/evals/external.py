"""Scores from any program: it gets a model folder and writes a JSON file of scores."""

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import msgspec
from msgspec import Meta

from merge_jax.decoding import convert, decode
from merge_jax.errors import shown, unknown
from merge_jax.evals import watch
from merge_jax.evals.tasks import check_names

PLACES = ("model_dir", "scores_json", "split")
"""What may stand in braces in a command."""

TAIL = 2000
"""Characters of a failed command's output that its error shows."""


class ScorerError(RuntimeError):
  """The command failed, ran out of time or wrote no usable scores."""


Scores = dict[str, float | list[float]]
"""By task: a number, or what each example scored."""


def _fail(error: ScorerError, tasks: Sequence[str]) -> Scores:
  raise error


def _worst(error: ScorerError, tasks: Sequence[str]) -> Scores:
  return dict.fromkeys(tasks, math.nan)


POLICIES: dict[str, Callable[[ScorerError, Sequence[str]], Scores]] = {
  "fail": _fail,
  "worst": _worst,
}
"""What a call that failed every time counts as."""


_SCORE: Any = float | list[float | bool | None] | None


class _Options(msgspec.Struct, frozen=True):
  timeout: Annotated[float, Meta(gt=0)]
  retries: Annotated[int, Meta(ge=0)]
  nan: str


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
    """Raises ValueError for a template, names, numbers or a policy that cannot work."""
    options = {"timeout": self.timeout, "retries": self.retries, "nan": self.nan}
    convert(options, _Options, "The scorer")
    if self.nan not in POLICIES:
      raise ValueError(unknown("NaN policy", self.nan, POLICIES, "The scorer"))
    places = self._places()
    for place in PLACES[:2]:
      if place not in places:
        raise ValueError(f"--scorer_command has no {{{place}}}; got {shown(self.template)}.")
    if not self.tasks:
      raise ValueError("--scorer_command needs the names of its scores: --tasks=name,name.")
    check_names(self.tasks, "--tasks")

  def refuse_missing(self) -> None:
    """Raises FileNotFoundError if there is no program of the command's first word."""
    program = shlex.split(self.template)[0]
    if not set(program) & set("{}") and shutil.which(program) is None:
      raise FileNotFoundError(
        f"--scorer_command: there is no program {shown(program)}; expected one on the PATH, or the path of "
        "an executable file."
      )

  def words(self, model_dir: str, scores_json: str, split: str) -> list[str]:
    """The command line."""
    places = dict(zip(PLACES, (model_dir, scores_json, split), strict=True))
    return [word.format(**places) for word in shlex.split(self.template)]

  @property
  def splits(self) -> bool:
    """Whether the command can tell splits apart."""
    return "split" in self._places()

  def __call__(self, model_dir: Path, split: str, folder: Path | None = None) -> Scores:
    """Runs the command, and again if it fails.

    Args:
      model_dir: the model's folder.
      split: "search", "validation" or "test".
      folder: where each call has a temporary folder; by default the system's.

    Raises:
      ScorerError: it failed every time, and the policy is "fail".
    """
    problem = ScorerError("The scorer was not called.")
    for _ in range(self.retries + 1):
      try:
        return self._scores(model_dir, split, folder)
      except ScorerError as error:
        problem = error
    return POLICIES[self.nan](problem, self.tasks)

  def _scores(self, model_dir: Path, split: str, folder: Path | None) -> Scores:
    with tempfile.TemporaryDirectory(
      prefix="merge_jax_scores_", dir=folder, ignore_cleanup_errors=True
    ) as name:
      path = Path(name) / "scores.json"
      words = self.words(str(model_dir), str(path), split)
      _run(words, Path(name), self.timeout)
      if not path.is_file():
        raise ScorerError(f"{shown(shlex.join(words), 200)} wrote no {path.name}.")
      return parse_scores(path.read_bytes(), self.tasks)

  def _places(self) -> set[str]:
    """Names in braces; ValueError for a template that cannot be filled in."""
    try:
      os.fsencode(self.template)
      fields = [field for word in shlex.split(self.template) for field in string.Formatter().parse(word)]
    except ValueError as error:
      raise ValueError(f"--scorer_command {shown(self.template)} cannot be read: {error}.") from None
    for _, name, spec, conversion in fields:
      if name is not None and (name not in PLACES or spec or conversion):
        expected = ", ".join(f"{{{place}}}" for place in PLACES)
        raise ValueError(
          f"--scorer_command {shown(self.template)} cannot be filled in at {shown(name)}; in braces only "
          f"{expected} can stand, and {{{{ and }}}} are braces."
        )
    return {name for _, name, _, _ in fields if name is not None}


def parse_scores(text: bytes, tasks: Sequence[str]) -> Scores:
  """Scores `{task: number}`, or `{task: [numbers]}` of examples; null and Python's NaN are NaN, true 1.

  Raises:
    ScorerError: a task is missing, or is neither a number nor a list of some.
  """
  if b"NaN" in text:  # as json.dump writes it, which is no JSON
    with contextlib.suppress(KeyError, ValueError, RecursionError):
      text = json.dumps(json.loads(text, parse_constant={"NaN": None}.__getitem__)).encode()
  try:
    scores = decode(text, dict[str, msgspec.Raw], "scores.json")
    for task in tasks:
      if task not in scores:
        raise ValueError(f"scores.json has no score of task {task!r}.")
    found = {t: decode(bytes(scores[t]), _SCORE, f"scores.json, task {t!r}") for t in tasks}
  except ValueError as error:
    raise ScorerError(str(error)) from None
  return {
    task: [*map(_number, score)] if isinstance(score, list) else _number(score)
    for task, score in found.items()
  }


def _number(score: float | bool | None) -> float:
  return math.nan if score is None else float(score)


def _run(words: Sequence[str], folder: Path, timeout: float) -> None:
  """Runs a command; when this returns or raises, nothing of its process group lives.

  Raises:
    ScorerError: it cannot be run, took too long or failed.
  """
  what, status = shown(shlex.join(words), 200), folder / "status"
  watcher = [sys.executable, "-I", "-S", watch.__file__, str(status), *words]
  # Files: a child that keeps a pipe open would keep its reader waiting.
  with tempfile.TemporaryFile(dir=folder) as out, tempfile.TemporaryFile(dir=folder) as err:
    try:
      process = subprocess.Popen(
        watcher, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True
      )
    except (OSError, ValueError) as error:
      raise ScorerError(f"{what} cannot be run: {error}.") from None
    try:
      process.wait(timeout)
    except subprocess.TimeoutExpired:
      raise ScorerError(f"{what} took longer than {timeout:g} seconds.") from None
    finally:
      process.communicate()  # closes the pipe, whereupon the watcher ends the group
      _bury(process.pid)
    ended = status.read_text() if status.is_file() else "unknown"
    if ended != "0":
      said = _tail(err) or _tail(out) or "no output"
      raise ScorerError(f"{what} ended with status {ended}: {said}")


def _bury(group: int) -> None:
  """Waits until a killed process group is gone; zombies that nobody collects are not waited for long."""
  end = time.monotonic() + 0.2
  with contextlib.suppress(ProcessLookupError, PermissionError):
    while time.monotonic() < end:
      os.killpg(group, signal.SIGKILL)
      time.sleep(0.005)


def _tail(file: BinaryIO) -> str:
  """The last characters of a command's output, as one line."""
  file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * TAIL))
  text = file.read().decode(errors="replace")[-TAIL:]
  return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-TAIL:]
