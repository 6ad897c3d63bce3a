"""Will a search fit, and how long does it take? From shapes alone, before anybody spends pod hours.

python -m launch.plan --preset=command-r-plus-104b --num_checkpoints=16 --device=h100 --num_devices=64
python -m launch.plan --config_json=model/config.json --tasks=code.jsonl --tokenizer=model --output=plan.json
"""

import math
from typing import Any

import jax
from absl import flags

from merge_jax.recycle.settings import Evals, Search

from . import _common

_CONFIG = flags.DEFINE_string("config_json", "", "A model's config.json.")
_PRESET = flags.DEFINE_string("preset", "", "Or the name of a published model.")
_COUNT = flags.DEFINE_integer("num_checkpoints", 16, "Of the pool.", lower_bound=1, upper_bound=4096)
_METHOD = flags.DEFINE_string("method", Search().method, "That is searched; linear holds no base.")
_DEVICE = flags.DEFINE_string(
  "device", "h100", "a100, h100, h200, b200, tpu-v4 …; cpu is this machine, measured."
)
_DEVICES = flags.DEFINE_integer(
  "num_devices", 8, "Of the mesh; emulated here.", lower_bound=1, upper_bound=8192
)
_TASKS = flags.DEFINE_list("tasks", [], "Task files; without them, rows of one length.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Folder of the tokenizer; default: that of --config_json.")
_NUM = flags.DEFINE_integer("num_tasks", 2, "Without task files: tasks,", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 64, "examples of each in the search's split,", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 257, "tokens of an example, its target included,", lower_bound=2)
_TARGET = flags.DEFINE_integer("target_length", 32, "and of its target.", lower_bound=1)
_BUDGET = flags.DEFINE_integer("budget", Search().budget, "Candidates.", lower_bound=1, upper_bound=2**31 - 1)
_BATCH = flags.DEFINE_integer("batch", 1, "Candidates of one program call.", lower_bound=1, upper_bound=4096)
_TURN = flags.DEFINE_bool("in_turn", False, "Merged in one pass over the pool, scored one after the other.")
_STORED = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Of the checkpoints.")
_DTYPE = flags.DEFINE_enum(
  "eval_dtype", Evals().dtype, ["bfloat16", "float32"], "Of the evaluation (recycle's config.evals.dtype)."
)
_ROWS = flags.DEFINE_integer("batch_tokens", 65_536, "Padded tokens in one forward pass.", lower_bound=1)
_DISK = flags.DEFINE_float("disk_gb_per_second", 2.0, "That a host reads, in 10^9 bytes.", lower_bound=1e-3)
_COMPILE = flags.DEFINE_bool("compile", True, "Compile the program, for its own bytes and collectives.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write, too.")
_common.define_mesh()


def main() -> None:
  """Emulates the mesh, builds and compiles the search's program, prints what it takes."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", _DEVICES.value)
  from merge_jax import storage
  from merge_jax.checkpoints import sidecars
  from merge_jax.estimate import devices, plan
  from merge_jax.evals import tasks

  output = storage.destination(_OUTPUT.value, "--output") if _OUTPUT.value else None
  if output is not None:
    config = [storage.path(_CONFIG.value)] if _CONFIG.value else []
    folders = [storage.path(_TOKENIZER.value)] if _TOKENIZER.value else [one.parent for one in config]
    files = [file for folder in folders if folder.is_dir() for file in sidecars.sidecars(folder)]
    storage.refuse_inside(output, [*config, *files, *map(tasks.path_of, _TASKS.value)])
    storage.refuse_unwritable(output)
  if not math.isfinite(_DISK.value):
    raise ValueError(f"--disk_gb_per_second is {_DISK.value}; expected a finite number.")
  name, job = described()
  search = plan.Search(name, _BUDGET.value, devices.device(_DEVICE.value), 1e9 * _DISK.value, _COMPILE.value)
  result = plan.plan(job, search)
  if idle := _DEVICES.value - result["devices"]:
    result["advice"].append(
      f"--mesh={flags.FLAGS.mesh} leaves {idle} of {_DEVICES.value} devices idle, which a job of several "
      "processes refuses."
    )
  print(plan.text(result))
  if output is not None:
    storage.write_json(output, result)
    print(f"plan: {output}")


def described() -> Any:
  """The name of the model, and the job of the flags."""
  from merge_jax import decoding, models, storage
  from merge_jax.checkpoints import sidecars
  from merge_jax.errors import unknown
  from merge_jax.estimate import program, workload
  from merge_jax.recycle.settings import Evals, Splits
  from merge_jax.search.options import LINEAR

  if bool(_CONFIG.value) == bool(_PRESET.value):
    raise ValueError("Give one of --config_json=model/config.json and --preset=llama-3-8b.")
  if _METHOD.value not in LINEAR:
    raise ValueError(unknown("method that can be planned", _METHOD.value, LINEAR, "--method"))
  path = storage.path(_CONFIG.value)
  config = sidecars.read_object(path) if _CONFIG.value else models.preset(_PRESET.value)
  name = str(path) if _CONFIG.value else _PRESET.value
  model = models.build(config, name)
  dtype = jax.numpy.dtype(_STORED.value)
  specs = {n: jax.ShapeDtypeStruct(spec.shape, dtype) for n, spec in model.specs.items()}
  if _TASKS.value:
    _common.refuse_given(("num_tasks", "examples", "length", "target_length"), "is told by --tasks")
  else:
    _common.refuse_given(["tokenizer"], "is for --tasks, and there are none")
  if _TASKS.value and not (_TOKENIZER.value or _CONFIG.value):
    raise ValueError("--tasks are counted in tokens: give --tokenizer=model, a folder with a tokenizer.json.")
  if _TASKS.value:
    folder = storage.path(_TOKENIZER.value or path.parent)
    shape = model.config
    work = workload.of_files(_TASKS.value, folder, shape.vocab_size, shape.max_positions, Splits().fractions)
  elif _LENGTH.value > model.config.max_positions:
    raise ValueError(f"--length is {_LENGTH.value}; {name} takes {model.config.max_positions} tokens.")
  else:
    work = workload.of_numbers(_NUM.value, _EXAMPLES.value, _LENGTH.value, _TARGET.value)
  given = {"dtype": _DTYPE.value, "batch_tokens": _ROWS.value}
  own = decoding.convert(given, Evals, "flags")
  return name, program.Job(
    model, specs, _COUNT.value, _METHOD.value, work, flags.FLAGS.mesh, _BATCH.value, _TURN.value, own
  )


if __name__ == "__main__":
  _common.run(main, resumes=False)
