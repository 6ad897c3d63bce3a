"""Task files: one JSON object a line, a prompt with its target or with choices; options may come first."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from merge_jax import storage
from merge_jax.decoding import decode
from merge_jax.decoding import shares as shares
from merge_jax.errors import shown
from merge_jax.evals import harness, metrics
from merge_jax.evals.options import Options


class Asked(NamedTuple):
  """How another library asks an example, where that is not prompt and target, one after the other.

  Attributes:
    pairs: for each target a context and a continuation, tokenized as one text; empty: as usual.
    sizes: of each target, in the unit by which the library normalises; empty: characters of the target.
    grade: what a generated text is worth, from 0 to 1; None: see `replies.agrees`.
  """

  pairs: tuple[tuple[str, str], ...] = ()
  sizes: tuple[float, ...] = ()
  grade: Callable[[str], float] | None = None


class Example(NamedTuple):
  """One question.

  Attributes:
    prompt, targets: what is asked, and its target or choices.
    answer: with choices, the position of the right one in `targets`.
    id: names the item, "" where the file does not.
    group: names what the item was made from (a passage, an image, a person), "" where the file does not.
    asked: how another library asks it; None for task files.
    line: of its file, 0 where there is none.
  """

  prompt: str
  targets: tuple[str, ...]
  answer: int = 0
  id: str = ""
  group: str = ""
  asked: Asked | None = None
  line: int = 0

  @property
  def sizes(self) -> tuple[float, ...]:
    """Characters of the targets, or what they are measured by where another library asks."""
    own = self.asked.sizes if self.asked else ()
    return own or tuple(float(len(target)) for target in self.targets)

  @property
  def unit(self) -> str:
    """What the example shares with others that are not independent of it: its group, else its id, else ""."""
    return self.group or self.id


@dataclasses.dataclass(frozen=True)
class Task:
  """A named list of examples and the metric they are scored by, a name in `metrics.METRICS`."""

  name: str
  metric: str
  examples: tuple[Example, ...]
  options: Options = dataclasses.field(default_factory=Options)


def target_table(task: Task) -> tuple[np.ndarray, np.ndarray]:
  """Row numbers of each example's targets `[n, most]` (-1: none), and the place of its right one `[n, 1]`."""
  counts = np.array([len(example.targets) for example in task.examples], np.int32)
  starts = np.cumsum(counts) - counts
  places = np.arange(counts.max(initial=1))
  table = np.where(places < counts[:, None], starts[:, None] + places, -1)
  right = np.array([example.answer for example in task.examples], np.int32)
  return table.astype(np.int32), right[:, None]


def size_table(task: Task) -> np.ndarray:
  """Sizes of each example's targets, laid out as `target_table`; 1 for padding: float32 `[n, most]`."""
  table, _ = target_table(task)
  sizes = np.array([size for example in task.examples for size in example.sizes], np.float32)
  return np.where(table >= 0, np.maximum(sizes[np.maximum(table, 0)], 1.0), 1.0).astype(np.float32)


def units(tasks: Sequence[Task]) -> np.ndarray:
  """Which of the independent units each example belongs to, all tasks in order: int64 `[examples]`, from 0.

  The same unit in several tasks is one; an example that names none is one of its own.

  >>> a = Task("a", "loss", (Example("p", ("x",), group="g"), Example("q", ("x",))))
  >>> units([a, Task("b", "loss", (Example("r", ("x",), id="g"),))]).tolist()
  [0, 1, 0]
  """
  numbers: dict[object, int] = {}
  names = ((task, example) for task in tasks for example in task.examples)
  keys = [example.unit or (task.name, place) for place, (task, example) in enumerate(names)]
  return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


_Text = Annotated[str, Meta(min_length=1)]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  prompt: str
  target: _Text | None = None
  choices: Annotated[tuple[_Text, ...], Meta(min_length=2)] | None = None
  answer: int | str | None = None
  id: int | _Text | None = None
  group: int | _Text | None = None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  options: Options


