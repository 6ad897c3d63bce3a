"""One search, and the models that it is judged by: everything that the analyses read, as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from merge_jax.checkpoints import Checkpoint
from merge_jax.evals.objective import Evaluation
from merge_jax.recycle import result as results
from merge_jax.search import baselines, final
from merge_jax.search.analysis import top
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Journal, Record
from merge_jax.search.loop import REPORTED, SPLIT, Budget, Result, measure, search
from merge_jax.search.point import Candidate
from merge_jax.search.proposers import Options, proposer
from merge_jax.search.scores import best, nullables
from merge_jax.search.space import space
from merge_jax.study.recycling.bench import Bench, Members
from merge_jax.study.recycling.settings import Arm

Plain = dict[str, Any]
VALIDATION = "validation"


def singles(bench: Bench) -> Plain:
  """What every checkpoint scores, and what it cost.

  Returns:
    `kind`: "singles".
    `checkpoints`: names; `stages`: of each, or None.
    `signs`: of all tasks by name; `units`: of all test examples (see `tasks.units`), or None.
    `sizes`: examples by split and task; `tokens`: of the search split by task.
    `models`: of each checkpoint the scores by split and the test `examples` (see `model`).
    `parameters`: of one; `trained`: tokens that each was trained on, `base_trained`: the base; `sequences`
      that each was trained on. None where it is not known.
  """
  pool, suite = bench.pool, bench.suite
  scored = {split: bench.singles(split) for split in suite.splits}
  first = scored[REPORTED][0].examples
  return {
    "kind": "singles",
    "checkpoints": list(pool.folders),
    "stages": [pool.stages.get(name) for name in pool.folders],
    "signs": dict(zip(first.tasks, first.signs, strict=True)) if first else {},
    "units": None if (units := suite.groups(REPORTED)) is None else units.tolist(),
    "sizes": {split: suite.sizes(split) for split in suite.splits},
    "tokens": {task: suite.tokens(SPLIT, [task]) for task in suite.names},
    "models": [_single(scored, i) for i in range(bench.count)],
    "parameters": bench.checkpoints[0].parameters,
    "trained": [results.training_tokens([one]) for one in bench.checkpoints],
    "base_trained": None if bench.base is None else results.training_tokens([bench.base]),
    "sequences": [_sequences(checkpoint) for checkpoint in bench.checkpoints],
  }


def _single(scored: Mapping[str, Sequence[Evaluation]], index: int) -> Plain:
  found: Plain = {split: nullables(some[index].scores) for split, some in scored.items()}
  examples = scored[REPORTED][index].examples
  return found | {"examples": None if examples is None else examples.to_plain()}


def _sequences(checkpoint: Checkpoint) -> int | None:
  """Examples that training read, from `training.json`; None where it does not say."""
  about = results.training(checkpoint, _About)
  return None if about is None else about.steps * about.recipe.batch_size


class _Batch(msgspec.Struct, frozen=True):
  batch_size: int


class _About(msgspec.Struct, frozen=True):
  """What `training.json` tells of the work."""

  steps: int
  recipe: _Batch


def run(bench: Bench, tasks: Sequence[str], count: int, arm: Arm, seed: int, budgets: Sequence[int]) -> Plain:
  """Searches over the `count` best checkpoints, up to the largest budget, and judges what each budget found.

  The known points come first: the singles, uniform, merge-best and greedy soups of these checkpoints. A
  search that starts "uniform" does not look at them; they compete with what it finds on validation examples.

  Args:
    bench: of the pool.
    tasks: of the fitness.
    count, arm, seed, budgets: see `Recycling`.

  Returns:
    `kind`: "search".
    `members`: positions of the checkpoints in the pool.
    `known`: number of known points, the first of the following columns.
    `kinds`, `fitness`, `weights` (of all checkpoints of the pool), `scores` (by task, each a column): of the
      points that were evaluated on the search's examples, in order; null where not finite.
    `models`: different merges, each with method, weights, numbers, the scores on "search", "validation" and
      "test" by task, and the test `examples` as `Examples.to_plain` has them.
    `answers`: for each budget `evaluations`, the points proposed; `rows`, the place in `models` by name:
      best_single, best_on_TASK, uniform, merge_best, greedy, search_best (the fittest point proposed),
      search_mean and `selected`, which `selected_from` names; `top`: weights of the five fittest proposed.

  Raises:
    ValueError: nothing that was proposed has finite scores.
  """
  fitness, members = bench.fitness(tasks), bench.best(bench.fitness(tasks), count)
  objective, journal = Members(bench, members), Journal()
  options = Options(
    arm.method, space(arm.space, count), fitness, count, seed, arm.sigma or None, None, arm.start
  )
  known = search(
    lambda: baselines.known_points(fitness, count), objective, journal, fitness, Budget(2 * count + 1)
  ).records
  judged = _Judged(objective, journal, fitness)
  answers, records = [], known
  for budget in budgets:
    found = search(proposer(arm.proposer, options), objective, journal, fitness, Budget(len(known) + budget))
    records = found.records
    answers.append({"evaluations": len(records) - len(known)} | judged.answer(found, arm.method))
  names = bench.suite.sizes(SPLIT)
  return {
    "kind": "search",
    "members": list(members),
    "known": len(known),
    "kinds": [record.kind for record in records],
    "fitness": [record.fitness for record in records],
    "weights": [objective.whole(record.candidate).point.weights for record in records],
    "scores": {task: [record.scores[task] for record in records] for task in names},
    "models": judged.models,
    "answers": answers,
  }


class _Judged:
  """Merges that are answers, each scored once on every split."""

  def __init__(self, objective: Members, journal: Journal, fitness: Fitness):
    self._objective, self._journal, self._fitness = objective, journal, fitness
    self._candidates: list[Candidate] = []
    self.models: list[Plain] = []

  def answer(self, found: Result, method: str) -> Plain:
    """The rows of a search as far as it went."""
    fitness, records, count = self._fitness, found.records, len(self._objective.places)
    rows = final.rows(records, fitness, count, method, found.mean)
    proposed = [record for record, new in zip(records, baselines.searched(records), strict=True) if new]
    if (at := best(fitness.of(proposed))) is None:
      raise ValueError(f"None of the {len(proposed)} points that the search proposed has finite scores.")
    rows["search_best"] = proposed[at].candidate  # of the search alone: known points have their rows
    scored = {
      split: dict(zip(rows, measure(list(rows.values()), split, self._objective, self._journal), strict=True))
      for split in (SPLIT, VALIDATION, REPORTED)
    }
    selected = final.select({n: scored[VALIDATION][n] for n in final.finalists(rows)}, fitness, records).name
    places = {
      name: self._place(candidate, {split: some[name] for split, some in scored.items()})
      for name, candidate in rows.items()
    }
    whole = [self._objective.whole(one.candidate) for one in top(proposed, fitness.of(proposed))]
    return {
      "rows": places | {"selected": places[selected]},
      "selected_from": selected,
      "top": [one.point.weights for one in whole],
    }

  def _place(self, candidate: Candidate, records: Mapping[str, Record]) -> int:
    for i, other in enumerate(self._candidates):
      if candidate.same_model(other):
        return i
    point = self._objective.whole(candidate).point
    about = {"method": candidate.method, "weights": point.weights, "numbers": point.numbers}
    scores = {split: record.scores for split, record in records.items()}
    self._candidates.append(candidate)
    self.models.append(about | scores | {"examples": records[REPORTED].examples})
    return len(self._candidates) - 1
