"""What a choice among models is worth on other examples: it is made again without each part of the examples.

The score by which the best of several models was chosen is too good: the choice went where the luck of the
examples was (winner's curse). Here the units are divided into parts; for each part the choice is made on all
others, and the model that it takes is scored on that part. All parts together are a score whose examples
chose nothing: that of the choice made with nine tenths of them. The bootstrap, which makes the choice again
on resampled examples, leaves up to 30 % of the curse: what is drawn again is noisier than what was.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from merge_jax.evals.examples import Examples

Choose = Callable[[Sequence[Examples]], Mapping[str, int]]
"""What is chosen, by name: positions among models, from what each scored on some of the examples."""


def crossfit(
  models: Sequence[Examples], choose: Choose, *, parts: int = 10, times: int = 5, seed: int = 0
) -> dict[str, list[Examples]]:
  """What was chosen without them, on all examples: by name, for each of several divisions.

  A name that is missing from a choice is left out; so is everything where there are fewer than two units.

  Args:
    models: the same examples of each.
    choose: makes the choices.
    parts: that the units are divided into, those of each task evenly.
    times: divisions, to average over.
    seed: of the divisions.
  """
  generator, first = np.random.default_rng(seed), models[0]
  parts = min(parts, len(np.unique(first.units)))
  if parts < 2:
    return {}
  rounds = []
  for _ in range(times):
    where = _divided(first, parts, generator)
    rounds.append([(where == n, choose([model.only(where != n) for model in models])) for n in range(parts)])
  every = [chosen for one in rounds for _, chosen in one]
  names = [name for name in every[0] if all(name in chosen for chosen in every)]
  return {name: [_joined(models, name, one) for one in rounds] for name in names}


def _divided(first: Examples, parts: int, generator: np.random.Generator) -> np.ndarray:
  """The part of each example; units are whole, and those of each task are dealt out evenly."""
  units, starts, place = np.unique(first.units, return_index=True, return_inverse=True)
  task = np.repeat(np.arange(len(first.counts)), first.counts)[starts]  # that of its first example
  part = np.empty(len(units), np.int64)
  part[np.lexsort((generator.random(len(units)), task))] = np.arange(len(units)) % parts
  return part[place]


def _joined(
  models: Sequence[Examples], name: str, chosen: Sequence[tuple[np.ndarray, Mapping[str, int]]]
) -> Examples:
  """Each part of the examples as the model scored it that was chosen without that part."""
  first, values = models[0], np.empty_like(models[0].values)
  for inside, places in chosen:
    values[:, inside] = models[places[name]].values[:, inside]
  return Examples(first.tasks, first.signs, first.counts, values, first.groups)
