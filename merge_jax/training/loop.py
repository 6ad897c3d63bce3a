"""A training loop on mixtures of tasks."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from merge_jax import sharding
from merge_jax.evals.batching import Bucket
from merge_jax.training.corpus import WINDOW, Corpus, batches
from merge_jax.training.recipe import Recipe

SMALL = 1 << 22
"""Parameters up to which a compiled call does `WINDOW` steps; a larger model can stop after each."""

Params = dict[str, Array]


class Diverged(RuntimeError):
  """The loss or the parameters are not finite."""


class State(NamedTuple):
  """All that a training is between two steps.

  Attributes:
    params: by name.
    optimizer: optax's state.
    losses: of each step done, the mean over its target tokens.
    tokens: real ones that were read, without padding.
  """

  params: Params
  optimizer: Any
  losses: list[float]
  tokens: int

  @property
  def step(self) -> int:
    """Steps done."""
    return len(self.losses)

  @property
  def final_loss(self) -> float:
    """Mean of the last steps."""
    return float(np.mean(self.losses[-WINDOW:]))


def begin(params: Mapping[str, Array], recipe: Recipe, mesh: Mesh | None = None) -> State:
  """The state before the first step; the parameters are copied, and their moments lie as they do."""
  own = {name: jnp.array(value) for name, value in params.items()}
  optimizer = optimizer_of(recipe).init(own)
  if mesh is not None:  # counts, rates, and moments of what is not cut
    whole = functools.partial(sharding.put, mesh=mesh, spec=P())
    optimizer = jax.tree.map(
      lambda x: x if len(x.sharding.device_set) == mesh.size else whole(np.asarray(x)), optimizer
    )
  return State(own, optimizer, [], 0)


def train(
  apply: Callable[..., Array],
  state: State,
  data: Corpus,
  recipe: Recipe,
  *,
  progress: Callable[[State], None] | None = None,
  mesh: Mesh | None = None,
) -> State:
  """Trains on a mixture of tasks; the loss of a step is the mean over the target tokens of its batch.

  A state continues where it was: the same steps follow, whenever it was interrupted. Each shape of the
  corpus is compiled once, when a batch first needs it. Beside its input a step holds a gradient, the
  activations of one padded batch, and its logits `[batch, targets, vocabulary]` in float32 about three
  times: with a large vocabulary and long targets these are most of it, and `batch_size` bounds them.

  Args:
    apply: `(params, tokens, positions) -> logits`.
    state: from `begin`, or an earlier one; its arrays are given to the computation, use them no more.
    data: from `corpus`; on the host, only a batch is on the device.
    recipe: see `Recipe`.
    progress: called with the state after each call of steps (see `SMALL`; one where the corpus has several
      shapes); it may read it, the next call takes its arrays.
    mesh: over which the state's arrays are cut and the rows of a batch divided, where their number allows.

  Raises:
    ValueError: a mixture that names unknown tasks or has no positive share.
    Diverged: see there.
  """
  call = _compiled(apply, optimizer_of(recipe), state, mesh)
  most = WINDOW if sum(value.size for value in state.params.values()) <= SMALL else 1
  for batch, tokens in batches(data, recipe, state.step, most):
    if _settled(state.losses, recipe.until_loss):
      break
    params, optimizer, values = call(state.params, state.optimizer, batch)
    losses = [float(value) for value in np.asarray(values)]
    state = State(params, optimizer, [*state.losses, *losses], state.tokens + tokens)
    if not all(map(math.isfinite, losses)):
      at = next(i for i, loss in enumerate(state.losses) if not math.isfinite(loss))
      raise Diverged(_words(f"The loss of step {at + 1} is {state.losses[at]}", recipe))
    if progress is not None:
      progress(state)
  if not all(bool(jnp.isfinite(value).all()) for value in state.params.values()):
    raise Diverged(_words(f"The parameters are not finite after step {state.step}", recipe))
  return state


def optimizer_of(recipe: Recipe) -> optax.GradientTransformation:
  """AdamW with warm-up, cosine decay and a clipped gradient norm."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, recipe.warmup, recipe.horizon)
  return optax.chain(
    optax.clip_by_global_norm(recipe.clip),
    optax.inject_hyperparams(optax.adamw)(schedule, b2=recipe.b2, weight_decay=recipe.weight_decay),
  )


def _settled(losses: list[float], until: float) -> bool:
  return len(losses) >= 100 and len(losses) % WINDOW == 0 and float(np.mean(losses[-100:])) < until


def _words(what: str, recipe: Recipe) -> str:
  return (
    f"{what}; nothing was written. Try a learning rate below {recipe.learning_rate:g}, a longer warm-up than "
    f"{recipe.warmup} steps or a smaller clip than {recipe.clip:g}."
  )


def _compiled(
  apply: Callable[..., Array], optimizer: optax.GradientTransformation, like: State, mesh: Mesh | None
) -> Callable[..., Any]:
  def loss_of(params: Params, batch: Bucket) -> Array:
    logits = apply(params, batch.tokens, batch.positions)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return jnp.sum(losses * batch.mask) / jnp.sum(batch.mask)

  def steps(params: Params, state: Any, batches: Bucket) -> tuple[Params, Any, Array]:
    def one(carry: tuple[Params, Any], batch: Bucket) -> tuple[tuple[Params, Any], Array]:
      params, state = carry
      loss, gradient = jax.value_and_grad(loss_of)(params, batch)
      updates, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(one, (params, state), batches)
    return params, state, losses

  if mesh is None:
    return jax.jit(steps, donate_argnums=(0, 1))
  kept = jax.tree.map(lambda x: x.sharding, (like.params, like.optimizer))
  program = jax.jit(steps, donate_argnums=(0, 1), out_shardings=(*kept, NamedSharding(mesh, P())))

  def call(params: Params, state: Any, batches: Bucket) -> Any:
    fits = batches.tokens.shape[1] % sharding.row_count(mesh) == 0
    spec = P(None, sharding.ROWS) if fits else P()
    with jax.set_mesh(mesh):
      return program(params, state, jax.tree.map(lambda x: sharding.put(x, mesh, spec), batches))

  return call
