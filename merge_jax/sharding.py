"""Meshes and sharding rules: the only file that knows them. Operators follow what arrays have.

One mesh serves a job, with four named axes (those that are not named have size 1):

    candidate  merges that are evaluated side by side, each on its slice of the mesh
    data       rows of the evaluation or training batch
    fsdp       parameters are cut over it, and gathered a layer at a time; rows are divided over it, too
    tensor     heads and feed-forward columns
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from merge_jax.errors import shown, unknown
from merge_jax.operators import naming
from merge_jax.operators.naming import AxesRules

AXES = ("candidate", "data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes that rows of a batch are divided over."""

Rules = Sequence[tuple[str, P | str]]
"""Pairs of a regular expression and what matching tensors get; the first full match wins.

A `PartitionSpec` is taken as it is (without the axis of a stack of layers). A name in `TACTICS` makes
one of a tensor's shape, and leaves alone what the mesh does not divide:

    column     outputs over `tensor`, the largest other axis over `fsdp`
    row        inputs over `tensor`, the largest other axis over `fsdp`
    fsdp       the largest axis over `fsdp` and `tensor` together, or over `fsdp`
    replicate  whole on every device
"""

TACTICS = ("column", "row", "fsdp", "replicate")

DECODER: Rules = (
  (r".*\.(q_proj|k_proj|v_proj|gate_proj|up_proj|w1|w3)\.(weight|bias)", "column"),
  (r".*\.(o_proj|down_proj|w2)\.weight", "row"),
  (r"(.*\.embed_tokens|lm_head)\.weight", "column"),
  (r".*\.(block_sparse_moe|mlp)\.gate\.weight", "replicate"),  # of experts: small
  (r".*", "fsdp"),
)
"""For decoders with the names of their Hugging Face tensors, and anything else."""


def parse(text: str) -> dict[str, int]:
  """Sizes by axis of a mesh as flags give it.

  Raises:
    ValueError: an unknown axis, one that is named twice, a size that is no number or neither -1 nor positive.

  >>> parse("candidate:2,fsdp:-1")
  {'candidate': 2, 'fsdp': -1}
  """
  sizes: dict[str, int] = {}
  for part in filter(None, (part.strip() for part in text.split(","))):
    axis, _, number = (word.strip() for word in part.partition(":"))
    if axis not in AXES:
      raise ValueError(unknown("mesh axis", axis, AXES, f"mesh {shown(text)}"))
    if axis in sizes:
      raise ValueError(f"mesh {shown(text)}: axis {axis!r} is named twice.")
    try:
      sizes[axis] = int(number)
    except ValueError:
      raise ValueError(f"mesh {shown(text)}: expected axis:size, as in fsdp:8; got {shown(part)}.") from None
    if sizes[axis] < 1 and sizes[axis] != -1:
      raise ValueError(
        f"mesh {shown(text)}: {axis} has size {sizes[axis]}; expected 1 or more, or -1 to fill."
      )
  if list(sizes.values()).count(-1) > 1:
    raise ValueError(f"mesh {shown(text)}: several axes have size -1; one can be filled.")
  return sizes


