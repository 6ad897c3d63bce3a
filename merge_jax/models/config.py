"""What the forward pass of a Llama-like decoder needs, read from the fields of a `config.json`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from merge_jax.checkpoints.sidecars import WITHOUT_EFFECT
from merge_jax.decoding import convert
from merge_jax.errors import shown, unknown
from merge_jax.models import rope
from merge_jax.models.rope import Rope

Size = Annotated[int, Meta(ge=1, lt=2**31)]

# Fields that are understood at these values alone, null apart, unless a family has others.
_FIXED: dict[str, tuple[Any, ...]] = {
  "hidden_act": ("silu",),
  "pretraining_tp": (1,),
  "rope_interleaved": (False,),
  "partial_rotary_factor": (1.0,),
  "use_mrope": (False,),
  "add_cross_attention": (False,),
  "tie_encoder_decoder": (False,),
  "is_causal": (True,),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder's shape; two that are equal compute the same from the same parameters.

  Attributes:
    rope: of all layers, or of those without a window where `local_rope` is given.
    windows: for each layer how many positions it looks back over (itself included), None for all.
    local_rope: of the layers with a window, where theirs is another one.
    rope_interleaved: pairs of neighbours are rotated, not the two halves of a head.
    attention_scale: factor of the products of queries and keys; None for `1 / sqrt(head_dim)`.
    attention_cap: keeps what the softmax of the attention gets within plus and minus this.
    max_positions: the longest sequence of the training; the forward pass does not know it.
    initializer_range: standard deviation of random weights.
    attention: how it is computed, see `attention.CHOICES`.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  norm_eps: float
  rope: Rope
  tie_embeddings: bool
  windows: tuple[int | None, ...]
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  activation: str = "silu"
  local_rope: Rope | None = None
  rope_interleaved: bool = False
  attention_scale: float | None = None
  attention_cap: float | None = None
  max_positions: int = dataclasses.field(default=2048, compare=False)
  initializer_range: float = dataclasses.field(default=0.02, compare=False)
  attention: str = dataclasses.field(default="auto", compare=False)

  def kinds(self) -> tuple[Any, ...]:
    """For each layer what its tensors depend on that differs between layers."""
    return (None,) * self.num_layers

  def only(self, layers: Sequence[int]) -> Self:
    """The same model with these layers alone."""
    return dataclasses.replace(self, num_layers=len(layers), windows=tuple(self.windows[i] for i in layers))


class Fields(msgspec.Struct, frozen=True, kw_only=True):
  """The fields of `config.json` that all families read; a subclass adds its own, and other defaults.

  Attributes:
    fixed: fields that the family understands at these values alone, null apart.
    theta: the base of the rotations where a file has none.
  """

  fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
  theta: ClassVar[float] = 10_000.0
  vocab_size: Size
  hidden_size: Size
  intermediate_size: Size
  num_hidden_layers: Annotated[int, Meta(ge=1, le=1000)]
  num_attention_heads: Size
  num_key_value_heads: Size | None = None
  head_dim: Size | None = None
  rms_norm_eps: Annotated[float, Meta(gt=0, le=1)] = 1e-6
  rope_theta: rope.Theta | None = None
  rope_parameters: dict[str, Any] | None = None  # newer files hold all of it here,
  rope_scaling: dict[str, Any] | None = None  # older ones here and in rope_theta
  max_position_embeddings: Size = 2048
  tie_word_embeddings: bool = False
  initializer_range: Annotated[float, Meta(ge=0, le=1e3)] = 0.02

  def windows(self, where: str) -> tuple[int | None, ...]:
    """`DecoderConfig.windows`."""
    return (None,) * self.num_hidden_layers

  def ropes(self, where: str) -> dict[str, Rope | None]:
    """`DecoderConfig.rope`, and `local_rope` where there is one."""
    return {"rope": self.one_rope(self.rope_parameters, self.rope_theta, where)}

  def one_rope(self, parameters: Mapping[str, Any] | None, theta: float | None, where: str) -> Rope:
    """What `rope_parameters` or `rope_scaling` say, both of which may be there."""
    given = {"rope_parameters": parameters, "rope_scaling": self.rope_scaling}
    found = [
      rope.parse(
        options, self.theta if theta is None else theta, self.max_position_embeddings, f"{where}: {name}"
      )
      for name, options in given.items()
      if options
    ] or [rope.parse({}, self.theta if theta is None else theta, self.max_position_embeddings, where)]
    if found[0] != found[-1]:
      raise ValueError(f"{where}: rope_parameters and rope_scaling say different things; keep one of them.")
    return found[0]

  def parts(self) -> dict[str, Any]:
    """What only some families have: `DecoderConfig.qkv_bias` and the like."""
    return {}


def read(
  kind: type[Fields], config: Mapping[str, Any], where: str, made: type[DecoderConfig] = DecoderConfig
) -> DecoderConfig:
  """Reads the `config.json` of a family.

  Args:
    kind: the fields that the family reads.
    config: the file's content.
    where: its path, for errors.
    made: what to make of them; gets the parts that `kind` says.

  Raises:
    ValueError: an unsupported field or value, a missing field, sizes that do not fit each other.
  """
  known, fixed = WITHOUT_EFFECT.union(kind.__struct_fields__), {**_FIXED, **kind.fixed}
  for name, value in config.items():
    if name in fixed:
      if value is not None and value not in fixed[name]:
        only = " or ".join(map(repr, fixed[name])) or "null"
        raise ValueError(f"{where}: {name} is {shown(value)}; only {only} is supported.")
    elif name not in known and not name.startswith("_") and value:
      family = config["model_type"]
      raise ValueError(f"{where}: field {shown(name)} (= {shown(value)}) is not supported for {family}.")
  f = convert({name: config[name] for name in kind.__struct_fields__ if name in config}, kind, where)
  heads, hidden = f.num_attention_heads, f.hidden_size
  kv_heads = heads if f.num_key_value_heads is None else f.num_key_value_heads
  if heads % kv_heads:
    raise ValueError(
      f"{where}: num_attention_heads is {heads}, which cannot share num_key_value_heads = {kv_heads}; "
      "expected a multiple."
    )
  if f.head_dim is None and hidden % heads:
    raise ValueError(
      f"{where}: hidden_size is {hidden}, which num_attention_heads = {heads} does not divide; "
      "expected a multiple, or a head_dim."
    )
  head_dim = hidden // heads if f.head_dim is None else f.head_dim
  if head_dim % 2:
    raise ValueError(f"{where}: head_dim is {head_dim}; expected an even number, its halves are rotated.")
  values: dict[str, Any] = dict(
    vocab_size=f.vocab_size,
    hidden_size=hidden,
    intermediate_size=f.intermediate_size,
    num_layers=f.num_hidden_layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    norm_eps=f.rms_norm_eps,
    tie_embeddings=f.tie_word_embeddings,
    windows=f.windows(where),
    max_positions=f.max_position_embeddings,
    initializer_range=f.initializer_range,
  )
  return made(**values | f.ropes(where) | f.parts())


LAYER_TYPES = ("full_attention", "sliding_attention")


def windows_of(
  given: Sequence[str] | None, default: Sequence[str], window: int | None, where: str
) -> tuple[int | None, ...]:
  """`DecoderConfig.windows` from a file's `layer_types`, or from those that the family has otherwise."""
  kinds = default if given is None else given
  if len(kinds) != len(default):
    raise ValueError(
      f"{where}: layer_types has {len(kinds)} entries, num_hidden_layers is {len(default)}; "
      "expected one a layer."
    )
  for kind in kinds:
    if kind not in LAYER_TYPES:
      raise ValueError(unknown("layer type", kind, LAYER_TYPES, where))
  if "sliding_attention" in kinds and window is None:
    raise ValueError(f"{where}: layer_types has sliding_attention, but sliding_window is not in use.")
  return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def alternating(layers: int, period: int) -> list[str]:
  """Layer types: every layer has a window, but for one at the end of each period.

  >>> alternating(3, 2)
  ['sliding_attention', 'full_attention', 'sliding_attention']
  """
  return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)]
