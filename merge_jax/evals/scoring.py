"""Scores of all tasks for one set of parameters, in one jitted program."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from merge_jax import sharding
from merge_jax.evals import metrics
from merge_jax.evals.answers import Answers, Details
from merge_jax.evals.batching import Batches, Bucket
from merge_jax.evals.examples import Examples
from merge_jax.evals.generation import Generation
from merge_jax.evals.tasks import Task, size_table, target_table, units

Apply = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A pure function `(params, batches) -> [4, examples]` and the data to call it with.

  The values are those of `Examples`, with smoothed scores `[5, examples]`, the last row theirs.
  With `answers` the function gives a pair: these values, and `Details` for `Answers.read`.
  Where texts are generated, the function gives a pair: these values, and the texts' tokens.

  Attributes:
    function: traceable; combine it with a merge in one `jit`.
    batches: device arrays, passed as an argument (a closure would bake them in as constants).
    tasks: whose examples are scored.
    answers: how the details are read, if they are given.
    groups: which of their examples are not independent, see `tasks.units`.
    generation: of texts, where a task is scored by them.
  """

  function: Callable[[Any, Any], Any]
  batches: Any
  tasks: tuple[Task, ...]
  answers: Answers | None = None
  groups: np.ndarray | None = None
  generation: Generation | None = None

  def read(self, found: Any) -> Examples:
    """The function's result on the host."""
    values = found
    if self.generation is not None:
      values, texts = np.array(found[0], np.float64), np.asarray(found[1])
      values[0] += self.generation.hits(self.tasks, texts)
    return Examples(
      tuple(task.name for task in self.tasks),
      tuple(metrics.named(task.metric).sign for task in self.tasks),
      tuple(len(task.examples) for task in self.tasks),
      np.asarray(values[:4], np.float64),
      self.groups,
      np.asarray(values[4], np.float64) if len(values) > 4 else None,
    )


