"""The figures of a study behind the curves: every task's scores, the trainings, the claims' intervals."""

import textwrap
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports import panels
from merge_jax.reports.drawing import COLORS, SOFT, heatmap, plain
from merge_jax.reports.panels import SHARP
from merge_jax.reports.study_data import (
  Result,
  Row,
  column,
  distinct,
  grid,
  model_name,
  number,
  numbers,
  rows,
  said,
  verdict,
)  # fmt: skip
from merge_jax.search.final import label

STAGES = ("pretrained", "instruct", "expert", "multitask")


def tasks(result: Result) -> Figure | None:
  """Scores of task × model, for every size and kind of base."""
  found = grid(result)
  scored = [row for row in rows(result, "scores") if isinstance(row.get("scores"), Mapping)]
  families = distinct((row.get("size"), row.get("kind")) for row in scored)
  families = [(s, k) for s in found.sizes for k in found.kinds if (s, k) in families]
  groups = categories(result, scored)
  names = [task for _, group in groups for task in group]
  if not families or not names:
    return None
  signs = {row.get("name"): number(row.get("sign", 1)) for row in rows(result, "tasks")}
  columns = _models(result, scored)
  with plt.rc_context(SHARP):
    each = (1.6 + 0.31 * len(columns), 1.1 + 0.165 * len(names))
    figure, axes = panels.tiles(len(families), each, 2, sharex=True, sharey=True)
    for axis, (size, kind) in zip(axes, families, strict=True):
      here = [row for row in scored if (row.get("size"), row.get("kind")) == (size, kind)]
      table = np.array([[_mean(here, task, keys) for keys in columns.values()] for task in names])
      compact = {at: _short(float(table[at])) for at in np.ndindex(*table.shape)}
      shown = _from_worst_to_best(table * [[signs.get(task, 1.0)] for task in names])
      heatmap(axis, shown, [*map(plain, names)], [*map(plain, columns)], 0, 1, compact, cmap="cividis",
              size=6.2)  # fmt: skip
      for end in np.cumsum([len(group) for _, group in groups])[:-1]:
        axis.axhline(end - 0.5, color="white", lw=2)
      axis.set_title(panels.family(found, size, kind).replace("\n", ", "))
      axis.tick_params(labelsize=7, length=0)
      for text in axis.get_xticklabels():
        text.set_rotation(90)
        text.set_va("center")
  return figure


def categories(result: Result, scored: list[Row] | None = None) -> list[tuple[str, list[str]]]:
  """Categories with their tasks, held-in ones first; tasks that are in none come last."""
  groups = []
  for part in ("held_in", "held_out"):
    groups += [(str(name), list(members or ())) for name, members in (result.get(part) or {}).items()]
  named = {task for _, members in groups for task in members}
  rest = distinct(task for row in scored or () for task in row["scores"] if task not in named)
  return [(name, members) for name, members in (*groups, ("", rest)) if members]


def _models(result: Result, scored: list[Row]) -> dict[str, list[str]]:
  """Columns: base, experts, multitask, merges of the most experts; each the mean over its models."""
  present = distinct(row.get("model") for row in scored)
  read = {name: model_name(name) for name in present}
  merges = [one for one in read.values() if one.role == "merge"]
  most = max((int(one.experts) for one in merges if one.experts.isdecimal()), default=0)
  order = [*(result.get("held_in") or {}), *(one.name for one in read.values() if one.role == "expert")]
  columns: dict[str, list[str]] = {"base": [name for name, one in read.items() if one.role == "base"]}
  for category in dict.fromkeys(order):
    columns[f"{category} expert"] = [n for n, one in read.items() if one[:2] == ("expert", category)]
  columns["multitask"] = [name for name, one in read.items() if one.role == "multitask"]
  methods = distinct([*(result.get("methods") or ()), *(one.name for one in merges)])
  for method in methods:
    columns[f"{label(method)}, {most}"] = [
      name for name, one in read.items() if one[:3] == ("merge", method, str(most))
    ]
  return {name: models for name, models in columns.items() if models}


def _mean(some: list[Row], task: str, models: list[str]) -> float:
  values = numbers([row["scores"].get(task) for row in some if row.get("model") in models])
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else np.nan


def _short(value: float) -> str:
  """Two digits that fit into a small cell.

  >>> _short(0.812), _short(1.0), _short(12.3)
  ('.81', '1.0', '12')
  """
  if not np.isfinite(value):
    return "–"
  if abs(value) >= 9.95:
    return f"{value:.0f}"
  return f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2f}".replace("0.", ".", 1)


