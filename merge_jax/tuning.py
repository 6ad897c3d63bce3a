"""Weights found by gradients through the merge itself: a differentiable alternative to a search."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from merge_jax import operators as mj
from merge_jax.errors import shown
from merge_jax.evals.batching import Batches, Bucket, pack
from merge_jax.evals.branches import Rows
from merge_jax.evals.tokens import Tokens
from merge_jax.operators import grouping, lifting

PyTree = Any
Apply = Callable[..., Array]
Objective = Callable[[Apply, PyTree, Any], Array]
"""`(apply, params, batch)` to what is minimised, a scalar."""


class Matched(NamedTuple):
  """Prompts of one expert, `[R, …]`, and its logits `[R, A, vocabulary]` where they are asked for."""

  rows: Bucket
  logits: Array


def tune(
  prepared: mj.Prepared,
  apply: Apply,
  batches: Sequence[Any],
  objective: Objective,
  *,
  optimizer: optax.GradientTransformation | None = None,
  steps: int = 500,
  init: ArrayLike | Mapping[str, ArrayLike] | mj.Weights = 0.3,
  clip: tuple[float, float] | None = (0.0, 1.0),
  progress: Callable[[int, float], None] | None = None,
) -> tuple[mj.Weights, np.ndarray]:
  """Minimises an objective of the merged model over the weights of the merge.

      w ← clip(w - optimizer(∂/∂w objective(apply, combine(prepared, w), batch)))

  Args:
    prepared: from `mj.prepare`; an operator whose weights have gradients, as `mj.task_arithmetic()`.
    apply: `(params, tokens, positions) -> logits`, handed to the objective.
    batches: one a step, in turn; each different shape compiles once.
    objective: `entropy`, `loss`, `matching`, or your own `(apply, params, batch) -> scalar`.
    optimizer: of optax, by gradients alone; None for Adam with a rate of 1e-3, that of AdaMerging.
    steps: how many.
    init: the first weights: a number for all, one for each model, in order `[K]` or by name, or `Weights` by
      group or layer (see `per_layer`), whose patterns the result keeps.
    clip: bounds of every weight, or None.
    progress: called with the number of steps done and the objective.

  Returns:
    The weights after the last step, and the objective before each step, float64 `[steps]`.

  Raises:
    ValueError: no step or batch, bounds that exclude the first weights, weights that do not fit the models,
      batches of another objective, an optimizer that is none of optax.
    RuntimeError: an objective or weights that are not finite.

  Tensors in float16 or float8 are merged in float32 here: gradients with respect to single parameters are too
  small for their exponents.

  Sources: AdaMerging (arXiv 2310.02575), Expert Merging (arXiv 2509.25712).

  >>> base, experts = {"w": jnp.zeros(2)}, [{"w": jnp.array([4.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}]
  >>> prepared = mj.prepare(mj.task_arithmetic(), experts, base=base)
  >>> def distance(apply, params, batch):
  ...   return jnp.sum((params["w"] - batch) ** 2)
  >>> weights, history = tune(prepared, None, [jnp.array([2.0, 0.75])], distance, optimizer=optax.adam(0.1))
  >>> weights.values.round(2).tolist()
  [[0.5, 0.75]]
  """
  if not isinstance(batches, list | tuple):
    raise ValueError(f"tune: batches are {type(batches).__name__}; expected a list of them.")
  if not isinstance(steps, int | np.integer) or steps < 1 or not batches:
    raise ValueError(f"tune: got {steps} steps and {len(batches)} batches; expected one of each or more.")
  if not isinstance(optimizer, optax.GradientTransformation | None):
    raise ValueError(f"tune: optimizer is {shown(optimizer)}; expected one of optax, as optax.adam(0.01).")
  clip, dtype = _bounds(clip), _dtype(prepared)
  start = init if isinstance(init, mj.Weights) else mj.Weights(_row(init, prepared), ("(?s:.*)",))
  values, patterns = jnp.asarray(start.values, jnp.float32), start.patterns
  if clip is not None and not bool(jnp.all((values >= clip[0]) & (values <= clip[1]))):
    raise ValueError(f"tune: the first weights {values.tolist()} are not within clip={clip}; change either.")
  optimizer = optimizer or optax.adam(1e-3)

  @jax.jit
  def step(prepared: mj.Prepared, values: Array, state: Any, batch: Any) -> tuple[Array, Any, Array]:
    def of(values: Array) -> Array:
      return objective(apply, mj.combine(prepared, mj.Weights(values, patterns), dtype=dtype), batch)

    result, gradient = jax.value_and_grad(of)(values)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic promotes
      updates, state = optimizer.update(gradient, state, values)
    values = jnp.asarray(optax.apply_updates(values, updates))
    return values if clip is None else jnp.clip(values, *clip), state, result

  state, history = optimizer.init(values), []
  for number, batch in enumerate(itertools.islice(itertools.cycle(batches), steps), 1):
    values, state, result = step(prepared, values, state, batch)
    history.append(float(result))
    if not np.isfinite(history[-1]) or not np.all(np.isfinite(values)):
      do = "try a lower learning rate" if number > 1 else "look at models, first weights and batch"
      raise RuntimeError(
        f"The objective of step {number} is {history[-1]}, the weights after it are {values.tolist()}; {do}."
      )
    if progress is not None:
      progress(number, history[-1])
  return mj.Weights(values, patterns), np.array(history)


def _bounds(clip: Any) -> tuple[float, float] | None:
  if clip is None:
    return None
  try:
    low, high = map(float, clip)
  except (TypeError, ValueError):
    raise ValueError(f"tune: got clip={shown(clip)}; expected two numbers, or None.") from None
  if not low <= high:
    raise ValueError(f"tune: got clip={clip}; expected the lower bound first.")
  return low, high


def _dtype(prepared: mj.Prepared) -> Any:
  """What is merged in, if not as it is stored: parameters' gradients have the same dtype."""
  merged = (prepared.leaves[entry.name] for entry in prepared.plan.entries if entry.merged)
  if all(jnp.finfo(leaf.experts[0].dtype).minexp <= jnp.finfo(jnp.float32).minexp for leaf in merged):
    return None
  return jnp.float64 if prepared.wide else jnp.float32


def _row(init: ArrayLike | Mapping[str, ArrayLike], prepared: mj.Prepared) -> Array:
  chosen = lifting.by_position(init, prepared.names) if isinstance(init, Mapping) else init
  values = jnp.asarray(chosen, jnp.float32)
  return jnp.full((1, prepared.count), values) if values.ndim == 0 else values[None]


def entropy(apply: Apply, params: PyTree, batch: Bucket) -> Array:
  """Mean entropy of the predictions where they are asked for: AdaMerging's objective, which needs no labels.

  Its optimum is a model that is sure of what it says, right or wrong: score on data that were not used.
  """
  logs = jax.nn.log_softmax(_logits(apply, params, batch))
  seen = jnp.where(logs > -jnp.inf, logs, 0.0)  # what is masked has no part in it, nor in the gradient
  terms = jnp.where(logs > -jnp.inf, jnp.exp(seen) * seen, 0.0)
  return _mean(-jnp.sum(terms, axis=-1), batch)


def loss(apply: Apply, params: PyTree, batch: Bucket) -> Array:
  """Mean negative log-likelihood of the targets, in nats a token; every choice of a task is one."""
  logits = _logits(apply, params, batch)
  return _mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets), batch)


