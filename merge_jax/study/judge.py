"""Models of one shape on a mesh: what loads them, and scores them and their merges, for all of a study."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from merge_jax import checkpoints, evals
from merge_jax.evals.examples import Examples
from merge_jax.evals.objective import JittedObjective, Merge, using
from merge_jax.evals.scoring import Scorer
from merge_jax.recycle import methods, placing, suites
from merge_jax.recycle.settings import Evals, Placement

Params = dict[str, Any]


class Judge:
  """Loads and scores models that have the config, tokenizer and tensors of the first of some.

  Args:
    folders: of these; layers are stacked where all of them can be stacked alike.
    tasks: by split.
    options: how tasks are scored.
    mesh: whose devices hold the models.
    batch: models of one call of `score`'s program, side by side; fewer are padded by repetition.

  Attributes:
    mesh: as given.
    suite: the tasks as models are scored on them.

  Raises:
    ValueError: no config, or tasks that the model cannot take.
  """

  def __init__(
    self,
    folders: Collection[Path],
    tasks: Mapping[str, Sequence[evals.Task]],
    options: Evals,
    mesh: Mesh,
    batch: int = 1,
  ):
    opened = [checkpoints.open(folder) for folder in folders]
    splits = {split: list(some) for split, some in tasks.items()}
    self.mesh, self.suite = mesh, suites.task_suite(splits, opened, options, mesh=mesh)
    self._specs, self._batch = opened[0].specs, batch
    self._layout = placing.layout(self._specs, mesh, Placement(), self.suite.stacks, self.suite.axes)

  @functools.cached_property
  def _programs(self) -> dict[str, tuple[Scorer, Callable[[Sequence[Params], Any], Any]]]:
    return {split: (one, self._program(one.function)) for split, one in self.suite.scorers().items()}

  def _program(self, function: Callable[[Any, Any], Any]) -> Callable[[Sequence[Params], Any], Any]:
    def run(models: Sequence[Params], data: Any) -> Any:
      if len(models) == 1:
        return jax.tree.map(lambda x: x[None], function(models[0], data))
      return jax.vmap(function, in_axes=(0, None))(jax.tree.map(lambda *x: jnp.stack(x), *models), data)

    return jax.jit(run, out_shardings=self._layout.replicated)

  def load(self, folder: Path) -> Params:
    """A model on the devices, in the dtype that it is stored in.

    Raises:
      ValueError: tensors of other names or shapes.
    """
    checkpoint = checkpoints.open(folder)
    for name, spec in self._specs.items():
      got = checkpoint.specs.get(name)
      if got is None or got.shape != spec.shape:
        have = "is missing" if got is None else f"has shape {got.shape}"
        raise ValueError(f"{folder}: tensor {name!r} {have}; expected shape {spec.shape}, as its base has.")
    return checkpoints.place(checkpoint, self._layout.shardings, self.suite.stacks)

  def merges(
    self,
    names: tuple[str, ...],
    folders: Iterable[Path],
    base: Path | None = None,
    patterns: tuple[str, ...] = (),
  ) -> dict[str, Merge]:
    """Models ready to be merged by some methods; see `recycle.methods.merges`."""
    experts = [self.load(folder) for folder in folders]
    own = None if base is None else self.load(base)
    return methods.merges(names, experts, own, self.suite.axes, patterns=patterns)

  def objective(
    self, merges: Mapping[str, Merge], batch: int = 1, *, competitors: int = 0, smooth: str = ""
  ) -> JittedObjective:
    """Scores merges of models that were loaded here; see `evals.Suite.objective`."""
    return JittedObjective(merges, self.suite.scorers(competitors, smooth), batch, self._layout)

  def score(self, models: Iterable[Params], split: str) -> Iterator[Examples]:
    """What every example of the split scored, model by model; models are taken a batch at a time."""
    scorer, program = self._programs[split]
    for chunk in _chunks(models, self._batch):
      padded = (*chunk, *[chunk[-1]] * (self._batch - len(chunk)))
      with using(self._layout):
        values = jax.tree.map(np.asarray, program(padded, scorer.batches))
      for i in range(len(chunk)):
        yield scorer.read(jax.tree.map(lambda x, i=i: x[i], values))


def _chunks(models: Iterable[Params], size: int) -> Iterator[tuple[Params, ...]]:
  iterator = iter(models)
  while chunk := tuple(itertools.islice(iterator, size)):
    yield chunk
