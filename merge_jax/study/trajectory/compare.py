"""Merging the checkpoints of a run against really decaying its learning rate.

At the step where a decay ends both have read equally many tokens; a merge at the step where it begins has
read fewer. Which window and schedule merge best is chosen on validation examples and reported on test
examples; the optimum on test, which labs report, stands beside it under that name.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from merge_jax.evals import Evaluation, Examples, uncertainty
from merge_jax.operators.contrib import trajectory
from merge_jax.search.baselines import METHOD
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import nullable
from merge_jax.study.judge import Judge
from merge_jax.study.trajectory import run as along_run
from merge_jax.study.trajectory.run import Along, Params
from merge_jax.training.corpus import Corpus

CONSTANT, DECAY, MERGE = "constant", "decay", "merge"


class Model(NamedTuple):
  """A checkpoint of the run, the end of a decay, or a merge.

  Attributes:
    step: at which it ends.
    kind: "constant", "decay:SHAPE" or "merge:SCHEDULE:WINDOW".
    start: where its decay began.
    weights: of everything that was trained, in the order of `along_run.names`.
  """

  step: int
  kind: str
  start: int
  weights: tuple[float, ...]


class Scored(NamedTuple):
  """A model's examples by split: validation, test, and those of held-out tasks ("heldout")."""

  model: Model
  examples: Mapping[str, Examples]

  def average(self, split: str) -> float:
    """Mean over tasks, a score that is better low with a minus; NaN without tasks."""
    return self.examples[split].average()


