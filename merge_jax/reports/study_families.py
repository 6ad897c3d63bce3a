"""The figures of a study over its models: methods by size, merged against multitask, what experts learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from merge_jax.reports import panels
from merge_jax.reports.drawing import COLORS, SOFT, Look, looks, plain
from merge_jax.reports.panels import HELD, MULTITASK, SHARP
from merge_jax.reports.study_data import (
  Curve,
  Grid,
  Result,
  Row,
  amount,
  at_most,
  column,
  curve,
  curves,
  distinct,
  grid,
  number,
  rows,
  where,
)  # fmt: skip
from merge_jax.search.final import label

KINDS = (Look(COLORS[4], "s", "-"), Look(COLORS[0], "o", "-"), Look(COLORS[2], "^", "-"))


def convergence(result: Result) -> Figure | None:
  """Whether the methods come together as models grow, with the most experts."""
  found = grid(result)
  styles, shift = looks(found.methods), panels.spread_out(len(found.methods), 0.24)
  lines = {(held, kind): _over_sizes(result, found, kind, held) for held in HELD for kind in found.kinds}
  if not any(one.known.any() for these in lines.values() for one in these.values()):
    return None
  sizes = [
    f"{plain(size)}\n{amount(value)}".rstrip()
    for size, value in zip(found.sizes, found.parameters, strict=True)
  ]
  with plt.rc_context(SHARP):
    figure, axes = panels.make(2, 1 + len(found.kinds), (3.1, 2.4))
    for i, (held, name) in enumerate(HELD.items()):
      for j, kind in enumerate(found.kinds):
        axis, these = axes[i, j + 1], lines[held, kind]
        panels.reference(axis, 1.0)
        for k, (method, one) in enumerate(these.items()):
          panels.draw_curve(axis, one, styles[method], label(method), shift[k])
        panels.ticks(axis, sizes, np.stack([one.n for one in these.values()]))
        axis.set_title(f"{plain(kind)} base, {found.counts[-1]} experts")
        told = [rows(result, "spread", size=size, kind=kind, count=found.counts[-1]) for size in found.sizes]
        if held == "in" and any(told):
          spread, noise = _told_spread(told)
        else:
          spread, noise = _spread([*these.values()])
        _draw_spread(axes[i, 0], spread, noise, KINDS[j % len(KINDS)], kind)
      for axis in axes[i, 1:]:
        axis.set_ylim(*panels.limits([o for kind in found.kinds for o in lines[held, kind].values()], [1.0]))
      axes[i, 1].set_ylabel(name)
      axes[i, 0].set_title("spread over methods")
      axes[i, 0].set_ylabel(f"held-{held}: standard deviation")
      axes[i, 0].set_ylim(bottom=0)
      panels.ticks(axes[i, 0], sizes, np.full((1, len(sizes)), np.nan))
    figure.supxlabel("size, parameters; n: merges behind a value", fontsize=9)
    panels.legend(figure, 4)
  return figure


def _over_sizes(result: Result, found: Grid, kind: str, held: str) -> dict[str, Curve]:
  """Each method's values with the most experts: `[sizes]`."""
  by_size = [curves(result, found, size, kind, held) for size in found.sizes]
  ends = {method: [at_most(these[method]) for these in by_size] for method in found.methods}
  return {
    method: Curve(*(np.concatenate(parts) for parts in zip(*several, strict=True)))
    for method, several in ends.items()
  }


def _spread(several: Sequence[Curve]) -> tuple[Curve, np.ndarray]:
  """The standard deviation of the methods' values at each size, and the values' own mean error."""
  values = np.stack([one.value for one in several])
  errors = np.stack([(one.high - one.low) / (2 * 1.96) for one in several])
  spread = values.std(axis=0, ddof=1) if len(several) > 1 else np.full(values.shape[1], np.nan)
  return Curve(spread, spread, spread, spread), errors.mean(axis=0)


def _told_spread(told: Sequence[Sequence[Row]]) -> tuple[Curve, np.ndarray]:
  """The same where the analysis says it, with intervals."""
  found = [some[0] if some else {} for some in told]
  parts = [curve([{"count": 0} | (row.get("methods") or {})], [0]) for row in found]
  return Curve(*(np.concatenate(part) for part in zip(*parts, strict=True))), column(found, "noise")


