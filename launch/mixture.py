"""Ratios to train with: predicts the scores of any mixture of data from merges of experts; trains nothing.

python -m launch.recycle --mixture --checkpoints=code,math,law --base=base --tasks=… --output_dir=runs/x
python -m launch.mixture --run=runs/x --task_weights=code=2
python -m launch.mixture --run=runs/x --ratios=code=1,math=1 --ratios=law=1,math=3
"""

from absl import flags

from merge_jax import recycle, storage

from . import _common

_RUN = flags.DEFINE_string("run", None, "Output folder of launch.recycle.", required=True)
_WEIGHTS = flags.DEFINE_string("task_weights", "", "What the best mixture is for: code=2,math=1.")
_RATIOS = flags.DEFINE_multi_string("ratios", [], "A mixture to predict, too: checkpoint=share,….")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write.")


def main() -> None:
  """Predicts and prints."""
  recycle.mixture(
    storage.path(_RUN.value), task_weights=_WEIGHTS.value, ratios=_RATIOS.value, output=_OUTPUT.value
  )


if __name__ == "__main__":
  _common.run(main)
