"""Takes another point of a finished recycle run, by other wishes, and writes its merge; nothing is evaluated.

python -m launch.select --run=runs/x --task_weights=code=2
python -m launch.select --run=runs/x --at_least=math=.6 --at_least=code=.4
python -m launch.select --run=runs/x --candidate=57
"""

from absl import flags

from merge_jax import recycle, storage

from . import _common

_RUN = flags.DEFINE_string("run", None, "Output folder of launch.recycle.", required=True)
_CANDIDATE = flags.DEFINE_integer("candidate", None, "Number of an evaluation, from 0 as in the journal.", 0)
_WEIGHTS = flags.DEFINE_string("task_weights", "", "Take the best mean with these: code=2,math=1.")
_FLOORS = flags.DEFINE_multi_string("at_least", [], "A score it must have: math=.6; for a loss, at most.")
_OUTPUT = flags.DEFINE_string("output_dir", "", "Folder to write; default: selected-N in the run's.")


def main() -> None:
  """Selects, says what it costs on each task, writes."""
  recycle.select(
    storage.path(_RUN.value), candidate=_CANDIDATE.value, task_weights=_WEIGHTS.value,
    at_least=_FLOORS.value, output=_OUTPUT.value,
  )  # fmt: skip


if __name__ == "__main__":
  _common.run(main)
