"""What every job does: flags, one clear sentence for bad input, progress, a polite stop."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

if TYPE_CHECKING:
  from merge_jax.recycle import Settings
  from merge_jax.search import Record

STOPPED = 75  # exit status after SIGTERM: temporary, the same command continues
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def run(main: Callable[[], int | None]) -> None:
  """Runs a job's `main` under absl; errors that a user can mend are one sentence and status 1."""

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"Unexpected words: {' '.join(argv[1:])}. Lists are separated by commas.")
    logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which back ends it did not find
    try:
      status = main()
    except (ValueError, OSError, RuntimeError) as error:
      if flags.FLAGS.traceback:
        raise
      print(f"error: {error}", file=sys.stderr)
      status = STOPPED if type(error).__name__ == "Stopped" else 1
    sys.exit(status or 0)

  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  with _one_sentence():
    return app.parse_flags_with_usage(argv)


def define_config(name: str) -> Any:
  """The flag `--config`, by default `configs/NAME.py`; its keys are flags, too (`--config.seed=1`)."""
  with _one_sentence():  # overrides of the default are parsed where the flag is defined
    return config_flags.DEFINE_config_file("config", str(CONFIGS / f"{name}.py"), "Settings; or a file.")


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
  """A wrong key or file of a config is one sentence and status 1, not a traceback."""
  try:
    yield
  except (AttributeError, TypeError, ValueError, OSError) as error:
    words = " ".join(str(error).replace("\\n", " ").replace("\\", "").replace("'", "").split())
    print(f"error: --config: {words}", file=sys.stderr)
    sys.exit(1)


flags.DEFINE_bool("traceback", False, "Show where an error was raised.")


class StopFlag:
  """True once SIGTERM has come; the job then finishes its record and exits with status 75."""

  def __init__(self) -> None:
    self._stop = False
    signal.signal(signal.SIGTERM, self._set)

  def _set(self, *_: Any) -> None:
    self._stop = True

  def __call__(self) -> bool:
    return self._stop


class Progress:
  """A bar on a terminal, elsewhere a plain line every few seconds."""

  def __init__(self, total: int, unit: str, every: float = 10.0):
    self._bar = tqdm(total=total, unit=f" {unit}", dynamic_ncols=True, disable=not sys.stderr.isatty())
    self._total, self._unit, self._every = total, unit, every
    self._start = self._said = time.monotonic()
    self._done = 0

  def __call__(self, done: int, note: str = "") -> None:
    """Says that `done` units are done."""
    self._bar.set_postfix_str(note, refresh=False)
    self._bar.update(done - self._done)
    self._done, now = done, time.monotonic()
    if self._bar.disable and (now - self._said > self._every or done == self._total):
      self._said = now
      rate = done / max(now - self._start, 1e-9)
      left = (self._total - done) / max(rate, 1e-9)
      print(
        f"{done}/{self._total} {self._unit}, {rate:.1f} a second, {left:.0f} s left {note}",
        flush=True,
      )

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


def recycle_and_show(job: Settings, overwrite: bool) -> dict[str, Any]:
  """Runs a recycle job with a progress bar, then prints the table, the sentence and the paths."""
  from merge_jax import recycle, reports

  bar, best = Progress(job.search.budget, "evaluations"), [float("-inf")]

  def progress(record: Record) -> None:
    best[0] = max(best[0], record.fitness if record.fitness is not None else best[0])
    bar(record.index + 1, f"best fitness {best[0]:.4f}")

  def say(line: str) -> None:
    print(line, flush=True)

  try:
    result = recycle.recycle(job, overwrite=overwrite, progress=progress, stop=StopFlag(), say=say)
  finally:
    bar.close()
  print(f"\n{reports.console(result)}\n\n{reports.headline(result)}")
  print(f"report: {job.output_dir}/report.html\nmerged: {job.output_dir}/merged")
  return result
