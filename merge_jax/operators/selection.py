"""The exact k-th magnitude of a tensor or a whole model, without sorting.

A float32 magnitude orders like its bits, so the k-th is an integer that counting passes find in a
shrinking bracket. A pass counts what reaches four thresholds: it is elementwise with one small
reduction, shards with scalar all-reduces, and never flattens or gathers a tensor.

Where to count is guessed twice at once: by interpolation, which suits smooth distributions, and at a value
that may be the threshold itself, which closes ties: one that is frequent in a sorted sample, or the
roundest number in the bracket (differences of bfloat16 numbers have few distinct magnitudes). A few
passes do: the mean is below 4, and 8 are rarely passed (tests count them).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from merge_jax.operators import counting, layout
from merge_jax.operators.hashing import positions

TOP = np.uint32(1 << 31)  # above every magnitude, NaN included
SAMPLE = 4096


@functools.partial(jax.jit, inline=True)
def magnitude(x: Array) -> Array:
  """Bits of |x| in float32, as uint32: they order like the magnitudes, NaN above infinity."""
  return jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)


class Search(NamedTuple):
  """A search for the largest threshold that at least k keys reach.

  Attributes:
    low, high: thresholds (uint32) that at least k, and fewer than k, keys reach.
    at_low, at_high, k: these numbers as limbs `[3]`.
    passes: how many were done.
    smooth: whether interpolation worked in the last pass.
  """

  low: Array
  high: Array
  at_low: Array
  at_high: Array
  k: Array
  passes: Array
  smooth: Array


def start(size: Array, k: Array) -> Search:
  """The search before any pass, for the k-th largest of `size` (limbs) keys below `TOP`."""
  low = jnp.where(jnp.any(k > 0), jnp.uint32(0), TOP - np.uint32(1))  # k = 0: nothing reaches it
  zero = jnp.int32(0)
  return Search(low, jnp.array(TOP), size, counting.limbs(0), k, zero, jnp.array(False))


def found(state: Search) -> Array:
  """Whether `low` is the k-th key, or separates exactly the k largest."""
  return (state.high - state.low <= 1) | jnp.all(state.at_low == state.k, axis=-1)


_UP = np.array([1 << 19, 1 << 21, 1 << 22, 1 << 23], np.uint32)  # 2^23 is a factor of 2
_DOWN = np.array([1 << 26, 1 << 23, 1 << 21, 1 << 19], np.uint32)


def probes(state: Search, sample: Array) -> Array:
  """Four thresholds inside the bracket to count next, from a sorted sample `[n]` of the keys."""
  low, high, width = state.low, state.high, (state.high - state.low).astype(jnp.float32)
  inside = jnp.maximum(counting.number(counting.minus(state.at_low, state.at_high)), 1.0)
  share = counting.number(counting.minus(state.at_low, state.k)) / inside  # of what is inside, below the k-th
  before = jnp.sum(sample < low, dtype=jnp.int32)
  sampled = jnp.sum(sample < high, dtype=jnp.int32) - before
  place = share * sampled.astype(jnp.float32)
  spread = jnp.sqrt(jnp.maximum(place * (1.0 - share), 0.0))  # a standard error

  def value(position: Array) -> Array:
    position = jnp.clip(position.astype(jnp.int32), 0, jnp.maximum(sampled - 1, 0))
    return sample[jnp.minimum(before + position, len(sample) - 1)]

  around = jnp.array([-3.2, -0.6, 0.6, 3.2], jnp.float32) * spread
  around = around + jnp.array([-1.0, 0.0, 0.0, 1.0], jnp.float32)
  first = value(place + around) + jnp.array([0, 0, 1, 1], jnp.uint32)

  noise = jnp.sqrt(jnp.maximum(inside * share * (1.0 - share), 0.0))  # of a count in between
  step = jnp.array([-1.6, -0.45, 0.45, 1.6], jnp.float32) * noise
  step = (step + jnp.array([-0.5, -0.3, 0.3, 0.5], jnp.float32)) / inside
  between = low + (jnp.clip(share + step, 0.0, 1.0) * width).astype(jnp.uint32)
  between = jnp.where(low == 0, high - jnp.minimum(high, _DOWN), between)
  between = jnp.where(high == TOP, low + _UP, between)

  tied = value(place)
  often = (sampled > 0) & ((value(place + 1) == tied) | (value(place - 1) == tied)) & (sampled > 1)
  zeros = 31 - jax.lax.clz(low ^ (high - 1)).astype(jnp.int32)  # of the roundest number in (low, high)
  roundest = high - 1 >> jnp.maximum(zeros, 0).astype(jnp.uint32) << jnp.maximum(zeros, 0).astype(jnp.uint32)
  closing = jnp.where(often, tied, roundest)
  both = jnp.stack([between[1], closing, closing + 1, between[2]])
  later = jnp.where(often | ~state.smooth, both, between)
  chosen = jnp.where((state.passes == 0) & (sampled > 0), first, later)
  return jnp.sort(jnp.clip(chosen, low + 1, jnp.maximum(high - 1, low + 1)))


def narrow(state: Search, thresholds: Array, counts: Array) -> Search:
  """The search after a pass in which `counts` (limbs `[4, 3]`, summed) keys reached these thresholds."""
  counts = counting.carry(counts)
  ends = jnp.concatenate([state.low[None], thresholds, state.high[None]])
  at = jnp.concatenate([state.at_low[None], counts, state.at_high[None]])
  i = jnp.sum(counting.at_least(counts, state.k), dtype=jnp.int32)  # they fall, so these are the first
  low, high, at_low, at_high = ends[i], ends[i + 1], at[i], at[i + 1]
  before = counting.number(counting.minus(state.at_low, state.at_high))
  after = counting.number(counting.minus(at_low, at_high))
  smooth = (after <= 0.5 * before) & (state.passes > 0)
  going = ~found(state)  # one of several searches side by side may be over before the others

  def choose(new: Array, old: Array) -> Array:
    return jnp.where(going, new, old)

  new = Search(low, high, at_low, at_high, state.k, state.passes + 1, smooth)
  return Search(*map(choose, new, state))


def strided(keys: Array, every: int) -> Array:
  """About one key in `every`, flat, whole on every device."""
  shards = layout.shards(keys)
  parts = tuple(size // count for size, count in zip(keys.shape, shards, strict=True))
  for axis, step in reversed(list(enumerate(counting.strides(parts, every)))):
    keys = keys.reshape(*keys.shape[:axis], shards[axis], -1, *keys.shape[axis + 1 :])
    keys = jax.lax.slice_in_dim(keys, 0, None, step, axis + 1)
  return layout.whole(keys).reshape(-1)


def samples(keys: Sequence[Array], every: int) -> list[Array]:
  """`strided` of several arrays; one that comes several times is sampled, and sent, once."""
  once = {id(x): strided(x, every) for x in {id(x): x for x in keys}.values()}
  return [once[id(x)] for x in keys]


def search(states: Search, samples: Array, tally: Callable[[Array], Array]) -> Search:
  """Runs S searches side by side to their ends.

  Args:
    states: `start` for each, stacked.
    samples: sorted keys `[S, n]`.
    tally: thresholds `[S, 4]` to how many keys reach each, over all tensors: limbs `[S, 4, 3]`.
  """

  def step(states: Search) -> Search:
    thresholds = jax.vmap(probes)(states, samples)
    return jax.vmap(narrow)(states, thresholds, tally(thresholds))

  states = layout.varying(states, samples)
  return jax.lax.while_loop(lambda states: ~jnp.all(found(states)), step, states)


def stacked(trees: Sequence[Any]) -> Any:
  """Small trees of one structure, stacked."""
  return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def kth(keys: Sequence[Array], ks: Sequence[Array]) -> Search:
  """Searches S tensors of one shape: `low` is the largest threshold that at least k keys reach.

  Or one that exactly k reach. Keys are uint32 below `TOP`; each k is a count between 0 and their number, as
  limbs `[3]`. The result is stacked; the tensors are not.

  >>> bits = magnitude(jnp.array([0.5, -3.0, 1.0, 2.0]))
  >>> (bits >= kth([bits], [counting.fraction(counting.limbs(4), 0.5)]).low[0]).tolist()
  [False, True, False, True]
  """
  size = keys[0].size
  wanted = SAMPLE // 4 if layout.on_mesh(keys[0]) else SAMPLE  # gathered: 4 kB, for a third of a pass more
  ordered = jnp.sort(jnp.stack(samples(keys, max(1, size // wanted))), axis=-1)

  def tally(thresholds: Array) -> Array:
    return jnp.stack([counting.tally(x, of) for x, of in zip(keys, thresholds, strict=True)])

  return search(stacked([start(counting.limbs(size), k) for k in ks]), ordered, tally)


class Cut(NamedTuple):
  """Which elements are among the k largest, the first in row-major order among equals.

  Attributes:
    low, high: keys from `high` on are; those from `low` on are if they come early enough.
    last: position `[ndim]` (int32) of the last of those, or None: all are.
  """

  low: Array | np.uint32
  high: Array | np.uint32
  last: Array | np.ndarray | None = None


def largest(keys: Sequence[Array], ks: Sequence[Array]) -> list[Cut]:
  """Of S tensors of one shape exactly the k largest keys, as a stable descending sort would choose them."""
  states = kth(keys, ks)
  shape = keys[0].shape

  def scan() -> Array:
    need, last = counting.minus(states.k, states.at_high), jnp.zeros((len(keys), 0), jnp.int32)
    for _ in shape:
      of_each = zip(keys, states.low, states.high, last, strict=True)
      counts = jnp.stack([ties(x, Cut(*cut)) for x, *cut in of_each])
      j, before = jax.vmap(_first)(counts, need)
      need, last = counting.minus(need, before), jnp.concatenate([last, j[:, None]], 1)
    return last

  ends = jnp.broadcast_to(jnp.array(shape, jnp.int32) - 1, (len(keys), len(shape)))
  decided = jnp.all(states.at_low == states.k, axis=-1)
  # Not `cond`: of a stack its batching selects between copies of the keys, and not on Explicit meshes.
  begin, done = layout.varying(((ends, jnp.all(decided)), jnp.array(True)), states)
  last, _ = jax.lax.while_loop(lambda at: ~at[1], lambda _: (scan(), done), begin)
  last = jnp.where(decided[:, None], ends, last)  # where exactly k reach the threshold, all that is tied does
  return [Cut(*one) for one in zip(states.low, states.high, last, strict=True)]


def ties(keys: Array, cut: Cut) -> Array:
  """How many keys in `[low, high)` there are at each index of an axis, the axes before it fixed by `last`."""
  tied, axis = (keys >= cut.low) & (keys < cut.high), 0
  for axis, last in enumerate(() if cut.last is None else cut.last, 1):
    tied = tied & (positions(keys, axis - 1).astype(jnp.int32) == last)
  return jnp.sum(tied, axis=tuple(i for i in range(keys.ndim) if i != axis), dtype=jnp.uint32)


def _first(counts: Array, need: Array) -> tuple[Array, Array]:
  """The least index up to which `counts` (uint32) sum to `need` (limbs), and the sum before it."""
  index, zero = jnp.arange(len(counts), dtype=jnp.int32), jnp.zeros((), jnp.int32)

  def until(j: Array) -> Array:
    return counting.carry(counting.sum_counts(jnp.where(index <= j, counts, 0), 1 << 33))

  def step(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = ends
    middle = (low + high) // 2
    yes = counting.at_least(until(middle), need)
    return jnp.where(yes, low, jnp.minimum(middle + 1, high)), jnp.where(yes, middle, high)

  steps = (len(counts) - 1).bit_length()
  ends = layout.varying((zero, zero + (len(counts) - 1)), counts, need)
  found = jax.lax.fori_loop(0, steps, step, ends)[1]
  return found, until(found - 1)


@functools.partial(jax.jit, inline=True)
def reaches(keys: Array, cut: Cut) -> Array:
  """Which elements are among the k largest."""
  if cut.last is None:
    return keys >= cut.low
  early = jnp.array(True)  # lexicographic order of positions, from the last axis on
  for axis in reversed(range(keys.ndim)):
    index = positions(keys, axis).astype(jnp.int32)
    early = (index < cut.last[axis]) | ((index == cut.last[axis]) & early)
  return (keys >= cut.high) | ((keys >= cut.low) & early)
