"""How a tensor is called, laid out and seeded: canonical names, axes, keys.

A name is the dotted path of a leaf (`model.layers.0.mlp.up_proj.weight`), the same for nested and
flat trees, so that rules, weights and random keys carry over from one to the other.
"""

import functools
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.errors import shown
from merge_jax.operators import hashing, layout


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

VALUE = jax.tree_util.GetAttrKey("value")


def _unboxed(paths: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
  """The paths without the step into a box: an attribute `value` that has no other beside it."""
  boxes = {path[:i] for path in paths for i, key in enumerate(path) if key == VALUE}
  if not boxes:
    return paths
  boxes -= {path[:i] for path in paths for i, key in enumerate(path) if key != VALUE}
  return [tuple(key for i, key in enumerate(path) if path[:i] not in boxes) for path in paths]


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
  """Flattens any pytree to `{canonical name: leaf}`, in its own order, and the `PyTreeDef`.

  What is in a box (an NNX Variable, a partitioned array of Linen) has the name of the box.

  Raises:
    ValueError: if two leaves have one name (`{"a.b": x, "a": {"b": y}}`).

  >>> flatten({"layer": {"kernel": 1.0}, "layer.bias": 2.0})[0]
  {'layer.kernel': 1.0, 'layer.bias': 2.0}
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  paths = [path for path, _ in leaves]
  unboxed = _unboxed(paths)
  names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in unboxed]
  if unboxed is paths and names and all(name.endswith(".value") for name in names):  # a State from a disk
    names = [name.removesuffix(".value") for name in names]
  flat = dict(zip(names, (leaf for _, leaf in leaves), strict=True))
  if len(flat) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"Two leaves of one tree are called {twice!r}; names must be unique.")
  return flat, treedef


@functools.lru_cache
def compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
  """Compiles patterns; ValueError that names the first that is not a regular expression."""
  for pattern in patterns:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise ValueError(f"Pattern {pattern!r} is not a regular expression: {error}.") from None
  return tuple(map(re.compile, patterns))


def first_match(name: str, patterns: Sequence[str]) -> int | None:
  """Index of the first pattern that matches the whole name, or None; errors as of `compiled`.

  >>> first_match("model.norm.weight", (r".*embed.*", r".*norm.*", r".*"))
  1
  """
  return next((i for i, one in enumerate(compiled(tuple(patterns))) if one.fullmatch(name)), None)


def require_match(name: str, patterns: Sequence[str], owner: str) -> int:
  """`first_match`; ValueError if there is none."""
  index = first_match(name, patterns)
  if index is None:
    raise ValueError(f"No pattern of the {owner} matches {name!r}; have {list(patterns)}.")
  return index


def axes_of(name: str, shape: tuple[int, ...], rules: AxesRules) -> tuple[Axes, tuple[str, ...]]:
  """Finds the axes of a leaf, and the names that its slices have as separate tensors.

  Raises:
    ValueError: if an axis lies outside the leaf or is used twice, or the pattern of a stack has no
      group.

  >>> axes_of("layers.mlp", (2, 3, 4), ((r"(layers)\\..*", Axes(stack=0, out=(2,))),))[1]
  ('layers.0.mlp', 'layers.1.mlp')
  """
  for rule in rules:
    if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[1], Axes):
      raise ValueError(f"axes: got {shown(rule)}; expected pairs of a pattern and Axes(…).")
  index = first_match(name, [pattern for pattern, _ in rules])
  if index is None:
    return Axes(), (name,)
  pattern, axes = rules[index]
  if not isinstance(axes.out, tuple):
    raise ValueError(f"Axes of rule {pattern!r}: out is {shown(axes.out)}; expected a tuple, as (1,).")
  used = axes.out if axes.stack is None else (*axes.out, axes.stack)
  if len(set(used)) < len(used) or not set(used) <= set(range(len(shape))):
    raise ValueError(f"{name}: {axes} of rule {pattern!r} does not fit a leaf of {len(shape)} axes.")
  if axes.stack is None:
    return axes, (name,)
  match = re.fullmatch(pattern, name)
  if match is None or not match.re.groups or match.end(1) < 0:
    raise ValueError(
      f"Axes rule {pattern!r} has a stack axis but no group that says where the index belongs "
      "in the names of the slices; write for example r'(layers)\\..*'."
    )
  end = match.end(1)
  return axes, tuple(f"{name[:end]}.{i}{name[end:]}" for i in range(shape[axes.stack]))


def as_matrix(x: Array, axes: Axes = Axes()) -> Array:
  """Views a tensor as `[out, in]`; vectors and scalars are one row.

  >>> as_matrix(jnp.zeros((5, 2, 3)), Axes(out=(1, 2))).shape
  (6, 5)
  """
  if x.ndim < 2:
    return x.reshape(1, -1)
  moved = jnp.moveaxis(x, axes.out, range(len(axes.out)))
  moved = layout.as_sharded(moved, moved, (0, len(axes.out)))  # where axes become one, the first is split
  return moved.reshape(math.prod(x.shape[axis] for axis in axes.out), -1)


def from_matrix(matrix: Array, shape: tuple[int, ...], axes: Axes = Axes()) -> Array:
  """Undoes `as_matrix` for a tensor of `shape`."""
  if len(shape) < 2:
    return matrix.reshape(shape)
  moved = [shape[a] for a in (*axes.out, *(a for a in range(len(shape)) if a not in axes.out))]
  return jnp.moveaxis(matrix.reshape(moved), range(len(axes.out)), axes.out)


def key_of(key: Array, model: int | str, name: str) -> Array:
  """A random key for one tensor of one model, whatever the order in which tensors are merged.

  `model` is a position, or a name that makes the key independent of the order of the models.
  """
  return _folded(key, _number(model), _number(name))


def words_of(key: Array, models: Sequence[str], name: str) -> np.ndarray:
  """The words of `key_of` for several models, `[K, words]`, on the host."""
  numbers, last = [_number(model) for model in models], _number(name)
  if jax.random.key_impl(key) == "threefry2x32":
    first, second = np.asarray(jax.random.key_data(key)).tolist()
    words = (hashing.fold_in((first, second), number) for number in numbers)
    return np.array([hashing.fold_in(one, last) for one in words], np.uint32)
  return np.asarray(_words(key, np.array(numbers, np.uint32), np.uint32(last)))


def _number(label: Any) -> int:
  return label if isinstance(label, int) and 0 <= label < 1 << 32 else zlib.crc32(str(label).encode())


def require_key(key: Any) -> None:
  """Raises ValueError for what is not one random key of JAX."""
  typed = isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  if not (key.shape == () if typed else isinstance(key, Array | np.ndarray) and key.dtype == np.uint32):
    raise ValueError(f"key is {shown(key)}; expected one key, as jax.random.key(0).")


def _folded(key: Array, model: Any, name: Any) -> Array:
  return jax.random.fold_in(jax.random.fold_in(key, model), name)


@jax.jit
def _words(key: Array, models: Array, name: Array) -> Array:
  return jax.random.key_data(jax.vmap(_folded, (None, 0, None))(key, models, name))
