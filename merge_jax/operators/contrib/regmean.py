"""RegMean: the linear layer whose outputs are nearest to those of every expert on its own inputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import layout
from merge_jax.operators.contrib import spectral
from merge_jax.operators.core import Leaf, Operator, PyTree
from merge_jax.operators.linear import weighted_sum
from merge_jax.operators.pytrees import check_number, pytree


@pytree
class RegMean(Operator):
  """Least squares in closed form, from the Gram matrices of every expert's inputs.

      W = argmin Σ cᵢ tr((W - Wᵢ) G̃ᵢ (W - Wᵢ)ᵀ) = (Σ cᵢ Wᵢ G̃ᵢ) (Σ cᵢ G̃ᵢ)⁻¹        W [out, in]
      Gᵢ = XᵢᵀXᵢ / tokens, G̃ᵢ = Gᵢ with off-diagonal elements × a

  Attributes:
    off_diagonal: a in [0, 1]; the authors' code has 1 (off) and their configurations 0.1 … 0.9, which
      makes up for few examples. 0 weighs every input alone.

  Needs `statistics=`: for each expert and tensor the Gram matrix `[in, in]` of its inputs, or None
  (`python -m launch.statistics --kind=gram`); of a stacked leaf with the stack in front. Tensors without
  one (norms, biases, embeddings) give the weighted mean `Σ cᵢ θᵢ / Σ cᵢ`. Weights c default to 1/K.
  Directions that no input has keep that mean, too: what is solved for is the difference to it. On a mesh the
  K tensors and the Gram matrices of one layer at a time are gathered.

  Raises:
    ValueError: a concrete `off_diagonal` outside [0, 1]; when merging, statistics that are missing, of
      some models alone or of another shape.

  Source: Dataless Knowledge Fusion by Merging Weights of Language Models (arXiv 2212.09849).

  >>> import merge_jax as mj
  >>> experts = [{"w": jnp.array([[1.0, 1.0]])}, {"w": jnp.array([[3.0, 3.0]])}]
  >>> grams = [{"w": jnp.diag(jnp.array([3.0, 0.0]))}, {"w": jnp.diag(jnp.array([1.0, 0.0]))}]
  >>> mj.merge(regmean(), experts, statistics=grams)["w"].round(4).tolist()
  [[1.5, 2.0]]
  """

  off_diagonal: ArrayLike = 1.0
  by_rows = True
  normalize = True

  def __post_init__(self) -> None:
    check_number("off_diagonal", self.off_diagonal, 0.0, 1.0)

  def default_weights(self, count: int) -> np.ndarray:
    """1/K for every model."""
    return np.full(count, 1.0 / count)

  def combine(self, leaf: Leaf, prepared: PyTree, weights: Array) -> Array:
    weights = weights / jnp.sum(weights)
    mean = weighted_sum(leaf.experts, weights)
    grams = _grams(leaf)
    if grams is None:
      return mean
    eye = jnp.eye(mean.shape[1], dtype=mean.dtype)
    scale = eye + jnp.asarray(self.off_diagonal, mean.dtype) * (1.0 - eye)
    grams = tuple(w * (gram + gram.T) / 2 * scale for w, gram in zip(weights, grams, strict=True))
    missed = (
      spectral.matmul(layout.whole(expert - mean), gram)
      for expert, gram in zip(leaf.experts, grams, strict=True)
    )
    change = _solve(sum(grams[1:], grams[0]), sum(missed, jnp.zeros((), mean.dtype)))
    return mean + layout.as_sharded(change, mean)


regmean = RegMean


def _grams(leaf: Leaf) -> tuple[Array, ...] | None:
  """The experts' Gram matrices in the precision of the tensor, or None where there are none."""
  if leaf.statistics is None:
    raise ValueError("RegMean needs the Gram matrices of every expert's inputs: pass statistics=.")
  shape = (leaf.experts[0].shape[1],) * 2
  shapes = {None if gram is None else jnp.shape(gram) for gram in leaf.statistics}
  if shapes == {None}:
    return None
  if shapes != {shape}:
    raise ValueError(
      f"RegMean: the Gram matrices of a tensor with {shape[0]} inputs are {_words(shapes)}; expected "
      f"{shape} for every expert, or none for all."
    )
  return tuple(layout.whole(gram.astype(leaf.experts[0].dtype)) for gram in leaf.statistics)


def _words(shapes: set[tuple[int, ...] | None]) -> str:
  return " and ".join(sorted("missing" if one is None else f"of shape {one}" for one in shapes))


def _solve(gram: Array, right: Array) -> Array:
  """X of least norm with `X gram = right`, for a symmetric, positive semidefinite gram.

  Rows and columns are scaled to a diagonal of 1 first: sizes of activations differ by orders of magnitude.
  """
  diagonal = jnp.diagonal(gram)
  scale = 1.0 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))[None, :]
  scaled = scale.T * gram * scale
  eps = 10 * jnp.finfo(gram.dtype).eps
  factor = jnp.linalg.cholesky(jax.lax.stop_gradient(scaled))
  regular = jnp.all(jnp.diagonal(factor) ** 2 > eps * math.sqrt(gram.shape[0]))  # false for NaN: it failed

  def by_eigenvalues(b: Array) -> Array:
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(scaled))
    noise = values <= eps * values[-1]
    inverse = jnp.where(noise, 0.0, 1.0 / jnp.where(noise, 1.0, values))
    return spectral.matmul(vectors * inverse[None, :], spectral.matmul(vectors.T, b))

  def by_factor(b: Array) -> Array:
    from jax.scipy.linalg import cho_solve  # slow to import, in every job

    return cho_solve((factor, True), b)

  found = jax.lax.custom_linear_solve(
    lambda x: spectral.matmul(scaled, x),
    (right * scale).T,
    lambda _, b: jax.lax.cond(regular, by_factor, by_eigenvalues, b),
    symmetric=True,
  )
  return found.T * scale