def sizes(shape: str | Mapping[str, int], devices: int) -> dict[str, int]:
  """The size of every axis for a number of devices; nothing named is all of them as `fsdp`.

  Raises:
    ValueError: as of `parse`; more devices than there are, or a number that the others do not divide.

  >>> sizes("tensor:2,fsdp:-1", 8)
  {'candidate': 1, 'data': 1, 'fsdp': 4, 'tensor': 2}
  """
  text = shape if isinstance(shape, str) else ",".join(f"{axis}:{size}" for axis, size in shape.items())
  found = dict.fromkeys(AXES, 1) | (parse(text) or {"fsdp": -1})
  where = f"mesh {shown(text)}"
  rest = math.prod(size for size in found.values() if size != -1)
  if -1 in found.values():
    if devices % rest:
      raise ValueError(
        f"{where}: {devices} devices are not a multiple of {rest}; name sizes whose product divides them."
      )
    found = {axis: devices // rest if size == -1 else size for axis, size in found.items()}
  elif rest > devices:
    raise ValueError(
      f"{where}: needs {rest} devices; there are {devices}. Name smaller sizes, or -1 to fill one axis."
    )
  return found


def make_mesh(shape: str | Mapping[str, int] = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh in Auto mode, of all axes.

  Args:
    shape: sizes by axis, or their text (`"candidate:2,fsdp:-1"`); nothing is all devices as `fsdp`.
    devices: to take the first of; None: those of all processes.

  Raises:
    ValueError: as of `sizes`; a mesh that leaves devices of other processes out.

  >>> make_mesh("fsdp:1").axis_names
  ('candidate', 'data', 'fsdp', 'tensor')
  """
  have = jax.devices() if devices is None else list(devices)
  found = sizes(shape, len(have))
  count = math.prod(found.values())
  if count < len(have) and len({device.process_index for device in have}) > 1:
    raise ValueError(
      f"A mesh of {found} has {count} devices of {len(have)}; with several processes it must have all."
    )
  kinds = (AxisType.Auto,) * len(AXES)
  lengths, taken = tuple(found.values()), have[:count]
  try:
    return jax.make_mesh(lengths, AXES, axis_types=kinds, devices=taken)
  except NotImplementedError:  # a size that is no product of whole axes of a TPU's torus
    placed = mesh_utils.create_device_mesh(lengths, taken, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=kinds)


def shardings(
  specs: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, rules: Rules = DECODER, axes: AxesRules = ()
) -> dict[str, NamedSharding]:
  """A sharding for every tensor, from names and shapes alone.

  Args:
    specs: what has a shape, by name.
    mesh: from `make_mesh`, or another one whose axes the rules name.
    rules: see `Rules`.
    axes: which leaves are stacks of layers (see `merge_jax.Axes`): a rule is for the names and the shape of
      their slices, and the axis of the stack is never cut.

  Raises:
    ValueError: no rule matches a tensor, several match one stack, or its rule does not fit its shape.

  >>> made = shardings({"w": jax.ShapeDtypeStruct((8, 4), "float32")}, make_mesh("fsdp:1"))
  >>> tuple(made["w"].spec)
  ('fsdp', None)
  """
  return {name: _one(name, tuple(spec.shape), mesh, rules, axes) for name, spec in specs.items()}


class Layout(NamedTuple):
  """Where the parameters of a model lie.

  Attributes:
    mesh: of the job.
    shardings: of every leaf, by name.
  """

  mesh: Mesh
  shardings: Mapping[str, NamedSharding]

  @property
  def replicated(self) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(self.mesh, P())

  def constrain(self, params: Any) -> Any:
    """The leaves of a flat dict under `jit`, where they belong; anything else as it is."""
    if not isinstance(params, dict):
      return params
    own = jax.lax.with_sharding_constraint
    return {n: own(x, self.shardings[n]) if n in self.shardings else x for n, x in params.items()}


def put(value: np.ndarray, mesh: Mesh, spec: P) -> Array:
  """An array that every process has whole, as a global one."""
  return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda index: value[index])


def whole(value: ArrayLike) -> np.ndarray:
  """An array on this host, whole; of several processes all must ask for it together."""
  if not isinstance(value, Array) or value.is_fully_addressable or value.is_fully_replicated:
    return np.asarray(value)
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def rows(x: Array) -> Array:
  """Divides the first axis of an array over the axes `ROWS` of the mesh in use; without one, the same array.

  A layer's activations stay where their rows are, so that its parameters are gathered and not they.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _divides(mesh, x.shape[0]):
    return x
  return jax.lax.with_sharding_constraint(x, P(ROWS, *[P.UNCONSTRAINED] * (x.ndim - 1)))


def heads(x: Array, count: int) -> Array:
  """Divides `[batch, time, heads, size]` by rows, and by heads where `tensor` divides `count` of them.

  For a kernel that takes queries, keys and values alone if they are cut alike.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != AXES:
    return x
  batch = ROWS if _divides(mesh, x.shape[0]) else None
  spec = P(batch, None, None if count % mesh.shape["tensor"] else "tensor", None)
  return jax.lax.with_sharding_constraint(x, spec)


def by_rows(f: Callable[..., Array], rowwise: Sequence[Array], whole: Sequence[Array]) -> Array:
  """`f(*rowwise, *whole)` for the rows of each device by itself, where `rows` divides them.

  For what would mix rows of several devices, such as sorting them, although no row depends on another.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not _divides(mesh, rowwise[0].shape[0]):
    return f(*rowwise, *whole)
  specs = (P(ROWS),) * len(rowwise) + (P(),) * len(whole)
  return jax.shard_map(f, in_specs=specs, out_specs=P(ROWS), axis_names=set(ROWS))(*rowwise, *whole)


def _divides(mesh: jax.sharding.AbstractMesh, count: int) -> bool:
  return not mesh.empty and mesh.axis_names == AXES and row_count(mesh) > 1 and count % row_count(mesh) == 0


def row_count(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
  """How many parts the rows of a batch are divided into."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def _one(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules, axes: AxesRules) -> NamedSharding:
  patterns = [pattern for pattern, _ in rules]
  (stack, _), slices = naming.axes_of(name, shape, axes)
  index, *others = dict.fromkeys(naming.first_match(one, patterns) for one in slices)
  if others:
    raise ValueError(
      f"{name}: several of the sharding rules {patterns} match its layers, which are one array and lie "
      "alike; write patterns that match all of them."
    )
  if index is None:
    raise ValueError(
      f"{name}: no sharding rule matches; have {patterns}. Add one, for example ('.*', 'fsdp')."
    )
  rule = rules[index][1]
  slice_shape = shape if stack is None else shape[:stack] + shape[stack + 1 :]
  where = f"{name}: sharding rule {patterns[index]!r}"
  if isinstance(rule, str):
    if rule not in TACTICS:
      raise ValueError(unknown("tactic", rule, TACTICS, where))
    rule = _tactic(rule, slice_shape, mesh)
  if not isinstance(rule, P) or any(one is P.UNCONSTRAINED for one in rule):
    raise ValueError(
      f"{where} is {shown(rule)}; expected a tactic ({', '.join(TACTICS)}) or a P of mesh axes."
    )
  if len(rule) > len(slice_shape):
    raise ValueError(f"{where}: {rule} has more axes than shape {slice_shape}; give it at most as many.")
  parts = [*rule, *[None] * (len(slice_shape) - len(rule))]
  used: list[str] = []
  for axis, (part, size) in enumerate(zip(parts, slice_shape, strict=True)):
    names = () if part is None else (part,) if isinstance(part, str) else tuple(part)
    for one in names:
      if one not in mesh.shape:
        raise ValueError(unknown("mesh axis", one, mesh.axis_names, where))
      if one in used:
        raise ValueError(f"{where}: {rule} names mesh axis {one!r} twice; one axis cuts once.")
      used.append(one)
    if size % (count := math.prod(mesh.shape[one] for one in names)):
      raise ValueError(
        f"{where}: axis {axis} of shape {slice_shape} is not a multiple of {count} ({', '.join(names)}); "
        "cut another axis, name a smaller mesh, or take the tactic 'fsdp'."
      )
  if stack is not None:
    parts.insert(stack, None)
  return NamedSharding(mesh, P(*parts))


def _tactic(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  parts: list[str | tuple[str, ...] | None] = [None] * len(shape)
  if name == "replicate":
    return P(*parts)
  at, width = {"column": 0, "row": 1}.get(name), mesh.shape.get("tensor", 1)
  over: list[tuple[str, ...]] = [("fsdp",)] if "fsdp" in mesh.shape else []
  if at is not None and at < len(shape) and shape[at] and shape[at] % width == 0:
    parts[at] = "tensor" if width > 1 else None
  elif width > 1:
    over = [("fsdp", "tensor"), *over] if over else [("tensor",)]
  for names in over:
    count = math.prod(mesh.shape[one] for one in names)
    free = [a for a, size in enumerate(shape) if parts[a] is None and size and size % count == 0]
    if free:
      largest = max(free, key=lambda axis: shape[axis])
      parts[largest] = names if len(names) > 1 else names[0]
      break
  return P(*parts)
