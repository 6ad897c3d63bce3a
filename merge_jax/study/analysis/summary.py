"""What a study's report shows: means with intervals, gains of experts, claims; plain data for a JSON file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merge_jax.search.scores import nullable
from merge_jax.study.analysis import gate
from merge_jax.study.analysis.claims import claims
from merge_jax.study.analysis.comparisons import spreads
from merge_jax.study.analysis.draws import Draws, resample
from merge_jax.study.analysis.intervals import interval
from merge_jax.study.analysis.scores import Categories, Scored

HELD = {"in": False, "out": True}


def summarise(
  scored: Sequence[Scored],
  categories: Categories,
  sizes: Sequence[str],
  draws: int = 1000,
  seed: int = 0,
  floors: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """The analysis of a study.

  Args:
    scored, categories, sizes, draws, seed, floors: see `draws.resample`.

  Returns:
    curves: mean score of merges by size, kind, method, count, held ("in": relative to the experts of their
      members; "out": to the base) and tuned; value, low, high, n merges, and the raw mean.
    multitask: likewise, for each count over the categories of the merges of that count.
    spread: standard deviation over methods and over units (seed and subset) of held-in scores, by size, kind
      and count.
    experts: scores of base and expert on its own category.
    gate: which families allow conclusions.
    claims: W1 to W8 with verdicts.
    dropped: what was left out, in sentences.

  Raises:
    ValueError: see `draws.resample`.
  """
  sample = resample(scored, categories, sizes, draws, seed, floors)
  gains = gate.gains(sample)
  gates = gate.gates(sample, gains)
  return {
    "curves": curves(sample),
    "multitask": multitask(sample),
    "spread": spread(sample),
    "experts": gate.plain(gains),
    "gate": gate.plain(gates),
    "claims": [claim.plain() for claim in claims(sample, gates)],
    "dropped": list(sample.dropped),
  }


def curves(sample: Draws) -> list[dict[str, Any]]:
  """Of every cell, tuned and untuned."""
  return [
    {"size": size, "kind": kind, "method": method, "count": count, "held": held, "tuned": tuned}
    | interval(sample.mean(sample.held(rows, out), rows), len(rows)).plain()
    | {"raw": nullable(sample.raw(rows, out))}
    for tuned in (True, False)
    for size, kind in sample.families
    for (method, count), rows in sample.cells(size, kind, tuned).items()
    for held, out in HELD.items()
  ]


def multitask(sample: Draws) -> list[dict[str, Any]]:
  """Of every count: over the same members, seeds and units as the merges."""
  found = []
  for size, kind in sample.families:
    by_count: dict[int, dict[tuple[int, int], int]] = {}
    for (_, count), rows in sample.cells(size, kind).items():
      by_count.setdefault(count, {}).update({sample.unit(row): row for row in rows})
    for count, units in by_count.items():
      pairs = [(row, sample.multitask(row)[0]) for row in units.values()]
      rows = [row for row, other in pairs if other is not None]
      others = [other for _, other in pairs if other is not None]
      for held, out in HELD.items() if rows else ():
        values = [
          sample.held_out[:, other] if out else sample.held_in(other, sample.models[row].members)
          for row, other in zip(rows, others, strict=True)
        ]
        mean = sample.mean(np.stack(values, axis=1), rows)
        found.append(
          {"size": size, "kind": kind, "count": count, "held": held}
          | interval(mean, len(set(others))).plain()
        )
  return found


def spread(sample: Draws) -> list[dict[str, Any]]:
  """How far methods, and units, are apart: methods have converged where theirs is small beside the other."""
  return [
    {
      "size": size, "kind": kind, "count": count,
      "methods": interval(one.methods, one.n).plain(), "units": interval(one.units, one.n).plain(),
      "noise": nullable(one.noise),
    }
    for size, kind in sample.families
    for count, one in spreads(sample, size, kind).items()
  ]  # fmt: skip
