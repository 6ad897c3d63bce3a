"""How a tensor is called, laid out and seeded: canonical names, axes, keys.

A name is the dotted path of a leaf (`model.layers.0.mlp.up_proj.weight`), the same for nested and
flat trees, so that rules, weights and random keys carry over from one to the other.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Axes(NamedTuple):
  """Which axes of a leaf mean what; the default is the Hugging Face layout `[out, in]`.

  Attributes:
    stack: axis along which equal layers are stacked (`jax.lax.scan`, `nn.scan`), or None. Every
      slice is merged as the separate tensor it would be.
    out: axes of the outputs (rows); all others but `stack` are inputs (columns).

  A Flax `Dense` kernel `[in, out]` is `Axes(out=(1,))`, an attention kernel `[in, heads, size]` is
  `Axes(out=(1, 2))`, a scanned kernel `[layers, in, out]` is `Axes(stack=0, out=(2,))`.
  """

  stack: int | None = None
  out: tuple[int, ...] = (0,)

  def unstacked(self) -> "Axes":
    """These axes as one slice along `stack` has them."""
    if self.stack is None:
      return self
    return Axes(None, tuple(a - (a > self.stack) for a in self.out))


AxesRules = Sequence[tuple[str, Axes]]
"""Pairs of a regular expression and `Axes`; the first full match of a leaf's name wins.

The pattern of a stacked leaf has one group, after which a slice's index belongs: `(layers)\\..*`
makes `layers.mlp.kernel` the stack of `layers.0.mlp.kernel`, `layers.1.mlp.kernel`, …
"""


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
  """Flattens any pytree to `{canonical name: leaf}` and the structure to build it again.

  Args:
    tree: nested or flat dicts, dataclasses, NNX states, … with array-like leaves.

  Returns:
    The leaves by name in the tree's own order, and the `PyTreeDef`.

  Raises:
    ValueError: if two leaves have one name (`{"a.b": x, "a": {"b": y}}`).

  >>> flatten({"layer": {"kernel": 1.0}, "layer.bias": 2.0})[0]
  {'layer.kernel': 1.0, 'layer.bias': 2.0}
  """
  paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
  if names and all(name.endswith(".value") for name in names):  # an NNX State: every leaf a Variable
    names = [name.removesuffix(".value") for name in names]
  flat = dict(zip(names, (leaf for _, leaf in paths), strict=True))
  if len(flat) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"Two leaves of one tree are called {twice!r}; names must be unique.")
  return flat, treedef


def axes_of(name: str, ndim: int, rules: AxesRules) -> tuple[Axes, re.Match[str] | None]:
  """Finds the axes of a leaf and the match that says where a slice's index belongs.

  Raises:
    ValueError: if an axis lies outside the leaf, or the pattern of a stack has no group.
  """
  for pattern, axes in rules:
    if match := re.fullmatch(pattern, name):
      used = (*axes.out, *(() if axes.stack is None else (axes.stack,)))
      if any(not 0 <= axis < ndim for axis in used):
        raise ValueError(f"{name}: {axes} of rule {pattern!r} does not fit a leaf of {ndim} axes.")
      if axes.stack is not None and not match.re.groups:
        raise ValueError(
          f"Axes rule {pattern!r} has a stack axis but no group that says where the index belongs "
          "in the names of the slices; write for example r'(layers)\\..*'."
        )
      return axes, match
  return Axes(), None


def slice_names(name: str, match: re.Match[str], count: int) -> list[str]:
  """Names that the slices of a stacked leaf have as separate tensors.

  >>> slice_names("layers.mlp", re.fullmatch(r"(layers)\\..*", "layers.mlp"), 2)
  ['layers.0.mlp', 'layers.1.mlp']
  """
  head, tail = name[: match.end(1)], name[match.end(1) :]
  return [f"{head}.{i}{tail}" for i in range(count)]


def as_matrix(x: Array, axes: Axes = Axes()) -> Array:
  """Views a tensor as `[out, in]`; vectors and scalars are one row.

  >>> as_matrix(jnp.zeros((5, 2, 3)), Axes(out=(1, 2))).shape
  (6, 5)
  """
  if x.ndim < 2:
    return x.reshape(1, -1)
  inner = tuple(a for a in range(x.ndim) if a not in axes.out)
  moved = jnp.transpose(x, (*axes.out, *inner))
  rows = 1
  for axis in axes.out:
    rows *= x.shape[axis]
  return moved.reshape(rows, -1)


def from_matrix(matrix: Array, shape: tuple[int, ...], axes: Axes = Axes()) -> Array:
  """Undoes `as_matrix` for a tensor of `shape`."""
  if len(shape) < 2:
    return matrix.reshape(shape)
  order = (*axes.out, *(a for a in range(len(shape)) if a not in axes.out))
  moved = matrix.reshape([shape[a] for a in order])
  return jnp.transpose(moved, [order.index(a) for a in range(len(shape))])


def key_of(key: Array, model: int | str, name: str) -> Array:
  """A random key for one tensor of one model, whatever the order in which tensors are merged.

  Args:
    key: the seed of the whole merge.
    model: position or name of the model; a name makes the result independent of the order.
    name: canonical name of the tensor.
  """
  number = model if isinstance(model, int) else zlib.crc32(model.encode())
  return jax.random.fold_in(jax.random.fold_in(key, number), zlib.crc32(name.encode()))
