"""Documents of lm-eval as tasks like any other: divided, scored in one program with the merge, foreseen.

What the library asks of a document becomes rows of an example, and its number a metric of ours:

    acc                of choices       choice_accuracy
    acc_norm           of choices       choice_accuracy_per_character
    acc_bytes          of choices       choice_accuracy_per_character, of bytes
    acc                of one text      exact_match, without an end-of-text token
    loss               of both          loss, which the library does not have
    any mean           of written text  generate_match, filtered and judged by the library

All other numbers are no mean of what single documents score, or ask for more than these rows.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from merge_jax.errors import shown, unknown
from merge_jax.evals import requests as asked
from merge_jax.evals.harness import PREFIX, library
from merge_jax.evals.harness.library import Name
from merge_jax.evals.options import Options
from merge_jax.evals.tasks import Asked, Example, Task

CHOICES = {
  "acc": "choice_accuracy",
  "acc_norm": "choice_accuracy_per_character",
  "acc_bytes": "choice_accuracy_per_character",
  "loss": "loss",
}
TEXTS = {"acc": "exact_match", "loss": "loss"}
ELSE = "launch.evaluate gives all numbers, and examples/lm_eval_scorer.py leads a search by any"


def load(specs: Sequence[str], *, include: str = "", shots: int = -1) -> tuple[list[Task], dict[str, str]]:
  """Tasks of the library, those of groups one by one.

  Args:
    specs: see `library.named`.
    include, shots: see `library.load`.

  Returns:
    The tasks, whose examples have the hash of their document as `group`, and a SHA-256 of all that is asked
    by `lm_eval:TASK@VERSION`.

  Raises:
    ValueError: a name, a metric or a filter that is not known, or a task that cannot be divided or scored
      document by document.
  """
  made, digests = [], {}
  for spec in specs:
    name = library.named(spec)
    _, found = library.load([name.task], include=include, shots=shots)
    for task in found.values():
      one = _task(task, name)
      made.append(one)
      content = repr([(e.prompt, e.targets, e.answer, e.asked and e.asked[:2]) for e in one.examples])
      about = f"{one.metric}, {one.options}, {content}".encode("utf-8", "surrogatepass")
      digests[f"{PREFIX}{task.task_name}@{task.VERSION}"] = hashlib.sha256(about).hexdigest()
  return made, digests


def _task(task: Any, name: Name) -> Task:
  where = f"{PREFIX}{task.task_name}"
  config = task.config
  if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
    raise ValueError(f"{where}: images, sounds and tasks that run generated code are not supported.")
  if config.num_fewshot and _shown(config) == (config.test_split or config.validation_split):
    raise ValueError(
      f"{where}: its {config.num_fewshot} solved examples are documents that are divided, so that the search "
      "would see answers of the test; give --config.harness.shots=0."
    )
  task.build_all_requests()
  documents = [list(some) for _, some in groupby(task.instances, key=lambda one: one.doc_id)]
  kind = task.OUTPUT_TYPE
  builders: Mapping[str, Callable[..., Task]] = {
    "multiple_choice": _choices, "loglikelihood": _texts, "generate_until": _written,
  }  # fmt: skip
  if kind not in builders:
    raise ValueError(f"{where}: requests of the kind {kind} are not scored by examples; {ELSE}.")
  return builders[kind](task, name, where, documents)


def _shown(config: Any) -> str | None:
  """The split that solved examples come from."""
  given = config.fewshot_config
  own, fixed = (
    given.get(key) if isinstance(given, dict) else getattr(given, key, None) for key in ("split", "samples")
  )
  if fixed is not None:
    return None
  found: str | None = own or config.fewshot_split or config.training_split or config.validation_split
  return found or config.test_split


def _choices(task: Any, name: Name, where: str, documents: Sequence[Any]) -> Task:
  metric = _metric(task, name, where, CHOICES)
  examples = []
  for requests in documents:
    doc = requests[0].doc
    choices, right = task.doc_to_choice(doc), task.doc_to_text(doc) if task.multiple_input else None
    right = task.doc_to_target(doc) if right is None else right
    if isinstance(right, str) and right in choices:
      right = choices.index(right)
    if not isinstance(right, int) or not 0 <= right < len(choices):
      raise ValueError(
        f"{where}: the right answer of document {requests[0].doc_id} is {shown(right)}; expected one of its "
        f"{len(choices)} choices; {ELSE}."
      )
    pairs = tuple(request.args[:2] for request in requests[: len(choices)])  # behind are unconditional ones
    size = (lambda text: len(text.encode())) if metric == "acc_bytes" else len
    sizes = tuple(float(size(choice)) for choice in choices)
    examples.append(_example(requests[0], pairs, int(right), Asked(pairs, sizes)))
  return Task(task.task_name, CHOICES[metric], tuple(examples))


def _texts(task: Any, name: Name, where: str, documents: Sequence[Any]) -> Task:
  metric = _metric(task, name, where, TEXTS)
  examples = []
  for (request,) in documents:
    pairs = (request.args[:2],)
    examples.append(_example(request, pairs, 0, Asked(pairs)))
  return Task(task.task_name, TEXTS[metric], tuple(examples))


def _written(task: Any, name: Name, where: str, documents: Sequence[Any]) -> Task:
  filters = {one.name: one for one in task._filters}
  chosen = name.filter or next(iter(filters))
  if chosen not in filters:
    raise ValueError(unknown("filter", chosen, filters, where))
  means = [n for n, how in task.aggregation().items() if getattr(how, "__name__", "") in ("mean", "nanmean")]
  metric = name.metric or next((n for n in means), "")
  if metric not in means or task.higher_is_better().get(metric) is False or task.config.repeats > 1:
    raise ValueError(
      f"{where}: {metric or 'its metric'} is no mean over documents where higher is better; those are "
      f"{', '.join(means) or 'none'}; {ELSE}."
    )
  limit, stop = asked.limits(documents[0][0].args[1], Options().max_tokens)
  options = Options(metric="generate_match", max_tokens=limit, stop=stop)
  examples = []
  for (request,) in documents:
    right = task.doc_to_target(request.doc)
    right = right[0] if isinstance(right, list | tuple) and right else right
    grade = _Grade(task, filters[chosen], request, metric)
    examples.append(_example(request, ((request.args[0], str(right)),), 0, Asked((), (), grade)))
  return Task(task.task_name, options.metric, tuple(examples), options)


class _Grade:
  """What the library says of a generated text."""

  def __init__(self, task: Any, ensemble: Any, request: Any, metric: str):
    self._task, self._filter, self._request, self._metric = task, ensemble, request, metric

  def __call__(self, text: str) -> float:
    from lm_eval.api.instance import Instance

    old = self._request
    one = Instance(old.request_type, old.doc, old.arguments, old.idx, old.metadata, resps=[text])
    self._filter.apply([one])
    found = self._task.process_results(old.doc, [one.filtered_resps[self._filter.name]])
    return float(found[self._metric])


def _example(request: Any, pairs: Sequence[tuple[str, str]], right: int, how: Asked) -> Example:
  document = json.dumps(request.doc, sort_keys=True, default=str)
  group = hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()[:16]
  contexts = dict.fromkeys(context for context, _ in pairs)
  prompt = "\n".join(contexts).strip() or "\n".join(text for _, text in pairs)  # tells documents apart
  if not how.pairs:
    prompt = pairs[0][0]  # it is read
  return Example(prompt, tuple(text for _, text in pairs), right, str(request.doc_id), group, how)


def _metric(task: Any, name: Name, where: str, known: Mapping[str, str]) -> str:
  """The number that is meant, of those that these rows give."""
  own = [n for n in task.aggregation() if n in known] if task.config.process_results is None else []
  if name.filter:
    raise ValueError(f"{where}: filter {shown(name.filter)} is of written texts; leave it out.")
  usable = [*own, "loss"]
  metric = name.metric or usable[0]
  if metric not in usable:
    all_of_them = ", ".join(task.aggregation())
    raise ValueError(
      f"{where}: {metric} does not lead a search; expected {', '.join(usable)} (the task has {all_of_them}); "
      f"{ELSE}."
    )
  return metric
