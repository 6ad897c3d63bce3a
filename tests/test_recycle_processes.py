"""Recycle, evaluate and train by several processes: the lead's journal, every process's devices."""

import json
import signal
import time

import numpy as np
import pytest

from merge_jax import checkpoints, storage
from tests import pools, processes
from tests.further import further


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  pools.make_pool(folder / "pool", 3)
  pools.make_tasks(folder / "tasks", 24)
  return folder


def start(world, output, count, *more, devices=2, budget=7):
  given = ",".join(str(world / "pool" / f"m{i}") for i in range(3))
  argv = [
    "-m", "merge_jax", "recycle", f"--checkpoints={given}",
    f"--tasks={world / 'tasks' / 'copy.jsonl'}:loss,{world / 'tasks' / 'choose.jsonl'}",
    f"--output_dir={output}", f"--budget={budget}", "--config.evals.max_shapes=1",
    "--config.search.method=linear", "--config.search.space=simplex", *more,  # one method, few programs
  ]  # fmt: skip
  together = [*processes.FLAGS, "--heartbeat=3"] if count > 1 else []
  return processes.start(count, [*argv, *together], devices=devices, folder=world)


def run(*arguments, **options):
  results = processes.finish(start(*arguments, **options), timeout=240)
  for result in results:
    assert result.status == 0, result
  return results


def wait_for(output, count):
  end = time.monotonic() + 200
  while len(storage.read_lines(output / "journal.jsonl")) < count:
    assert time.monotonic() < end
    time.sleep(0.02)


def records(output):
  return storage.read_lines(output / "journal.jsonl")


def assert_same(output, other, tolerance=1e-5):
  mine, theirs = records(output), records(other)
  assert [r["kind"] for r in mine] == [r["kind"] for r in theirs]
  for a, b in zip(mine, theirs, strict=True):
    bits = tolerance < 1e-5 and a["point"] == b["point"]  # the same merge on the same mesh
    for task, value in a["losses"].items():
      np.testing.assert_allclose(value, b["losses"][task], rtol=0 if bits else tolerance)
  names = checkpoints.open(output / "merged").specs
  for name in names:
    ours, expected = (checkpoints.open(folder / "merged").read(name) for folder in (output, other))
    np.testing.assert_allclose(ours, expected, atol=tolerance)


@pytest.fixture(scope="module")
def alone(world):
  run(world, world / "alone", 1, devices=4)
  return world / "alone"


@pytest.mark.parametrize(("count", "devices"), [(2, 2), further(4, 1)])
def test_processes_search_as_one_does(world, alone, tmp_path, count, devices):
  """The same mesh of four devices, the same bits, but for the last ones of sums over processes."""
  lead, *others = run(world, tmp_path / "x", count, devices=devices)
  assert "report:" in lead.output
  told = {line for line in lead.output.splitlines() if line.strip() and "Gloo" not in line}
  for other in others:  # whose own lines are those of Gloo's threads, now and then one within another
    assert not told.intersection(other.output.splitlines())
  assert_same(tmp_path / "x", alone, tolerance=1e-7)
  manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
  assert manifest["topologies"][0]["processes"] == count


def test_a_killed_lead_ends_the_job(world, tmp_path):
  both = start(world, tmp_path / "x", 2)
  wait_for(tmp_path / "x", 3)
  both[0].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  assert processes.finish(both)[1].status != 0 and time.monotonic() - killed < 30


@pytest.mark.thorough
def test_a_killed_follower_ends_the_job_and_another_number_goes_on(world, alone, tmp_path):
  output = tmp_path / "x"
  both = start(world, output, 2)
  wait_for(output, 3)
  both[1].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  lead, _ = processes.finish(both)
  assert time.monotonic() - killed < 30 and lead.status == 75 and "process 1 did not answer" in lead.errors
  (refused,) = processes.finish(start(world, output, 1, devices=4))
  assert refused.status == 1 and "topology: 2 processes" in refused.errors
  run(world, output, 1, "--allow_topology_change", devices=4)
  assert_same(output, alone)


