"""Measures what data-weighted merges need: diagonal Fisher information, or Gram matrices of inputs.

python -m launch.statistics --checkpoint=a --tasks=code.jsonl --kind=fisher --output=a.safetensors
"""

from typing import Any

import jax
from absl import flags

from merge_jax import checkpoints, decoding, evals, models, storage
from merge_jax.evals import statistics
from merge_jax.evals import tasks as task_files
from merge_jax.evals.statistics_file import About

from . import _common

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the model.", required=True)
_TASKS = flags.DEFINE_list("tasks", [], "Task files, separated by commas: examples of what the model is for.")
_KIND = flags.DEFINE_enum("kind", "fisher", ("fisher", "gram"), "Of fisher merges, or of regmean ones.")
_EXAMPLES = flags.DEFINE_integer("examples", 256, "At most this many of each task; 0 for all.", 0, 2**31 - 1)
_OUTPUT = flags.DEFINE_string("output", None, "Safetensors file to write.", required=True)
_PREDICTIONS = flags.DEFINE_enum(
  "predictions",
  "model",
  statistics.PREDICTIONS,
  "Fisher: the model's own, or the right targets.",
)
_BATCH = flags.DEFINE_integer(
  "batch_size", 8, "Examples at a time; Fisher holds a gradient of each.", 1, 4096
)
_EOS = flags.DEFINE_bool("append_eos", True, "End targets with the end-of-text token.")
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of the choice of examples, and of predictions that are drawn.", 0, 2**31 - 1
)


def main() -> None:
  """Measures one checkpoint and writes one file."""
  if not _TASKS.value:
    raise ValueError("There is no task; give --tasks=a.jsonl,b.jsonl.")
  if _KIND.value == "gram":
    _common.refuse_given(["predictions"], "is for --kind=fisher")
  output = storage.disk_destination(_OUTPUT.value, "--output")
  checkpoint = checkpoints.open(_CHECKPOINT.value)
  where = str(checkpoint.path / "config.json")
  if checkpoint.config is None:
    raise ValueError(f"{checkpoint.path} has no config.json, so there is no model to measure.")
  files = map(task_files.path_of, _TASKS.value)
  storage.refuse_inside(output, [*checkpoint.places, *checkpoint.files(), *files])
  storage.refuse_unwritable(output)
  models.check(checkpoint.config, checkpoint.specs, where)
  model = models.build(checkpoint.config, where)
  tasks = [
    statistics.sample(task, _EXAMPLES.value, _SEED.value) for task in task_files.load_all(_TASKS.value)
  ]
  data = statistics.batches(
    tasks, evals.Tokens.from_folder(checkpoint.path), batch_size=_BATCH.value, append_eos=_EOS.value,
    max_length=model.config.max_positions, vocabulary=model.config.vocab_size,
  )  # fmt: skip
  count = {task.name: len(task.examples) for task in tasks}
  made: dict[str, Any] = {"tasks": count, "seed": _SEED.value, "checkpoint": checkpoint.digest()}
  owners: dict[str, str] = {}
  bar = _common.Progress(sum(count.values()), "examples")
  try:
    if _KIND.value == "fisher":
      made["predictions"], key = _PREDICTIONS.value, jax.random.key(_SEED.value)
      values = statistics.fisher(
        model.apply, checkpoint.load(), data, predictions=_PREDICTIONS.value, key=key, progress=bar
      )
    else:
      values, owners = statistics.gram(model.inputs, checkpoint.load(), data, progress=bar)
  finally:
    bar.close()
  shared = {name: owner for name, owner in owners.items() if name != owner}
  about = {"kind": _KIND.value, "tensors": list(checkpoint.specs), "shared": shared, "made": made}
  statistics.save(output, values, decoding.convert(about, About, "statistics"))
  print(f"statistics: {output}")


if __name__ == "__main__":
  _common.run(main, resumes=False)
