"""A training loop on mixtures of tasks, many steps a call."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from merge_jax.evals.batching import Bucket, encode, pad
from merge_jax.evals.tasks import Task
from merge_jax.evals.tokens import Tokens

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a checkpoint is trained.

  Attributes:
    mixture: share of each task in a batch, by task name; tasks left out are not seen.
    steps: optimizer steps.
    learning_rate: peak of the schedule.
    warmup: steps of linear warm-up.
    schedule_steps: steps over which the cosine reaches zero, at least `steps`; a larger number
      stops early. None: `steps`.
    until_loss: stop once the mean loss of the last hundred steps is below; 0 trains all steps.
    batch_size: examples a step.
    weight_decay, b2, clip: of AdamW, and the global gradient norm.
    seed: of the examples that are drawn.
  """

  mixture: Mapping[str, float]
  steps: int
  learning_rate: float
  warmup: int = 20
  schedule_steps: int | None = None
  until_loss: float = 0.0
  batch_size: int = 32
  weight_decay: float = 0.0
  b2: float = 0.98
  clip: float = 1.0
  seed: int = 0


class Trained(NamedTuple):
  """Parameters, the loss of each call of steps, the steps done and the tokens read."""

  params: Params
  losses: list[float]
  steps: int
  tokens: int


class Corpus(NamedTuple):
  """Training examples on the device: one bucket, and the rows of each task."""

  rows: Bucket
  names: tuple[str, ...]
  starts: np.ndarray
  counts: np.ndarray


def corpus(tasks: Sequence[Task], tokens: Tokens) -> Corpus:
  """Encodes the right answers of all tasks."""
  right = [
    dataclasses.replace(
      task,
      examples=tuple(e._replace(targets=(e.targets[e.answer],), answer=0) for e in task.examples),
    )
    for task in tasks
  ]
  rows = jax.device_put(pad(encode(right, tokens)))
  counts = np.array([len(task.examples) for task in tasks])
  starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
  return Corpus(rows, tuple(task.name for task in tasks), starts, counts)


def train(
  apply: Callable[..., Array],
  params: Params,
  data: Corpus,
  recipe: Recipe,
  *,
  steps_per_call: int = 20,
  progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
  """Trains on a mixture of tasks; the loss is the mean over target tokens.

  Args:
    apply: `(params, tokens, asked) -> logits`.
    params: to start from; not changed.
    data: from `corpus`.
    recipe: see `Recipe`.
    steps_per_call: steps in one compiled call.
    progress: called with steps done, steps in all and the last loss.

  Raises:
    ValueError: a mixture that names unknown tasks or has no positive share.
  """
  shares = _shares(recipe.mixture, data.names)
  optimizer = optimizer_of(recipe)
  step = _compiled(apply, optimizer, recipe.batch_size)
  state = optimizer.init(params)
  key, done = jax.random.key(recipe.seed), 0
  losses: list[float] = []
  window = max(1, 100 // steps_per_call)
  while done < recipe.steps and not (len(losses) >= window and np.mean(losses[-window:]) < recipe.until_loss):
    count = min(steps_per_call, recipe.steps - done)
    keys = jax.random.split(jax.random.fold_in(key, done), count)
    params, state, loss = step(params, state, keys, data.rows, shares, data.starts, data.counts)
    done += count
    losses.append(float(loss))
    if progress is not None:
      progress(done, recipe.steps, losses[-1])
  row_tokens = int(data.rows.tokens.shape[-1])
  return Trained(params, losses, done, done * recipe.batch_size * row_tokens)


def optimizer_of(recipe: Recipe) -> optax.GradientTransformation:
  """AdamW with warm-up, cosine decay and a clipped gradient norm."""
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, recipe.learning_rate, recipe.warmup, max(recipe.schedule_steps or 0, recipe.steps)
  )
  return optax.chain(
    optax.clip_by_global_norm(recipe.clip),
    optax.inject_hyperparams(optax.adamw)(schedule, b2=recipe.b2, weight_decay=recipe.weight_decay),
  )


def _shares(mixture: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
  for name in mixture:
    if name not in names:
      raise ValueError(f"The mixture names task {name!r}; the data have {', '.join(names)}.")
  shares = np.array([mixture.get(name, 0.0) for name in names], np.float32)
  if np.min(shares) < 0 or np.sum(shares) <= 0:
    raise ValueError(f"The mixture {dict(mixture)} needs a positive share, and no negative one.")
  return shares / shares.sum()


def _compiled(apply: Callable[..., Array], optimizer: Any, batch_size: int) -> Callable[..., Any]:
  def loss_of(params: Params, batch: Bucket) -> Array:
    logits = apply(params, batch.tokens, batch.positions)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return jnp.sum(losses * batch.mask) / jnp.sum(batch.mask)

  @jax.jit
  def steps(
    params: Params,
    state: Any,
    keys: Array,
    rows: Bucket,
    shares: Array,
    starts: Array,
    counts: Array,
  ) -> tuple[Params, Any, Array]:
    def one(carry: tuple[Params, Any], key: Array) -> tuple[tuple[Params, Any], Array]:
      params, state = carry
      of_task, of_row = jax.random.split(key)
      task = jax.random.choice(of_task, len(shares), (batch_size,), p=shares)
      places = jax.random.uniform(of_row, (batch_size,)) * counts[task]
      index = starts[task] + jnp.minimum(places.astype(jnp.int32), counts[task] - 1)
      loss, gradient = jax.value_and_grad(loss_of)(params, jax.tree.map(lambda x: x[index], rows))
      updates, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(one, (params, state), keys)
    return params, state, losses.mean()

  return steps
