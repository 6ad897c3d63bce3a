"""One size and seed of a suite in a process of its own; its argument is `["FOLDER", "SIZE", SEED, ASKED]`."""

import sys
from pathlib import Path

from merge_jax import decoding, errors, storage
from merge_jax.study import workers
from merge_jax.study.pools import data
from merge_jax.study.pools.job import NAME
from merge_jax.study.pools.settings import Pools
from merge_jax.study.pools.unit import Asked, Unit


def main() -> int:
  """Does it; 0, or the status of one that was stopped."""
  told, size, seed, asked = decoding.decode(sys.argv[1].encode(), tuple[str, str, int, Asked], "arguments")
  stop, folder = workers.told_to_stop(), Path(told)
  suite = storage.read_json(folder / NAME, Pools)
  try:
    files = data.make(folder, suite.data)
    found = Unit(suite, files, size, seed, folder, asked, stop).run(lambda line: print(line, flush=True))
  except errors.Stopped as error:
    print(f"{size}/{seed}: {error}", flush=True)
    return error.status
  except (ValueError, OSError) as error:
    print(f"error: {size}/{seed}: {errors.sentence(error)}", file=sys.stderr)
    return 1
  storage.write_json(folder / "units" / f"{size}-{seed}.json", found)
  return 0


if __name__ == "__main__":
  sys.exit(main())
