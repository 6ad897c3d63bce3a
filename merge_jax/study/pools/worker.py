"""One size and seed of a suite in a process of its own: `python -m merge_jax.study.pools.worker JSON`."""

import sys
from pathlib import Path

import msgspec

from merge_jax import decoding, errors, storage
from merge_jax.study import workers
from merge_jax.study.pools import data
from merge_jax.study.pools.job import NAME
from merge_jax.study.pools.settings import Pools
from merge_jax.study.pools.unit import Unit


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """What `job` says on the command line."""

  folder: str
  size: str
  seed: int
  names: tuple[str, ...]
  kinds: tuple[str, ...]
  attainable: bool


def main() -> int:
  """Does it; 0, or the status of one that was stopped."""
  told = decoding.decode(sys.argv[1].encode(), Told, "arguments")
  stop, folder = workers.told_to_stop(), Path(told.folder)
  suite = decoding.decode((folder / NAME).read_bytes(), Pools, str(folder / NAME))
  try:
    files = data.make(folder, suite.data)
    wanted = (told.names, told.kinds, told.attainable)
    unit = Unit(suite, files, told.size, told.seed, folder, *wanted, stop)
    found = unit.run(lambda line: print(line, flush=True))
  except errors.Stopped as error:
    print(f"{told.size}/{told.seed}: {error}", flush=True)
    return error.status
  except (ValueError, OSError) as error:
    print(f"error: {told.size}/{told.seed}: {errors.sentence(error)}", file=sys.stderr)
    return 1
  storage.write_json(folder / "units" / f"{told.size}-{told.seed}.json", found)
  return 0


if __name__ == "__main__":
  sys.exit(main())
