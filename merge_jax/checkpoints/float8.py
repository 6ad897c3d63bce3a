"""Block-scaled float8, read as the float32 numbers that it stands for; other quantisations are refused.

DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) stores a weight as float8 with one factor for every block of
128 x 128: W[i, j] = w[i, j] · s[i // 128, j // 128]; `X.weight` has its factors in `X.weight_scale_inv`.
Qwen3's float8 models do so, too.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import msgspec
import numpy as np

from merge_jax import decoding
from merge_jax.checkpoints import sidecars
from merge_jax.checkpoints.base import Checkpoint, Index, Writer
from merge_jax.checkpoints.folder_writer import FolderWriter
from merge_jax.checkpoints.views import View

_SCALE = "_scale_inv"
_OTHER_SCALES = ("weight_scale", "scale_weight", "weight_scale_2")
_PACKED = ("weight", "qweight", "qzeros", "weight_packed", "_blocks", "_scales", "_data", "W_q", "codes")
"""How packed integers are named by gptq, awq, bitsandbytes, compressed-tensors, mxfp4, quanto, hqq, aqlm."""
_FULL = ("float32", "bfloat16", "float16")

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Quantisation(msgspec.Struct):
  quant_method: str = ""
  weight_block_size: tuple[_Positive, _Positive] | None = None


@dataclasses.dataclass(frozen=True)
class Dequantised(View):
  """A view of a folder of block-scaled float8; its scales are no tensors of it.

  Attributes:
    blocks: rows and columns of a block by tensor; None for one factor for all of it.
    dtype: what a merge of such a tensor is written in.
  """

  blocks: Mapping[str, tuple[int, int] | None]
  dtype: np.dtype

  def result_dtype(self, name: str) -> np.dtype:
    """The config's dtype for what was float8, else bfloat16; the stored dtype for the rest."""
    return self.dtype if name in self.blocks else self.source.result_dtype(name)

  def writer(self, folder: Path, specs: Mapping[str, Any], **options: Any) -> Writer:
    """A writer of safetensors that are not quantised."""
    return FolderWriter(folder, specs, self, **options)

  def copy_sidecars(self, folder: Path) -> None:
    """Those of the source, with a config that does not say that the weights are quantised."""
    self.source.copy_sidecars(folder)
    if self.config is not None:
      sidecars.write_config(folder, self.config)

  def _stored(self, name: str, index: Index | None) -> np.ndarray:
    stored = self.source._stored(name, index)
    if name not in self.blocks:
      return stored
    scale = self.source.read(name + _SCALE).astype(np.float32)
    table = np.arange(256, dtype=np.uint8).view(stored.dtype).astype(np.float32)
    values = np.ascontiguousarray(table[stored.view(np.uint8)]).reshape(stored.shape)
    block = self.blocks[name]
    if block is None:
      values *= scale.reshape(())
      return values
    shape = self.specs[name].shape
    full = (*(index or ()), *[slice(None)] * (len(shape) - len(index or ())))
    rows = np.arange(shape[-2])[full[-2]] // block[0]
    cols = np.arange(shape[-1])[full[-1]] // block[1]
    for k in np.unique(rows):
      start, end = np.searchsorted(rows, [k, k + 1])
      values[..., start:end, :] *= scale[(*full[:-2], k)][..., cols][..., None, :]
    return values


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
  """The checkpoint itself, or a view of its float32 values if it has block-scaled float8 weights.

  Raises:
    ValueError: weights of another quantisation, which a merge would take for numbers; scales that do not
      fit their tensor, or have none.
  """
  where, config, specs = checkpoint.path, checkpoint.config or {}, checkpoint.specs
  given = config.get("quantization_config") or {}
  told = decoding.convert(given, _Quantisation, f"{where}: quantization_config")
  scaled = [name for name in specs if name + _SCALE in specs and _is_float8(specs[name])]
  _refuse_others(checkpoint, told.quant_method, set(scaled))
  if not scaled:
    return checkpoint
  blocks = {name: _block(checkpoint, name, told.weight_block_size or (128, 128)) for name in scaled}
  seen = {
    name: jax.ShapeDtypeStruct(spec.shape, np.float32) if name in blocks else spec
    for name, spec in specs.items()
    if name.removesuffix(_SCALE) not in blocks or name in blocks
  }
  named = config.get("dtype", config.get("torch_dtype"))
  dtype = jax.numpy.dtype(named if named in _FULL else "bfloat16")
  plain = {key: value for key, value in config.items() if key != "quantization_config"}
  shown = None if checkpoint.config is None else plain
  return Dequantised(where, seen, checkpoint.aliases, shown, checkpoint, blocks, dtype)


def _block(checkpoint: Checkpoint, name: str, block: tuple[int, int]) -> tuple[int, int] | None:
  spec, scale = checkpoint.specs[name], checkpoint.specs[name + _SCALE]
  per = (-(-n // b) for n, b in zip(spec.shape[-2:], block, strict=False))
  expected = (*spec.shape[:-2], *per)
  floating = jax.numpy.issubdtype(scale.dtype, np.floating)
  if floating and scale.shape == expected and len(expected) > 1:
    return block
  if floating and scale.size == 1:
    return None
  raise ValueError(
    f"{checkpoint.path}: {name + _SCALE!r} is {scale.dtype}{list(scale.shape)}; expected floats of shape "
    f"{list(expected)}, one for each block of {block[0]} x {block[1]} of {list(spec.shape)}, or one for all."
  )


def _refuse_others(checkpoint: Checkpoint, method: str, scaled: set[str]) -> None:
  specs = checkpoint.specs
  by = f" by {method}" if method else ""
  for name, spec in specs.items():
    small = np.dtype(spec.dtype).kind in "iu" and np.dtype(spec.dtype).itemsize <= 4 and len(spec.shape) > 1
    packed = small and (bool(method) or name.endswith(_PACKED))
    stem = name.removesuffix("weight")
    other = _is_float8(spec) and name not in scaled and any(stem + s in specs for s in _OTHER_SCALES)
    if packed or other:
      raise ValueError(
        f"{checkpoint.path}: tensor {name!r} is {spec.dtype}, quantised{by}: a merge would take its codes "
        "for weights; merge the model that is not quantised."
      )
    weight = name.removesuffix(_SCALE)
    if name.endswith(_SCALE) and weight not in scaled:
      tied = f" of its own: that is {checkpoint.aliases[weight]!r}" if weight in checkpoint.aliases else ""
      raise ValueError(f"{checkpoint.path}: {name!r} has no float8 tensor {weight!r}{tied}.")


def _is_float8(spec: jax.ShapeDtypeStruct) -> bool:
  return str(spec.dtype).startswith("float8") and str(spec.dtype) != "float8_e8m0fnu"
