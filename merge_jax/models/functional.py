"""The decoder as pure functions of a flat `{name: array}`: the one place where NNX is split."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from merge_jax.models.config import DecoderConfig, parse
from merge_jax.models.decoder import Decoder


class Model(NamedTuple):
  """A decoder's functions.

  Attributes:
    config: its shape.
    specs: shape and dtype of each parameter by Hugging Face name.
    apply: `(params, tokens, asked=None, dtype=float32) -> logits`, see `Decoder.__call__`. Tensors
      that the model does not have are a ValueError, but for tied heads and rotary tables.
    init: `key -> params`, random float32.
  """

  config: DecoderConfig
  specs: dict[str, jax.ShapeDtypeStruct]
  apply: Callable[..., Array]
  init: Callable[[Array], dict[str, Array]]


def build(config: DecoderConfig | Mapping[str, Any], where: str = "config.json") -> Model:
  """Builds the functions of a decoder from its `config.json`.

  Args:
    config: the file's content, or what `parse` made of it.
    where: the file's path, for errors.

  >>> model = build(dict(model_type="llama", vocab_size=64, hidden_size=32, intermediate_size=48,
  ...                    num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=True))
  >>> params = model.init(jax.random.key(0))
  >>> params["model.layers.0.mlp.up_proj.weight"].shape
  (48, 32)
  >>> model.apply(params, jnp.zeros((2, 5), jnp.int32)).shape
  (2, 5, 64)
  """
  shape = config if isinstance(config, DecoderConfig) else parse(config, where)
  graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(shape, nnx.Rngs(0))))
  paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(abstract)}
  flat = dict(nnx.to_flat_state(abstract))
  specs = {name: jax.ShapeDtypeStruct(flat[path].shape, jnp.float32) for name, path in paths.items()}

  def apply(
    params: Mapping[str, Array],
    tokens: Array,
    asked: Array | None = None,
    dtype: Any = jnp.float32,
  ) -> Array:
    _check_names(params, specs)
    state = nnx.from_flat_state([(path, nnx.Param(params[name])) for name, path in paths.items()])
    return nnx.merge(graphdef, state)(tokens, asked, dtype)

  @jax.jit
  def init(key: Array) -> dict[str, Array]:
    state = nnx.state(Decoder(shape, nnx.Rngs(key)))
    values = dict(nnx.to_flat_state(state))
    return {name: values[path].get_value() for name, path in paths.items()}

  return Model(shape, specs, apply, init)


def ignored(name: str) -> bool:
  """Tensors that some checkpoints carry and no decoder here reads."""
  return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _check_names(params: Mapping[str, Any], specs: Mapping[str, Any]) -> None:
  for name in specs:
    if name not in params:
      raise ValueError(f"Tensor {name!r} is missing in the parameters of the model.")
    if tuple(params[name].shape) != specs[name].shape:
      raise ValueError(
        f"Tensor {name!r} has shape {tuple(params[name].shape)}; its config says {specs[name].shape}."
      )
  for name in params:
    if name not in specs and not ignored(name):
      raise ValueError(f"Tensor {name!r} has no place in a model of this config.")
