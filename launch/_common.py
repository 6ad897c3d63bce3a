"""What every job does: flags, one clear sentence for bad input, progress, a polite stop."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from tqdm import tqdm

from merge_jax import errors, host, storage

from . import _config, _streams, on_stop

if TYPE_CHECKING:
  from merge_jax.checkpoints import Checkpoint
  from merge_jax.recycle import Settings
  from merge_jax.search import Record

flags.disclaim_key_flags()  # what is defined here is a job's own, and in its --help

STOPPED = errors.Stopped.status  # exit status after SIGTERM or Ctrl-C: the same command continues


def run(
  main: Callable[[], int | None],
  elsewhere: Mapping[str, str] = MappingProxyType({}),
  *,
  resumes: bool = True,
) -> None:
  """Runs a job's `main` under absl; errors that a user can mend are one sentence and status 1.

  `elsewhere` says what is here in place of flags that another tool has; `resumes`: what was interrupted goes
  on when it is started again. Of several processes (`define_distributed`) the lead alone prints what is no
  error, and all end together.
  """

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      words = " ".join(argv[1:])
      print(f"error: Unexpected words: {words}. Lists are separated by commas.", file=sys.stderr)
      sys.exit(1)
    interrupted = False
    gc.freeze()
    gc.enable()
    logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which back ends it did not find
    try:
      on_stop(signal.default_int_handler)  # from here on what is open is tidied up
      _start()
      with host.reporting():
        status = main()
        host.end()
    except (Exception, KeyboardInterrupt) as caught:
      interrupted = isinstance(caught, KeyboardInterrupt)
      error = _nowhere() if isinstance(caught, AssertionError) and _is_nowhere() else caught
      mendable = isinstance(error, ValueError | OSError | RuntimeError | MemoryError | KeyboardInterrupt)
      if mendable and not flags.FLAGS.traceback:
        status = _say(host.cause(error), resumes)
      elif host.count() == 1:
        raise
      else:
        traceback.print_exc()
        status = 1
      host.leave(status)
    sys.stdout.flush()
    if why := _streams.lost():
      print(f"error: not all could be printed: {why}.", file=sys.stderr)
      status = status or 1
    if interrupted:  # JAX's threads may still compute: a way out that takes it down under them has crashed
      host.leave_now(status or 0)
    sys.exit(status or 0)

  _streams.spare()
  app.run(guarded, flags_parser=functools.partial(_config.parse, elsewhere))


def _nowhere() -> RuntimeError:
  import jax

  where = jax.config.jax_platforms  # type: ignore[attr-defined]
  return RuntimeError(f"JAX finds no device of the platform {where}; name another one, as JAX_PLATFORMS=cpu.")


def _is_nowhere() -> bool:
  """Whether JAX has no device at all, which it asserts that it has."""
  import jax

  try:
    return host.count() == 1 and not jax.devices()
  except (AssertionError, RuntimeError):
    return True


def _say(error: BaseException, resumes: bool) -> int:
  """Prints the error; the status to exit with."""
  interrupted = isinstance(error, KeyboardInterrupt)
  again = "continues" if resumes else "begins again"
  text = f"interrupted; the same command {again}." if interrupted else errors.sentence(error)
  who = "" if host.is_lead() else f"process {host.index()}: "
  print(f"{who}error: {text}", file=sys.stderr)
  return STOPPED if interrupted or isinstance(error, errors.Stopped) else 1


def define_distributed() -> None:
  """The flags of a job that several processes can do together; `run` starts them."""
  flags.DEFINE_bool("distributed", False, "This is one of several processes that do the job together.")
  flags.DEFINE_string("coordinator", None, "host:port of process 0; by default as the cluster says.")
  flags.DEFINE_integer("num_processes", None, "How many there are; by default as the cluster says.")
  flags.DEFINE_integer("process_id", None, "Which one this is, from 0; by default as the cluster says.")
  flags.DEFINE_float("heartbeat", host.HEARTBEAT, "Seconds after which a silent process is given up.", 1.0)
  flags.DEFINE_float("start_timeout", 300.0, "Seconds for all processes to come together.", 1.0)


def _start() -> None:
  """Joins the other processes, if there are any; all but the lead are silent then."""
  values = flags.FLAGS.flag_values_dict()
  if values.get("deterministic"):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
  _let_gpus_be_full()
  where = {name: values.get(name) for name in ("coordinator", "num_processes", "process_id")}
  if not values.get("distributed"):
    if given := [name for name, value in where.items() if value is not None]:
      raise ValueError(f"--{given[0]} is for several processes; give --distributed as well, or leave it out.")
    return
  host.start(**where, heartbeat=values["heartbeat"], timeout=values["start_timeout"])
  if not host.is_lead():
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (until the end of the process)


def _let_gpus_be_full() -> None:
  """Plans count on .9 of a GPU's memory, JAX takes .75; pools need more pinned memory than XLA's 64 GB."""
  if "XLA_CLIENT_MEM_FRACTION" not in os.environ:  # the new name: JAX refuses both
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
  if "XLA_PJRT_GPU_HOST_MEMORY_PREALLOCATE" not in os.environ:  # it would take the limit at once
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(whole))


def refuse_given(names: Iterable[str], reason: str) -> None:
  """Raises ValueError if one of these flags is given, which would change nothing."""
  for name in names:
    if flags.FLAGS[name].present:
      raise ValueError(f"--{name} {reason}; leave it out.")


def told(names: Iterable[str]) -> dict[str, Any]:
  """Values of flags, as the user wrote the flags."""
  return {f"--{name}": flags.FLAGS[name].value for name in names}


def refuse_another(told: Mapping[str, Any], files: Mapping[str, Path], pool: Iterable[Checkpoint]) -> None:
  """As `host.refuse_another`: of flags by name, and of what files (by what they are called on the command
  line) and checkpoints hold, wherever a process has them.
  """
  if host.count() > 1:
    names = {f"file {i}": Path(name).name for i, name in enumerate(files)}
    held = {
      f"content of file {i}": storage.digest([path], path.parent) for i, path in enumerate(files.values())
    }
    models = {f"checkpoint {i}": one.digest() for i, one in enumerate(pool)}
    host.refuse_another({**told, **names, **held, **models})


def define_mesh() -> None:
  """The flag `--mesh`, of jobs that place parameters on devices."""
  flags.DEFINE_string(
    "mesh",
    "",
    "Sizes of candidate, data, fsdp, tensor, as candidate:2,fsdp:-1; -1 fills. Default: all as fsdp.",
  )


def define_deterministic() -> None:
  """The flag `--deterministic`, of jobs that evaluate or train; `run` sets what it asks for."""
  flags.DEFINE_bool("deterministic", False, "On GPUs: the same bits in every run, where that is slower, too.")


flags.DEFINE_bool("traceback", False, "Show where an error was raised.")


class StopFlag:
  """True once SIGTERM, SIGHUP or Ctrl-C has come; the job then finishes its record and exits with status 75.

  A second Ctrl-C does not wait for the record. Of several processes any may get the signal; all hear of it.
  """

  def __init__(self) -> None:
    self._stop = False
    on_stop(self._set)

  def _set(self, number: int, _: Any) -> None:
    if self._stop and number != signal.SIGHUP:  # of which a shell sends one, too, as its terminal closes
      raise KeyboardInterrupt
    self._stop = True
    host.ask_to_stop()

  def __call__(self) -> bool:
    return self._stop or host.stopping()


class Progress:
  """A bar on a terminal, elsewhere a plain line every few seconds; without a total, a count."""

  def __init__(self, total: int | None, unit: str, every: float = 10.0):
    silent = not (sys.stderr.isatty() and host.is_lead())
    self._bar = tqdm(total=total, unit=f" {unit}", dynamic_ncols=True, disable=silent)
    self._total, self._unit, self._every = total, unit, every
    self._start: tuple[int, float] | None = None  # what was done, and when, at the first call
    self._done, self._said = 0, 0.0

  def __call__(self, done: int, note: str = "") -> None:
    """Says that `done` units are done."""
    self._bar.set_postfix_str(note, refresh=False)
    self._bar.update(done - self._done)
    self._done, now = done, time.monotonic()
    self._start, self._said = self._start or (done, now), self._said or now
    if self._bar.disable and (now - self._said > self._every or done == self._total):
      self._said = now
      of, rate = "" if self._total is None else f"/{self._total}", ""
      took, since = now - self._start[1], done - self._start[0]  # what was done before tells no rate
      if since and took > 0.1:
        each = took / since
        left = "" if self._total is None else f", {(self._total - done) * each:.0f} s left"
        rate = f", {1 / each:.1f} a second{left}"
      print(f"{done}{of} {self._unit}{rate} {note}".rstrip(), flush=True)

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    with tqdm.external_write_mode():
      print(line, flush=True)

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


@contextlib.contextmanager
def telling_what_stays(*folders: str | Path) -> Iterator[None]:
  """Around what replaces folders: names what had lain there and was not made by the job."""
  before = {path for folder in folders for path in storage.set_aside(folder)}
  yield
  after = {path for folder in folders for path in storage.set_aside(folder)}
  for path in sorted(after - before):
    print(f"note: what was in the folder and no such job had made lies in {path}")


def recycle_and_show(job: Settings, overwrite: bool, profile: bool = False) -> dict[str, Any]:
  """Runs a recycle job with a progress bar, then prints the table, the sentence and the paths."""
  from merge_jax import recycle, reports
  from merge_jax.recycle.folder import FOLDERS
  from merge_jax.search.loop import FINALS, SPLIT

  bars = {True: Progress(job.search.budget, "evaluations"), False: Progress(None, "scores of finalists")}
  done, best = {True: 0, False: 0}, float("-inf")

  def progress(record: Record) -> None:
    nonlocal best
    searching = record.split == SPLIT and record.kind not in FINALS
    done[searching] += 1
    best = max(best, record.fitness if record.fitness is not None else best)
    bars[searching](done[searching], f"best fitness {best:.4f}" if searching else f"on {record.split}")

  def say(line: str) -> None:
    print(line, flush=True)

  try:
    with telling_what_stays(*(job.folder / name for name in FOLDERS)):
      result = recycle.recycle(
        job, overwrite=overwrite, progress=progress, stop=StopFlag(), say=say, profile=profile
      )
  finally:
    for bar in bars.values():
      bar.close()
  print(f"\n{reports.console(result)}\n\n{reports.headline(result)}")
  print(*reports.trust(result), sep="\n")
  print(f"report: {job.folder}/report.html\nmerged: {job.folder}/merged")
  return result