def reader(
  apply: Apply, *, dtype: Any = None, selects: bool = True, competitors: int = 0, smooth: bool = False
) -> Callable[[Any, Bucket], tuple[Array, ...]]:
  """What reads one pass: `(params, bucket without its first axis) -> losses, tokens, exact` of its targets.

  Each is float32 `[R, M]`, M targets a row: negative log-likelihood, number of tokens, and whether all are
  the most likely ones. Then, if they are asked for, losses with all logits over `metrics.SMOOTHING`, and
  competitors at each position.

  Args:
    apply, dtype, selects, competitors, smooth: see `make_scorer`.

  Raises:
    ValueError: an `apply` that does not take what it is given.
  """
  _refuse_misfit(apply, selects, dtype)
  call = functools.partial(apply, dtype=dtype) if dtype is not None else apply

  def chunk(params: Any, one: Bucket) -> tuple[Array, ...]:
    if not selects:
      logits = jnp.take_along_axis(call(params, one.tokens), one.positions[:, :, None], axis=1)
    elif one.branches is None:
      logits = call(params, one.tokens, one.positions)
    else:
      logits = call(params, one.tokens, one.positions, branches=one.branches)
    logits = logits.astype(jnp.float32)
    at_target = jnp.take_along_axis(logits, one.targets[:, :, None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - at_target
    wrong = jnp.argmax(logits, axis=-1) != one.targets
    asked = one.mask.reshape(len(losses), -1, losses.shape[1]) > 0  # of each target of a row

    def summed(values: Array) -> Array:
      # A NaN must not vanish behind a mask: scores of a broken model are NaN.
      return jnp.where(asked, values[:, None], 0.0).sum(-1)

    totals = summed(losses)
    hits = (~(wrong[:, None] & asked).any(-1)).astype(jnp.float32)
    found = [totals, asked.sum(-1, dtype=jnp.float32), jnp.where(jnp.isnan(totals), jnp.nan, hits)]
    if smooth:
      sharp = logits / metrics.SMOOTHING
      found.append(summed(jax.nn.logsumexp(sharp, axis=-1) - at_target / metrics.SMOOTHING))
    return (*found, *_strongest(logits, jnp.asarray(one.targets), at_target, competitors))

  return chunk


def _refuse_misfit(apply: Apply, selects: bool, dtype: Any) -> None:
  given = ["params", "tokens", *(["positions"] if selects else [])]
  try:
    signature = inspect.signature(apply)
  except ValueError:  # what is not written in Python may not tell
    return
  try:
    signature.bind(*given, **({} if dtype is None else {"dtype": dtype}))
  except TypeError as error:
    call = ", ".join((*given, *([] if dtype is None else ["dtype="])))
    raise ValueError(
      f"apply cannot be called as apply({call}): {error}; expected that, selects=False for an apply of "
      "params and tokens alone, and no dtype= if it takes none."
    ) from None


def make_scorer(
  apply: Apply,
  tasks: Sequence[Task],
  batches: Batches,
  *,
  dtype: Any = None,
  selects: bool = True,
  mesh: Mesh | None = None,
  competitors: int = 0,
  smooth: bool = False,
  generation: Generation | None = None,
) -> Scorer:
  """Scores tasks with a model's `apply`.

  Args:
    apply: `(params, tokens, asked) -> logits [rows, asked, vocabulary]`, or with `selects=False`
      any `(params, tokens) -> logits [rows, time, vocabulary]`. Batches with branches need an `apply` that
      takes them, too (`branches=`).
    tasks: the tasks that `batches` was packed from.
    batches: from `pack(encode(tasks, …))`.
    dtype: computation dtype handed to `apply(…, dtype=)`, or None: an `apply` that takes none.
    selects: whether `apply` takes the positions that are asked for.
    mesh: whose axes `sharding.ROWS` divide the rows of each pass (`pack` them in multiples of
      `sharding.row_count`); None: the default device.
    competitors: how many of the strongest wrong tokens are given at each target position, for a surrogate.
    smooth: whether scores are given smoothed, too (`metrics.smoothed`); all tasks' must be such.
    generation: from `generation.prepare`, where a task is scored by generated texts.

  Returns:
    A `Scorer`; jit `scorer.function` alone or together with a merge.

  Raises:
    ValueError: an `apply` that does not take what it is given.
  """
  read = reader(apply, dtype=dtype, selects=selects, competitors=competitors, smooth=smooth)
  columns = 4 if smooth else 3

  def rows(params: Any, bucket: Bucket) -> tuple[Array, ...]:
    """What `reader` gives, of all targets in a row, and competitors as they are."""

    chunk = functools.partial(read, params)
    if bucket.tokens.shape[0] == 1:
      parts = chunk(jax.tree.map(lambda x: x[0], bucket))
    else:
      parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(chunk, bucket))
    return (*(x.reshape(-1) for x in parts[:columns]), *parts[columns:])

  rules = [metrics.named(task.metric, f"Task {task.name!r}") for task in tasks]
  tables = [(*target_table(task), size_table(task)) for task in tasks]

  def likelihoods(params: Any, data: tuple[tuple[Bucket, ...], Array]) -> Any:
    buckets, order = data
    parts = [rows(params, bucket) for bucket in buckets]
    every = [jnp.concatenate(x)[order] for x in zip(*(part[:columns] for part in parts), strict=True)]
    results, start = [], 0
    for rule, (table, right, sizes) in zip(rules, tables, strict=True):
      exists = table >= 0
      losses, counts, exact, *sharp = (x[start + np.maximum(table, 0)] for x in every)
      given = metrics.Likelihoods(losses, counts, exact, *map(jnp.asarray, (exists, right, sizes)), *sharp)
      last = [metrics.smoothed(rule, given)] if smooth else []
      results.append(jnp.stack([*rule.compute(given), *metrics.loss(given), *last]))
      start += int(exists.sum())
    values = jnp.concatenate(results, axis=1)
    if not competitors:
      return values
    return values, Details(every[0], tuple(part[-2] for part in parts), tuple(part[-1] for part in parts))

  data = (batches.buckets, batches.order)
  if mesh is None:
    data = jax.device_put(data)
  else:
    data = jax.tree.map(lambda x: sharding.put(x, mesh, P(None, sharding.ROWS) if x.ndim > 1 else P()), data)
  answers = Answers.of(tasks, batches) if competitors else None
  if generation is None:
    return Scorer(likelihoods, data, tuple(tasks), answers, units(tasks))
  if competitors:
    raise ValueError("Generated texts have no competitors; expected competitors=0 with generation.")

  def function(params: Any, data: Any) -> tuple[Array, Array]:
    return likelihoods(params, data[0]), generation.function(params, data[1], dtype)

  return Scorer(function, (data, generation.placed(mesh)), tuple(tasks), None, units(tasks), generation)


def _strongest(logits: Array, targets: Array, at_target: Array, count: int) -> tuple[Array, ...]:
  """How far the strongest other tokens lie above the targets, float16 `[R, A, count]`, and which they are."""
  if not count:
    return ()
  right = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
  above = jnp.where(right, -jnp.inf, logits - at_target[..., None])
  gaps, rivals = jax.lax.top_k(above, min(count, logits.shape[-1] - 1))
  return jnp.clip(gaps, -6e4, 6e4).astype(jnp.float16), rivals.astype(jnp.int32)
