"""What ways of searching gain over the greedy soup by evaluations: a panel for each kind of pool."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from merge_jax.reports.drawing import SOFT, STYLE, looks, plain
from merge_jax.reports.panels import reference, spread_out, tiles

Row = Mapping[str, Any]
LEAST = 0.005
"""Gains of this size fit all panels: what is nothing looks like nothing."""


def draw(rows: Sequence[Row], path: Path, title: str = "") -> None:
  """Writes the figure as PNG.

  Args:
    rows: of one part of the seeds: `kind` ("all" beside them), `contestant`, `evaluations`, `gain`, `stderr`
      over `n` pools. Contestants in brackets are no search: dashed lines with their names.
    path: the file.
    title: of the figure.
  """
  names = [name for name in dict.fromkeys(row["contestant"] for row in rows) if not name.startswith("(")]
  look, apart = looks(names), spread_out(len(names), 0.36)
  kinds = list(dict.fromkeys(row["kind"] for row in rows))
  budgets = sorted({row["evaluations"] for row in rows if row["kind"] == "all"})
  with plt.rc_context(STYLE | {"figure.dpi": 130}):
    figure, axes = tiles(len(kinds), (3.1, 2.3))
    for axis, kind in zip(axes, kinds, strict=True):
      own = [row for row in rows if row["kind"] == kind]
      for name, shift in zip(names, apart, strict=True):
        line = sorted((row for row in own if row["contestant"] == name), key=lambda row: row["evaluations"])
        x = np.arange(len(budgets) - len(line), len(budgets)) + shift  # large pools begin with a larger one
        axis.errorbar(
          x, [row["gain"] for row in line], [row["stderr"] for row in line], color=look[name].color,
          marker=look[name].marker, ls=look[name].line, ms=4, lw=1.2, elinewidth=0.9, label=plain(name),
        )  # fmt: skip
      reference(axis, 0.0)
      for row in own:
        if row["contestant"].startswith("(attainable"):
          axis.axhline(row["gain"], color=SOFT, lw=0.7, ls=":")
      axis.set_xticks(range(len(budgets)), budgets)
      axis.set_xlim(-0.5, len(budgets) - 0.5)
      low, high = axis.get_ylim()
      axis.set_ylim(min(low, -LEAST), max(high, LEAST))
      axis.set_title(f"{plain(kind)} ({max(row['n'] for row in own)})")
      axis.set_xlabel("evaluations", fontsize=8)
    figure.supylabel("test gain over the greedy soup", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(names), 5))
    if title:
      figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
