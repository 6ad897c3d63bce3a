"""The flag `--config`, and how a command line is read: what is wrong in it is one sentence."""

import contextlib
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from merge_jax import errors

flags.disclaim_key_flags()  # the flag is a job's own, and in its --help

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def parse(elsewhere: Mapping[str, str], argv: list[str]) -> list[str]:
  """Reads the flags of a command; what is left of it. `elsewhere`: see `_common.run`."""
  words = [re.sub(r"^(--?config=)?(configs/\w+\.py)", _packaged, word) for word in argv]
  given = re.search(r"^--?config[=\n](.*)", "\n".join(words), re.MULTILINE)
  with _one_sentence("" if given is None else given[1]):
    try:
      return flags.FLAGS(words)
    except flags.UnrecognizedFlagError as error:
      here = elsewhere.get(error.flagname.removeprefix("no-").replace("_", "-"))
      print(f"error: {error}" if here is None else f"error: {error}; {here}.", file=sys.stderr)
      sys.exit(1)
    except flags.Error as error:  # of a config file it is a whole traceback, its end what was raised
      text = re.sub(r"\('Non-boolean argument.*\)$", "expected true or false.", str(error))
      lines = [line.strip() for line in text.splitlines() if line.strip()]
      print(f"error: {lines[0]}", *lines[-1:] if len(lines) > 1 else (), file=sys.stderr)
      sys.exit(1)


def _packaged(word: re.Match[str]) -> str:
  """`configs/NAME.py` is ours where there is no such file: the wheel has it elsewhere than a clone."""
  flag, file = word[1] or "", word[2]
  ours = CONFIGS.parent / file
  return f"{flag}{ours if ours.is_file() and not Path(file).exists() else file}"


def define_config(name: str) -> Any:
  """The flag `--config`, by default `configs/NAME.py`; its keys are flags, too (`--config.seed=1`)."""
  said = "File of settings, each of them a flag, too: --config.KEY=VALUE."
  file = str(CONFIGS / f"{name}.py")
  with _one_sentence(file):  # overrides of the default are parsed where the flag is defined
    return config_flags.DEFINE_config_file("config", file, said)


def config_values(holder: Any) -> dict[str, Any]:
  """The content of a config flag as plain data; ValueError if the file made something else."""
  try:
    return holder.value.to_dict()
  except AttributeError:
    kind = type(holder.value).__name__
    raise ValueError(f"--config: get_config returned a {kind}; expected a ConfigDict.") from None
  except OSError as error:  # kept by the flag until now
    raise ValueError(f"--config: {_of_file(str(error))}") from None


@contextlib.contextmanager
def _one_sentence(file: str) -> Iterator[None]:
  """A wrong key or file of a config is one sentence and status 1, not a traceback."""
  try:
    yield
  except Exception as error:  # a config file is somebody's program: it may raise anything
    kind = "" if isinstance(error, AttributeError | ValueError | OSError) else f"{type(error).__name__}: "
    words = _of_file(str(error).replace("\\n", " ").replace("\\", "").replace("'", ""))
    with contextlib.suppress(Exception):  # then it is not the keys
      kind, words = "", _unknown_key(file) or f"{kind}{words}"
    print(f"error: --config: {kind}{words}", file=sys.stderr)
    sys.exit(1)


def _unknown_key(file: str) -> str:
  """The sentence for the first `--config.KEY` of the command whose key the config does not have, or ""."""
  path, *mode = file.split(":", 1)
  config = runpy.run_path(path)["get_config"](*mode)
  for keys in re.findall(r"^--?(?:no)?config\.([^=\[\n]+)", "\n".join(sys.argv[1:]), re.MULTILINE):
    part, where = config, "config"
    for key in keys.split("."):
      known = part.keys() if isinstance(part, ConfigDict) else ()
      if key not in known:
        return f"{errors.unknown('key', key, known, where)} What a config file has not, no flag can set."
      part, where = part[key], f"{where}.{key}"
  return ""


def _of_file(said: str) -> str:
  """One line; of what is said of a file that cannot be read what the system says, as in `errors.sentence`."""
  words = " ".join(said.split())
  end = re.search(r"\[Errno \d+\] ([^:]+): '?([^']+?)'?$", words)
  return words if end is None else f"{end[2]}: {end[1]}."
