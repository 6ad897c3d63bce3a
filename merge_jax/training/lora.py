"""LoRA (arXiv 2106.09685): instead of a matrix W, two thin ones are trained whose product is added to it.

    W + s B A        A [r, in], B [out, r], s = alpha / r

A begins uniform in ±1/√in and B with zeros, as PEFT's, so that training begins at W. The factors have the
names that PEFT gives them: `….q_proj.lora_A.weight`, `….q_proj.lora_B.weight`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from merge_jax.operators import naming
from merge_jax.training.recipe import Recipe

_LINEAR = re.compile(r".*\.(self_attn|mlp|block_sparse_moe)\.(.*\.)?(\w+_proj|w[123])\.weight")
"""Linear layers of attention and feed-forwards, those of experts included; routers are none."""


def targets(params: Mapping[str, Any]) -> list[str]:
  """Names of the matrices that are adapted.

  >>> class W: ndim = 2
  >>> targets({"model.layers.0.mlp.up_proj.weight": W, "model.embed_tokens.weight": W})
  ['model.layers.0.mlp.up_proj.weight']
  """
  return [name for name, value in params.items() if value.ndim == 2 and _LINEAR.fullmatch(name)]


def scale(recipe: Recipe) -> float:
  """s of the product; `lora_alpha` 0 stands for the rank."""
  return (recipe.lora_alpha or recipe.lora_rank) / recipe.lora_rank


def begin(params: Mapping[str, Array], recipe: Recipe) -> dict[str, Array]:
  """The factors before the first step: A is cut as the columns of W, B as its rows.

  Raises:
    ValueError: nothing to adapt; a rank that is larger than a side of a matrix.
  """
  factors: dict[str, Array] = {}
  rank, key = recipe.lora_rank, jax.random.key(recipe.seed)
  for name in targets(params):
    weight = params[name]
    rows, columns = weight.shape
    if rank > min(rows, columns):
      raise ValueError(
        f"lora_rank is {rank}; expected at most {min(rows, columns)}, the smaller side of {name!r}; "
        "0 trains all parameters."
      )
    first, second = _names(name)
    own = naming.key_of(key, "lora", name)
    factors[first] = _drawn(_uniform, own, (rank, columns), weight, 1)
    factors[second] = _drawn(_zeros, own, (rows, rank), weight, 0)
  if not factors:
    raise ValueError(
      f"lora_rank is {rank}, but no parameter is a matrix of attention or feed-forward by its Hugging Face "
      "name, such as 'model.layers.0.mlp.up_proj.weight'; 0 trains all parameters."
    )
  return factors


def merged(base: Mapping[str, Array], factors: Mapping[str, Array], recipe: Recipe) -> dict[str, Array]:
  """The parameters that the factors stand for: W + s B A in float32, all others as they are."""
  result = dict(base)
  for name in targets(base):
    a, b = (factors[factor] for factor in _names(name))
    product = jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST)
    result[name] = base[name].astype(jnp.float32) + scale(recipe) * product
  return result


def config(factors: Mapping[str, Any], recipe: Recipe, base: str) -> dict[str, Any]:
  """The content of PEFT's `adapter_config.json`.

  Args:
    factors: by name.
    recipe: its rank and alpha.
    base: name or folder of the model that was adapted.
  """
  alpha = recipe.lora_alpha or recipe.lora_rank
  return {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
    "r": recipe.lora_rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": 0.0,
    "target_modules": sorted({name.split(".")[-3] for name in factors}), "bias": "none",
    "fan_in_fan_out": False, "use_rslora": False, "init_lora_weights": True,
  }  # fmt: skip


def peft_name(factor: str) -> str:
  """The name of a factor in an adapter's file."""
  return f"base_model.model.{factor}"


def _names(name: str) -> tuple[str, str]:
  module = name.removesuffix(".weight")
  return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _uniform(key: Array, shape: tuple[int, int]) -> Array:
  bound = shape[1] ** -0.5
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _zeros(key: Array, shape: tuple[int, int]) -> Array:
  return jnp.zeros(shape)


def _drawn(draw: Callable[..., Array], key: Array, shape: tuple[int, int], like: Array, axis: int) -> Array:
  """A factor that shares this axis with a matrix, cut as that is."""
  lies = None
  if isinstance(like.sharding, NamedSharding):
    parts: list[Any] = [None, None]
    parts[axis] = (*like.sharding.spec, None, None)[axis]
    lies = NamedSharding(like.sharding.mesh, P(*parts))
  return jax.jit(draw, static_argnums=1, out_shardings=lies)(key, shape)