def along(
  apply: Callable[..., Array],
  params: Params,
  data: Corpus,
  judge: Judge,
  options: Along,
  held_in: Sequence[str],
  folder: Path,
  *,
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Trains, merges and scores.

  Args:
    apply, params, data: model, parameters to start from and training examples, as of `training.train`.
    judge: of the same models, by a suite with the splits validation and test; its mesh also trains.
    options: see there.
    held_in: tasks that decide on merges, those that are trained on; the others of the test split are held
      out.
    folder, stop: see `along_run.trained`.

  Returns:
    `points`: of every model and split "validation", "test" and "heldout" the mean `value` over tasks and its
      `stderr`, with `step` and `kind` (see `Model`).
    `best_of_windows`: rows of a name, and the averages on validation, test and held-out tasks.
    `gains`: of the merge that validation chose over each decay: test and held-out difference with paired
      errors, at equal tokens (`tokens` "equal") and for merges that end where the decay begins ("fewer");
      `from` and `to` are the decay's steps.
    `runs`: the steps of the decays, from and to.

  Raises:
    ValueError: held-in tasks that the suite does not have.
    training.Diverged, training.Stopped: see `along_run.trained`.
  """
  for split in ("validation", "test"):
    tasks = judge.suite.sizes(split) if split in judge.suite.splits else {}
    if missing := [task for task in held_in if task not in tasks]:
      raise ValueError(f"The suite has no {split} examples of the held-in task {missing[0]!r}.")
  kept = along_run.trained(apply, params, data, options, folder, stop=stop, mesh=judge.mesh)
  scored = _scored([kept / name for name in along_run.names(options)], candidates(options), judge, held_in)
  splits = ("validation", "test", "heldout")
  points = [
    {"step": one.model.step, "kind": one.model.kind, "split": split, "value": nullable(one.average(split)),
     "stderr": nullable(_stderr(one.examples[split]))}
    for one in scored for split in splits if one.examples[split].tasks
  ]  # fmt: skip
  runs = [(point, point + options.decay_steps) for point in options.points]
  return {
    "points": points,
    "best_of_windows": [line for run in runs for line in _table(scored, *run)],
    "gains": [gain for run in runs for gain in _gains(scored, *run)],
    "runs": [list(run) for run in runs],
  }


def candidates(options: Along) -> list[Model]:
  """Everything that is scored: all checkpoints and decays, and the merges at both ends of each decay.

  Weights of `from_SHAPE` have the mean factor of a real decay between each two of its checkpoints; the
  schedules `uniform`, `minus_sqrt` and `cosine` stand for decays that end one interval later.
  """
  order = {name: i for i, name in enumerate(along_run.names(options))}

  def model(step: int, kind: str, start: int, weights: Mapping[str, float]) -> Model:
    values = np.zeros(len(order))
    for name, weight in weights.items():
      values[order[name]] = weight
    return Model(step, kind, start, tuple(values.tolist()))

  steps, decay_steps = np.array(options.steps), options.decay_steps
  found = [model(step, CONSTANT, step, {along_run.at(step): 1.0}) for step in options.steps]
  for point in options.points:
    for decay in options.decays:
      name = along_run.decayed(point, decay, decay_steps)
      found.append(model(point + decay_steps, f"{DECAY}:{decay}", point, {name: 1.0}))
  own = decay_steps // options.every + 1  # from where a decay begins to where it ends
  for end in sorted({step for point in options.points for step in (point, point + decay_steps)}):
    before = steps[steps <= end]
    for window in sorted({*options.windows, own}):
      if window > len(before):
        continue
      made: dict[str, np.ndarray] = {
        name: trajectory.SCHEDULES[name](before, window=window) for name in options.schedules
      }
      if window == own:
        made |= {f"from_{decay}": _of_decay(decay, before, window) for decay in options.decays}
      for name, values in made.items():
        named = dict(zip(map(along_run.at, before.tolist()), values.tolist(), strict=True))
        found.append(model(end, f"{MERGE}:{name}:{window}", end, named))
  return found


def _of_decay(decay: str, steps: np.ndarray, window: int) -> np.ndarray:
  """The merge that stands for a decay over the last `window` checkpoints."""
  fine = 256  # points of each interval's mean
  x = (np.arange((window - 1) * fine) + 0.5) / ((window - 1) * fine)
  factors = (
    np.array([trajectory.DECAYS[decay](float(value)) for value in x]).reshape(window - 1, fine).mean(1)
  )
  return trajectory.from_decay(factors, steps, window=window)


def _scored(
  folders: Sequence[Path], chosen: Sequence[Model], judge: Judge, held_in: Sequence[str]
) -> list[Scored]:
  objective = judge.objective(judge.merges((METHOD,), folders))
  points = [Candidate(one.kind, METHOD, Point(one.weights)) for one in chosen]
  validation, test = (_examples(objective.evaluate(points, split)) for split in ("validation", "test"))
  heldout = [task for task in test[0].tasks if task not in held_in]
  return [
    Scored(
      model, {"validation": a.of_tasks(held_in), "test": b.of_tasks(held_in), "heldout": b.of_tasks(heldout)}
    )
    for model, a, b in zip(chosen, validation, test, strict=True)
  ]


def _examples(evaluations: Sequence[Evaluation]) -> list[Examples]:
  return [one.examples for one in evaluations if one.examples is not None]  # built-in tasks have them


def _stderr(examples: Examples, over: Examples | None = None) -> float:
  """Of the mean score, or of its difference to another model's on the same examples."""
  if over is None:
    return uncertainty.standard_errors(examples)["average"]
  return uncertainty.paired_difference(examples, over)[1]


def _merges(scored: Sequence[Scored], step: int) -> list[Scored]:
  return [one for one in scored if one.model.step == step and one.model.kind.startswith(MERGE)]


def _best(some: Sequence[Scored], split: str) -> Scored | None:
  finite = [one for one in some if np.isfinite(one.average(split))]
  return max(finite, key=lambda one: one.average(split), default=None)


def _decays(scored: Sequence[Scored], start: int) -> list[Scored]:
  return [one for one in scored if one.model.start == start and one.model.kind.startswith(DECAY)]


def _table(scored: Sequence[Scored], start: int, end: int) -> list[list[Any]]:
  """Rows of one decay's steps: name, and averages on validation, test and held-out tasks."""
  rows: list[tuple[str, Scored | None]] = []
  rows += [(f"{one.model.kind} from {start} to {end}", one) for one in _decays(scored, start)]
  for step, which in ((end, "equal tokens"), (start, "fewer tokens")):
    constant = next(one for one in scored if one.model.step == step and one.model.kind == CONSTANT)
    rows.append((f"constant at {step}", constant))
    for split, how in (("validation", "chosen on validation"), ("test", "optimum on test, optimistic")):
      if (best := _best(_merges(scored, step), split)) is not None:
        rows.append((f"{best.model.kind} at {step}, {which}, {how}", best))
  return [
    [name, *(nullable(one.average(split)) for split in ("validation", "test", "heldout"))]
    for name, one in rows if one is not None
  ]  # fmt: skip


def _gains(scored: Sequence[Scored], start: int, end: int) -> list[dict[str, Any]]:
  found = []
  for step, tokens in ((end, "equal"), (start, "fewer")):
    chosen = _best(_merges(scored, step), "validation")
    if chosen is None:
      continue
    for decay in _decays(scored, start):
      about = {
        "step": step,
        "from": start,
        "to": end,
        "tokens": tokens,
        "merge": chosen.model.kind,
        "over": decay.model.kind,
      }
      for split in ("test", "heldout"):
        if decay.examples[split].tasks:
          gain = chosen.average(split) - decay.average(split)
          error = _stderr(chosen.examples[split], decay.examples[split])
          found.append(about | {"split": split, "gain": nullable(gain), "stderr": nullable(error)})
  return found