@pytest.mark.thorough
def test_a_follower_that_is_asked_to_stop_stops_all(world, alone, tmp_path):
  output = tmp_path / "x"
  both = start(world, output, 2)
  wait_for(output, 2)
  both[1].send_signal(signal.SIGTERM)
  results = processes.finish(both)
  assert [result.status for result in results] == [75, 75], results
  assert "the same command continues" in results[0].errors
  for mine, expected in zip(
    records(output), records(alone), strict=False
  ):  # whole records, as far as it came
    bits = mine["point"] == expected["point"]
    assert mine["losses"] == pytest.approx(expected["losses"], rel=0 if bits else 1e-7, abs=0)


def test_bad_input_is_one_sentence_of_the_lead_and_leaves_no_trace(world, tmp_path):
  results = processes.finish(start(world, tmp_path / "x", 2, "--config.search.method=lineal"))
  for result in results:
    assert result.status == 1 and "did you mean 'linear'" in result.errors
    assert len(result.errors.strip().splitlines()) == 1, result
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
  ("job", "flags", "said"),
  [
    ("evaluate", ["--checkpoints=pool/m0", "--batch_tokens=10{index}", "--output=x"], "--batch_tokens is"),
    ("train", ["--init=pool/m{index}", "--output_dir=x"], "checkpoint 0 is"),
    further("evaluate", ["--checkpoints=pool/m2,pool/m{index}", "--output=x"], "checkpoint 1 is"),
    further("train", ["--init=pool/m0", "--output_dir=x", "--config.seed={index}"], "config.seed is 1 here"),
  ],
)  # fmt: skip
def test_processes_that_are_told_otherwise_compute_nothing(world, job, flags, said):
  words = ["-m", "merge_jax", job, "--tasks=tasks/copy.jsonl", *flags, *processes.FLAGS]
  for result in processes.run(2, words, folder=world):
    assert result.status == 1 and f"another job than the lead: {said}" in result.errors, result
    assert result.errors.count("\n") == 1 and not (world / "x").exists(), result


@pytest.mark.thorough
def test_orbax_pools_are_read_and_written_by_all(world, alone, tmp_path):
  """The search and the merge of the same tensors in the other format."""
  for name in ("m0", "m1", "m2"):
    source = checkpoints.open(world / "pool" / name)
    checkpoints.write(tmp_path / "pool" / name, source.load(), like=source, format="orbax")
  (tmp_path / "tasks").symlink_to(world / "tasks")
  run(tmp_path, tmp_path / "x", 2)
  assert checkpoints.open(tmp_path / "x" / "merged").format == "orbax"
  assert_same(tmp_path / "x", alone, tolerance=1e-7)


@pytest.mark.thorough
def test_evaluation_and_training_by_two_processes(world, tmp_path):
  """Scores as one process has them; parameters as one mesh of as many devices trains them."""
  tasks = f"{world / 'tasks' / 'copy.jsonl'}:loss"
  evaluate = ["-m", "merge_jax", "evaluate", f"--checkpoints={world / 'pool' / 'm0'}", f"--tasks={tasks}"]
  train = [
    "-m", "merge_jax", "train", f"--tasks={tasks}", f"--init={world / 'pool' / 'base'}", "--config.steps=6",
    "--config.save_every=2", "--config.warmup=2", "--config.batch_size=4", "--config.keep_every=3",
  ]  # fmt: skip
  for count, devices in ((1, 2), (2, 1)):
    together = processes.FLAGS if count > 1 else ()
    for words in (
      [*evaluate, f"--output={tmp_path / f'{count}.json'}"],
      [*train, f"--output_dir={tmp_path / str(count)}"],
    ):
      for result in processes.run(count, [*words, *together], devices=devices):
        assert result.status == 0, result
  one, two = (json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2))
  assert one == two
  for along in (".", "step-3"):
    one, two = (checkpoints.open(tmp_path / str(count) / along).load() for count in (1, 2))
    for name, value in one.items():
      np.testing.assert_array_equal(value, two[name])
