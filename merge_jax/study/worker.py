"""A process that does cells of a study beside others; its argument is `["FOLDER", NUMBER]`."""

import sys
from pathlib import Path
from typing import Any

from merge_jax import decoding, errors, sharding, storage
from merge_jax.study import cells, job, settings, workers
from merge_jax.study.data import sources
from merge_jax.study.planning import plan


def main() -> int:
  """Does what is ready until nothing is left; 0, or the status of one that was stopped."""
  told, number = decoding.decode(sys.argv[1].encode(), tuple[str, int], "arguments")
  folder, stop = Path(told), workers.told_to_stop()
  try:
    values = storage.read_json(folder / job.NAME, dict[str, Any])
    study, store, mesh = settings.from_mapping(values), cells.Store(folder / "cells"), sharding.make_mesh("")
    made = plan(study, sources.find(study, folder), folder, store, mesh, stop)
    # From both ends, so that neighbours, which share programs and models, fall to one process.
    order = -1 if number % 2 else 1
    cells.share(made.work[::order], store, folder / job.CLAIMS, stop=stop)
    cells.share(job.searches(made, mesh)[0][::order], store, folder / job.CLAIMS, stop=stop)
  except errors.Stopped as error:
    return error.status
  except (ValueError, OSError) as error:
    print(f"error: {errors.sentence(error)}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
