"""One contestant on one pool: a search, and what it is worth after each of the budgets."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from merge_jax.evals.examples import Examples
from merge_jax.evals.uncertainty import paired_difference
from merge_jax.recycle.choice import choose
from merge_jax.search import baselines, final
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Journal, Record
from merge_jax.search.loop import CHOOSING, REPORTED, Budget, Generations, Proposer, measure, search
from merge_jax.search.options import Evidence, Options
from merge_jax.search.outputs import Outputs
from merge_jax.search.point import Candidate, Point
from merge_jax.search.proposers import proposer
from merge_jax.search.scores import nullable, nullables
from merge_jax.search.space import space
from merge_jax.search.surrogate.surest import surest
from merge_jax.study.pools.scores import Scores
from merge_jax.study.pools.settings import Contestant

Plain = dict[str, Any]


class Mark(NamedTuple):
  """When a generation was asked for: records there were, the proposer's mean, seconds it had taken."""

  records: int
  mean: Point | None
  seconds: float


class Watched:
  """A proposer whose time and means are kept: budgets are read from the longest search."""

  def __init__(self, propose: Proposer):
    self._propose, self.marks = propose, list[Mark]()

  def __call__(self) -> Generations:
    proposals, told, spent, count = self._propose(), None, 0.0, 0
    mean: Point | None = None
    while True:
      began = time.perf_counter()
      try:
        proposal = next(proposals) if told is None else proposals.send(told)
      except StopIteration:
        proposal = None
      spent += time.perf_counter() - began
      mean = proposal.mean if proposal is not None and proposal.mean is not None else mean
      self.marks.append(Mark(count, mean, spent))
      if proposal is None:
        return
      told = yield proposal
      count += len(told)

  def at(self, records: int) -> Mark:
    """As a search of so many evaluations would have ended."""
    return [mark for mark in self.marks if mark.records <= records][-1]


def options_of(one: Contestant, scores: Scores, seed: int, outputs: Outputs) -> Options:
  """What the contestant's proposer is made from."""
  free, answers = space(one.space, scores.count, rows=scores.rows), scores.suite.answers
  return Options(
    one.method, free, scores.fitness(one.fitness), scores.count, seed,
    one.sigma or None, one.population or None, one.start, metric=scores.metric, extra=one.options,
    based=free.scaled, evidence=None if answers is None else Evidence(answers, outputs.of),
  )  # fmt: skip


def known(scores: Scores) -> Plain:
  """The known points of a pool, by the metric, and what greedy soup, uniform and the best single are worth.

  Returns:
    `checkpoints`: names; `records`: kind, weights, fitness of each point in order; `metric`: Gram matrix of
    the task vectors; `seconds` of an evaluation; `rows`: "greedy", "uniform" and "best_single", each as in
    `run`; `counts`: of the test examples, by task.
  """
  records, rows = _known(scores)
  compared = examples(scores, rows["greedy"])
  chosen = {name: rows[name] for name in ("greedy", "uniform", "best_single")}
  return {
    "checkpoints": list(scores.pool.members),
    "records": [{"kind": r.kind, "weights": r.point.weights, "fitness": r.fitness} for r in records],
    "metric": scores.metric.tolist(),
    "seconds": scores.seconds,
    "rows": {name: judged(scores, one, compared) for name, one in chosen.items()},
    "counts": _columns(compared, "counts"),
  }