def matching(apply: Apply, params: PyTree, batch: Matched) -> Array:
  """Mean divergence `KL(expert ‖ merged)` on the expert's own prompts: Expert Merging's label-free objective.

  Of the paper's two parts this is the one on logits; hidden states are not compared.
  """
  if not isinstance(batch, Matched):
    raise ValueError(f"matching: got a batch that is {type(batch).__name__}; make batches by `matched`.")
  wanted = jax.nn.log_softmax(batch.logits.astype(jnp.float32))
  given = jax.nn.log_softmax(_logits(apply, params, batch.rows))
  seen = wanted > -jnp.inf  # what the expert masks has no part in it
  apart = jnp.where(seen, wanted, 0.0) - jnp.where(seen, given, 0.0)
  return _mean(jnp.sum(jnp.exp(wanted) * apart, axis=-1), batch.rows)


def summed(objective: Objective) -> Objective:
  """The sum of an objective over a tuple of batches, such as one of every task."""
  return lambda apply, params, batch: jnp.sum(jnp.stack([objective(apply, params, one) for one in batch]))


def rows(batches: Batches) -> list[Bucket]:
  """The batches of `evals.pack` one by one, `[R, …]` each.

  Raises:
    ValueError: rows that hold several choices, which objectives do not tell apart.
  """
  if any(one.mask.ndim > one.targets.ndim for one in batches.buckets):
    raise ValueError("tune: rows of these batches hold several choices; pack them without groups.")
  chunks = (jax.tree.map(lambda x, i=i: x[i], one) for one in batches.buckets for i in range(len(one.tokens)))
  return [Bucket(*chunk) for chunk in chunks]


