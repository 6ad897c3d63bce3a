"""The figures of a study over the number of experts: every method's scores, what a better base brings."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports import panels
from merge_jax.reports.drawing import looks, plain
from merge_jax.reports.panels import HELD, MULTITASK, SHARP
from merge_jax.reports.study_data import Result, curves, difference, grid
from merge_jax.search.final import label


def held_in(result: Result) -> Figure | None:
  """Normalised held-in score against the number of experts."""
  return _against_count(result, "in")


def held_out(result: Result) -> Figure | None:
  """Normalised held-out score against the number of experts."""
  return _against_count(result, "out")


def _against_count(result: Result, held: str) -> Figure | None:
  found = grid(result)
  styles, shift = looks(found.methods), panels.spread_out(len(found.methods))
  lines = {(s, k): curves(result, found, s, k, held) for s in found.sizes for k in found.kinds}
  everything = [one for these in lines.values() for one in these.values()]
  if not any(one.known.any() for one in everything):
    return None
  with plt.rc_context(SHARP):
    height, width, places = panels.by_family(found)
    figure, axes = panels.make(height, width, (4.2 if width == 1 else 3.1, 2.5), sharey=True)
    for i, j, size, kind in places:
      axis, these = axes[i, j], lines[size, kind]
      panels.reference(axis, 1.0)
      panels.draw_curve(axis, these[""], MULTITASK, "multitask training", band=0.07)
      for k, method in enumerate(found.methods):
        panels.draw_curve(axis, these[method], styles[method], label(method), shift[k])
      merges = [these[method].n for method in found.methods] or [these[""].n]
      panels.ticks(axis, [*map(str, found.counts)], np.stack(merges))
      axis.set_title(panels.family(found, size, kind))
    axes[0, 0].set_ylim(*panels.limits(everything, [1.0]))
    figure.supxlabel("number of experts merged; n: merges behind a value", fontsize=9)
    figure.supylabel(HELD[held], fontsize=9)
    panels.legend(figure)
  return figure


def kinds(result: Result) -> Figure | None:
  """What a better base brings: differences of normalised scores, by method, size and count."""
  found = grid(result)
  pair = ["pretrained", "instruct"] if {"pretrained", "instruct"} <= {*found.kinds} else found.kinds[:2]
  if len(pair) < 2:
    return None
  styles, shift = looks(found.methods), panels.spread_out(len(found.methods))
  lines = {}
  for held in HELD:
    for size in found.sizes:
      weak, strong = (curves(result, found, size, kind, held) for kind in pair)
      lines[held, size] = {method: difference(strong[method], weak[method]) for method in found.methods}
  if not any(one.known.any() for these in lines.values() for one in these.values()):
    return None
  with plt.rc_context(SHARP):
    width = len(found.sizes)
    figure, axes = panels.make(2, width, (4.2 if width == 1 else 3.1, 2.3), sharey="row")
    for i, held in enumerate(HELD):
      for j, size in enumerate(found.sizes):
        axis, these = axes[i, j], lines[held, size]
        panels.reference(axis, 0.0)
        for k, method in enumerate(found.methods):
          panels.draw_curve(axis, these[method], styles[method], label(method), shift[k])
        panels.ticks(axis, [*map(str, found.counts)], np.stack([one.n for one in these.values()]))
        axis.set_title(panels.sized(found, size))
      here = [one for size in found.sizes for one in lines[held, size].values()]
      axes[i, 0].set_ylim(*panels.limits(here, [0.0]))
      axes[i, 0].set_ylabel(f"held-{held}: {plain(pair[1])}\nminus {plain(pair[0])}")
    figure.supxlabel("number of experts merged; n: merges of each base", fontsize=9)
    panels.legend(figure)
  return figure
