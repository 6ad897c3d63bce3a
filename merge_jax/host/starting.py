"""Joining the other processes, and leaving in order."""

import contextlib
import functools
import inspect
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from merge_jax.errors import Stopped, sentence
from merge_jax.host import job, talking
from merge_jax.host.ending import INTERRUPTED, reporting

HEARTBEAT = 60.0
LONGEST, MOST = 1_000_000, 1_000_000  # seconds to wait, and processes: JAX takes 32 bits


def start(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat: float = HEARTBEAT,
  timeout: float = 300.0,
) -> None:
  """Joins the other processes of a job; call it before JAX touches a device.

  Args:
    coordinator: `host:port` of process 0; None, with the other two: as SLURM, Open MPI, GKE or a TPU say.
    num_processes, process_id: how many there are, and which one this is, from 0.
    heartbeat: seconds after which a process that does not answer is given up, and the job with it.
    timeout: seconds for all to come together; after them, and at a KeyboardInterrupt before, the process ends
      with a sentence and status 75 (one may have been killed on its way), because JAX's client would end it
      with a stack trace.

  Raises:
    ValueError: some of the three alone, a number or port out of range, no cluster is found, or the lead has
      another number of processes.
    OSError: the port is taken.
    RuntimeError: JAX cannot start: devices are in use already, or a process has started before.

  >>> start("node0", 2, 0)
  Traceback (most recent call last):
  ValueError: --coordinator is 'node0'; expected host:port, with a port from 1 to 65535.
  """
  for name, seconds in (("heartbeat", heartbeat), ("start_timeout", timeout)):
    if not 1 <= seconds <= LONGEST:  # NaN is neither
      raise ValueError(f"--{name} is {seconds:g}; expected 1 to {LONGEST} seconds.")
  _check(coordinator, num_processes, process_id)
  import jax

  with contextlib.suppress(AttributeError):  # it would take SIGTERM for itself
    jax.config.update("jax_enable_preemption_service", False)
  options: dict[str, Any] = {
    "initialization_timeout": int(timeout) + 60,  # ours come first
    "heartbeat_timeout_seconds": int(2 * heartbeat) + 10,
    "shutdown_timeout_seconds": int(job.GRACE) + 5,
    "cluster_detection_method": None if coordinator is None else "deactivate",
  }
  known = inspect.signature(jax.distributed.initialize).parameters
  me = "" if process_id is None else f"process {process_id} of {num_processes}: "
  options = {name: options[name] for name in options if name in known}
  join = functools.partial(jax.distributed.initialize, coordinator, num_processes, process_id, **options)
  try:
    if not _done(join, timeout):
      how = "start all of them with the same coordinator, and let its port through"
      _give_up(f"{me}not all came to {coordinator or 'the lead'} within {timeout:g} s; {how}.")
    job.current = job.Job(heartbeat)
  except ValueError as error:
    raise ValueError(
      f"No cluster says where the processes are ({sentence(error)}); give --coordinator=host:port, "
      "--num_processes and --process_id."
    ) from None
  except RuntimeError as error:
    where = coordinator or "the cluster"
    raise RuntimeError(f"{me}cannot start at {where}: {sentence(error)}") from None
  except KeyboardInterrupt:
    _give_up(f"{me}{INTERRUPTED}")
  with reporting():
    if (told := talking.broadcast(count())) != count():  # each would wait for ever for whom the other forgot
      raise ValueError(f"--num_processes is {count()} at process {index()}; the lead says {told}.")
    job.current.neighbours = talking.gather(_machine()).count(_machine())


def _machine() -> str:
  """What processes have in common that share memory and cores: the kernel and, of containers, the name."""
  boot = Path("/proc/sys/kernel/random/boot_id")
  return f"{socket.gethostname()} {boot.read_text() if boot.exists() else ''}"


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  if all(value is None for value in given.values()):
    return
  if coordinator is None or num_processes is None or process_id is None:
    missing = next(name for name, value in given.items() if value is None)
    raise ValueError(
      f"--{missing} is missing; give all of --coordinator, --num_processes and --process_id, or none of "
      "them on a cluster that says."
    )
  address = re.fullmatch(r"[^\s/]+:([0-9]{1,5})", coordinator)
  if address is None or not 0 < (port := int(address[1])) < 1 << 16:
    raise ValueError(f"--coordinator is {coordinator!r}; expected host:port, with a port from 1 to 65535.")
  if not 1 <= num_processes <= MOST:
    raise ValueError(f"--num_processes is {num_processes}; expected 1 to {MOST}.")
  if not 0 <= process_id < num_processes:
    raise ValueError(f"--process_id is {process_id}; expected 0 to {num_processes - 1}.")
  if process_id == 0:
    _require_port(port)


def _require_port(port: int) -> None:
  """A port that is taken may end JAX's service with a segmentation fault."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    reason = os.strerror(error.errno or 0)
    raise OSError(
      f"--coordinator: port {port} is not free at process 0 ({reason}); choose another."
    ) from None


def _done(join: Callable[[], None], seconds: float) -> bool:
  """Calls `join`, which hears no signal while it waits, in a thread; whether it came to its end in time."""
  failed: list[BaseException] = []

  def work() -> None:
    try:
      join()
    except BaseException as error:
      failed.append(error)

  thread, end = threading.Thread(target=work, daemon=True), time.monotonic() + seconds
  thread.start()
  while thread.is_alive() and (left := end - time.monotonic()) > 0:
    thread.join(min(left, job.LOOK))  # a signal may come to another thread, and then wakes nobody
  if failed:
    raise failed[0]
  return not thread.is_alive()


def _give_up(text: str) -> NoReturn:
  print(f"error: {text}", file=sys.stderr)
  job.leave_now(Stopped.status)


def index() -> int:
  """Which process this is; 0 leads."""
  return 0 if job.current is None else job.current.index


def count() -> int:
  """How many processes the job has."""
  return 1 if job.current is None else job.current.count


def neighbours() -> int:
  """How many processes of the job share this machine's memory and cores, this one included."""
  return 1 if job.current is None else job.current.neighbours


def is_lead() -> bool:
  """Whether this process decides, writes what is written once, and prints."""
  return index() == 0


def keep_devices_apart() -> None:
  """Gives each process its own devices alone, for a job that computes nothing together.

  JAX's devices are those of all processes otherwise: they are made when all have come, and only process 0
  keeps compiled programs, which do not fit the others'. Call it after `start`, before a device is used.
  """
  if job.current is not None:
    job.current.store.hide()


def end() -> None:
  """Leaves the job in order, when all have come here; errors as of `barrier`."""
  if job.current is not None:
    talking.barrier("the end")
    job.current.close()
    job.current.store.shut_down()
    job.current = None