def unlabelled(tokens: Tokens, prompts: Sequence[str], *, last: bool = False, **options: Any) -> list[Bucket]:
  """Batches of texts without targets: asked for is what follows every token, or the last one alone.

  Args:
    tokens: the tokenizer.
    prompts: the texts.
    last: of the last token alone.
    options: of `evals.pack`: `batch_tokens`, `max_shapes`, `vocabulary`.

  Raises:
    ValueError: a prompt without tokens; one text in place of several.
  """
  if isinstance(prompts, str):
    raise ValueError(f"unlabelled: got one text, {shown(prompts)}; expected a list of them.")
  ids = tokens.prompts(prompts)
  if [] in ids:
    raise ValueError(f"Prompt {ids.index([]) + 1} of {len(ids)} has no tokens; leave it out.")
  padded = [np.array([*one, 0], np.int32) for one in ids]  # what is to be predicted is not known
  return rows(pack(Rows(padded, [len(one) - 1 if last else 1 for one in padded]), **options))


def matched(apply: Apply, experts: Iterable[PyTree], prompts: Iterable[Sequence[Bucket]]) -> list[Matched]:
  """Every expert's logits on batches of its own prompts, the experts in turn, for `matching`.

  Raises:
    ValueError: other than one list of batches for each expert.

  They are kept for all batches: rows × asked × vocabulary floats; a few prompts of each expert are enough.
  """
  call = jax.jit(apply)
  each: list[list[Matched]] = []
  for params, own in itertools.zip_longest(experts, prompts):  # one expert at a time may be in memory
    if params is None or own is None:
      raise ValueError(
        f"matched: {'experts' if params is None else 'lists of batches'} end after {len(each)}."
      )
    each.append([Matched(one, call(params, one.tokens, one.positions)) for one in own])
  return [one for turn in itertools.zip_longest(*each) for one in turn if one is not None]


def per_layer(names: Iterable[str], row: Sequence[float]) -> mj.Weights:
  """Weights with a row for each layer, by the first number in the names, and one for all other tensors.

  >>> per_layer(["embed.w", "layers.0.w", "layers.1.w", "layers.1.v"], [0.3, 0.3]).values.shape
  (3, 2)
  """
  patterns = tuple(dict.fromkeys((*grouping.patterns("layer", names), grouping.ANY)))
  return mj.Weights(jnp.tile(jnp.asarray(row, jnp.float32)[None], (len(patterns), 1)), patterns)


def _logits(apply: Apply, params: PyTree, batch: Bucket) -> Array:
  if isinstance(batch, Matched):
    raise ValueError("The batches are those of `matched`, for `matching`; expected those of `rows`.")
  return apply(params, batch.tokens, batch.positions).astype(jnp.float32)


def _mean(values: Array, batch: Bucket) -> Array:
  """Over the positions that are asked for; a NaN there stays."""
  return jnp.sum(jnp.where(batch.mask > 0, values, 0.0)) / jnp.sum(batch.mask)
