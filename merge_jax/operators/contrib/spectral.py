"""What spectral rules share: factors without arbitrary directions.

A direction whose singular value is rounding noise is arbitrary; it is left out wherever a published
rule would raise it to the size of the others.

Factorisations do not shard: on a mesh a tensor is gathered, factorised on every device, and what is merged
goes back to the layout of the tensor. An eager merge has a program for each tensor, so that it gathers one at
a time; where a merge is one program (`jit`), XLA may gather several before it is done with the first.
"""

import jax
import jax.numpy as jnp
from jax import Array


def matmul(a: Array, b: Array) -> Array:
  """The product in the full precision of its inputs, on every device."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


Factors = tuple[Array, Array, Array]


@jax.custom_jvp
def svd(x: Array) -> Factors:
  """Thin `U`, `S` (descending) and `Vᵀ`; all of them NaN where an element of x is not finite.

  Directions that are noise, or have one singular value, turn by 0 into one another: the derivative of what
  leaves noise out is finite where nothing changed (frozen tensors), and of low rank.
  """
  finite = jnp.all(jnp.isfinite(x))
  factors = jnp.linalg.svd(jnp.where(finite, x, 0.0), full_matrices=False)
  u, s, v = (jnp.where(finite, factor, jnp.nan) for factor in factors)
  return u, s, v


@svd.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Factors, Factors]:
  (x,), (dx,) = primals, tangents
  u, s, v = svd(x)
  sure = jnp.where(above_noise(s, x.shape, s[0]), s, 0.0)
  gaps = (sure[None, :] - sure[:, None]) * (sure[None, :] + sure[:, None])
  turns, inverse = (jnp.where(y == 0, 0.0, 1.0 / jnp.where(y == 0, 1.0, y)) for y in (gaps, sure))
  right, left = matmul(dx, v.T), matmul(u.T, dx)
  inner = matmul(u.T, right)
  du = matmul(u, turns * (inner * s[None, :] + s[:, None] * inner.T))
  dv = matmul(turns.T * (inner.T * s[None, :] + s[:, None] * inner), v)
  du = du + (right - matmul(u, inner)) * inverse[None, :]
  dv = dv + inverse[:, None] * (left - matmul(inner, v))
  return (u, s, v), (du, jnp.diagonal(inner), dv)


@jax.custom_jvp
def left(x: Array) -> tuple[Array, Array]:
  """`U` and `S` of a wide matrix, by way of a far smaller one; derivatives are those of `svd`."""
  u, s, _ = svd(jnp.linalg.qr(x.T, mode="r").T)
  return u, s


@left.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
  (u, s, _), (du, ds, _) = jax.jvp(svd, primals, tangents)  # that of QR needs full rank
  return (u, s), (du, ds)


def above_noise(s: Array, shape: tuple[int, ...], scale: Array) -> Array:
  """Which singular values of a matrix are above the rounding of one whose norm is `scale`."""
  noise = scale * (max(shape) * jnp.finfo(s.dtype).eps)
  return (s > noise) | jnp.isnan(s)


def norm(x: Array) -> Array:
  """The Frobenius norm, whatever the scale of x; not to be differentiated."""
  x = jax.lax.stop_gradient(x)
  largest = jnp.max(jnp.abs(x))
  return largest * jnp.sqrt(jnp.sum((x / jnp.where(largest == 0, 1.0, largest)) ** 2))


@jax.custom_jvp
def polar(x: Array) -> tuple[Array, Array]:
  """The partial isometry `U Vᵀ` of `x = U S Vᵀ`, and S, both 0 for directions that are noise.

  Its derivative needs no gaps between singular values, as that of an SVD does.
  """
  u, s, v = _kept(x)
  return matmul(u, v), s


@polar.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
  (x,), (dx,) = primals, tangents
  u, s, v = _kept(x)
  inner = matmul(u.T, matmul(dx, v.T))
  sums = s[:, None] + s[None, :]
  turn = (inner - inner.T) / jnp.where(sums == 0, 1.0, sums)
  inverse = jnp.where(s == 0, 0.0, 1.0 / jnp.where(s == 0, 1.0, s))
  left = matmul((matmul(dx, v.T) - matmul(u, inner)) * inverse[None, :], v)
  right = matmul(u, inverse[:, None] * (matmul(u.T, dx) - matmul(inner, v)))
  return (matmul(u, v), s), (matmul(u, matmul(turn, v)) + left + right, jnp.diagonal(inner))


def _kept(x: Array) -> tuple[Array, Array, Array]:
  u, s, v = svd(x)
  kept = above_noise(s, x.shape, s[0])
  return jnp.where(kept[None, :], u, 0.0), jnp.where(kept, s, 0.0), jnp.where(kept[:, None], v, 0.0)


def mean_above_noise(s: Array) -> Array:
  """Mean of the singular values that are not 0; 0 if all are."""
  return jnp.sum(s) / jnp.maximum(jnp.sum((s != 0).astype(s.dtype)), 1.0)
