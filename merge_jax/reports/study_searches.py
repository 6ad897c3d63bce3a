"""The figures of a study's searches over a pool: the weights that were found, and what they score."""

from itertools import combinations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports import panels
from merge_jax.reports.drawing import COLORS, heatmap, plain
from merge_jax.reports.panels import SHARP, WIDTH
from merge_jax.reports.study_data import Result, number, numbers, rows, said
from merge_jax.search.final import label

POINTS = {
  "best_single": ("s", COLORS[5]), "uniform": ("D", COLORS[2]), "merge_best": ("^", COLORS[1]),
  "greedy": ("v", COLORS[3]), "search": ("*", COLORS[4]),
}  # fmt: skip
MOST_FRONTS = 9
GREY = "#b9bec5"


def _found(result: Result) -> dict[str, dict[str, np.ndarray]]:
  """The weights of each setting's best solutions, by their names."""
  found: dict[str, dict[str, np.ndarray]] = {}
  for row in rows(result, "recycle", "weights"):
    if len(values := numbers(row.get("values"))):
      found.setdefault(said(row, "setting"), {})[said(row, "name")] = values
  return found


def weights(result: Result) -> Figure | None:
  """Weights of the best solutions of each setting, by checkpoint."""
  found = _found(result)
  if not found:
    return None
  every = np.concatenate([values for group in found.values() for values in group.values()])
  most = max(len(values) for group in found.values() for values in group.values())
  pool = [str(name) for name in (result.get("recycle") or {}).get("checkpoints") or ()][:most]
  pool += [f"checkpoint {i + 1}" for i in range(len(pool), most)]
  high = max(float(np.fmax.reduce(np.abs(every))), 1e-6)
  low, colors = (-high, "PuOr_r") if (every < 0).any() else (0.0, "Blues")
  heights = [len(group) for group in found.values()]
  with plt.rc_context(SHARP):
    size = min(1.6 + 0.5 * most, WIDTH), 0.6 + 0.55 * len(heights) + 0.22 * sum(heights)
    figure, axes = plt.subplots(
      len(found), 1, figsize=size, squeeze=False, layout="constrained", sharex=True, height_ratios=heights
    )
    for axis, (name, group) in zip(axes[:, 0], found.items(), strict=True):
      table = np.full((len(group), most), np.nan)
      for line, values in zip(table, group.values(), strict=True):
        line[: len(values)] = values
      labels = [*map(plain, group)], [*map(plain, pool)]
      image = heatmap(axis, table, *labels, low, high, cmap=colors, size=6.5)
      axis.set_title(plain(name))
    figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01, label="weight")
  return figure


def weight_of_fitness(result: Result) -> Figure | None:
  """Whether a checkpoint's own fitness says what weight it gets."""
  from merge_jax.search.analysis import spearman

  own = {said(row, "setting"): row.get("values") for row in rows(result, "recycle", "single_fitness")}
  drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
  for name, group in _found(result).items():
    single = numbers(own.get(name))
    if {len(values) for values in group.values()} == {len(single)}:
      mean = np.stack([*group.values()]).mean(axis=0)
      known = np.isfinite(mean) & np.isfinite(single)
      if known.any():
        drawn[name] = single[known], mean[known]
  if not drawn:
    return None
  with plt.rc_context(SHARP):
    figure, axes = panels.tiles(len(drawn), (3.1, 2.3))
    for axis, (name, (x, y)) in zip(axes, drawn.items(), strict=True):
      axis.plot(x, y, ls="", marker="o", ms=4.5, color=COLORS[0], mec="white", mew=0.4)
      rho = spearman(x, y)
      axis.set_title(f"{plain(name)}: " + ("" if rho is None else f"ρ {rho:.2f}, ") + f"n {len(x)}")
    figure.supxlabel("a checkpoint's own fitness", fontsize=9)
    figure.supylabel("mean weight", fontsize=9)
  return figure


def fronts(result: Result) -> Figure | None:
  """Pareto fronts of the searches, with what they are compared with: a panel for each pair of tasks."""
  drawn = []
  for one in rows(result, "recycle", "settings"):
    tasks = [str(task) for task in one.get("tasks") or ()]
    if len(tasks) < 2:
      continue
    points = [numbers(point) for point in one.get("front") or ()]
    front = np.array([point for point in points if len(point) == len(tasks)]).reshape(-1, len(tasks))
    named = {row.get("name"): row.get("search") or {} for row in rows(one, "rows")}
    pairs = combinations(range(len(tasks)), 2) if len(front) else ()
    drawn += [(said(one, "name"), tasks, front, named, pair) for pair in pairs]
  drawn = drawn[:MOST_FRONTS]
  if not drawn:
    return None
  lower = {row.get("name") for row in rows(result, "tasks") if number(row.get("sign")) < 0}
  with plt.rc_context(SHARP):
    figure, axes = panels.tiles(len(drawn), (3.1, 2.7))
    for axis, (name, tasks, front, named, (i, j)) in zip(axes, drawn, strict=True):
      line = front[np.argsort(front[:, i], kind="stable")][:, [i, j]]
      width = 1.2 if len(tasks) == 2 else 0.0  # of more tasks a part of the front is no line
      axis.plot(*line.T, color=GREY, marker=".", lw=width, label="front of the search")
      for row, (marker, color) in POINTS.items():
        x, y = (number(named.get(row, {}).get(tasks[k])) for k in (i, j))
        if np.isfinite(x) and np.isfinite(y):
          axis.plot(x, y, marker=marker, color=color, ls="", mec="white", mew=0.5,
                    ms=12 if marker == "*" else 7, label=label(row))  # fmt: skip
      x_name, y_name = (plain(tasks[k]) + (" (lower is better)" if tasks[k] in lower else "") for k in (i, j))
      axis.set_xlabel(f"{x_name} (search examples)")
      axis.set_ylabel(y_name)
      axis.set_title(f"{plain(name)}, n {len(front)} on the front")
      axis.locator_params(nbins=5)
    panels.legend(figure)
  return figure
