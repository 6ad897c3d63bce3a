"""The figure of merges along a training run."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports import panels
from merge_jax.reports.drawing import COLORS, INK, Look, looks, plain
from merge_jax.reports.panels import SHARP
from merge_jax.reports.study_data import Result, Row, column, distinct, number, rows, where
from merge_jax.search.final import label


def along(result: Result) -> Figure | None:
  """Merges of a constant-rate run's checkpoints against real decays, by step: splits × schedules."""
  points = [row for row in rows(result, "along", "points") if np.isfinite(number(row.get("value")))]
  if not points:
    return None
  names = distinct(row.get("kind") for row in points)
  splits = list(dict.fromkeys(row.get("split") for row in points))
  merges = {name: (*name.split(":")[1:], "", "")[:2] for name in names if name.startswith("merge")}
  schedules = distinct(schedule for schedule, _ in merges.values()) or [""]
  windows = sorted({window for _, window in merges.values()}, key=lambda text: (len(text), text))
  shades = plt.get_cmap("viridis")(np.linspace(0.1, 0.8, max(len(windows), 1)))
  decays = looks([name for name in names if name.startswith("decay")])
  with plt.rc_context(SHARP):
    each = (4.6 if len(schedules) == 1 else 2.6, 2.1)
    figure, axes = panels.make(len(splits), len(schedules), each, sharex=True, sharey="row")
    for i, split in enumerate(splits):
      held = str(split or "–").replace("heldout", "held-out")
      for j, schedule in enumerate(schedules):
        axis, here = axes[i, j], where(points, split=split)
        _trail(axis, where(here, kind="constant"), Look(INK, "o", "-"), "constant rate")
        for name, look in decays.items():
          _trail(axis, where(here, kind=name), Look(COLORS[4], look.marker, ""), f"{name[6:]} decay")
        for name, (its_schedule, window) in merges.items():
          if its_schedule == schedule:
            look = Look(shades[windows.index(window)], ".", "-")
            _trail(axis, where(here, kind=name), look, f"merge of {window}")
        axis.set_title(f"{plain(label(schedule))}\nweights" if schedule and not i else "")
      axes[i, 0].set_ylabel(f"{plain(held)} score")
    figure.supxlabel("training step; bars: ± 1 standard error", fontsize=9)
    panels.legend(figure)
  return figure


def _trail(axis: Any, some: list[Row], look: Look, name: str) -> None:
  if not some:
    return
  some = sorted(some, key=lambda row: number(row.get("step")))
  step, value, error = (column(some, part) for part in ("step", "value", "stderr"))
  axis.errorbar(step, value, np.nan_to_num(error), color=look.color, marker=look.marker, ls=look.line,
                lw=1.1, ms=5, elinewidth=0.6, mec="white", mew=0.4, label=plain(name))  # fmt: skip