def _draw_spread(axis: Any, spread: Curve, noise: np.ndarray, look: Look, kind: str) -> None:
  panels.draw_curve(axis, spread, look, f"spread, {kind} base")
  x = np.flatnonzero(np.isfinite(noise))
  axis.plot(x, noise[x], color=look.color, marker=look.marker, mfc="white", ms=4, lw=1, ls=":",
            label=f"a value's standard error, {plain(kind)}")  # fmt: skip


def multitask(result: Result) -> Figure | None:
  """Merges of the most experts beside the multitask model of the same categories."""
  found = grid(result)
  families = [(size, kind) for size in found.sizes for kind in found.kinds]
  lines = {
    (held, *one): {name: at_most(curve) for name, curve in curves(result, found, *one, held).items()}
    for held in HELD
    for one in families
  }
  if not any(these[""].known.any() for these in lines.values()):
    return None
  styles = [*looks(found.methods).items(), ("", MULTITASK)]
  shift = [*panels.spread_out(len(found.methods), 0.5), 0.0]
  with plt.rc_context(SHARP):
    figure, axes = panels.make(1, 2, (4.6, 0.9 + 0.5 * len(families)), sharey=True)
    for axis, (held, name) in zip(axes[0], HELD.items(), strict=True):
      axis.axvline(1.0, color=SOFT, lw=0.9, ls=(0, (4, 3)), zorder=0)
      for y, one in enumerate(families):
        if y % 2:
          axis.axhspan(y - 0.5, y + 0.5, color="#f3f4f6", lw=0, zorder=-1)
        for (method, look), at in zip(styles, shift, strict=True):
          value, together = lines[held, *one][method], not method
          axis.hlines(y + at, value.low, value.high, color=look.color, lw=3 if together else 1.1,
                      alpha=0.35 if together else 1)  # fmt: skip
          axis.plot(value.value, [y + at], ls="", marker=look.marker, color=look.color, mec="white", mew=0.4,
                    ms=9 if together else 5, label=plain(label(method or "multitask training")))  # fmt: skip
      axis.set_xlim(*panels.limits([o for at, o in _flat(lines) if at == held], [1.0]))
      axis.set_xlabel(name)
    names = [f"{plain(size)}, {plain(kind)}{_merges(lines['in', size, kind])}" for size, kind in families]
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    panels.legend(figure)
  return figure


def _flat(lines: dict[tuple[str, str, str], dict[str, Curve]]) -> list[tuple[str, Curve]]:
  return [(at[0], one) for at, these in lines.items() for one in these.values()]


def _merges(these: dict[str, Curve]) -> str:
  n = np.concatenate([one.n for one in these.values()])
  n = n[np.isfinite(n)]
  return f"\nn {n.max():.0f}" if len(n) else ""


def experts(result: Result) -> Figure | None:
  """What experts gain over their base on their own category: the gate of all verdicts."""
  found = grid(result)
  every = [row for row in rows(result, "experts") if np.isfinite(number(row.get("gain")))]
  categories = distinct(row.get("category") for row in every)
  if not categories:
    return None
  with plt.rc_context(SHARP):
    height, width, places = panels.by_family(found)
    each = (4.2 if width == 1 else 3.1, 1.3 + 0.2 * len(categories))
    figure, axes = panels.make(height, width, each, sharex=True, sharey=True)
    for i, j, size, kind in places:
      axis, here = axes[i, j], [row for row in where(every, size=size, kind=kind) if row.get("category")]
      gain, error = column(here, "gain"), column(here, "stderr")
      y = np.array([categories.index(row["category"]) for row in here], np.float64)
      clear, bar = gain > 2 * error, 2 * np.nan_to_num(error)
      axis.axvline(0, color=SOFT, lw=0.9, zorder=0)
      for which, color, face, name in (
        (clear, COLORS[0], COLORS[0], "gain above 2 standard errors"),
        (~clear, COLORS[4], "white", "not above"),
      ):
        axis.hlines(y[which], (gain - bar)[which], (gain + bar)[which], color=color, lw=1.2)
        axis.plot(gain[which], y[which], ls="", marker="o", ms=5, color=color, mfc=face, label=name)
      enough = next(iter(rows(result, "gate", size=size, kind=kind)), {}).get("enough")
      word = "" if enough is None else "\n✓ learned enough" if enough else "\n✗ left out of verdicts"
      axis.set_title(panels.family(found, size, kind) + word)
    axes[0, 0].set_yticks(range(len(categories)), [plain(label(str(name))) for name in categories])
    axes[0, 0].set_ylim(len(categories) - 0.5, -0.5)
    figure.supxlabel("gain over the base, score ± 2 standard errors", fontsize=9)
    panels.legend(figure)
  return figure
