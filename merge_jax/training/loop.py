"""A training loop on mixtures of tasks."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from merge_jax import sharding
from merge_jax.evals.batching import Bucket
from merge_jax.training import lora, preference, schedule
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
    params: those that are trained, by name: all, or the factors of `lora`. See `result`.
    optimizer: optax's state.
    losses: of each step done, the mean over its target tokens.
    tokens: real ones that were read, without padding.
    frozen: the parameters of the start, where `params` are factors, or preferences are learned.
  """

  params: Params
  optimizer: Any
  losses: list[float]
  tokens: int
  frozen: Mapping[str, Array] = {}

  @property
  def step(self) -> int:
    """Steps done."""
    return len(self.losses)

  @property
  def final_loss(self) -> float:
    """Mean of the last steps."""
    return float(np.mean(self.losses[-WINDOW:]))


def begin(
  params: Mapping[str, Array], recipe: Recipe, mesh: Mesh | None = None, *, give: bool = False
) -> State:
  """The state before the first step; moments lie as what they are of.

  The parameters are copied, but for `frozen` ones, which stay as they are; with `give` the others are the
  state's own, which training overwrites.

  Raises:
    ValueError: as of `lora.begin`.
  """
  frozen: Params = {}
  if recipe.lora_rank or recipe.dpo_beta:
    frozen = {name: x if isinstance(x, Array) else jnp.array(x) for name, x in params.items()}
  # With a dtype, or fresh parameters of a weak type would compile the program twice.
  take = jnp.asarray if give and not frozen else jnp.array
  copies = {name: take(x, x.dtype) for name, x in params.items()} if not recipe.lora_rank else {}
  own = lora.begin(frozen, recipe) if recipe.lora_rank else copies
  optimizer = optimizer_of(recipe).init(own)
  if mesh is not None:  # counts, rates, and moments of what is not cut

    def placed(x: Array) -> Array:
      # On one device, too: what lies otherwise than what comes out compiles the program twice.
      lies = isinstance(x.sharding, NamedSharding) or 1 < len(x.sharding.device_set) == mesh.size
      return x if lies else sharding.put(np.asarray(x), mesh, P())

    optimizer = jax.tree.map(placed, optimizer)
  return State(own, optimizer, [], 0, frozen)


def result(state: State, recipe: Recipe) -> Mapping[str, Array]:
  """The parameters of the model; what LoRA adapts is merged, where it lies."""
  if not recipe.lora_rank:
    return state.params
  adapted = {name: state.frozen[name] for name in lora.targets(state.frozen)}
  lie = {name: value.sharding for name, value in adapted.items()}
  merge = jax.jit(functools.partial(lora.merged, recipe=recipe), out_shardings=lie)
  return {**state.frozen, **merge(adapted, state.params)}


def train(
  apply: Callable[..., Array],
  state: State,
  data: Corpus,
  recipe: Recipe,
  *,
  progress: Callable[[State], None] | None = None,
  every: int = 0,
  mesh: Mesh | None = None,
) -> State:
  """Trains on a mixture of tasks; the loss of a step is the mean over the target tokens of its batch, or with
  `dpo_beta` over its pairs (see `preference`).

  A state continues where it was: the same steps follow, whenever it was interrupted. Each shape of the
  corpus is compiled once, when a batch first needs it. Beside its input a step holds a gradient (two with
  `accumulate`), the activations of one padded part of a batch, and its logits `[rows, targets, vocabulary]`
  in float32 about three times: with a large vocabulary and long targets these are most of it, and
  `batch_size / accumulate` bounds them. `remat` keeps one layer's activations alone. LoRA holds the merged
  matrices, and for a moment the gradient of each; moments, states and sums are of the factors.

  A run of constant rate (`decay="none"`) can branch off: its state goes on with a recipe of more `steps` and
  a decay over the last `decay_steps` exactly as if it had had that recipe from the start. What else differs
  counts from here on, but for `weight_decay` and `b2`, which are the state's.

  Args:
    apply: `(params, tokens, positions) -> logits`; a recipe's `dtype` and `remat` are given by name, where
      they are not the default.
    state: from `begin`, or an earlier one; its arrays are given to the computation, use them no more (those
      of `frozen` are not).
    data: from `corpus`; on the host, only a batch is on the device.
    recipe: see `Recipe`.
    progress: called with the state after each call of steps (see `SMALL`; one where the corpus has several
      shapes); it may read it, the next call takes its arrays.
    every: calls also end at multiples of this step, so that `progress` sees them.
    mesh: over which the state's arrays are cut and the rows of a batch divided, where their number allows.

  Raises:
    ValueError: a mixture that names unknown tasks or has no positive share; pairs for another objective.
    Diverged: see there.
  """
  if data.paired != bool(recipe.dpo_beta):
    what = "pairs" if data.paired else "right answers alone"
    raise ValueError(f"The corpus has {what}, and dpo_beta is {recipe.dpo_beta:g}; make it with paired="
                     f"{bool(recipe.dpo_beta)}.")  # fmt: skip
  call = _compiled(apply, recipe, state, mesh)
  size = sum(value.size for value in (*state.params.values(), *state.frozen.values()))
  for batch, tokens in batches(data, recipe, state.step, WINDOW if size <= SMALL else 1, every):
    if _settled(state.losses, recipe.until_loss):
      break
    params, optimizer, values = call(state.params, state.optimizer, state.frozen, batches=batch)
    losses = [float(value) for value in np.asarray(values)]
    state = State(params, optimizer, [*state.losses, *losses], state.tokens + tokens, state.frozen)
    if not all(map(math.isfinite, losses)):
      at = next(i for i, loss in enumerate(state.losses) if not math.isfinite(loss))
      raise Diverged(_words(f"The loss of step {at + 1} is {state.losses[at]}", recipe))
    if progress is not None:
      progress(state)
  if not all(bool(jnp.isfinite(value).all()) for value in state.params.values()):
    raise Diverged(_words(f"The parameters are not finite after step {state.step}", recipe))
  return state


