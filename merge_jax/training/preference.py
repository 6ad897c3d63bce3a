"""Direct preference optimisation (arXiv 2305.18290): right answers against wrong ones of the same prompt.

    loss = -log σ(β [(log π(chosen) - log π₀(chosen)) - (log π(rejected) - log π₀(rejected))])

π₀ are the parameters that the training starts from, and log π(answer) is the sum over its tokens.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from merge_jax.evals.batching import Bucket


def log_likelihoods(logits: Array, batch: Bucket) -> Array:
  """Of the targets of each row: float32 `[rows]`."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch.targets)
  return -jnp.sum(losses * batch.mask, axis=-1)


def losses(policy: Array, reference: Array, beta: float) -> Array:
  """The loss of each pair.

  Args:
    policy, reference: log-likelihoods under π and π₀ of rows: chosen, rejected, chosen, …: `[2 pairs]`.
    beta: how much leaving π₀ costs.

  Returns:
    float32 `[pairs]`; log 2 where nothing has changed.

  >>> now, before = jnp.array([-1.0, -3.0, -2.0, -2.0]), jnp.array([-2.0, -2.0, -2.0, -2.0])
  >>> [f"{x:.3f}" for x in losses(now, before, 0.5).tolist()]
  ['0.313', '0.693']
  """
  gained = policy - reference
  return jax.nn.softplus(-beta * (gained[0::2] - gained[1::2]))