def run(
  scores: Scores, one: Contestant, seed: int, budgets: Sequence[int], journal: Journal, caution: float = 1.0
) -> Plain:
  """Searches once, up to the largest budget.

  Args:
    scores: of the pool.
    one, seed: who searches.
    budgets: evaluations, known points included, increasing.
    journal: what it holds is not evaluated again.
    caution: of the choice, see `search.final`.

  Returns:
    `evaluations`, `fitness` of each in order; `answers`: for each budget what `judged` says of the finalist
    that is chosen, `name` of the finalist, its fitness on "search" and "validation",
    `evaluations` made and `proposing`, the seconds that the proposer took.

  Raises:
    ValueError: nothing that was evaluated has finite scores.
  """
  fitness = scores.fitness(one.fitness)
  outputs = Outputs()
  options = options_of(one, scores, seed, outputs)
  watched = Watched(proposer(one.proposer, options, known=one.known))
  records = search(watched, scores, journal, fitness, Budget(budgets[-1]), outputs=outputs).records
  compared = reference(scores)
  found = []
  for budget in budgets:
    some, mark = records[:budget], watched.at(budget)
    rows = final.rows(some, fitness, scores.count, one.method, mark.mean, surest(some, options))
    name, chosen, validation = selected(scores, some, fitness, rows, caution)
    own = [record.fitness for record in some if record.candidate.same_model(chosen)]
    found.append(
      {"budget": budget, "evaluations": len(some), "proposing": round(mark.seconds, 4), "name": name,
       "search": own[0] if own else None, "validation": validation}
      | judged(scores, chosen, compared)
    )  # fmt: skip
  return {"evaluations": len(records), "fitness": [r.fitness for r in records], "answers": found}


def selected(
  scores: Scores,
  records: Sequence[Record],
  fitness: Fitness,
  rows: Mapping[str, Candidate],
  caution: float,
) -> tuple[str, Candidate, float | None]:
  """Name, finalist and validation fitness of what is chosen on validation examples."""
  names = final.finalists(rows)
  measured = measure([rows[name] for name in names], CHOOSING, scores, Journal())
  scored = dict(zip(names, measured, strict=True))
  seen = {name: scores.evaluate([rows[name]], CHOOSING)[0].examples for name in names}
  name = choose(scored, seen, fitness, records, caution).name
  values = fitness.values([scored[name].scores], [scored[name].losses])
  return name, rows[name], nullable(float(fitness.aggregated(values, fitness.singles(records))[0]))


def judged(scores: Scores, candidate: Candidate, compared: Examples) -> Plain:
  """What a merge is worth on test examples.

  Returns:
    `method`, `weights`, `numbers`; what `worth` says; `sums` of each example, as text.
  """
  own, point = examples(scores, candidate), candidate.point
  about = {"method": candidate.method, "weights": point.weights, "numbers": point.numbers}
  return about | worth(own, compared) | {"sums": _columns(own, "sums")}


def worth(own: Examples, compared: Examples) -> Plain:
  """What test examples say.

  Returns:
    `test`: scores by task; `average`: their mean, higher is better; `gain`, `stderr`: over what they are
    compared with, paired by example.
  """
  gain, error = paired_difference(own, compared)
  return {
    "test": nullables(own.scores()), "average": nullable(own.average()), "gain": nullable(gain),
    "stderr": nullable(error),
  }  # fmt: skip


def reference(scores: Scores) -> Examples:
  """What every test example scored by the greedy soup of the pool, which gains are over."""
  return examples(scores, _known(scores)[1]["greedy"])


def examples(scores: Scores, candidate: Candidate) -> Examples:
  """What every test example scored."""
  (found,) = scores.evaluate([candidate], REPORTED)
  assert found.examples is not None  # built-in tasks have them
  return found.examples


def _known(scores: Scores) -> tuple[list[Record], dict[str, Candidate]]:
  """All known points of the pool by the metric, and the rows among them."""
  fitness, count = scores.fitness("metric"), scores.count
  records = search(
    lambda: baselines.known_points(fitness, count), scores, Journal(), fitness, Budget(2 * count + 1)
  ).records
  return records, final.rows(records, fitness, count, baselines.METHOD, None)


def _columns(examples: Examples, which: str) -> dict[str, str]:
  """A number for each example by task, six digits each, with blanks between: short in a file."""
  columns = examples.to_plain().items()
  return {
    name: " ".join("nan" if x is None else f"{x:.6g}" for x in column[which]) for name, column in columns
  }
