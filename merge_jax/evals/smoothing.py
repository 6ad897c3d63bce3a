"""Smoothed scores of predicted answers: how sure of the right ones a model is, and how that changes.

A score counts right answers and has no slope; its smoothed form replaces each decision by a softmax.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merge_jax.evals import uncertainty
from merge_jax.evals.examples import Examples
from merge_jax.evals.metrics import CHOICES, EXACT, LOSS, SMOOTHING

RELEVANT = 1e-3
"""A competitor whose chance against the target, smoothed, is less at every evaluated model is left out."""


class Part(NamedTuple):
  """A task's place among rows, positions and examples.

  Attributes:
    kind: `EXACT`, `CHOICES` or `LOSS`.
    table: int `[n, c]`, each example's rows, -1 for padding.
    right: int `[n]`, the place of its right row.
    divisors: float `[n, c]`, what the losses of choices are divided by.
    targets: float `[n]`, target tokens of the right row.
    lengths: int `[n]`, target positions of each example, of exact tasks; they lie in order.
  """

  kind: str
  table: np.ndarray
  right: np.ndarray
  divisors: np.ndarray
  targets: np.ndarray
  lengths: np.ndarray


class Smoothed(NamedTuple):
  """Scores of predicted answers, and how they change.

  Attributes:
    scores: float64 `[tasks]`, in each task's metric (losses stay losses).
    slopes: float32 `[columns]`, derivative of the column's own task by it.
    spread: float64 `[tasks]`, derivative by the variance.
  """

  scores: np.ndarray
  slopes: np.ndarray
  spread: np.ndarray


def relevant(models: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Gaps of the competitors that could win a position, the same ones of every model.

  Args:
    models: gaps and rivals `[positions, C]` of each.

  Returns:
    Gaps float32 `[models, columns]`; the position of each column, ascending; and its weight, the highest
    chance that the competitor has at a model. Where a model has not kept a gap, its last kept one stands.
  """
  least = SMOOTHING * np.log(RELEVANT)
  kept = np.flatnonzero(np.max([gaps[:, 0] for gaps, _ in models], axis=0) > least)
  gaps = np.stack([one[kept] for one, _ in models]).astype(np.float32)
  rivals = np.stack([one[kept] for _, one in models])
  top = np.maximum(gaps[:, :, 0], 0.0)
  powers = np.exp((gaps - top[:, :, None]) / SMOOTHING)
  chances = powers / (np.exp(-top / SMOOTHING) + powers.sum(axis=2))[:, :, None]
  model, place, rank = np.nonzero(chances > RELEVANT)
  key = place.astype(np.int64) << 32 | rivals[model, place, rank]
  columns, inverse = np.unique(key, return_inverse=True)
  weights = np.zeros(len(columns))
  np.maximum.at(weights, inverse, chances[model, place, rank])
  where, who = columns >> 32, (columns & 0xFFFFFFFF)[:, None]
  values = np.empty((len(models), len(columns)), np.float32)
  for i in range(len(models)):
    same = rivals[i][where] == who
    found = np.take_along_axis(gaps[i][where], same.argmax(axis=1)[:, None], 1)[:, 0]
    values[i] = np.where(same.any(axis=1), found, gaps[i][where, -1])
  return values, kept[where], weights


