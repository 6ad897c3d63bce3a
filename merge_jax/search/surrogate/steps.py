"""Where to evaluate next: the highest points of regions around the best merge, and looks around it."""

from typing import NamedTuple

import numpy as np

from merge_jax.search.point import Candidate
from merge_jax.search.surrogate.region import highest
from merge_jax.search.surrogate.view import View

WIDE = 3.0
"""Radius of the region that an idle round looks at, hopefully and from every evaluated point."""
RADII = 16
"""Regions of other sizes, at most, that a batch is filled from."""
SHORT = 0.01
"""A step that is shorter leads nowhere."""
PROBES = (8, 32)
"""Directions that are looked at before it is believed that there is no more: half of all, within these."""
PROBE = 0.25
"""Length of these looks, in lengths of a task vector (of a part's, where there are parts)."""
TOLD_APART = 1e-3
"""Of the mean variance: directions whose variances differ less are taken in the order of the coordinates."""
UNSURE = 0.05
"""Variance of the slopes of outputs of unit variance, below which a direction is known."""


class How(NamedTuple):
  """What a surrogate believes.

  Attributes:
    caution: how much of the variance that it thinks its predictions have it takes off what it foresees.
    least: paired errors over the examples, less than which is no promise.
  """

  caution: float = 0.3
  least: float = 0.3


class Step(NamedTuple):
  """A step away from the best point so far.

  Attributes:
    z: where it leads.
    gain: that is foreseen.
    error: of the gain, over the examples.
    radius: of its region.
    hopeful: whether predictions were taken as they are.
  """

  z: np.ndarray
  gain: float
  error: float
  radius: float
  hopeful: bool

  def promises(self, least: float = 0.0) -> bool:
    """Whether it leads anywhere, and is foreseen to gain more than `least` errors."""
    return bool(np.linalg.norm(self.z) >= SHORT and self.gain > least * self.error)


def cautious(view: View, radius: float, caution: float) -> Step:
  """To the point of the region that is foreseen to be best."""
  return _step(view, radius, caution, [], hopeful=False)


def wide(view: View) -> Step:
  """To the best point of a wide region, predictions taken as they are, climbed from all evaluated ones."""
  near = [z for z in view.model.process.points if SHORT < np.linalg.norm(z) < WIDE]
  return _step(view, WIDE, 0.0, near, hopeful=True)


def batch(view: View, radius: float, how: How) -> list[Step]:
  """What to evaluate next: beside the first step, those of larger and smaller regions."""
  first = cautious(view, radius, how.caution)
  steps = [first if first.promises(how.least) else wide(view)]
  radii = [radius * 2.0 ** ((i // 2 + 1) * (-1) ** i) for i in range(min(view.options.batch - 1, RADII))]
  for other_radius in radii:
    other = cautious(view, min(other_radius, max(WIDE, radius)), how.caution)
    if min(np.linalg.norm(other.z - z) for z in (np.zeros_like(other.z), *(one.z for one in steps))) > SHORT:
      steps.append(other)
  return steps


def around(view: View) -> list[Candidate]:
  """Short looks along the directions whose slopes are least known, to the side that is foreseen higher."""
  covariance, metric, options = view.model.process.slope_covariance(), view.metric, view.options
  if not (options.space.scaled and options.based):  # weights that all move alike are no other model, or none
    sums = np.kron(np.eye(options.rows), np.ones(options.count)) @ metric.to_weights
    within = np.eye(len(covariance)) - np.linalg.pinv(sums) @ sums
    covariance = within @ covariance @ within
  # What no merge has told apart is equally unsure; which directions are taken then, last digits must not say.
  order = TOLD_APART * np.trace(covariance) / len(covariance) * np.linspace(1, 0, len(covariance))
  variances, directions = np.linalg.eigh((covariance + covariance.T) / 2 + np.diag(order))
  most = int(np.clip(len(variances) // 2, *PROBES))
  found = list[Candidate]()
  for i in np.argsort(-variances, kind="stable")[:most]:
    if variances[i] < UNSURE:
      break
    direction, ends = directions[:, i], dict[float, Candidate]()
    for sign in (1, -1):
      side = view.candidate(sign * PROBE * direction)
      z = metric.z(options.weights(side.point))
      if sign * z @ direction > PROBE / 2:  # a simplex cuts some off
        ends[view.model.at(z, caution=0.0).value] = side
    if ends:
      found.append(ends[max(ends)])
  return found


def _step(view: View, radius: float, caution: float, starts: list[np.ndarray], *, hopeful: bool) -> Step:
  def value(z: np.ndarray) -> tuple[float, np.ndarray]:
    return view.model.at(z, caution=caution)

  zero = np.zeros(view.metric.size)
  z, top = highest(value, view.metric, radius, [zero, *starts], sums=view.options.sums)
  error = float(np.nan_to_num(view.model.error(z, zero).value))
  return Step(z, top - value(zero)[0], error, radius, hopeful)
