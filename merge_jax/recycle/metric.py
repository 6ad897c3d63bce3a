"""Inner products of what the weights of a merge scale: distances between merged models follow from them."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array

from merge_jax.operators import Leaf, naming

SAMPLE = 1 << 18
"""Most elements of a tensor that are looked at: inner products of task vectors are then known to 1 %."""


def gram(leaves: Iterable[tuple[str, Leaf]], patterns: Sequence[str]) -> np.ndarray:
  """Inner products of the task vectors of K models in G groups of tensors, 0 between groups.

  Args:
    leaves: the tensors of the pool by name; without a base differences are from the mean of the models.
    patterns: G, as those of `Weights`.

  Returns:
    float64 `[G K, G K]`, symmetric.

  >>> leaf = Leaf((jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])), jnp.zeros(2))
  >>> gram([("w", leaf)], [".*"]).tolist()
  [[1.0, 0.0], [0.0, 4.0]]
  """
  found: dict[int, np.ndarray] = {}
  for name, leaf in leaves:
    if _floating(leaf):
      row = naming.require_match(name, patterns, "weights")
      found[row] = found.get(row, 0.0) + _products(leaf)
  count = len(next(iter(found.values()))) if found else 0
  zeros = np.zeros((count, count))
  return scipy.linalg.block_diag(*(found.get(row, zeros) for row in range(len(patterns))))


def _floating(leaf: Leaf) -> bool:
  return bool(jnp.issubdtype(leaf.experts[0].dtype, jnp.floating))


def _products(leaf: Leaf) -> np.ndarray:
  """Of one tensor: float64 `[K, K]`."""
  found, powers = (np.asarray(x, np.float64) for x in _gram(leaf))
  return found * 2.0 ** (powers[:, None] + powers)


@jax.jit
def _gram(leaf: Leaf) -> tuple[Array, Array]:
  """Inner products of task vectors over powers of 2, and these: a spoilt model has squares that overflow."""
  experts = [_sampled(x).astype(jnp.float32) for x in leaf.experts]
  base = sum(experts) / len(experts) if leaf.base is None else _sampled(leaf.base).astype(jnp.float32)
  rows = jnp.stack([(x - base).reshape(-1) for x in experts])
  scale = leaf.experts[0].size / max(rows.shape[1], 1)
  powers = jnp.clip(jnp.frexp(jnp.abs(rows).max(axis=1, initial=0.0))[1], -100, 100)
  rows = rows * jnp.ldexp(jnp.float32(1.0), -powers)[:, None]
  return scale * jnp.matmul(rows, rows.T, precision="highest"), powers


def _sampled(x: Array) -> Array:
  """Every n-th slice along its longest axes, until no more than `SAMPLE` elements are left."""
  while x.size > SAMPLE:
    axis = int(np.argmax(x.shape))
    step = min(-(-x.size // SAMPLE), x.shape[axis])
    x = x[(slice(None),) * axis + (slice(None, None, step),)]
  return x
