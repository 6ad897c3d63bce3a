"""Converts a checkpoint between Hugging Face folders (safetensors) and Orbax directories.

python -m launch.convert --input=model --output=model_orbax --format=orbax
"""

from absl import flags

from merge_jax import checkpoints, storage

from . import _common

_INPUT = flags.DEFINE_string("input", None, "Folder to read.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must not exist.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, list(checkpoints.FORMATS), "Format to write.", required=True)


def main() -> None:
  """Reads, writes, says what."""
  source, target = checkpoints.open(_INPUT.value), storage.destination(_OUTPUT.value, "--output")
  storage.refuse_inside(target, [source.path])
  storage.refuse_taken(target)
  storage.require_space(target, source.nbytes)
  with (
    storage.new_folder(target) as partial,
    checkpoints.writer(partial, source.specs, like=source, format=_FORMAT.value) as out,
  ):
    for name in source.specs:
      out.write(name, source.read(name))
  print(f"{len(source.specs)} tensors, {storage.gib(source.nbytes)}: {target} ({_FORMAT.value})")


if __name__ == "__main__":
  _common.run(main)
