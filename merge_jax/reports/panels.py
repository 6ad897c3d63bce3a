"""Panels side by side: one for each size and kind of base, with what they share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports.drawing import INK, SOFT, STYLE, Look, plain
from merge_jax.reports.study_data import Curve, Grid, amount

SHARP: Any = STYLE | {"figure.dpi": 130, "axes.titlesize": 9, "axes.labelcolor": INK}
WIDTH = 9.2  # inches of the page's column
HELD = {"in": "held-in score ÷ expert's", "out": "held-out score ÷ base's"}
MULTITASK = Look(INK, "*", ":")


def make(height: int, width: int, each: tuple[float, float], **shared: Any) -> tuple[Figure, np.ndarray]:
  """Axes `[height, width]` of a size in inches that shrinks where the page would be too narrow for it."""
  wide = min(each[0], WIDTH / width) if width > 1 else each[0]
  return plt.subplots(
    height, width, figsize=(wide * width, each[1] * height), squeeze=False, layout="constrained", **shared
  )


def by_family(grid: Grid) -> tuple[int, int, Iterator[tuple[int, int, str, str]]]:
  """Where the panel of each size and kind is: kinds below each other, but for a single size beside."""
  across = len(grid.sizes) > 1 or len(grid.kinds) == 1
  height, width = len(grid.kinds), len(grid.sizes)
  places = (
    (i, j, size, kind) if across else (j, i, size, kind)
    for i, kind in enumerate(grid.kinds)
    for j, size in enumerate(grid.sizes)
  )
  return *((height, width) if across else (width, height)), places


def sized(grid: Grid, size: str) -> str:
  """A size with its number of parameters."""
  parameters = amount(grid.parameters[grid.sizes.index(size)])
  return plain(size) + (f" ({parameters} parameters)" if parameters else "")


def family(grid: Grid, size: str, kind: str) -> str:
  """A panel's title."""
  return f"{sized(grid, size)}\n{plain(kind)} base"


def draw_curve(axis: Any, curve: Curve, look: Look, label: str, at: float = 0.0, band: float = 0.12) -> None:
  """A line with its band, by the places of the counts; `at` keeps marks of several lines apart."""
  known = curve.known
  if not known.any():
    return
  x = np.flatnonzero(known) + at
  value, low, high = (part[known] for part in (curve.value, curve.low, curve.high))
  axis.fill_between(x, low, high, color=look.color, alpha=band, lw=0)
  axis.vlines(x, low, high, color=look.color, lw=1.0)
  axis.plot(x, value, color=look.color, marker=look.marker, ls=look.line, lw=1.3,
            ms=8 if look.marker == "*" else 4.5, mec="white", mew=0.4, label=plain(label))  # fmt: skip


def spread_out(count: int, width: float = 0.3) -> np.ndarray:
  """Places of several marks around one.

  >>> spread_out(3).tolist()
  [-0.15, 0.0, 0.15]
  """
  return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(count)


def ticks(axis: Any, names: Sequence[str], n: np.ndarray) -> None:
  """Names below a panel's places, with how many values are behind each: `n[lines, places]`."""

  def times(column: np.ndarray) -> str:
    known = column[np.isfinite(column)]
    if not len(known):
      return ""
    low, high = int(known.min()), int(known.max())
    return f"\nn {low}" if low == high else f"\nn {low}–{high}"

  axis.set_xticks(range(len(names)), [f"{name}{times(n[:, i])}" for i, name in enumerate(names)])
  axis.set_xlim(-0.4, len(names) - 0.6)


def tiles(count: int, each: tuple[float, float], across: int = 3, **shared: Any) -> tuple[Figure, list[Any]]:
  """As many panels as there are things to show, in rows; what is left of the last row is blank."""
  width = min(across, count)
  figure, axes = make(-(-count // width), width, each, **shared)
  for axis in axes.flat[count:]:
    axis.axis("off")
  return figure, [*axes.flat[:count]]


def reference(axis: Any, value: float) -> None:
  """A horizontal line to compare with."""
  axis.axhline(value, color=SOFT, lw=0.9, ls=(0, (4, 3)), zorder=0)


def limits(curves: Sequence[Curve], always: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
  """Ends of an axis for all values, and for intervals as far as they leave the values legible."""
  values = np.concatenate([np.asarray(always, np.float64), *(c.value for c in curves)])
  values = values[np.isfinite(values)]
  low, high = float(values.min()), float(values.max())
  widths = np.concatenate([c.high - c.low for c in curves])
  typical = float(np.median(widths[np.isfinite(widths)])) if np.isfinite(widths).any() else 0.0
  span = max(high - low, 2 * typical, 0.02)
  ends = np.concatenate([[low, high], *(np.stack([c.low, c.high]).ravel() for c in curves)])
  ends = ends[np.isfinite(ends)]
  bottom, top = max(float(ends.min()), low - span), min(float(ends.max()), high + span)
  more = margin * (top - bottom) + 1e-9
  return bottom - more, top + more


def legend(figure: Figure, columns: int = 6) -> None:
  """One legend above all panels, each name once."""
  found: dict[str, Any] = {}
  for axis in figure.axes:
    for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
      found.setdefault(name, handle)
  if found:
    figure.legend([*found.values()], [*found], loc="outside upper center", ncol=min(columns, len(found)))
