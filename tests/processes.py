"""Several processes of one job on this machine, as a cluster would start them on many."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
JOBS = "launch" if (ROOT / "launch").is_dir() else "merge_jax.launch"  # a clone, the wheel
FLAGS = ("--distributed", "--coordinator={coordinator}", "--num_processes={count}", "--process_id={index}")


class Result(NamedTuple):
  status: int
  output: str
  errors: str


def start(
  count: int,
  argv: Sequence[str],
  *,
  devices: int = 1,
  folder: Path = ROOT,
  environment: Mapping[str, str] = {},
) -> list[subprocess.Popen]:
  """Starts `python ARGV…` `count` times; {coordinator}, {count} and {index} in a word are filled in."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    coordinator = f"localhost:{free.getsockname()[1]}"
  inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and "proxy" not in k.lower()}
  inherited |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
  started = []
  for index in range(count):
    words = list(argv)
    for name, value in (("coordinator", coordinator), ("count", count), ("index", index)):
      words = [word.replace(f"{{{name}}}", str(value)) for word in words]
    process = subprocess.Popen(
      [sys.executable, *words], cwd=folder, env=inherited | dict(environment), text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    started.append(process)
  return started


def finish(started: Sequence[subprocess.Popen], timeout: float = 120) -> list[Result]:
  """Waits for all; what hangs is killed, and fails the test."""
  try:
    said = [process.communicate(timeout=timeout) for process in started]
  finally:
    for process in started:
      process.kill()
  return [Result(process.returncode, *text) for process, text in zip(started, said, strict=True)]


def run(count: int, argv: Sequence[str], *, timeout: float = 120, **options) -> list[Result]:
  """Starts the processes and waits for them; see `start`."""
  return finish(start(count, argv, **options), timeout)
