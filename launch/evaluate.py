"""Scores checkpoints on task files: `{checkpoint: {task: score}}`.

python -m launch.evaluate --checkpoints=a,b --tasks=code.jsonl,math.jsonl:loss --output=scores.json
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from merge_jax import checkpoints, evals, models, storage
from merge_jax.evals import tasks as task_files

from . import _common

_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Folders, separated by commas.")
_TASKS = flags.DEFINE_list("tasks", [], "Task files, path or path:metric.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_EOS = flags.DEFINE_bool("append_eos", True, "End targets with the end-of-text token.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the computation.")
_TOKENS = flags.DEFINE_integer("batch_tokens", 16_384, "Padded tokens in one forward pass.")


def main() -> None:
  """Scores one checkpoint after the other; equal configs share a compiled program."""
  if not _CHECKPOINTS.value or not _TASKS.value:
    raise ValueError("Give --checkpoints=a,b and --tasks=a.jsonl,b.jsonl:loss.")
  tasks = task_files.load_all(_TASKS.value)
  pool = [checkpoints.open(path) for path in _CHECKPOINTS.value]
  scores: dict[str, dict[str, float]] = {}
  programs: dict[str, tuple] = {}
  for path, checkpoint in zip(_CHECKPOINTS.value, pool, strict=True):
    if checkpoint.config is None:
      raise ValueError(f"{checkpoint.path} has no config.json, so there is no model to score.")
    tokenizer = (checkpoint.path / "tokenizer.json").read_bytes()
    key = f"{checkpoint.config}{hash(tokenizer)}"
    if key not in programs:
      model = models.build(checkpoint.config, str(checkpoint.path / "config.json"))
      tokens = evals.Tokens.from_folder(checkpoint.path)
      rows = evals.encode(tasks, tokens, append_eos=_EOS.value, max_length=model.config.max_positions)
      batches = evals.pack(rows, batch_tokens=_TOKENS.value, vocabulary=model.config.vocab_size)
      scorer = evals.make_scorer(
        model.apply,
        tasks,
        batches,
        dtype=jnp.dtype(_DTYPE.value),
      )
      programs[key] = (scorer, jax.jit(scorer.function))
    scorer, program = programs[key]
    scores[path] = scorer.read(program(checkpoint.load(), scorer.batches)).scores()
    print(f"{path}: " + ", ".join(f"{task} {value:.4f}" for task, value in scores[path].items()))
  storage.write_json(Path(_OUTPUT.value), scores)
  print(f"scores: {_OUTPUT.value}")


if __name__ == "__main__":
  _common.run(main)
