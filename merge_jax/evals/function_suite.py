"""Suites of a user's own: any function of parameters, and an external command."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from merge_jax.errors import shown
from merge_jax.evals.examples import Examples
from merge_jax.evals.external import Command
from merge_jax.evals.objective import Evaluation, FunctionObjective
from merge_jax.evals.suite import Suite, TaskInfo
from merge_jax.sharding import Layout

PyTree = Any


class FunctionSuite(Suite):
  """Any function `(params, split) -> {task: score}`.

  A score is a number, NaN where the candidate failed, or a list of what each example scored, whose mean is
  the score: then gains have errors, and choices go by them, as those of built-in tasks do.

  Args:
    tasks: names, with +1 where a higher score is better and -1 where a lower one is.
    score: the function, called on the host; the examples of a split are the same, in the same order, for
      every candidate.

  Raises:
    ValueError: other signs; when evaluating, no mapping, a task without a score, what is no score, lists for
      some tasks alone, or of other lengths than before.

  >>> import merge_jax as mj
  >>> import numpy as np
  >>> from merge_jax import search
  >>> from merge_jax.evals import Merge
  >>> pool = [{"w": np.array([1.0, 0.0], np.float32)}, {"w": np.array([0.0, 1.0], np.float32)}]
  >>> merge = Merge(lambda source, weights, _: mj.combine(source, weights), mj.prepare(mj.linear(), pool))
  >>> suite = FunctionSuite({"middle": 1.0}, lambda params, split: {"middle": float(params["w"].min())})
  >>> fitness = search.Fitness(suite.names, suite.signs)
  >>> options = search.Options("linear", search.space("simplex", 2), fitness, count=2)
  >>> found = search.search(
  ...   search.proposer("line_search", options), suite.objective({"linear": merge}), search.Journal(),
  ...   fitness, search.Budget(10),
  ... )
  >>> max(found.records, key=lambda record: record.fitness).point.weights
  (0.5, 0.5)
  """

  def __init__(self, tasks: Mapping[str, float], score: Callable[[PyTree, str], Mapping[str, ArrayLike]]):
    if not isinstance(tasks, Mapping) or any(sign not in (1, -1) for sign in tasks.values()):
      raise ValueError(
        f"tasks is {shown(tasks)}; expected +1 or -1 by name, as {{'math': 1.0}}: whether higher is better."
      )
    self.tasks = tuple(TaskInfo(name, "score", sign) for name, sign in tasks.items())
    self._score, self._counts = score, dict[str, tuple[int, ...]]()

  def describe(self) -> list[tuple[str, str]]:
    """The names of the scores."""
    return [("scores", ", ".join(self.names))]

  def objective(
    self,
    merges: Mapping[str, Any],
    batch: int = 1,
    layout: Layout | None = None,
    *,
    in_turn: bool = False,
    competitors: int = 0,
    smooth: str = "",
  ) -> FunctionObjective:
    """One call of the function a candidate, whatever the batch."""
    return FunctionObjective(merges, self._evaluation)

  def _evaluation(self, params: PyTree, split: str) -> Evaluation:
    scores = self._score(params, split)
    if not isinstance(scores, Mapping):
      raise ValueError(
        f"The suite's function gave {shown(scores)} on {split}; expected a score of each task, as "
        f"{{{self.names[0]!r}: 0.5}}."
      )
    if missing := [name for name in self.names if name not in scores]:
      raise ValueError(
        f"The suite's function gave no {missing[0]!r} on {split}, but {', '.join(scores) or 'nothing'}; "
        "expected a score of each task, NaN where there is none."
      )
    if strange := [name for name in self.names if not _is_score(scores[name])]:
      raise ValueError(
        f"The suite's function gave {shown(scores[strange[0]])} for {strange[0]!r} on {split}; expected a "
        "number, NaN where the candidate failed, or a list of what each example scored."
      )
    lists = [name for name in self.names if np.ndim(scores[name])]
    if not lists:
      return Evaluation({name: float(np.asarray(scores[name])) for name in self.names})
    if single := [name for name in self.names if name not in lists]:
      raise ValueError(
        f"On {split} the score of {single[0]!r} is one number, that of {lists[0]!r} a list; give lists, of "
        "what each example scored, for all tasks or for none."
      )
    examples = Examples.of_scores(scores, dict(zip(self.names, self.signs, strict=True)))
    self.expect(split, examples.counts)
    return Evaluation(examples.scores(), None, examples)

  def expect(self, split: str, counts: tuple[int, ...]) -> None:
    """See `Suite.expect`; a task without an example is one, too."""
    first = self._counts.setdefault(split, counts)
    if 0 in counts or counts != first:
      here, there = (", ".join(map(str, some)) for some in (counts, first))
      raise ValueError(
        f"On {split} the tasks {', '.join(self.names)} have {here} examples in one evaluation, {there} in "
        "another; every merge must be scored on the same ones, so use another output folder if they changed."
      )


def _is_score(value: Any) -> bool:
  dtype = np.asarray(value).dtype
  return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


class CommandSuite(FunctionSuite):
  """An external scorer: every candidate is written as a folder, and a command scores it.

  Args:
    command: see `Command`; checked here.
    write: `(folder, params)`, writes a candidate.
    scratch: where candidates are written and removed again; made where it does not exist.

  Raises:
    ValueError: a command that cannot work.
  """

  def __init__(self, command: Command, write: Callable[[Path, PyTree], None], scratch: Path):
    command.check()
    super().__init__(dict.fromkeys(command.tasks, 1.0), self._call)
    self._command, self._write, self._scratch = command, write, scratch
    if not command.splits:
      self.notes = (
        "The scorer command has no {split}: search, validation and test are the same examples, so the "
        "reported scores are optimistic.",
      )

  def describe(self) -> list[tuple[str, str]]:
    """The command."""
    return [("scorer", self._command.template), *super().describe()]

  def _call(self, params: PyTree, split: str) -> Mapping[str, ArrayLike]:
    self._scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
      model_dir = Path(folder) / "model"
      model_dir.mkdir()
      self._write(model_dir, params)
      return self._command(model_dir, split, folder=Path(folder))
