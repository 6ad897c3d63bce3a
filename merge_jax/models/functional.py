"""The decoder as pure functions of a flat `{name: array}`: the one place where NNX is split."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from merge_jax.models import attention as attention_choices
from merge_jax.models import stacking, tensors
from merge_jax.models.config import DecoderConfig
from merge_jax.models.families import family_of, parse
from merge_jax.models.rope import Dynamic
from merge_jax.operators.naming import AxesRules


class Model(NamedTuple):
  """A decoder's functions.

  Attributes:
    config: its shape.
    specs: shape and dtype of each parameter by Hugging Face name.
    stacks: the stacks of equal layers (see `stacking.find`); empty where they do not pay.
    axes: which leaves of stacked parameters are stacks, for operators and sharding rules.
    apply: `(params, tokens, positions=None, dtype=float32, remat=False, branches=None) -> logits`, see
      `Decoder.__call__`. Parameters have the names of `specs`, or are stacked: their layers then run in one
      scan. Tensors that the model does not have are a ValueError, but for tied heads and rotary tables.
    branches: whether it takes branches.
    generate: `(params, tokens, starts, states, limits, moves, most, dtype=float32) -> tokens`, see
      `merge_jax.models.generation.generate`.
    init: `key -> params`, random float32.
    inputs: `(params, tokens) -> {name: input}`: what each linear layer multiplies, `[batch, time, in]`, by
      the name of its weight; one array where layers share it.
  """

  config: DecoderConfig
  specs: dict[str, jax.ShapeDtypeStruct]
  stacks: dict[str, tuple[str, ...]]
  axes: AxesRules
  apply: Callable[..., Array]
  branches: bool
  generate: Callable[..., Array]
  init: Callable[[Array], dict[str, Array]]
  inputs: Callable[[Mapping[str, Array], Array], dict[str, Array]]


def _exact(dtype: Any) -> contextlib.AbstractContextManager[Any]:
  """Products of float32 in float32: GPUs would take 10 bits of each number (TF32), TPUs 7.

  Not where the caller has said how (`JAX_DEFAULT_MATMUL_PRECISION`).
  """
  told = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
  return contextlib.nullcontext() if told or dtype != jnp.float32 else jax.default_matmul_precision("highest")


def build(config: Mapping[str, Any], where: str = "config.json", attention: str = "auto") -> Model:
  """Builds the functions of a decoder from its `config.json`.

  Args:
    config: the file's content.
    where: the file's path, for errors.
    attention: how it is computed: `auto`, `xla` or `cudnn`, see `attention.CHOICES`.

  Raises:
    ValueError: a config that `parse` refuses; an unknown kind of attention.

  >>> model = build(dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48,
  ...                    num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=True))
  >>> params = model.init(jax.random.key(0))
  >>> params["model.layers.0.mlp.up_proj.weight"].shape
  (48, 32)
  >>> model.apply(params, jnp.zeros((2, 5), jnp.int32)).shape
  (2, 5, 64)
  """
  from flax import nnx  # a config is read and compared without it

  from merge_jax.models import generation

  family = family_of(config, where)
  attention_choices.check(attention)
  shape = dataclasses.replace(family.parse(config, where), attention=attention)
  kinds = shape.kinds()
  distinct = list(dict.fromkeys(kinds))  # one layer of each is enough to know all: a model may have thousands
  module = family.module(shape.only([kinds.index(kind) for kind in distinct]), _spec)
  parts = dict(zip(distinct, map(_split, module.model.layers), strict=True))
  module.model.layers, module.config = nnx.List([]), shape
  frame, specs = _split(module)
  for i, kind in enumerate(kinds):
    specs |= {f"{stacking.LAYERS}.{i}.{name}": spec for name, spec in parts[kind][1].items()}
  stacks = stacking.find(specs)
  stacked_specs = stacking.stack_specs(specs, stacks)

  def opened(
    params: Mapping[str, Array], seen: Callable[[Any, str], Any] = lambda module, prefix: module
  ) -> tuple[Any, Callable[[Any], Any], bool]:
    """The model without layers, its layers by index, and whether that may be traced.

    seen: gets every module before it is used, and the prefix of its tensors' names.
    """
    scan = not stacks.keys().isdisjoint(params)
    tensors.compare(params, stacked_specs if scan else specs, "stacked parameters" if scan else "parameters")

    def layer(i: Any) -> Any:
      part = parts[kinds[0] if scan else kinds[i]][0]
      if not scan:
        prefix = f"{stacking.LAYERS}.{i}."
        return seen(part.merge({name: params[prefix + name] for name in part.paths}), prefix)
      return part.merge({  # a slice is read where it is used; the stack is never copied
        name: jax.lax.dynamic_index_in_dim(params[f"{stacking.LAYERS}.{name}"], i, keepdims=False)
        for name in part.paths
      })  # fmt: skip

    return seen(frame.merge(params), ""), layer, scan

  def apply(
    params: Mapping[str, Array],
    tokens: Array,
    positions: Array | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    branches: tuple[Array, Array, Array] | None = None,
  ) -> Array:
    module, layer, scan = opened(params)
    with _exact(dtype):
      return module(tokens, layer, positions, dtype, remat, branches, scan)

  def generate(
    params: Mapping[str, Array], tokens: Array, starts: Array, states: Array, limits: Array, moves: Array,
    most: int, dtype: Any = jnp.float32,
  ) -> Array:  # fmt: skip
    module, layer, scan = opened(params)
    with _exact(dtype):
      return generation.generate(module, layer, tokens, starts, states, limits, moves, most, dtype, scan)

  def inputs(params: Mapping[str, Array], tokens: Array) -> dict[str, Array]:
    tensors.compare(params, specs, "parameters")  # layers of a scan cannot be watched
    found: dict[str, Array] = {}

    def watched(module: Any, prefix: str) -> Any:
      for path, one in nnx.iter_modules(module):
        if hasattr(one, "observe"):
          one.observe = functools.partial(found.__setitem__, prefix + ".".join(map(str, (*path, "weight"))))
      return module

    module, layer, _ = opened(params, watched)
    with _exact(jnp.float32):
      module(tokens, layer)
    return found

  @jax.jit
  def init(key: Array) -> dict[str, Array]:
    rngs = nnx.Rngs(key)

    def draw(shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> Array:
      return std * jax.random.normal(rngs.params(), shape) if std else jnp.full(shape, mean)

    values = nnx.to_flat_state(nnx.state(family.module(shape, draw)))
    return {".".join(map(str, path)): value.get_value() for path, value in values}

  tree = not any(isinstance(one, Dynamic) for one in (shape.rope, shape.local_rope))
  return Model(shape, specs, stacks, stacking.AXES, apply, tree, generate, init, inputs)


def check(config: Mapping[str, Any], specs: Mapping[str, Any], where: str = "config.json") -> None:
  """Checks that the tensors of a checkpoint are those of its config; reads no tensor.

  Args:
    config: the content of `config.json`.
    specs: `{name: what has a shape}` of the checkpoint.
    where: the config's path, for errors.

  Raises:
    ValueError: a config that `parse` refuses; another number of layers; the first tensor that is
      missing, misshapen or of no use, with the field that likely is wrong.

  >>> config = dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48,
  ...               num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=True)
  >>> check(config | {"vocab_size": 65}, build(config).specs)
  Traceback (most recent call last):
  ValueError: config.json: tensor 'model.embed_tokens.weight' has shape (64, 32); its config says (65, 32)
    (see vocab_size).
  """
  tensors.count_layers(specs, parse(config, where).num_layers, where)  # absurd counts are never built
  tensors.compare(specs, build(config, where).specs, where)


class _Part(NamedTuple):
  """A module without its values."""

  graphdef: Any
  paths: dict[str, tuple[Any, ...]]  # by the names of its parameters

  def merge(self, params: Mapping[str, Array]) -> Any:
    from flax import nnx

    state = nnx.from_flat_state([(path, nnx.Param(params[name])) for name, path in self.paths.items()])
    return nnx.merge(self.graphdef, state)


def _split(module: Any) -> tuple[_Part, dict[str, jax.ShapeDtypeStruct]]:
  from flax import nnx

  graphdef, abstract = nnx.split(module)
  flat = dict(nnx.to_flat_state(abstract))
  part = _Part(graphdef, {".".join(map(str, path)): path for path in flat})
  return part, {name: flat[path].get_value() for name, path in part.paths.items()}


def _spec(shape: tuple[int, ...], std: float = 0.0, mean: float = 0.0) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)
