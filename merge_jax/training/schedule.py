"""The learning rate over the steps of a recipe."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from merge_jax.training.recipe import Recipe

DECAYS = {
  "cosine": lambda x: 0.5 * (1.0 + jnp.cos(jnp.pi * x)),
  "linear": lambda x: 1.0 - x,
  "minus_sqrt": lambda x: 1.0 - jnp.sqrt(x),
  "none": jnp.ones_like,
}
"""Factors of the peak by the decay's name, from 1 at 0 to 0 at 1; "none" stays."""


def rate(recipe: Recipe) -> optax.Schedule:
  """The learning rate of steps 0, 1, …: it rises linearly, stays, and falls to 0 at the horizon.

      peak · min(t / warmup, 1) · f(clip((t - s) / (horizon - s), 0, 1))

  with f of `DECAYS`, and s the step where the decay begins: `decay_steps` before the horizon, or the end of
  the warm-up. Recipes that differ in their decays have the same rates, bit for bit, before these begin (of
  "cosine" without `decay_steps` those of the warm-up differ in last digits).

  >>> recipe = Recipe(mixture={}, steps=8, learning_rate=1.0, warmup=2, decay="linear", decay_steps=4)
  >>> [float(rate(recipe)(t)) for t in range(9)]
  [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
  """
  peak, warmup, begin = recipe.learning_rate, recipe.warmup, recipe.decay_begin
  if recipe.decay == "cosine" and not recipe.decay_steps:
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, recipe.horizon)

  def schedule(count: ArrayLike) -> jax.Array:
    step = jnp.asarray(count).astype(jnp.float32)
    risen = jnp.minimum(step / max(warmup, 1), 1.0) if warmup else jnp.ones_like(step)
    fallen = DECAYS[recipe.decay](jnp.clip((step - begin) / max(recipe.horizon - begin, 1), 0.0, 1.0))
    # The program of a step must not depend on the schedule: what is fused is rounded otherwise.
    return jax.lax.optimization_barrier(peak * risen * fallen)

  return schedule
