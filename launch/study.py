"""Merges experts of several bases by several methods, and says which claims about merging hold.

python -m launch.study --config=configs/study_small.py --output_dir=runs/study
"""

import functools
import sys

from absl import flags

from merge_jax import reports, sharding
from merge_jax.study import job, settings

from . import _common, _config

_CONFIG = _config.define_config("study_small")
_OUTPUT = flags.DEFINE_string("output_dir", None, "Folder to write into; default: that of the config.")
_common.define_mesh()
_common.define_deterministic()


def main() -> int:
  """Does what is missing of a study, then writes results and report."""
  values = _config.config_values(_CONFIG)
  if _OUTPUT.value:
    values["output_dir"] = _OUTPUT.value
  chosen = settings.from_mapping(values)
  bars: dict[str, _common.Progress] = {}

  def progress(what: str, done: int, total: int, name: str) -> None:
    if what not in bars:
      bars[what] = _common.Progress(total, what)
    bars[what](done, name)

  mesh = sharding.make_mesh(flags.FLAGS.mesh)
  say = functools.partial(print, flush=True)
  try:
    result = job.study(chosen, mesh=mesh, stop=_common.StopFlag(), say=say, progress=progress)
  finally:
    for bar in bars.values():
      bar.close()
  print(f"\n{reports.study_console(result)}\n\nreport: {chosen.output_dir}/report.html")
  for name, why in result["failed"].items():
    print(f"failed: {name}: {why}", file=sys.stderr)
  return 1 if result["failed"] else 0


if __name__ == "__main__":
  _common.run(main)
