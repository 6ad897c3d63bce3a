"""Which format a folder has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from merge_jax.checkpoints import base, huggingface
from merge_jax.checkpoints.base import Checkpoint
from merge_jax.errors import unknown

FORMATS = ("safetensors", "orbax")


def open_checkpoint(path: str | Path) -> Checkpoint:
  """Opens a checkpoint folder; no tensor is read.

  Args:
    path: a Hugging Face folder with safetensors, or an Orbax directory.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: remote paths, damaged files, folders of neither kind.
  """
  text = str(path)
  if "://" in text:
    raise ValueError(f"{text}: remote paths are not supported yet; copy the folder to a local disk.")
  folder = Path(path)
  if not folder.is_dir():
    raise FileNotFoundError(f"{text}: there is no such folder.")
  if huggingface.is_ours(folder):
    return huggingface.open_folder(folder)
  if (folder / "_CHECKPOINT_METADATA").is_file() or (folder / "_METADATA").is_file():
    from merge_jax.checkpoints import orbax  # slow to import, and most pools are safetensors

    return orbax.open_folder(folder)
  have = sorted(file.name for file in folder.iterdir())[:5]
  hint = " Convert .bin and .pt files first: no pickle is ever loaded." if any(
    name.endswith((".bin", ".pt", ".pth")) for name in have
  ) else ""  # fmt: skip
  raise ValueError(f"{text}: neither a safetensors folder nor an Orbax directory (holds {have}).{hint}")


def write(
  folder: Path,
  tensors: Mapping[str, Any],
  *,
  like: Checkpoint | None = None,
  format: str | None = None,
) -> None:
  """Writes a checkpoint with the config, tokenizer and chat template of another.

  Args:
    folder: an empty folder; wrap it in `storage.new_folder` to make it appear whole or not at all.
    tensors: arrays by canonical name, tied ones once.
    like: whose format, structure and side files are taken.
    format: "safetensors" or "orbax"; None for `like`'s.
  """
  kind = format or (like.format if like is not None else "safetensors")
  if kind not in FORMATS:
    raise ValueError(unknown("checkpoint format", kind, FORMATS))
  if kind == "orbax":
    from merge_jax.checkpoints import orbax

    same = like is not None and like.format == "orbax"
    orbax.write_folder(folder, tensors, like.structure if same and like is not None else None)
  else:
    huggingface.write_folder(folder, tensors)
  if like is not None:
    base.copy_sidecars(like.path, folder)
    _update_dtype(folder, tensors)


def _update_dtype(folder: Path, tensors: Mapping[str, Any]) -> None:
  """Makes `config.json` say the dtype of the tensors."""
  path = folder / "config.json"
  config = base.read_config(folder)
  floating = {str(np.dtype(v.dtype)) for v in tensors.values() if _is_float(v)}
  if config is None or len(floating) != 1:
    return
  key = "torch_dtype" if "torch_dtype" in config else "dtype"
  if config.get(key) != min(floating):
    path.write_text(json.dumps(config | {key: min(floating)}, indent=2) + "\n")


def _is_float(value: Any) -> bool:
  return jax.numpy.issubdtype(value.dtype, np.inexact)