def _from_worst_to_best(table: np.ndarray) -> np.ndarray:
  """Every row from 0, its worst, to 1, its best."""
  low = np.fmin.reduce(table, axis=1, keepdims=True)
  span = np.fmax.reduce(table, axis=1, keepdims=True) - low
  return np.where(span > 0, (table - low) / np.where(span > 0, span, 1), table * 0 + 0.5)


def learning(result: Result) -> Figure | None:
  """Training losses of every stage and size."""
  found = grid(result)
  every = [row for row in rows(result, "learning") if np.isfinite(numbers(row.get("loss"))).any()]
  sizes = distinct([*found.sizes, *(row.get("size") for row in every)])
  stage_of = [said(row, "stage", "").split(":")[0] for row in every]
  stages = [stage for stage in (*STAGES, *dict.fromkeys(stage_of)) if stage in stage_of]
  stages = distinct(stages)
  if not every:
    return None
  colors = dict(zip(found.kinds or [""], (COLORS[4], COLORS[0], *COLORS), strict=False))
  with plt.rc_context(SHARP):
    figure, axes = panels.make(len(sizes), len(stages), (4.2 if len(stages) == 1 else 2.6, 1.9), sharey="row")
    for (i, size), (j, stage) in product(enumerate(sizes), enumerate(stages)):
      axis, runs = axes[i, j], 0
      for row, its_stage in zip(every, stage_of, strict=True):
        if (row.get("size"), its_stage) != (size, stage):
          continue
        loss = numbers(row.get("loss"))
        steps = numbers(row.get("steps")) if row.get("steps") else np.arange(len(loss))
        kept = min(len(loss), len(steps))
        kind = row.get("kind") if its_stage in ("expert", "multitask") else its_stage
        axis.plot(steps[:kept], loss[:kept], color=colors.get(str(kind), SOFT), lw=0.8, alpha=0.65,
                  label=f"{plain(kind)} base" if kind in colors else None)  # fmt: skip
        runs += 1
      axis.set_title(f"{plain(str(size))}: {plain(stage or 'other')}, n {runs}")
      if not runs:
        axis.axis("off")
    figure.supxlabel("training step; n: runs", fontsize=9)
    figure.supylabel("training loss, nats a target token", fontsize=9)
    panels.legend(figure)
  return figure


ACROSS = 3
"""Panels of claims in a row of the figure; each row is as high as its longest list."""


def claims(result: Result) -> Figure | None:
  """The value of every claim's statistic with its interval, a panel each."""
  every = [row for row in rows(result, "claims") if _points(row)]
  if not every:
    return None
  lengths = [len(_points(row)) for row in every]
  heights = [1.75 + 0.16 * max(lengths[i : i + ACROSS]) for i in range(0, len(every), ACROSS)]
  with plt.rc_context(SHARP):
    figure, axes = panels.tiles(
      len(every), (3.7, float(np.mean(heights))), ACROSS, gridspec_kw={"height_ratios": heights}
    )
    for axis, row in zip(axes, every, strict=True):
      _forest(axis, row)
  return figure


def _points(row: Row) -> list[Row]:
  return [one for one in row.get("values") or () if np.isfinite(number(one.get("value")))]


def _forest(axis: Any, row: Row) -> None:
  points = _points(row)
  word, color, sign = verdict(row)
  value, low, high = (np.round(column(points, name), 9) for name in ("value", "low", "high"))
  y = np.arange(len(points))
  axis.hlines(y, low, high, color=color, lw=1.6)
  axis.plot(value, y, ls="", marker="o", color=color, ms=5, mec="white", mew=0.5)
  ends = axis.get_xlim()
  if ends[0] < 0 < ends[1]:
    axis.axvline(0, color=SOFT, lw=0.9, ls=(0, (4, 3)), zorder=0)
  names = [f"{plain(said(one, 'size', 'all'))}{_times(one)}" for one in points]
  axis.set_yticks(y, names, fontsize=7)
  axis.set_ylim(len(points) - 0.4, -0.6)
  axis.set_title(f"{plain(said(row, 'id', ''))} {sign} {word}", color=color)
  statistic = textwrap.wrap(said(row, "statistic", ""), 36)
  axis.set_xlabel(plain("\n".join(statistic[:6]) + " …" * (len(statistic) > 6)), fontsize=6.2)
  axis.tick_params(axis="x", labelsize=7)
  axis.locator_params(axis="x", nbins=3)


def _times(point: Row) -> str:
  n = number(point.get("n"))
  return f", n {int(n)}" if np.isfinite(n) else ""
