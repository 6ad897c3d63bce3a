"""The figures of a study's searches by what they were given: evaluations, checkpoints, settings."""

from itertools import product

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports import panels
from merge_jax.reports.drawing import COLORS, Look, looks, plain
from merge_jax.reports.panels import SHARP, WIDTH
from merge_jax.reports.study_data import Result, column, distinct, number, numbers, rows, said, where
from merge_jax.search.final import label

SWEPT = {"best": Look(COLORS[4], "*", "-"), "centroid": Look(COLORS[0], "o", "--")}


def fitness(result: Result) -> Figure | None:
  """Fitness by evaluation: every point, and the best so far of each seed."""
  found: dict[str, list[np.ndarray]] = {}
  for one in rows(result, "recycle", "settings"):
    for search in rows(one, "searches"):
      if np.isfinite(values := numbers(search.get("fitness"))).any():
        found.setdefault(said(one, "name"), []).append(values)
  if not found:
    return None
  with plt.rc_context(SHARP):
    figure, axes = panels.tiles(len(found), (3.1, 2.3))
    for axis, (name, searches) in zip(axes, found.items(), strict=True):
      for k, values in enumerate(searches):
        color, x = COLORS[k % len(COLORS)], np.arange(1, len(values) + 1)
        axis.plot(x, values, ls="", marker=".", ms=3, alpha=0.4, color=color)
        axis.step(x, np.fmax.accumulate(values), where="post", lw=1.3, color=color)
      every = np.concatenate(searches)
      every = every[np.isfinite(every)]
      # One bad merge must not squeeze all others.
      low = max(every.min(), np.median(every) - 4 * (every.max() - np.median(every)))
      margin = 0.05 * (every.max() - low) + 1e-9
      axis.set_ylim(low - margin, every.max() + margin)
      axis.set_title(f"{plain(name)}, n {len(searches)} seeds")
    figure.supxlabel("evaluation", fontsize=9)
    figure.supylabel("fitness", fontsize=9)
  return figure


def sweep(result: Result) -> Figure | None:
  """Best and mean merge of searches over the N best checkpoints."""
  every = [row for row in rows(result, "recycle", "sweep") if np.isfinite(number(row.get("n")))]
  every = [row for row in every if np.isfinite([number(row.get(which)) for which in SWEPT]).any()]
  names = list(dict.fromkeys(row.get("setting") for row in every))
  if not every:
    return None
  with plt.rc_context(SHARP):
    figure, axes = panels.tiles(len(names), (3.1, 2.4))
    for axis, name in zip(axes, names, strict=True):
      here = where(every, setting=name)
      counts = sorted(distinct(row["n"] for row in here))
      x = np.array([counts.index(row["n"]) for row in here])
      for (which, look), shift in zip(SWEPT.items(), (0.06, -0.06), strict=True):
        y = column(here, which)
        axis.plot(x + shift, y, ls="", marker=look.marker, ms=4, alpha=0.5, color=look.color)
        means = [_mean(y[x == i]) for i in range(len(counts))]
        axis.plot(range(len(counts)), means, color=look.color, ls=look.line, lw=1.4,
                  label=f"{which}, mean over seeds")  # fmt: skip
      axis.set_xticks(range(len(counts)), [f"{n:.0f}" for n in counts])
      axis.set_title(f"{plain(str(name or '–'))}, n {len({row.get('seed') for row in here})} seeds")
    figure.supxlabel("checkpoints searched over: the best by their own fitness", fontsize=9)
    figure.supylabel("fitness", fontsize=9)
    panels.legend(figure)
  return figure


def _mean(values: np.ndarray) -> float:
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else np.nan


def ablations(result: Result) -> Figure | None:
  """What a search finds when one of its settings is another."""
  every = [row for row in rows(result, "recycle", "ablations") if np.isfinite(number(row.get("value")))]
  factors, names = ([*dict.fromkeys(row.get(part) for row in every)] for part in ("factor", "setting"))
  if not every:
    return None
  levels = {one: [*dict.fromkeys(row.get("level") for row in where(every, factor=one))] for one in factors}
  budgets = sorted({row["evaluations"] for row in every if row.get("evaluations")}) or [0]  # 0: not said
  styles = dict(zip(budgets, looks([str(budget) for budget in budgets]).values(), strict=True))
  shift = panels.spread_out(len(styles))
  heights = [len(one) + 0.5 for one in levels.values()]
  with plt.rc_context(SHARP):
    size = min(WIDTH, 1.4 + 2.7 * len(names)), 1.0 + 0.32 * sum(heights)
    figure, axes = plt.subplots(
      len(factors), len(names), squeeze=False, layout="constrained", sharex="col", sharey="row",
      figsize=size, height_ratios=heights,
    )  # fmt: skip
    for (i, factor), (j, name) in product(enumerate(factors), enumerate(names)):
      axis, here = axes[i, j], where(every, factor=factor, setting=name)
      for (budget, look), at in zip(styles.items(), shift, strict=True):
        some = [row for row in here if not budget or row.get("evaluations") == budget]
        y = np.array([levels[factor].index(row.get("level")) for row in some]) + at
        axis.hlines(y, column(some, "low"), column(some, "high"), color=look.color, lw=1.2)
        axis.plot(column(some, "value"), y, marker=look.marker, color=look.color, ls="", ms=5, mec="white",
                  mew=0.4, label=f"{budget} evaluations" if budget else None)  # fmt: skip
      axis.set_yticks(range(len(levels[factor])), [plain(str(one)) for one in levels[factor]], fontsize=8)
      axis.set_ylim(len(levels[factor]) - 0.5, -0.5)
      axis.locator_params(axis="x", nbins=4)
      axis.set_title("" if i else plain(str(name or "–")))
      axis.set_ylabel("" if j else plain(label(str(factor or "–"))), fontsize=8)
    figure.supxlabel("average on test examples of the fittest merge", fontsize=9)
    panels.legend(figure)
  return figure
