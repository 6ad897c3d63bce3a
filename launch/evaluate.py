"""Scores checkpoints on task files: `{checkpoint: {task: score}}`.

python -m launch.evaluate --checkpoints=a,b --tasks=code.jsonl,math.jsonl:loss --output=scores.json
"""

from typing import Any

from absl import flags

from merge_jax import checkpoints, decoding, evals, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import tasks as task_files
from merge_jax.recycle import suites
from merge_jax.recycle.settings import Evals
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import nullables

from . import _common

_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Folders, separated by commas.")
_TASKS = flags.DEFINE_list("tasks", [], "Task files, path or path:metric.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_EOS = flags.DEFINE_bool("append_eos", Evals().append_eos, "End targets with the end-of-text token.")
_DTYPE = flags.DEFINE_enum("dtype", Evals().dtype, ("float32", "bfloat16"), "Of the computation.")
_TOKENS = flags.DEFINE_integer("batch_tokens", Evals().batch_tokens, "Padded tokens in one forward pass.", 1)
_SHAPES = flags.DEFINE_integer("max_shapes", Evals().max_shapes, "Padded shapes, each compiled once.", 1)

ALONE = Candidate("single", "alone", Point((1.0,)))


def main() -> None:
  """Scores one checkpoint after the other, by the code and the defaults of `launch.recycle`."""
  if not _CHECKPOINTS.value or not _TASKS.value:
    raise ValueError("Give --checkpoints=a,b and --tasks=a.jsonl,b.jsonl:loss.")
  output = storage.path(_OUTPUT.value)
  pool = [checkpoints.open(path) for path in _CHECKPOINTS.value]
  files = [task_files.path_of(spec) for spec in _TASKS.value]
  storage.refuse_inside(output, [*(c.path for c in pool), *files])
  storage.refuse_unwritable(output)
  tasks = task_files.load_all(_TASKS.value)
  given = {"append_eos": _EOS, "dtype": _DTYPE, "batch_tokens": _TOKENS, "max_shapes": _SHAPES}
  options = decoding.convert({name: flag.value for name, flag in given.items()}, Evals, "flags")
  # Equal side files and shapes share tokens and a compiled program.
  groups: dict[Any, list[int]] = {}
  for i, checkpoint in enumerate(pool):
    groups.setdefault(_kind(checkpoint), []).append(i)
  chosen = {
    kind: suites.task_suite({"all": tasks}, pool[group[0]], options) for kind, group in groups.items()
  }
  scores: dict[str, dict[str, float | None]] = {path: {} for path in _CHECKPOINTS.value}
  for kind, group in groups.items():
    objective = None
    for i in group:
      source = {ALONE.method: pool[i].load()}
      merge = evals.Merge(_itself, source[ALONE.method])
      objective = objective.on(source) if objective else chosen[kind].objective({ALONE.method: merge})
      (evaluation,) = objective.evaluate([ALONE], "all")
      scores[_CHECKPOINTS.value[i]] = nullables(evaluation.scores)
      shown = (f"{task} {value:.4f}" for task, value in evaluation.scores.items())
      print(f"{_CHECKPOINTS.value[i]}: " + ", ".join(shown), flush=True)
  storage.write_json(output, scores)
  print(f"scores: {output}")


def _itself(params: Any, weights: Any, numbers: Any) -> Any:
  del weights, numbers
  return params


def _kind(checkpoint: Checkpoint) -> tuple[Any, ...]:
  """What two checkpoints must share to be scored by one program."""
  names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
  files = [checkpoint.path / name for name in names]
  contents = [storage.read_bytes(file) if file.exists() else None for file in files]
  return (*contents, tuple((name, spec.shape, str(spec.dtype)) for name, spec in checkpoint.specs.items()))


if __name__ == "__main__":
  _common.run(main)
