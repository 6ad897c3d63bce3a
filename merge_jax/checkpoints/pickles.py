"""Weights in pickles: refused, for loading one runs what is in it, with the command that converts them."""

import fnmatch
import shlex
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_NO_WEIGHTS = (
  "training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "random_states*",
)  # fmt: skip
# `weights_only` lets no code of the file run; clones, because safetensors holds no shared memory.
_CODE = (
  "import sys,torch,safetensors.torch as s;d={};"
  '[d.update((lambda t:t.get("state_dict",t))'
  '(torch.load(f,map_location="cpu",weights_only=True))) for f in sys.argv[2:]];'
  's.save_file({k:v.clone().contiguous() for k,v in d.items()},sys.argv[1],{"format":"pt"})'
)


def found(folder: Path) -> list[Path]:
  """Files of a folder that seem to hold pickled weights: those named as a model's, or else all."""
  files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
  named = [file for file in files if fnmatch.fnmatch(file.name, "pytorch_model*.bin")]
  return named or [file for file in files if not any(fnmatch.fnmatch(file.name, p) for p in _NO_WEIGHTS)]


def refusal(where: Path, files: Sequence[Path]) -> str:
  """The sentence for a file, or a folder whose weights are these files.

  >>> print(refusal(Path("m.pt"), [Path("m.pt")]))
  m.pt: the weights are pickled, and no pickle is ever loaded; convert them: python -c ... m.safetensors m.pt
  """
  target = where / "model.safetensors" if where.is_dir() else where.with_suffix(".safetensors")
  command = shlex.join(["python", "-c", _CODE, str(target), *map(str, files)])
  return f"{where}: the weights are pickled, and no pickle is ever loaded; convert them: {command}"
