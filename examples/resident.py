"""A scorer that stays: the first call starts a server, later ones ask it, so that nothing is loaded twice.

`launch.recycle` ends whatever a call of `--scorer_command` leaves in its process group, so the server has a
session of its own. It listens on a Unix socket that only its user can open, is another one for other options,
and ends after `--idle` seconds without a question. A request and its answer are one line of JSON each.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

Score = Callable[[str, str], dict]
"""`(model_dir, split) -> {name: score}`, higher is better."""


def main(parser: argparse.ArgumentParser, load: Callable[[argparse.Namespace], Score]) -> None:
  """Scores one candidate, or serves.

  Args:
    parser: with the scorer's own options.
    load: called once in the server; what it returns scores each candidate.
  """
  parser.add_argument("model_dir", nargs="?", help="the candidate's folder")
  parser.add_argument("scores_json", nargs="?", help="file to write scores to")
  parser.add_argument("split", nargs="?", help="search, validation or test")
  parser.add_argument("--idle", type=float, default=900.0, help="seconds after which an idle server ends")
  parser.add_argument("--start", type=float, default=1800.0, help="seconds that a server may take to start")
  parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
  given = parser.parse_args()
  own = {
    k: v for k, v in vars(given).items() if k not in ("model_dir", "scores_json", "split", "serve", "start")
  }
  key = hashlib.sha256(json.dumps([str(Path(sys.argv[0]).resolve()), own], sort_keys=True).encode())
  path = folder() / f"{key.hexdigest()[:16]}.sock"
  if given.serve:
    serve(path, load(given), given.idle)
    return
  if not given.scores_json or not given.split:
    parser.error("expected {model_dir} {scores_json} {split}")
  answer = ask(path, {"model_dir": str(Path(given.model_dir).resolve()), "split": given.split}, given.start)
  if "error" in answer:
    sys.exit(answer["error"])
  Path(given.scores_json).write_text(json.dumps(answer["scores"]))


def folder() -> Path:
  """Where sockets, locks and logs lie: a folder of this user alone."""
  path = Path(tempfile.gettempdir()) / f"merge_jax_scorers_{os.getuid()}"
  path.mkdir(mode=0o700, exist_ok=True)
  if path.stat().st_uid != os.getuid() or path.stat().st_mode & 0o077:
    sys.exit(f"{path} belongs to somebody else, or others can open it; remove it.")
  return path


def ask(path: Path, request: dict, start: float) -> dict:
  """The answer of the server at a socket, which is started if there is none."""
  with path.with_suffix(".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # two searches start one server
    there = connect(path)
    if there is None:
      there = begin(path, start)
  with there, there.makefile("rw") as file:
    file.write(json.dumps(request) + "\n")
    file.flush()
    line = file.readline()
  return json.loads(line) if line else {"error": f"The server ended; see {path.with_suffix('.log')}."}


def connect(path: Path) -> socket.socket | None:
  """A connection, or None where nobody listens."""
  made = socket.socket(socket.AF_UNIX)
  try:
    with contextlib.chdir(path.parent):  # a socket's path has at most 107 bytes
      made.connect(path.name)
  except (FileNotFoundError, ConnectionRefusedError):
    made.close()
    return None
  return made


def begin(path: Path, seconds: float) -> socket.socket:
  """Starts a server with the options of this call, and waits until it listens."""
  words = [sys.executable, *sys.argv, "--serve"]
  with path.with_suffix(".log").open("w") as log:
    process = subprocess.Popen(
      words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if made := connect(path):
      return made
    if process.poll() is not None:
      sys.exit(f"The server did not start: {tail(path.with_suffix('.log'))}")
    time.sleep(0.1)
  process.kill()
  sys.exit(f"The server did not start in {seconds:g} seconds; see {path.with_suffix('.log')}.")


def tail(path: Path) -> str:
  """The end of a log, as one line."""
  return " | ".join(path.read_text(errors="replace").strip().splitlines()[-3:])


def serve(path: Path, score: Score, idle: float) -> None:
  """Answers one request after the other, until nobody has asked for a while."""
  path.unlink(missing_ok=True)  # of a server that was killed
  with socket.socket(socket.AF_UNIX) as server:
    with contextlib.chdir(path.parent):
      server.bind(path.name)
    server.listen()
    server.settimeout(idle)
    try:
      while True:
        there, _ = server.accept()
        with there, contextlib.suppress(BrokenPipeError), there.makefile("rw") as file:
          line = file.readline()
          if not line:
            continue
          try:
            request = json.loads(line)
            answer = {"scores": score(request["model_dir"], request["split"])}
          except Exception as error:  # told to the caller; the next candidate may be better
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
          file.write(json.dumps(answer) + "\n")
    except TimeoutError:
      path.unlink(missing_ok=True)
