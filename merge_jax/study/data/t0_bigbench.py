"""Which tasks of BIG-bench a study holds out, and how they are read. They are never trained on.

Left out: tasks that share source data with T0 (social_iqa, gem, natural_instructions), subtasks with an empty
prompt, and those under 50 examples. Word-sense disambiguation, the paper's fourth category, is not there.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from merge_jax.decoding import decode
from merge_jax.study.data.t0_sources import files, once_each

HELD_OUT = {
  "inference": ("epistemic_reasoning", "presuppositions_as_nli", "entailed_polarity", "analytic_entailment"),
  "coreference": ("winowhy", "disambiguation_qa"),
  "completion": tuple(
    f"goal_step_wikihow_{part}" for part in ("goal_inference", "step_inference", "step_ordering")
  ),
  "cause": ("causal_judgment", "cause_and_effect_two_sentences"),
  "facts": (
    "strategyqa", "fact_checker_politifact", "fact_checker_covid19_scientific", "misconceptions"
  ),
}  # fmt: skip
"""Tasks of BIG-bench by category, as `task` or `task_subtask`; for evaluation alone."""

_Scores = Annotated[dict[str, float], Meta(min_length=1)]


class _Example(msgspec.Struct, frozen=True):
  input: str
  target_scores: _Scores | None = None


class _Spec(msgspec.Struct, frozen=True):
  examples: list[_Example] = []
  task_prefix: str | None = None
  example_input_prefix: str | None = None
  example_output_prefix: str | None = None
  choice_prefix: str | None = None
  append_choices_to_input: bool | None = None


def read(path: Path, shuffle: Callable[[str, list[Any]], None]) -> dict[str, list[dict[str, Any]]]:
  """Choice lines of the held-out tasks: examples with one best choice of several that differ, shuffled.

  Args:
    path: an archive or folder with files `<task>/task.json` or `<task>/<subtask>/task.json`.
    shuffle: `(key, list)`, in place: some tasks list the right choice first.

  Raises:
    ValueError: no archive, a malformed task, one that is not there, or is there twice.
  """
  names = {name for tasks in HELD_OUT.values() for name in tasks}

  def task(name: str) -> str:
    parts = PurePosixPath(name).parts
    if parts[-1] != "task.json":
      return ""
    return next((known for k in (2, 3) if (known := "_".join(parts[-k:-1])) in names), "")

  result: dict[str, list[dict[str, Any]]] = {}
  of_task: dict[str, str] = {}
  for name, content in files(path, lambda name: bool(task(name))):
    once_each(path, of_task, task(name), name)
    result[task(name)] = list(_lines(decode(content, _Spec, f"{path}: {name}"), task(name), shuffle))
  for known in sorted(names):
    if not result.get(known):
      raise ValueError(
        f"{path}: task {known!r} has no examples with one best choice; expected a task.json of its own."
      )
  return dict(sorted(result.items()))


def _lines(spec: _Spec, task: str, shuffle: Callable[[str, list[Any]], None]) -> Iterator[dict[str, Any]]:
  def given(value: str | None, default: str) -> str:
    return default if value is None else value

  ask, reply = given(spec.example_input_prefix, "\nQ: "), given(spec.example_output_prefix, "\nA: ")
  listed = given(spec.choice_prefix, "\n  choice: ") if spec.append_choices_to_input is not False else None
  for number, example in enumerate(spec.examples):
    scores = list((example.target_scores or {}).items())
    best = [choice for choice, score in scores if score == max(value for _, value in scores)]
    different = {choice.strip() for choice, _ in scores}
    if len(scores) < 2 or len(best) != 1 or "" in different or len(different) < len(scores):
      continue
    shuffle(f"{task}/{number}", scores)
    prompt = (spec.task_prefix or "") + ask + example.input
    if listed is not None:
      prompt += "".join(listed + choice for choice, _ in scores)
    choices = [f" {choice.strip()}" for choice, _ in scores]
    answer = [choice for choice, _ in scores].index(best[0])
    yield {"prompt": (prompt + reply).strip(), "choices": choices, "answer": answer, "id": f"{task}/{number}"}
