"""The figures of a search: Pareto scatters, weights, fitness by evaluation, correlations."""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports.drawing import STYLE, heatmap, plain
from merge_jax.search.loop import FINALS
from merge_jax.search.scores import floats

BLUE, ORANGE, GREEN, RED, GREY = "#3b6ea5", "#d9822b", "#4c9a5b", "#b5403a", "#b9bec5"
MARKERS = {
  "best_single": ("s", "#7a5195"), "uniform": ("D", GREEN), "merge_best": ("^", "#8c6d31"),
  "greedy": ("v", ORANGE), "trajectory": (">", "#3b7a78"), "selected": ("*", RED),
}  # fmt: skip
MOST_PAIRS = 6

Record = Mapping[str, Any]


def signs_of(result: Mapping[str, Any]) -> dict[str, float]:
  """+1 for tasks where higher is better."""
  return {task["name"]: task["sign"] for task in result["tasks"]}


def pareto(result: Mapping[str, Any], records: Sequence[Record]) -> Figure:
  """Search scores of every evaluated candidate, a panel for each pair of tasks."""
  tasks, signs = [task["name"] for task in result["tasks"]], signs_of(result)
  rows = {row["name"]: row for row in result["rows"]}
  pairs = list(combinations(tasks, 2))
  if len(pairs) > MOST_PAIRS:  # those that trade off most are the ones to look at
    correlation = result["analysis"]["task_spearman"]
    where = {task: i for i, task in enumerate(tasks)}

    def together(pair: tuple[str, str]) -> float:
      value = correlation[where[pair[0]]][where[pair[1]]]
      return 1.0 if value is None else value

    pairs = sorted(pairs, key=together)[:MOST_PAIRS]
  columns = min(3, max(1, len(pairs)))
  height = -(-max(1, len(pairs)) // columns)
  with plt.rc_context(STYLE):
    size = (3.4 * columns, 3.0 * height + 0.8 / columns)
    figure, axes = plt.subplots(height, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(pairs) :]:
      axis.axis("off")
    for axis, (x, y) in zip(axes.flat, pairs, strict=False):
      _scatter(axis, records, rows, x, y, signs)
    handles, names = axes.flat[0].get_legend_handles_labels() if pairs else ([], [])
    figure.legend(handles, names, loc="outside lower center", ncol=min(2 * columns, 4))
  return figure


def _scatter(
  axis: Any, records: Sequence[Record], rows: Mapping[str, Any], x: str, y: str,
  signs: Mapping[str, float],
) -> None:  # fmt: skip
  from merge_jax.search.pareto import front

  def points(kind: str) -> np.ndarray:
    chosen = [r for r in records if (r["kind"] == "single") == (kind == "single")]
    return floats([[r["scores"][task] for task in (x, y)] for r in chosen]).reshape(-1, 2)

  singles, others = points("single"), points("other")
  axis.scatter(*others.T, s=9, color=GREY, label="evaluated merges", zorder=1)
  axis.scatter(*singles.T, s=24, color=BLUE, label="single checkpoints", zorder=3)
  both = np.concatenate([singles, others])
  best = both[front(both * [signs[x], signs[y]])]
  best = best[np.argsort(best[:, 0])]
  axis.plot(*best.T, color=GREY, lw=1.2, zorder=2, label="Pareto front")
  for name, (marker, color) in MARKERS.items():
    if name in rows:
      scores = rows[name]["search"]
      size = 130 if marker == "*" else 46
      axis.scatter(scores[x], scores[y], marker=marker, s=size, color=color, zorder=4,
                   edgecolor="white", linewidth=0.6, label=name.replace("_", " "))  # fmt: skip
  outside = _zoom(axis, both * [signs[x], signs[y]], [signs[x], signs[y]])
  if outside:
    axis.text(0.02, 0.02, f"{outside} outside", transform=axis.transAxes, fontsize=7, color="#5b6470")
  axis.set_xlabel(plain(x) + (" (lower is better)" if signs[x] < 0 else ""))
  axis.set_ylabel(plain(y) + (" (lower is better)" if signs[y] < 0 else ""))


def _zoom(axis: Any, points: np.ndarray, signs: Sequence[float]) -> int:
  """Limits the axes to where most points are, so that one bad model does not squeeze the rest.

  Returns the number of points that are left out.
  """
  finite = points[np.isfinite(points).all(axis=1)]
  if len(finite) < 10:
    return 0
  middle, high = np.median(finite, axis=0), finite.max(axis=0)
  spread = np.where(high > middle, high - middle, np.inf)  # where most are as good as the best, all are shown
  low = np.maximum(finite.min(axis=0), middle - 4 * spread)
  margin = 0.06 * np.maximum(high - low, 1e-3 * np.maximum(np.abs(high), 1.0))
  ends = np.sort(np.stack([low - margin, high + margin]) * signs, axis=0)
  axis.set_xlim(*ends[:, 0])
  axis.set_ylim(*ends[:, 1])
  return int((finite < low - margin).any(axis=1).sum())


PARTS = 8
"""Most parts of the selected merge whose weights are drawn one by one; their means otherwise."""


def weights(result: Mapping[str, Any], records: Sequence[Record]) -> Figure:
  """Weights of the selected merge, part by part, and means of the five best solutions, as a heat map."""
  del records
  rows = {row["name"]: row for row in result["rows"]}
  top = result["analysis"]["top_points"]
  selected, parts = np.atleast_2d(rows["selected"]["weights"]), result["parts"]
  if len(selected) != len(parts) or len(parts) > PARTS:
    selected, parts = selected.mean(axis=0, keepdims=True), []
  means = [np.atleast_2d(one["weights"]).mean(axis=0) for one in top]
  table = np.concatenate([selected, np.reshape(means, (len(top), -1))])
  names = [f"selected, {plain(part)}" for part in parts] or ["selected"]
  names += [f"best {i + 1}" for i in range(len(top))]
  limit = max(float(np.abs(table).max()), 1e-6)
  with plt.rc_context(STYLE):
    figure, axis = plt.subplots(figsize=(1.6 + 0.62 * table.shape[1], 0.9 + 0.36 * len(table)))
    image = heatmap(axis, table, names, [*map(plain, result["checkpoints"])], -limit, limit)
    figure.colorbar(image, ax=axis, fraction=0.03, pad=0.02)
  return figure


def fitness(result: Mapping[str, Any], records: Sequence[Record]) -> Figure:
  """Fitness of every evaluation in order, and the best so far."""
  from merge_jax.search.baselines import KINDS

  values = floats(result["analysis"]["fitness_by_evaluation"])
  steps = np.arange(len(values))
  with plt.rc_context(STYLE):
    figure, axis = plt.subplots(figsize=(6.6, 2.7))
    known = np.array([record["kind"] in KINDS for record in records])
    axis.scatter(steps[known], values[known], s=14, color=BLUE, label="known points")
    axis.scatter(steps[~known], values[~known], s=10, color=GREY, label="search")
    if np.isfinite(values).any():
      best = np.fmax.accumulate(np.where(np.isfinite(values), values, -np.inf))
      axis.step(steps, best, where="post", color=RED, lw=1.3, label="best so far")
      finite = values[np.isfinite(values)]
      low = max(finite.min(), np.median(finite) - 4 * (finite.max() - np.median(finite)) - 1e-9)
      axis.set_ylim(
        low - 0.05 * (finite.max() - low + 1e-9), finite.max() + 0.08 * (finite.max() - low + 1e-9)
      )
    axis.set_xlabel("evaluation")
    axis.set_ylabel("fitness")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
  return figure


def correlations(result: Mapping[str, Any], records: Sequence[Record]) -> Figure | None:
  """Rank correlation of tasks over the single checkpoints: red where they trade off.

  None where no two tasks have one, as of two checkpoints.
  """
  del records
  tasks = [plain(task["name"]) for task in result["tasks"]]
  table = floats(result["analysis"]["task_spearman"])
  if not np.isfinite(table[~np.eye(len(tasks), dtype=bool)]).any():
    return None
  size = 1.2 + 0.45 * len(tasks)
  with plt.rc_context(STYLE):
    figure, axis = plt.subplots(figsize=(size, size))
    heatmap(axis, table, tasks, tasks, -1, 1, cmap="RdBu", size=9, aspect="equal")
  return figure


FIGURES: dict[str, Callable[[Mapping[str, Any], Sequence[Record]], Figure | None]] = {
  "weights": weights, "fitness": fitness, "pareto": pareto, "correlations": correlations,
}  # fmt: skip
BETWEEN_TASKS = ("pareto", "correlations")


def draw(result: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Callable[[], Figure | None]]:
  """All figures that a result has data for, by name; each is drawn when it is called.

  Args:
    result: content of `result.json`.
    records: lines of the journal.
  """
  searched = [r for r in records if r["split"] == "search" and r["kind"] not in FINALS]
  names = [name for name in FIGURES if len(result["tasks"]) > 1 or name not in BETWEEN_TASKS]
  return {name: functools.partial(FIGURES[name], result, searched) for name in names}
