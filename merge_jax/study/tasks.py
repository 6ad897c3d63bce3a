"""The tasks of a study: which categories they are in, and which examples are for what."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from merge_jax import evals
from merge_jax.evals import tasks as task_files
from merge_jax.recycle.settings import Evals
from merge_jax.study.settings import Study

VALIDATION, TEST = "validation", "test"


class Tasks(NamedTuple):
  """Tasks by split, and their categories.

  Attributes:
    held_in, held_out: names of tasks by category.
    splits: validation has the held-in tasks alone: it decides on numbers of merges.
    digest: of all that scores depend on.
  """

  held_in: dict[str, tuple[str, ...]]
  held_out: dict[str, tuple[str, ...]]
  splits: dict[str, list[evals.Task]]
  digest: str
  evals: Evals

  @property
  def asked(self) -> dict[str, str]:
    """The task of everything that is asked on validation and test examples, see `asked_in`.

    A prompt that several examples of a task share is an instruction, not the question.
    """
    found = dict[str, str]()
    for task in (task for some in self.splits.values() for task in some):
      prompts = Counter(example.prompt for example in task.examples)
      for one in task.examples:
        found |= dict.fromkeys(asked_in(one)[prompts[one.prompt] > 1 :], task.name)
    return found

  @property
  def category(self) -> dict[str, str]:
    """The category of each task."""
    both = [*self.held_in.items(), *self.held_out.items()]
    return {task: category for category, names in both for task in names}


def read(settings: Study, files: Mapping[str, Path]) -> Tasks:
  """Reads and splits the tasks of a study.

  Args:
    settings: of the study.
    files: by the names that settings may use; what is no such name is a path, `:metric` may follow.

  Raises:
    ValueError: a category or task that stands twice, a task without examples of a split or with one for the
      test, a held-out prompt that is a held-in one, fractions that cannot be.
    FileNotFoundError: no such file.
  """
  both = set(settings.held_in) & set(settings.held_out)
  if both:
    raise ValueError(f"config: the category {min(both)!r} is held in and held out; it can be one of them.")
  for category, specs in [*settings.held_in.items(), *settings.held_out.items()]:
    if not specs:
      raise ValueError(f"config: the category {category!r} has no task; name one, or leave it out.")
  inside = {c: [task_files.load(_spec(one, files)) for one in some] for c, some in settings.held_in.items()}
  outside = {c: [task_files.load(_spec(one, files)) for one in some] for c, some in settings.held_out.items()}
  held_in, held_out = _flat(inside), _flat(outside)
  task_files.check_names([task.name for task in (*held_in, *held_out)], "config: held_in and held_out")
  seen = {example.prompt.strip() for task in held_in for example in task.examples}
  for task in held_out:
    if shared := sum(example.prompt.strip() in seen for example in task.examples):
      raise ValueError(f"{shared} prompts of the held-out task {task.name!r} are held in, too; remove them.")
  if not all(fraction > 0 for fraction in settings.fractions):
    raise ValueError(f"config: fractions is {settings.fractions}; validation and test both need examples.")
  limits = [limit or None for limit in settings.limits]
  made = evals.split(held_in, (0.0, *settings.fractions), limits=(None, *limits)).tasks
  rest = evals.split(held_out, (0.0, 0.0, 1.0), limits=(None, None, limits[1])).tasks
  splits = {VALIDATION: made[VALIDATION], TEST: [*made[TEST], *rest[TEST]]}
  for task in splits[TEST]:
    if (count := len({example.unit for example in task.examples})) < 2:
      raise ValueError(
        f"Task {task.name!r} has {count} independent test example, but errors need two: give more examples, "
        "other fractions or a larger limit."
      )
  return Tasks(_names(inside), _names(outside), splits, _digest(splits, settings.evals), settings.evals)


def asked_in(example: evals.Example) -> tuple[str, str]:
  """What nobody may train on who is asked it: the prompt, or of a text without one the text; and the prompt
  with all answers.
  """
  prompt = example.prompt.strip()
  return prompt or example.targets[example.answer].strip(), "\0".join((prompt, *example.targets))


def _spec(name: str, files: Mapping[str, Path]) -> str:
  head, colon, metric = name.partition(":")
  return f"{files[head]}{colon}{metric}" if head in files else name


def _flat(categories: Mapping[str, list[evals.Task]]) -> list[evals.Task]:
  return [task for some in categories.values() for task in some]


def _names(categories: Mapping[str, list[evals.Task]]) -> dict[str, tuple[str, ...]]:
  return {category: tuple(task.name for task in some) for category, some in categories.items()}


def _digest(splits: Mapping[str, list[evals.Task]], how: Evals) -> str:
  """Of what is asked and how; where it is from does not count."""
  plain = {
    split: [(one.name, one.metric, one.options, [example[:5] for example in one.examples]) for one in some]
    for split, some in splits.items()
  }
  text = repr((plain, how.append_eos, how.dtype))
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
