"""Processes that talk: what the lead says, what all give, who is missing, who is gone, who failed."""

import re
import socket
import textwrap

import pytest

from merge_jax import host
from tests import processes

HEAD = """
import json, os, sys, time
from merge_jax import host
host.start(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), heartbeat=3, timeout=60)
me = host.index()

def run(function):
  try:
    with host.reporting():
      function()
      host.end()
  except Exception as error:
    print(type(error).__name__, host.cause(error))
    host.leave(getattr(error, "status", 1))
"""


def run(count, code):
  words = ["-c", HEAD + textwrap.dedent(code), "{coordinator}", "{count}", "{index}"]
  return processes.run(count, words, timeout=60)


def test_one_process_needs_nobody():
  assert (host.index(), host.count(), host.is_lead(), host.stopping()) == (0, 1, True, False)
  assert host.neighbours() == 1
  assert host.broadcast({"a": 1}) == {"a": 1} and host.gather(b"x") == [b"x"] and not list(host.commands())
  host.barrier("alone", timeout=0.1)
  host.refuse_another({"--seed": (1, 2)})
  host.ask_to_stop()
  host.leave(1)
  host.end()
  with host.leading() as send, pytest.raises(ValueError, match="mine"), host.reporting():
    send("nobody")
    raise ValueError("mine")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("node0:1", 2, None), "--process_id is missing; give all of"),
    ((None, 2, 0), "--coordinator is missing"),
    (("node0", 2, 0), "expected host:port"),
    ((":80", 2, 0), "expected host:port"),
    (("node0:65536", 2, 0), "a port from 1 to 65535"),
    (("http://node0:80", 2, 0), "expected host:port"),
    (("node0:80", 0, 0), "--num_processes is 0; expected 1 to"),
    (("node0:80", 1 << 40, 0), "expected 1 to"),
    (("node0:80", 2, 2), "--process_id is 2; expected 0 to 1"),
  ],
)
def test_a_start_that_cannot_be_is_refused(arguments, words):
  with pytest.raises(ValueError, match=words):
    host.start(*arguments)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0.0, -1.0, 1e12])
def test_waits_that_never_or_always_end_are_refused(seconds):
  with pytest.raises(ValueError, match=r"--heartbeat is .*; expected 1 to 1000000 seconds"):
    host.start("node0:80", 2, 0, heartbeat=seconds)
  with pytest.raises(ValueError, match=r"--start_timeout is .*; expected 1 to 1000000 seconds"):
    host.start("node0:80", 2, 0, timeout=seconds)


def test_processes_that_count_otherwise_do_not_wait_for_one_that_never_comes():
  code = textwrap.dedent("""
    import sys
    from merge_jax import host
    try:
      host.start(sys.argv[1], *[(2, 0), (3, 1)][int(sys.argv[2])], heartbeat=3, timeout=60)
      with host.reporting():
        host.gather(0)
    except Exception as error:
      print(host.cause(error))
      host.leave(1)
  """)
  said = "--num_processes is 3 at process 1; the lead says 2.\n"
  results = processes.run(2, ["-c", code, "{coordinator}", "{index}"], timeout=60)
  assert results == [(1, f"process 1: {said}", ""), (1, said, "")]


def test_processes_that_do_not_come_and_ports_that_are_taken_are_one_sentence():
  code = "from merge_jax import host; host.start('{coordinator}', 2, 1, timeout=1)"
  (alone,) = processes.run(1, ["-c", code])
  assert alone.status == 75 and alone.errors.count("\n") == 1
  assert re.match(r"error: process 1 of 2: not all came to localhost:\d+ within 1 s; start all", alone.errors)
  with socket.create_server(("localhost", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(OSError, match=f"port {port} is not free at process 0 .Address already in use."):
      host.start(f"localhost:{port}", 2, 0)


def test_a_stop_while_processes_come_together_is_one_sentence():
  code = """if True:
    import os, signal, sys, threading
    import jax
    from merge_jax import host
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    host.start(sys.argv[1], 2, int(sys.argv[2]), timeout=60)"""
  for index in ("0", "1"):
    said = f"error: process {index} of 2: interrupted; the same command continues.\n"
    assert processes.run(1, ["-c", code, "{coordinator}", index], timeout=30) == [(75, "", said)]


def test_what_is_said_arrives_in_order_and_those_that_are_missing_are_named():
  results = run(3, """
    def job():
      for i in range(150):  # the store forgets what all have read
        assert host.broadcast([i, me] if me == 0 else None) == [i, 0]
      assert host.broadcast(b"\\0raw") == b"\\0raw"
      assert host.gather({"me": me}) == [{"me": i} for i in range(3)] and host.neighbours() == 3
      assert len(host.job.current.store._client.key_value_dir_get("merge_jax/")) < 40
      host.barrier("here", timeout=30)
      if me == 0:
        with host.leading() as send:
          send(["evaluate", [0.5]])
          send(b"bytes")
      else:
        assert list(host.commands()) == [["evaluate", [0.5]], b"bytes"]
      host.barrier("together", timeout=60)  # on a busy machine another one may be behind
      if me == 1:
        time.sleep(9)
      try:
        host.barrier("late", timeout=4.5 if me != 1 else 30)
      except TimeoutError as error:
        print(error)
    run(job)
  """)  # fmt: skip
  for index, result in enumerate(results):
    assert (result.status, result.errors) == (0, ""), result
    missing = "Waiting for late: process 1 did not come within 4.5 s.\n"
    assert result.output == ("" if index == 1 else missing)


def test_an_error_of_the_lead_ends_the_loops_of_its_followers():
  results = run(2, """
    def job():
      if me == 0:
        with host.leading() as send:
          send(1)
          raise ValueError("no such task.")
      print(list(host.commands()))
    run(job)
  """)  # fmt: skip
  assert results == [
    (1, "ValueError no such task.\n", ""),
    (1, "Ended process 0: no such task.\n", ""),
  ]


def test_who_does_not_look_is_ended_and_a_stop_is_heard_by_all():
  results = run(2, """
    host.job.GRACE = 1
    def job():
      if me == 1:
        host.ask_to_stop()
        time.sleep(60)  # in a program that waits for a dead peer
      while not host.stopping():
        time.sleep(0.01)
      raise host.job.Stopped("Stopped after 3 evaluations.")
    run(job)
  """)  # fmt: skip
  assert results == [
    (75, "Stopped Stopped after 3 evaluations.\n", ""),
    (75, "", "process 1: error: process 0: Stopped after 3 evaluations.\n"),
  ]
