"""What all figures share: style, colours that colour-blind readers tell apart, heat maps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

STYLE: Any = {
  "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
  "figure.dpi": 110, "legend.frameon": False,
}  # fmt: skip
INK, SOFT = "#24292f", "#5b6470"

# Okabe and Ito's, neighbours of different lightness; their yellow is too light for lines.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


class Look(NamedTuple):
  """How one of several things is drawn: told apart by colour and by mark."""

  color: str
  marker: str
  line: str


def looks(names: Sequence[str]) -> dict[str, Look]:
  """A look for each name.

  >>> looks(["average", "ties"])["ties"]
  Look(color='#e69f00', marker='s', line='--')
  """
  return {
    name: Look(COLORS[i % len(COLORS)], MARKS[i % len(MARKS)], LINES[i % len(LINES)])
    for i, name in enumerate(names)
  }


def plain(text: str) -> str:
  r"""A name as it is: a dollar would start a formula.

  >>> plain("a$b")
  'a\\$b'
  """
  return text.replace("$", r"\$")


def heatmap(
  axis: Any, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], low: float, high: float,
  texts: Mapping[tuple[int, int], str] | Callable[[float], str] = "{:.2f}".format, *,
  cmap: str = "RdBu_r", size: float = 7.5, aspect: str = "auto",
) -> Any:  # fmt: skip
  """A table in colours with its numbers; what is not there is a dash.

  Args:
    table: `[rows, columns]`, NaN where there is nothing.
    low, high: values at the ends of the colours.
    texts: what is written in a cell, from its value or by its place.
    size: of these texts, in points.

  Returns:
    the image, for a colour bar.
  """
  image = axis.imshow(table, cmap=cmap, vmin=low, vmax=high, aspect=aspect)
  axis.set_yticks(range(len(rows)), rows)
  axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
  axis.spines[:].set_visible(False)
  dark = image.cmap(image.norm(np.nan_to_num(table)))[..., :3] @ [0.299, 0.587, 0.114] < 0.5
  shown, colors = [], []
  for i, j in np.ndindex(*table.shape):
    known = bool(np.isfinite(table[i, j]))
    text = texts(float(table[i, j])) if callable(texts) else texts.get((i, j), "–")
    shown.append(text if known else "–")
    colors.append("white" if known and dark[i, j] else INK)
  _write(axis, shown, colors, size)
  return image


def _write(axis: Any, texts: Sequence[str], colors: Sequence[str], size: float) -> None:
  """Texts in the middle of the cells of the axis' image, row by row.

  As outlines in one collection: thousands of text artists would take seconds.
  """
  from matplotlib.collections import PathCollection
  from matplotlib.textpath import TextPath
  from matplotlib.transforms import Affine2D

  rows, columns = axis.images[0].get_array().shape
  middle = TextPath((0, 0), "0", size=size).get_extents().y1 / 2
  outlines = {}
  for text in dict.fromkeys(texts):
    outline = TextPath((0, 0), text.replace("$", r"\$"), size=size)
    shift = Affine2D().translate(-outline.get_extents().width / 2, -middle)
    outlines[text] = outline.transformed(shift)
  collection = PathCollection(
    [outlines[text] for text in texts], facecolors=colors, linewidths=0,
    offsets=[(j, i) for i, j in np.ndindex(rows, columns)], offset_transform=axis.transData,
  )  # fmt: skip
  collection.set_transform(Affine2D().scale(axis.figure.dpi / 72))
  collection.set_in_layout(False)
  collection.set_snap(False)  # or a thin dash may fall between two pixels
  axis.add_collection(collection, autolim=False)