def optimizer_of(recipe: Recipe) -> optax.GradientTransformation:
  """AdamW at the rate of the schedule, with a clipped gradient norm; its state does not tell the schedule."""
  return optax.chain(
    optax.clip_by_global_norm(recipe.clip),
    optax.inject_hyperparams(optax.adamw)(
      schedule.rate(recipe), b2=recipe.b2, weight_decay=recipe.weight_decay
    ),
  )


def _settled(losses: list[float], until: float) -> bool:
  return len(losses) >= 100 and len(losses) % WINDOW == 0 and float(np.mean(losses[-100:])) < until


def _words(what: str, recipe: Recipe) -> str:
  return (
    f"{what}; there is no result. Try a learning rate below {recipe.learning_rate:g}, a longer warm-up than "
    f"{recipe.warmup} steps or a smaller clip than {recipe.clip:g}."
  )


def _compiled(
  apply: Callable[..., Array], recipe: Recipe, like: State, mesh: Mesh | None
) -> Callable[..., tuple[Params, Any, Array]]:
  """`(params, optimizer's state, frozen, batches) -> params, state, losses`: a step for each batch.

  Trainings that differ in their examples, or in when they stop, share one program.
  """
  leaves, tree = jax.tree.flatten((like.params, like.optimizer))
  kept = () if mesh is None else tuple(leaf.sharding for leaf in leaves)
  alike = {"seed": 0, "until_loss": 0.0, "steps": recipe.horizon, "schedule_steps": 0}
  shared = tuple((msgspec.structs.asdict(recipe) | alike | {"mixture": None}).items())
  return _program(apply, shared, mesh, kept, tree)


@functools.lru_cache(maxsize=8)
def _program(
  apply: Callable[..., Array],
  shared: tuple[tuple[str, Any], ...],
  mesh: Mesh | None,
  kept: tuple[Sharding, ...],
  tree: Any,
) -> Callable[..., tuple[Params, Any, Array]]:
  recipe = Recipe(**dict(shared))
  options: dict[str, Any] = {"dtype": jnp.dtype(recipe.dtype)} if recipe.dtype != "float32" else {}
  options |= {"remat": True} if recipe.remat else {}
  optimizer, parts = optimizer_of(recipe), recipe.accumulate

  def loss_of(params: Params, frozen: Params, batch: Bucket, total: Array) -> Array:
    whole = lora.merged(frozen, params, recipe) if recipe.lora_rank else params
    logits = apply(whole, batch.tokens, batch.positions, **options).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return jnp.sum(losses * batch.mask) / total

  def preference_of(params: Params, frozen: Params, batch: Bucket, total: Array) -> Array:
    whole = lora.merged(frozen, params, recipe) if recipe.lora_rank else params
    policy, reference = (
      preference.log_likelihoods(apply(one, batch.tokens, batch.positions, **options), batch)
      for one in (whole, frozen)
    )
    return jnp.sum(preference.losses(policy, reference, recipe.dpo_beta)) / total

  objective = preference_of if recipe.dpo_beta else loss_of

  def gradient_of(params: Params, frozen: Params, batch: Bucket) -> tuple[Array, Params]:
    total = jnp.float32(recipe.batch_size) if recipe.dpo_beta else jnp.sum(batch.mask)
    if parts == 1:
      return jax.value_and_grad(objective)(params, frozen, batch, total)

    def add(before: tuple[Array, Params], part: Bucket) -> tuple[tuple[Array, Params], None]:
      return jax.tree.map(jnp.add, before, jax.value_and_grad(objective)(params, frozen, part, total)), None

    return jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), batch)[0]

  def steps(params: Params, state: Any, frozen: Params, batches: Bucket) -> tuple[Params, Any, Array]:
    def one(carry: tuple[Params, Any], batch: Bucket) -> tuple[tuple[Params, Any], Array]:
      params, state = carry
      loss, gradient = gradient_of(params, frozen, batch)
      updates, state = optimizer.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(one, (params, state), batches)
    return params, state, losses

  def cut(x: np.ndarray) -> np.ndarray:
    return x if parts == 1 else x.reshape(x.shape[0], parts, -1, *x.shape[2:])

  if mesh is None:
    alone = jax.jit(steps, donate_argnums=(0, 1))
    return lambda *state, batches: alone(*state, jax.tree.map(cut, batches))
  lie = jax.tree.unflatten(tree, kept)
  program = jax.jit(steps, donate_argnums=(0, 1), out_shardings=(*lie, NamedSharding(mesh, P())))
  before = (None,) if parts == 1 else (None, None)

  def call(*state: Any, batches: Bucket) -> tuple[Params, Any, Array]:
    batches = jax.tree.map(cut, batches)
    fits = batches.tokens.shape[len(before)] % sharding.row_count(mesh) == 0
    spec = P(*before, sharding.ROWS) if fits else P()
    with jax.set_mesh(mesh):
      return program(*state, jax.tree.map(lambda x: sharding.put(x, mesh, spec), batches))

  return call
