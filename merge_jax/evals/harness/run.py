"""An evaluation by lm-eval itself: its tasks, its metrics, its logs, our model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from merge_jax.evals.harness import PREFIX, library
from merge_jax.evals.harness.model import LanguageModel


class Evaluated(NamedTuple):
  """What an evaluation came to.

  Attributes:
    scores: every metric of every task and group, as `lm_eval:TASK:METRIC`, with `:FILTER` where there are
      several.
    logged: whether all logs that were asked for are written.
  """

  scores: dict[str, float]
  logged: bool


def evaluate(
  model: LanguageModel,
  names: Sequence[str],
  manager: Any,
  *,
  shots: int = -1,
  limit: int = 0,
  chat: bool = False,
  called: str = "merge_jax",
  logs: Path | None = None,
) -> Evaluated:
  """Scores of a model on tasks of the library.

  Args:
    model: with its parameters.
    names: see `library.load`, which has found them.
    manager: of `library.load`.
    shots: solved examples before each prompt; -1 for each task's own number.
    limit: at most so many documents a task; 0 for all.
    chat: prompts are messages, written by the chat template beside the tokenizer.
    called: name of the model in logs.
    logs: folder for `results_*.json` and `samples_*.jsonl` as lm-eval writes them; None: none.

  Raises:
    ValueError: what the model cannot be asked.
  """
  from lm_eval import evaluator
  from lm_eval.loggers import EvaluationTracker

  tracker = None if logs is None else EvaluationTracker(output_path=str(logs))
  # Its errors for groups come from 100,000 resamplings without a bound on processes.
  found = evaluator.simple_evaluate(
    model=model, model_args=f"pretrained={called}", tasks=list(names), task_manager=manager,
    num_fewshot=shots if shots >= 0 else None, limit=limit or None, apply_chat_template=chat,
    fewshot_as_multiturn=chat, evaluation_tracker=tracker, log_samples=tracker is not None,
    bootstrap_iters=1000, fewshot_random_seed=library.SEED,
  )  # fmt: skip
  logged = True
  if tracker is not None and logs is not None:
    samples = found.pop("samples")
    before = set(logs.rglob("*.json*"))
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in found["configs"]:
      tracker.save_results_samples(task_name=name, samples=samples[name])
    logged = len(set(logs.rglob("*.json*")) - before) == 1 + len(found["configs"])  # it tells nobody
  return Evaluated(_scores(found["results"]), logged)


def _scores(results: dict[str, dict[str, Any]]) -> dict[str, float]:
  scores = {}
  for task, values in results.items():
    for key, value in values.items():
      metric, comma, kind = key.partition(",")
      if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
        scores[f"{PREFIX}{task}:{metric}" + ("" if kind == "none" else f":{kind}")] = float(value)
  return scores
