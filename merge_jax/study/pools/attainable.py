"""How much there is to gain on a pool: gradient ascent in the weights, long searches over operators' numbers.

Both see the search's examples, and what they found is chosen on validation examples, as of a search.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from merge_jax import evals, models, tuning
from merge_jax import operators as mj
from merge_jax.evals import metrics
from merge_jax.evals.examples import Examples
from merge_jax.recipes.own_methods import factory
from merge_jax.search.scores import nullable
from merge_jax.study.grid import equally
from merge_jax.study.pools.contest import worth
from merge_jax.study.pools.settings import Attainable
from merge_jax.study.recycling.bench import Bench

Plain = dict[str, Any]
PASS = 8192
"""Tokens of a pass of the gradient."""
GROUPS = (r"(?s:.*self_attn.*)", r"(?s:.*mlp.*)", r"(?s:.*)")
FINALISTS = 5


class Ground(NamedTuple):
  """What both need of a pool.

  Attributes:
    bench: of the pool.
    experts, base: parameters.
    tasks: by split.
    greedy: weights of the greedy soup.
    reference: what it scores on test examples.
  """

  bench: Bench
  experts: list[dict[str, Any]]
  base: dict[str, Any]
  tasks: Mapping[str, Sequence[evals.Task]]
  greedy: Sequence[float]
  reference: Examples

  def score(self, params: Any, split: str) -> Examples:
    """Of all that is tried, by one program a split."""
    return next(self.bench.judge.score([params], split))


def ground(
  bench: Bench, tasks: Mapping[str, Sequence[evals.Task]], known: Plain, reference: Examples
) -> Ground:
  """Reads a pool; `known` is the result of `contest.known`."""
  assert bench.base is not None  # every pool of a suite has one
  experts = [checkpoint.load() for checkpoint in bench.checkpoints]
  return Ground(bench, experts, bench.base.load(), tasks, known["rows"]["greedy"]["weights"], reference)


def smooth_score(scorer: evals.Scorer) -> Callable[[Any, Any], Array]:
  """`(params, batches) -> score`, the mean of tasks' smoothed metrics, higher is better; it has a gradient.

  A gradient holds the activations of all rows: that of few thousand short ones is for small models.

  Args:
    scorer: made with `smooth=True`.
  """
  signs = [metrics.named(task.metric).sign for task in scorer.tasks]
  ends = np.cumsum([len(task.examples) for task in scorer.tasks])[:-1].tolist()

  def score(params: Any, batches: Any) -> Array:
    parts = jnp.split(scorer.function(params, batches), ends, axis=1)
    each = [sign * part[4].sum() / part[1].sum() for sign, part in zip(signs, parts, strict=True)]
    return jnp.mean(jnp.stack(each))

  return score


def ascent(own: Ground, space: str, options: Attainable) -> Plain:
  """Adam on the smoothed score, from the greedy soup; the best of its checks on validation.

  Weights on the simplex are a softmax; in the other spaces they are free, on the base, alike for all tensors,
  for each group (attention, feed-forward, the rest) or for each layer.

  Returns:
    `weights` by `patterns`; `step` it is from; `smooth`: score before each step; `validation`; of test
    examples `test` by task, `average`, and `gain` over the greedy soup with its `stderr`.
  """
  count = len(own.experts)
  prepared = mj.prepare(mj.task_arithmetic(), own.experts, base=own.base)
  row = np.asarray(own.greedy, np.float32)
  if space == "layer":
    first = tuning.per_layer(prepared.leaves, row.tolist())
  else:
    patterns = GROUPS if space == "group" else GROUPS[-1:]
    first = mj.Weights(jnp.tile(jnp.asarray(row)[None], (len(patterns), 1)), patterns)
  simplex = space == "simplex"
  # A weight of zero has no logarithm; at a fiftieth of the mean it can come back.
  values = (
    jnp.log(jnp.maximum(first.values, 0.02 / count)) if simplex else jnp.asarray(first.values, jnp.float32)
  )

  def weights(values: Array) -> mj.Weights:
    return mj.Weights(jax.nn.softmax(values, axis=-1) if simplex else values, first.patterns)

  checkpoint, tasks = own.bench.checkpoints[0], own.tasks["search"]
  model = models.build(checkpoint.config or {}, str(checkpoint.path))
  batches = evals.pack(evals.encode(tasks, evals.Tokens.from_folder(checkpoint.path)), batch_tokens=PASS)
  scorer = evals.make_scorer(model.apply, tasks, batches, smooth=True)
  score = smooth_score(scorer)
  optimizer = optax.adam(optax.cosine_decay_schedule(options.rate * (5 if simplex else 1), options.steps))

  @jax.jit
  def step(prepared: mj.Prepared, values: Array, state: Any, data: Any) -> tuple[Array, Any, Array]:
    def cost(values: Array) -> Array:
      return -score(mj.combine(prepared, weights(values)), data)

    value, gradient = jax.value_and_grad(cost)(values)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic promotes
      updates, state = optimizer.update(gradient, state, values)
      return jnp.asarray(optax.apply_updates(values, updates)), state, -value

  merge = jax.jit(lambda prepared, values: mj.combine(prepared, weights(values)))

  def validated(values: Array) -> float:
    return own.score(merge(prepared, values), "validation").average()

  state, smooth, checks = optimizer.init(values), [], [(0, values, validated(values))]
  marks = {round(options.steps * (i + 1) / options.checks) for i in range(options.checks)}
  for number in range(1, options.steps + 1):
    values, state, value = step(prepared, values, state, scorer.batches)
    smooth.append(float(f"{float(value):.6g}"))
    if number in marks:
      checks.append((number, values, validated(values)))
  at, best, validation = max(checks, key=lambda check: -np.inf if np.isnan(check[2]) else check[2])
  found = weights(best)
  return {
    "space": space, "step": at, "smooth": smooth, "validation": nullable(validation),
    "patterns": list(found.patterns), "weights": np.asarray(found.values, np.float64).tolist(),
  } | worth(own.score(merge(prepared, best), "test"), own.reference)  # fmt: skip


def numbers(own: Ground, name: str, ranges: Mapping[str, tuple[float, float]], options: Attainable) -> Plain:
  """A search over the numbers of an operator with equal weights: a third by chance, then around the best.

  Returns:
    `numbers` of the best on validation among the best on the search's examples; `fitness` of all that were
    evaluated; `validation`, and on test examples what `ascent` gives.
  """
  generator, names = np.random.default_rng(0), list(ranges)
  low, high = (np.array([ranges[name][i] for name in names]) for i in (0, 1))
  merged = jax.jit(functools.partial(equally, weight=1 / len(own.experts)))

  def scored(x: np.ndarray, split: str) -> Examples:
    made = factory(name)(**{n: jnp.float32(v) for n, v in zip(names, x, strict=True)})
    return own.score(merged(made, own.experts, own.base, jax.random.key(0)), split)

  tried, values = list[np.ndarray](), list[float]()
  for i in range(options.evaluations):
    x = low + (high - low) * generator.random(len(names))
    if i > max(options.evaluations // 3, 1):
      centre = tried[int(np.nanargmax(values))]
      step = 0.3 * (1 - i / options.evaluations) * (high - low) * generator.standard_normal(len(names))
      only = np.arange(len(names)) == generator.integers(len(names))
      x = np.clip(centre + (step * only if generator.random() < 0.5 else step), low, high)
    tried.append(x)
    values.append(scored(x, "search").average())
  order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:FINALISTS]
  validation = [scored(tried[i], "validation").average() for i in order]
  best = int(np.argmax(np.nan_to_num(validation, nan=-np.inf)))
  x = tried[order[best]]
  return {
    "space": name, "numbers": dict(zip(names, x.tolist(), strict=True)),
    "validation": nullable(validation[best]), "fitness": [nullable(value) for value in values],
  } | worth(scored(x, "test"), own.reference)  # fmt: skip
