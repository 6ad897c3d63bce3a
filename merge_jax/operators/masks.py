"""The sparsifiers of TIES and DARE: the largest magnitudes, and elements at random."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from merge_jax.operators import counting, hashing, layout, rows, selection
from merge_jax.operators.core import Leaf, PyTree, Ranked, Survey, Surveyed
from merge_jax.operators.pytrees import STATIC, check_choice, check_number, pytree
from merge_jax.operators.sparsify import Mask, Rescale, check_share, random_keys

Scope = Literal["model", "tensor", "row"]
Keep = Literal["threshold", "exact"]


@pytree
class Trim(Mask):
  """Keeps the largest magnitudes of each task vector and zeroes the rest.

  Attributes:
    density: fraction kept, in [0, 1], one number or one for each model `[K]`; read as float32, as the
      magnitudes are. In uint32 it is k itself, the number of elements.
    scope: one threshold for the whole model (the TIES authors'), for each tensor (mergekit, PEFT), or for
      each row of `[out, in]`.
    keep: "threshold" keeps all that reach the (n-k)-th smallest magnitude, k = floor(n density):
      k + 1 elements and their equals, as the TIES authors' code; "exact" keeps exactly k, at least one
      unless the density is 0, the first in row-major order among equals (scope "tensor" alone).
    rescale: "none", or "l1": see `Mask`.

  NaN and infinity are the largest magnitudes, and always kept.

  Raises:
    ValueError: unknown variants, "exact" with another scope, a concrete density outside [0, 1].

  Source: TIES-Merging (arXiv 2306.01708), section 4.

  >>> import merge_jax as mj
  >>> rule = mj.TaskVector((trim(0.5, scope="tensor", keep="exact"),))
  >>> mj.merge(rule, [{"w": jnp.array([0.1, -3.0, 1.0, 0.2])}], base={"w": jnp.zeros(4)})["w"].tolist()
  [0.0, -3.0, 1.0, 0.0]
  """

  density: ArrayLike = 0.2
  scope: Scope = dataclasses.field(default="model", kw_only=True, metadata=STATIC)
  keep: Keep = dataclasses.field(default="threshold", kw_only=True, metadata=STATIC)
  rescale: Rescale = dataclasses.field(default="none", kw_only=True, metadata=STATIC)

  def __post_init__(self) -> None:
    check_choice("scope", self.scope, get_args(Scope))
    check_choice("keep", self.keep, get_args(Keep))
    check_choice("rescale", self.rescale, ("none", "l1"))
    check_share("density", self.density)
    if self.keep == "exact" and self.scope != "tensor":
      raise ValueError(f"keep='exact' needs scope='tensor'; equals in a {self.scope} have no order here.")

  @property
  def rowwise(self) -> bool:  # type: ignore[override]
    return self.scope == "row"

  @property
  def elementwise(self) -> bool:  # type: ignore[override]
    return self.scope != "row"

  def order(self) -> Survey | None:
    """The threshold of each model, in the whole of it or in each tensor."""

    def keys(leaf: Leaf, _: Surveyed) -> tuple[Array, ...]:
      return tuple(map(selection.magnitude, leaf.experts))

    def ranks(size: Any, count: int, _: Surveyed) -> list[Any]:
      return list(self.rank(size, self.numbers("density", count)))

    if self.scope == "row":
      return None
    return Ranked(keys, ranks, whole=self.scope == "model", exact=self.keep == "exact")

  def rank(self, size: Any, density: Any) -> Any:
    """Ranks `[..., 3]` of the thresholds among `size` magnitudes (limbs): the authors' is the (k+1)-th."""
    k = counting.fraction(size, density)
    more = (
      (density > 0) & (counting.minus(size, k) > 0).any(-1) & ((self.keep == "threshold") | ~(k > 0).any(-1))
    )
    return counting.carry(k + counting.of(more))

  def choose(self, leaf: Leaf, ordered: PyTree) -> Sequence[PyTree]:
    if self.scope != "row":
      return ordered
    deltas = leaf.experts
    size, bits = counting.limbs(deltas[0].shape[-1]), map(selection.magnitude, deltas)
    pairs = zip(bits, self.numbers("density", len(deltas)), strict=True)
    return [rows.kth_of_rows(x, self.rank(size, density)) for x, density in pairs]

  def kept(self, chosen: PyTree, delta: Array) -> Array:
    keys = selection.magnitude(delta)
    return keys >= chosen if self.scope == "row" else selection.reaches(keys, chosen)


trim = Trim

Generator = Literal["hash", "threefry"]


@pytree
class Drop(Mask):
  """Keeps each element of a task vector with probability `density`, independently (DARE).

  The mask of a tensor depends on seed, model and canonical name alone. NaN and infinity are kept.

  Attributes:
    density: probability of keeping, 1 - drop rate; in [0, 1], 0 gives zeros; one number, or one for each
      model `[K]`.
    rescale: "inverse" divides what is kept by the density, so that the expectation is the task vector
      itself; "l1" (mergekit) and "none": see `Mask`.
    generator: "hash" (`hashing.py`), or "threefry": the masks of versions before 0.3.

  Raises:
    ValueError: unknown variants, a concrete density outside [0, 1].

  Source: Language Models are Super Mario (arXiv 2311.03099).

  >>> drop(0.9).density
  0.9
  """

  density: ArrayLike
  rescale: Rescale = dataclasses.field(default="inverse", kw_only=True, metadata=STATIC)
  generator: Generator = dataclasses.field(default="hash", kw_only=True, metadata=STATIC)
  random = True

  def __post_init__(self) -> None:
    check_choice("rescale", self.rescale, get_args(Rescale))
    check_choice("generator", self.generator, get_args(Generator))
    check_number("density", self.density, 0.0, 1.0)

  @property
  def elementwise(self) -> bool:  # type: ignore[override]
    return self.generator == "hash"

  def choose(self, leaf: Leaf, ordered: PyTree) -> Sequence[PyTree]:
    return random_keys(leaf)

  def kept(self, chosen: PyTree, delta: Array) -> Array:
    draws = hashing.uniform(chosen, delta) if self.generator == "hash" else _threefry(chosen, delta)
    return draws < jnp.asarray(self.density, jnp.float32)

  def probability(self, chosen: PyTree, delta: Array) -> Array:
    return jnp.asarray(self.density, delta.dtype)


drop = Drop


def _threefry(key: hashing.Key, delta: Array) -> Array:
  typed = jax.random.wrap_key_data(key.key) if key.key.dtype == jnp.uint32 else key.key
  typed, sharding = jax.random.fold_in(typed, key.use), layout.explicit(delta)
  return jax.random.uniform(typed, delta.shape, jnp.float32, out_sharding=sharding)
