"""Draws `report.html` and the figures of a finished recycle run or study again, from its files alone.

python -m launch.report --run=runs/x
"""

from typing import Any

from absl import flags

from merge_jax import recycle, reports, storage
from merge_jax.recycle.folder import DERIVED, FIGURES

from . import _common

_RUN = flags.DEFINE_string("run", None, "Output folder of launch.recycle or launch.study.", required=True)


def main() -> None:
  """Reads what the job found, writes the page."""
  folder = storage.path(_RUN.value)
  file = folder / "result.json"
  result = storage.read_json(file, dict[str, Any]) if file.is_file() else {}
  if result:
    storage.refuse_unwritable(folder / "report.html")
  if reports.is_study(result):
    with storage.locked(folder), _common.telling_what_stays(folder / "figures"):
      reports.write_study(folder, result)
    print(f"{reports.study_console(result)}\n\nreport: {folder}/report.html")
    return
  run = recycle.RunFolder(folder)
  if not result:
    raise ValueError(
      f"{folder}: has no result.json of a recycle run or study; expected the output folder of a finished one."
    )
  recycle.completed(folder, DERIVED)
  with storage.locked(folder), _common.telling_what_stays(folder / FIGURES):
    recycle.write_report(run, result)
  print(f"{reports.console(result)}\n\n{reports.headline(result)}", *reports.trust(result), sep="\n")
  print(f"report: {folder}/report.html")


if __name__ == "__main__":
  _common.run(main, resumes=False)
