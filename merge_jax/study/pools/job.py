"""A comparison of proposers from its settings to its table; sizes and seeds side by side in processes.

What is done is kept by the digest of all that it depends on (`cells`), so that a killed comparison goes on,
and another contestant adds what is missing alone.
"""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from merge_jax import storage
from merge_jax.errors import unknown
from merge_jax.reports import gains
from merge_jax.study import workers as processes
from merge_jax.study.cells import Result
from merge_jax.study.pools import data, members, table
from merge_jax.study.pools.settings import SEEDS, Pools
from merge_jax.study.pools.unit import Asked, Unit, units

NAME = "pools.json"
"""Marks the folder of a suite; holds its settings."""
PARTS = ("lines", "references", "attainable")


def compare(
  suite: Pools,
  folder: Path,
  *,
  workers: int = 1,
  parts: Collection[str] = SEEDS,
  names: Collection[str] | None = None,
  kinds: Collection[str] = (),
  sizes: Collection[str] = (),
  attainable: bool = False,
  inside: bool = False,
  stop: Callable[[], bool] = lambda: False,
  say: Callable[[str], None] = print,
) -> Result:
  """Trains missing pools, runs missing contestants, and writes what came of it.

  Args:
    suite: its settings.
    folder: for everything; `lines.jsonl`, `table.txt`, `table.csv` and `gains_PART.png` hold the results.
    workers: processes.
    parts: of the training seeds, of `SEEDS`.
    names: of contestants; None: all. Empty: pools are trained alone.
    kinds, sizes: of pools; none: all.
    attainable: also finds out what there is to gain (`suite.attainable`).
    inside: everything in this process.
    stop: asked again and again.
    say: told what is going on.

  Returns:
    `lines`, `references`, `attainable`, and `failed` with a sentence for each cell that failed.

  Raises:
    ValueError, OSError: what the user can mend, before anything long begins.
    errors.Stopped: `stop` said so; the same call continues.
  """
  asked = Asked(tuple(suite.contestants if names is None else names), tuple(kinds), attainable)
  for kind, some, known in (
    ("contestant", asked.names, suite.contestants), ("kind of pool", kinds, suite.kinds),
    ("size", sizes, suite.sizes), ("part of the seeds", parts, SEEDS),
  ):  # fmt: skip
    for name in some:
      if name not in known:
        raise ValueError(unknown(kind, name, known, "--suite=proposers"))
  if not (folder / NAME).is_file():
    storage.refuse_filled(folder)
  wanted = [one for one in units(suite, parts) if not sizes or one[0] in sizes]
  with storage.locked(folder):
    storage.write_json(folder / NAME, msgspec.to_builtins(suite))
    say(estimate(suite, wanted))
    files = data.make(folder, suite.data)
    found: list[Result] = []
    if inside:
      for size, seed in wanted:
        found.append(Unit(suite, files, size, seed, folder, asked, stop).run(say))
    else:
      found = _side_by_side(folder, wanted, asked, workers, stop)
    result: Result = {part: [line for one in found for line in one[part]] for part in PARTS}
    result["failed"] = {name: why for one in found for name, why in one["failed"].items()}
    _write(folder, result, suite.budgets[-1])
    return result


def estimate(suite: Pools, wanted: Sequence[tuple[str, int]]) -> str:
  """A sentence on what training takes."""
  seeds = {size: sum(size == one for one, _ in wanted) for size in suite.sizes}
  steps = {size: members.steps(suite, size) * count for size, count in seeds.items()}
  hours = sum(members.seconds(suite, size) * count for size, count in steps.items()) / 3600
  words = ", ".join(f"{count:,} of {size}" for size, count in steps.items() if count)
  return f"Training in all: {words} steps, about {hours:.1f} CPU-hours on the machine of the notes."


def _write(folder: Path, result: Result, most: int) -> None:
  lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in result["lines"])
  storage.write_text(folder / "lines.jsonl", lines)
  storage.write_json(folder / "result.json", result)
  every = compared(result, most)
  found = table.rows(every)
  storage.write_text(folder / "table.csv", table.as_csv(found, table.COLUMNS))
  storage.write_text(folder / "table.txt", table.text(every) + "\n")
  for part in dict.fromkeys(row["part"] for row in found if not row["contestant"].startswith("(")):
    own = [row for row in found if row["part"] == part]
    gains.draw(own, folder / f"gains_{part}.png", f"training seeds to {part}; mean ± error over pools")


def compared(result: Result, most: int) -> list[Result]:
  """The lines of a table: of contestants, and beside their largest budget what they are measured by."""
  rows = [(one["row"], one) for one in result["references"] if one["row"] != "greedy"]
  rows += [(f"attainable {one['space']}", one) for one in result["attainable"]]
  return [*result["lines"], *(one | {"contestant": f"({name})", "budget": most} for name, one in rows)]


def _side_by_side(
  folder: Path,
  wanted: Sequence[tuple[str, int]],
  asked: Asked,
  workers: int,
  stop: Callable[[], bool],
) -> list[Result]:
  """Each size and seed in a process of its own, `workers` at once; results in order."""
  (folder / "units").mkdir(exist_ok=True)
  told = [msgspec.json.encode([str(folder), *one, asked]).decode() for one in wanted]
  processes.side_by_side(f"{__package__}.worker", told, workers, folder, stop=stop)
  paths = [folder / "units" / f"{size}-{seed}.json" for size, seed in wanted]
  return [storage.read_json(path, dict[str, Any]) for path in paths]
