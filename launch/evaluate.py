"""Scores checkpoints on task files: `{checkpoint: {task: score}}`.

python -m launch.evaluate --checkpoints=a,b --tasks=code.jsonl,math.jsonl:loss --output=scores.json
"""

from typing import Any

from absl import flags

from merge_jax import checkpoints, decoding, evals, host, sharding, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import tasks as task_files
from merge_jax.evals.objective import JittedObjective
from merge_jax.recycle import placing, suites
from merge_jax.recycle.settings import Evals, Placement
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
_VERIFY = flags.DEFINE_bool("verify_load", False, "Compare what lies on the devices with the files.")
_common.define_mesh()
_common.define_distributed()

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
  mesh = sharding.make_mesh(flags.FLAGS.mesh)
  chosen = {
    kind: suites.task_suite({"all": tasks}, [pool[i] for i in group], options, mesh=mesh)
    for kind, group in groups.items()
  }
  scores: dict[str, dict[str, float | None]] = {path: {} for path in _CHECKPOINTS.value}
  for kind, group in groups.items():
    suite = chosen[kind]
    layout = placing.layout(pool[group[0]].specs, mesh, Placement(), suite.stacks, suite.axes)
    objective: JittedObjective | None = None
    for i in group:
      params = checkpoints.place(pool[i], layout.shardings, suite.stacks, verify=_VERIFY.value)
      objective = (
        objective.on({ALONE.method: params}) if objective
        else JittedObjective({ALONE.method: evals.Merge(_itself, params)}, suite.scorers(), 1, layout)
      )  # fmt: skip
      (evaluation,) = objective.evaluate([ALONE], "all")
      scores[_CHECKPOINTS.value[i]] = nullables(evaluation.scores)
      shown = (f"{task} {value:.4f}" for task, value in evaluation.scores.items())
      print(f"{_CHECKPOINTS.value[i]}: " + ", ".join(shown), flush=True)
  if host.is_lead():
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