def load(spec: str | Path) -> Task:
  """Reads a task file.

  Args:
    spec: `path` or `path:metric`. Every line is `{"prompt", "target"}` or `{"prompt", "choices",
      "answer"}`, `answer` being the position of the right choice (from 0) or its text; `id` and `group`
      (strings or whole numbers) may name the item and its source, see `Example`. The first line may be
      `{"options": {...}}`, see `Options`. The metric is that of the spec, else of the options, else the
      first of `metrics.METRICS` that fits the lines.

  Returns:
    The task, named as its file.

  Raises:
    ValueError: an unknown metric, an empty, malformed or misfitting line, with file and line, or a
      file that is not a regular one.
    FileNotFoundError: no such file.
  """
  path, metric = _path_and_metric(spec)
  check_names([path.stem], str(path))
  lines = storage.read_bytes(path).split(b"\n")  # JSON escapes "\n" and no other line end
  if not lines[-1]:
    lines.pop()
  options = Options()
  header = re.match(rb'(\xef\xbb\xbf)?\s*\{\s*"options"\s*:', lines[0]) if lines else None
  if header:
    options = decode(lines[0], _Header, f"{path}:1").options
    options.check(f"{path}:1", metric.name if metric else "")
  first = 2 if header else 1
  if len(lines) < first:
    raise ValueError(f"{path}: the file has no examples.")
  examples = tuple(
    _example(line, f"{path}:{number}")._replace(line=number)
    for number, line in enumerate(lines[first - 1 :], first)
  )
  kinds = ["choices" if len(example.targets) > 1 else "targets" for example in examples]
  for number, kind in enumerate(kinds, first):
    if kind != kinds[0]:
      raise ValueError(f"{path}:{number}: the line has {kind}, those before it have {kinds[0]}.")
  solved = {shot.prompt.strip() for shot in options.shots}
  for number, example in enumerate(examples, first):
    if example.prompt.strip() in solved:
      raise ValueError(f"{path}:{number}: the prompt is one of the shots, with its answer; leave one out.")
  metric = metric or (metrics.METRICS[options.metric] if options.metric else metrics.default(kinds[0]))
  if not metric.fits(kinds[0]):
    raise ValueError(f"{path}: metric {metric.name!r} needs {metric.needs}; the lines have {kinds[0]}.")
  return Task(path.stem, metric.name, examples, options)


def load_all(specs: Iterable[str | Path]) -> list[Task]:
  """Reads task files and checks that their names differ."""
  tasks = [load(spec) for spec in specs]
  check_names([task.name for task in tasks], "Task files")
  return tasks


def check_names(names: Sequence[str], where: str) -> None:
  """Raises ValueError unless names are printable, differ and leave `average` to the mean of scores."""
  for i, name in enumerate(names):
    if not name.strip() or not name.isprintable():
      raise ValueError(f"{where}: a task cannot be called {shown(name)}; expected a printable name.")
    if name == "average":
      raise ValueError(f"{where}: a task cannot be called 'average', which is the mean of all; rename it.")
    if name in names[:i]:
      raise ValueError(f"{where}: two are called {name!r}; scores are told apart by that name.")


def path_of(spec: str | Path) -> Path:
  """The file of a spec `path` or `path:metric`.

  Raises:
    ValueError, FileNotFoundError: as `load`.
  """
  return _path_and_metric(spec)[0]


def _path_and_metric(given: str | Path) -> tuple[Path, metrics.Metric | None]:
  spec = str(given)
  head, colon, tail = spec.rpartition(":")
  named = bool(colon and head and "/" not in tail and not storage.path(spec).exists())
  path = storage.path(head if named else spec)
  if not spec or not path.exists():
    what, why = str(path) if named else spec, ""
    if harness.is_named(spec):
      what, why = spec, "; tasks of lm-eval are for launch.evaluate and launch.recycle"
    raise FileNotFoundError(f"Task file {shown(what)} does not exist{why}.")
  metric = metrics.named(tail, spec) if named else None
  if not path.is_file():
    raise ValueError(f"Task file {shown(str(path))} is not a regular file.")
  return path, metric


def _example(line: bytes, where: str) -> Example:
  if not line.strip():
    raise ValueError(f"{where}: the line is empty; expected a JSON object.")
  record = decode(line, _Line, where)
  own, group = ("" if name is None else str(name) for name in (record.id, record.group))
  if record.target is not None and record.choices is None and record.answer is None:
    return Example(record.prompt, (record.target,), id=own, group=group)
  if record.choices is None or record.target is not None:
    raise ValueError(f"{where}: expected either 'target', or 'choices' with 'answer'.")
  choices, answer = record.choices, record.answer
  if isinstance(answer, str) and answer in choices:
    answer = choices.index(answer)
  if not isinstance(answer, int) or not 0 <= answer < len(choices):
    raise ValueError(f"{where}: answer is {shown(answer)}; expected one of the {len(choices)} choices.")
  different = tuple(dict.fromkeys(choices))  # rounding would choose between equal ones
  if len(different) < 2:
    raise ValueError(f"{where}: all choices are {shown(choices[0])}; expected at least two that differ.")
  return Example(record.prompt, different, different.index(choices[answer]), own, group)
