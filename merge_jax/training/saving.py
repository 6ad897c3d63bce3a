"""Writing what lies on the devices of all processes: one tensor after the other comes to the lead's disk."""

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from jax import Array

from merge_jax import checkpoints, host, sharding, storage
from merge_jax.checkpoints import Checkpoint


def new_folder(path: Path) -> AbstractContextManager[Path | None]:
  """As `storage.new_folder` at the lead; the others have none."""
  return storage.new_folder(path) if host.is_lead() else contextlib.nullcontext()


def write(folder: Path | None, params: Mapping[str, Array], like: Checkpoint | None = None) -> None:
  """Writes a safetensors folder.

  Args:
    folder: of `new_folder`; all processes call this together.
    params: by name.
    like: whose config, tokenizer and chat template are taken.
  """
  with contextlib.ExitStack() as stack:
    out = None
    if folder is not None:
      out = stack.enter_context(checkpoints.writer(folder, params, like=like, format="safetensors"))
    for name, value in params.items():
      gathered = sharding.whole(value)
      if out is not None:
        out.write(name, gathered)
