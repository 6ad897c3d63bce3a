"""The library itself: whether it is there, and which tasks it knows."""

import difflib
import functools
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merge_jax.errors import sentence, shown
from merge_jax.evals.harness import PREFIX

SEED = 1234
"""Of the choice of solved examples; the library's own default, so that prompts are those of others."""


class Name(NamedTuple):
  """One of its tasks.

  Attributes:
    task: a task, group or tag that the library knows, or the path of a task's YAML.
    metric, filter: which of its numbers is meant; "" for the first.
  """

  task: str
  metric: str = ""
  filter: str = ""


def named(spec: str) -> Name:
  """What a spec `lm_eval:TASK`, `lm_eval:TASK:METRIC` or `lm_eval:TASK:METRIC:FILTER` names.

  Raises:
    ValueError: it names nothing, or too much.

  >>> named("lm_eval:arc_easy:acc_norm")
  Name(task='arc_easy', metric='acc_norm', filter='')
  """
  parts = [part.strip() for part in spec.removeprefix(PREFIX).split(":")]
  if not all(parts) or len(parts) > 3:
    raise ValueError(
      f"--tasks: got {shown(spec)}; expected {PREFIX}TASK, {PREFIX}TASK:METRIC or with :FILTER."
    )
  return Name(*parts)


def require() -> None:
  """Raises ValueError if lm-eval is not installed."""
  if importlib.util.find_spec("lm_eval") is None:
    raise ValueError(f"Tasks {PREFIX}NAME need EleutherAI's lm-eval; pip install 'merge-jax[harness]'.")


def load(names: Sequence[str], *, include: str = "", shots: int = -1) -> tuple[Any, dict[str, Any]]:
  """Tasks, and their documents.

  Args:
    names: tasks, groups, tags, or paths of YAML files.
    include: a folder with further tasks; "" for none.
    shots: solved examples before each prompt; -1 for each task's own number.

  Returns:
    The library's manager of tasks, and the tasks by name, those of groups one by one.

  Raises:
    ValueError: the library is not there, does not know a name, or cannot read what belongs to it.
  """
  require()
  if include and not Path(include).is_dir():
    raise ValueError(f"The folder of further lm-eval tasks {shown(include)} does not exist.")
  manager = _manager(include)
  for name in names:
    if name not in manager.task_index and not (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
      near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
      hint = f"; near are {', '.join(near)}" if near else ""
      raise ValueError(f"lm-eval knows no task {shown(name)}{hint}. 'lm-eval ls tasks' lists all.")
  try:
    loaded: dict[str, Any] = manager.load(list(names))["tasks"]
  except Exception as error:  # tasks are anybody's programs, and download what they need
    raise ValueError(f"lm-eval cannot load {', '.join(names)}: {shown(sentence(error), 300)}") from error
  for task in loaded.values():
    own = task.get_config("num_fewshot")
    if shots >= 0 and own != 0:  # a task that says 0 takes none
      task.set_config(key="num_fewshot", value=shots)
    elif own is None:
      task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEED)
  return manager, loaded


@functools.cache
def _manager(include: str) -> Any:
  """The index of all tasks, which takes seconds to read."""
  from lm_eval.tasks import TaskManager

  logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells at length what it does for every task
  return TaskManager(include_path=include or None)