class Piece(NamedTuple):
  """A task's columns in a table: losses of right rows, costs of all choices, or gaps of competitors.

  Attributes:
    kind, part: the task's.
    starts: first column of each position that has some, of exact tasks.
    examples: whose these positions are.
  """

  kind: str
  part: Part
  starts: np.ndarray = np.zeros(0, int)
  examples: np.ndarray = np.zeros(0, int)

  @property
  def shares(self) -> np.ndarray:
    """Each example's part of what its task's score is divided by."""
    size = self.part.targets if self.kind == LOSS else np.ones(len(self.part.right))
    return size / size.sum()

  def owners(self, columns: int) -> np.ndarray:
    """Whose each of its columns is: int `[columns]`."""
    if self.kind == EXACT:
      return np.repeat(self.examples, np.diff(self.starts, append=columns)[: len(self.starts)])
    return np.repeat(np.arange(len(self.part.right)), columns // max(len(self.part.right), 1))


class Table(NamedTuple):
  """Numbers of several models; see `Answers.table`.

  Attributes:
    values: float32 `[models, columns]`.
    tasks: int `[columns]`, whose each is.
    weights: float `[columns]`, how much each matters to its task's score.
    pieces: by task.
    groups: of the examples, as of `Answers`.
  """

  values: np.ndarray
  tasks: np.ndarray
  weights: np.ndarray
  pieces: tuple[Piece, ...]
  groups: np.ndarray

  def smoothed(self, row: np.ndarray, variance: np.ndarray) -> Smoothed:
    """Scores of a row of predicted numbers.

        exact     mean over examples of Π softmax(gaps / τ)[target] over its positions
        choices   mean of softmax(-costs / τ)[right]
        loss      Σ losses / Σ tokens

    with τ² = SMOOTHING² + variance: answers of which a prediction is unsure count less.

    Args:
      row: `[columns]`.
      variance: float `[tasks]`, of the predicted numbers.
    """
    temperatures = np.sqrt(SMOOTHING**2 + np.maximum(variance, 0.0))
    found = self._scored(row, temperatures)
    return Smoothed(
      np.array([one.parts.sum() for one in found]),
      np.concatenate([one.slope.reshape(-1).astype(np.float32) for one in found]),
      np.array([one.by_temperature for one in found]) / (2 * temperatures),
    )

  def paired_error(self, row: np.ndarray, other: np.ndarray, slopes: np.ndarray) -> tuple[float, np.ndarray]:
    """Standard error of Σ slope · (score of a row - score of the other), paired by unit.

    Args:
      row, other: `[columns]`, taken as if they were sure.
      slopes: float `[tasks]`.

    Returns:
      The error, and its derivative by the columns of `row`, float32.
    """
    scored = [self._scored(one, np.full(len(self.pieces), SMOOTHING)) for one in (row, other)]
    mine, its = map(self._examples, scored)
    difference = uncertainty.influences(mine, slopes) - uncertainty.influences(its, slopes)
    by_example = uncertainty.size_slopes(difference, mine, slopes)
    by_task = np.split(by_example, np.cumsum(mine.counts)[:-1])
    triples = zip(self.pieces, scored[0], by_task, strict=True)
    by_column = [own.slope.reshape(-1) * some[piece.owners(own.slope.size)] for piece, own, some in triples]
    return uncertainty.size(difference), np.concatenate(by_column).astype(np.float32)

  def _examples(self, scored: "Sequence[Scored]") -> Examples:
    count, parts = len(self.pieces), [one.parts for one in scored]
    sizes = tuple(map(len, parts))
    values = np.full((4, sum(sizes)), np.nan)
    values[0], values[1] = np.concatenate(parts), np.concatenate([piece.shares for piece in self.pieces])
    names = tuple(map(str, range(count)))
    return Examples(names, (1.0,) * count, sizes, values, self.groups)

  def _scored(self, row: np.ndarray, temperatures: np.ndarray) -> "list[Scored]":
    ends = np.cumsum(self.sizes)[:-1]
    together = zip(self.pieces, np.split(row, ends), temperatures, strict=True)
    return [_RULES[piece.kind](piece, own, float(temperature)) for piece, own, temperature in together]

  @property
  def sizes(self) -> np.ndarray:
    """Number of columns of each task."""
    return np.bincount(self.tasks, minlength=len(self.pieces))


class Scored(NamedTuple):
  """A task's smoothed score.

  Attributes:
    parts: `[examples]`, what each adds to it.
    slope: derivative by the columns.
    by_temperature: derivative by the temperature.
  """

  parts: np.ndarray
  slope: np.ndarray
  by_temperature: float


def _exact(piece: Piece, row: np.ndarray, temperature: float) -> Scored:
  count = len(piece.part.right)
  if not len(piece.starts):
    return Scored(np.full(count, 1 / count), row, 0.0)
  scaled = row / temperature
  sizes = np.diff(piece.starts, append=len(row))
  top = np.maximum(np.maximum.reduceat(scaled, piece.starts), 0.0)
  powers = np.exp(scaled - np.repeat(top, sizes))
  total = np.exp(-top) + np.add.reduceat(powers, piece.starts)
  log_right = np.bincount(piece.examples, -(top + np.log(total)), minlength=count)
  right = np.exp(log_right) / count
  slope = -powers * np.repeat(right[piece.examples] / (total * temperature), sizes)
  return Scored(right, slope, float(-(slope * scaled).sum()))


def _choices(piece: Piece, row: np.ndarray, temperature: float) -> Scored:
  table, right = piece.part.table, piece.part.right[:, None]
  costs = np.where(table >= 0, row.reshape(table.shape), np.inf)
  scaled = -(costs - costs.min(axis=1, keepdims=True)) / temperature
  powers = np.exp(scaled)
  chances = powers / powers.sum(axis=1, keepdims=True)
  hit = np.take_along_axis(chances, right, 1)[:, 0] / len(table)
  slope = chances * hit[:, None] / temperature
  slope[np.arange(len(hit)), right[:, 0]] -= hit / temperature
  flat = np.where(table >= 0, scaled, 0.0)
  return Scored(hit, slope, float((slope * flat).sum()))


def _loss(piece: Piece, row: np.ndarray, temperature: float) -> Scored:
  tokens = float(piece.part.targets.sum())
  return Scored(row.astype(np.float64) / tokens, np.full(len(row), 1 / tokens), 0.0)


_RULES = {EXACT: _exact, CHOICES: _choices, LOSS: _loss}
