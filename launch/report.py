"""Draws `report.html` and the figures of a finished recycle run again, from its files alone.

python -m launch.report --run=runs/x
"""

import json

from absl import flags

from merge_jax import recycle, reports, storage

from . import _common

_RUN = flags.DEFINE_string("run", None, "Output folder of launch.recycle.", required=True)


def main() -> None:
  """Reads result and journal, writes the page."""
  folder = storage.path(_RUN.value)
  run = recycle.RunFolder(folder)
  if not run.known or not (folder / "result.json").is_file():
    raise ValueError(
      f"{folder}: has no result.json of a recycle run; expected the output folder of a finished one."
    )
  result = json.loads((folder / "result.json").read_text())
  with storage.locked(folder):
    recycle.write_report(run, result)
  print(f"{reports.console(result)}\n\n{reports.headline(result)}\nreport: {folder}/report.html")


if __name__ == "__main__":
  _common.run(main)
