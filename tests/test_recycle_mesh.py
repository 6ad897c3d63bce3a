"""The recycle job on meshes and with its pool elsewhere: the same search, equal but for last digits."""

import json

import numpy as np
import pytest

from merge_jax import checkpoints, models, recycle, storage
from merge_jax.preflight import memory
from merge_jax.recycle import settings
from merge_jax.search.loop import FINALS
from tests import pools
from tests.further import further


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp("world")
  return folder, pools.make_pool(folder / "pool", 3), pools.make_tasks(folder / "tasks", 24)


LINEAR = {"method": "linear", "space": "simplex"}  # one method, few programs


def run(world, output, mesh="", base=False, search=LINEAR, say=lambda line: None, **options):
  folder, paths, tasks = world
  placement = {"mesh": mesh} | options.pop("placement", {})
  job = settings.from_mapping({
    "checkpoints": [str(p) for p in paths], "base": str(folder / "pool" / "base") if base else "",
    "tasks": [f"{tasks[0]}:loss", str(tasks[1])], "output_dir": str(output),
    "search": {"budget": 8, "fitness_source": "loss"} | search, "evals": {"max_shapes": 1},
    "placement": placement, **options,
  })  # fmt: skip
  return recycle.recycle(job, say=say)


def records(folder):
  return storage.read_lines(folder / "journal.jsonl")


def assert_same_search(folder, other, finals=True, atol=1e-4):
  def steps(folder):
    return [r for r in records(folder) if finals or (r["split"] == "search" and r["kind"] not in FINALS)]

  mine, theirs = steps(folder), steps(other)
  assert [(r["split"], r["kind"], r["method"]) for r in mine] == [
    (r["split"], r["kind"], r["method"]) for r in theirs
  ]
  for a, b in zip(mine, theirs, strict=True):
    np.testing.assert_allclose(a["point"]["weights"], b["point"]["weights"], atol=atol)
    for task, value in a["losses"].items():  # the stated tolerance: proposals follow scores
      np.testing.assert_allclose(value, b["losses"][task], rtol=1e-5)


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
  output = tmp_path_factory.mktemp("alone") / "run"
  return output, run(world, output, "fsdp:1")


@pytest.mark.parametrize(
  ("mesh", "search"),
  [
    ("", LINEAR),  # all eight
    ("candidate:4,fsdp:2", LINEAR),
    ("candidate:2,data:2,tensor:2", LINEAR | {"batch": 4}),
    further("fsdp:4,tensor:2", LINEAR | {"batch": 3, "in_turn": True}),
  ],
)
def test_a_mesh_changes_no_step_of_the_search(world, alone, tmp_path, mesh, search):
  result = run(world, tmp_path / "x", mesh, search=search)
  assert_same_search(tmp_path / "x", alone[0])
  assert result["selected_from"] == alone[1]["selected_from"]
  ours, theirs = (checkpoints.open(folder / "merged") for folder in (tmp_path / "x", alone[0]))
  for name in ours.specs:
    np.testing.assert_allclose(ours.read(name), theirs.read(name), atol=1e-5)


@pytest.mark.parametrize("where", ["device", further("host")])
def test_stacked_layers_score_as_they_do_one_by_one(world, alone, tmp_path, monkeypatch, where):
  monkeypatch.setattr(models.stacking, "FEWEST", 2)
  mesh = "candidate:2,fsdp:2,tensor:2" if where == "device" else "fsdp:2"
  run(world, tmp_path / "x", mesh, placement={"pool_memory": where})
  assert_same_search(tmp_path / "x", alone[0])


def test_a_pool_on_the_host_or_on_disk_scores_the_same(world, alone, tmp_path):
  said = []
  run(world, tmp_path / "disk", "fsdp:2,tensor:2", say=said.append, placement={"pool_memory": "disk"})
  assert_same_search(tmp_path / "disk", alone[0])
  assert any("the pool stays on disk" in line for line in said)
  placement = {"pool_memory": "host", "verify_load": True}
  run(world, tmp_path / "host", "fsdp:2", base=True, search={}, placement=placement)
  run(world, tmp_path / "device", "fsdp:1", base=True, search={})
  # In free weights, some of which hardly matter.
  assert_same_search(tmp_path / "host", tmp_path / "device", atol=1e-3)


def test_the_first_memory_with_room_is_chosen(world, tmp_path, monkeypatch):
  one = checkpoints.open(world[1][0]).nbytes
  monkeypatch.setattr(memory, "available_memory", lambda: 4 * one)
  said = []
  run(world, tmp_path / "x", "fsdp:2", say=said.append)
  assert any("does not fit device memory" in line for line in said)
  with pytest.raises((ValueError, RuntimeError), match="memory"):
    run(world, tmp_path / "y", "fsdp:2", placement={"pool_memory": "device"})
  assert not (tmp_path / "y").exists()


@pytest.mark.thorough
def test_another_topology_resumes_where_it_is_allowed(world, alone, tmp_path):
  output = tmp_path / "x"
  run(world, output, "fsdp:2", search=LINEAR | {"budget": 4})
  with pytest.raises(recycle.Refused, match=r"topology: 1 process, .*fsdp:2.* -> 1 process, .*fsdp:4"):
    run(world, output, "fsdp:4")
  run(world, output, "fsdp:4", allow_topology_change=True)
  assert_same_search(output, alone[0], finals=False)  # the smaller budget had some of its own
  manifest = json.loads((output / "manifest.json").read_text())
  assert [one["mesh"]["fsdp"] for one in manifest["topologies"]] == [2, 4]
  said = []
  run(world, output, "fsdp:2", allow_topology_change=True, say=said.append)
  assert any("finished before" in line for line in said)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mesh": "fsdp:16"}, "needs 16 devices; there are 8"),
    (
      {"mesh": "candidate:4,fsdp:2", "search": LINEAR | {"batch": 6}},
      "batch of 6 candidates is not a multiple of the 4",
    ),
    ({"placement": {"rules": [[".*norm.*", "colum"]]}}, "unknown tactic 'colum'"),
    ({"placement": {"rules": [["(", "fsdp"]]}}, "is not a regular expression"),
    ({"placement": {"rules": [["q_proj", "fsdp"]]}}, "'q_proj' matches the whole name of no tensor"),
    ({"placement": {"rules": [[".*norm.*", ["rows"]]]}}, "unknown mesh axis 'rows'"),
    ({"placement": {"rules": [[".*embed.*", ["fsdp"]]]}}, "axis 0 of shape .97, 32. is not a multiple of 8"),
    (
      {"placement": {"pool_memory": "disk"}, "search": LINEAR | {"batch": 2}},
      "needs its pool on the devices",
    ),
  ],
)
def test_a_placement_that_cannot_be_leaves_no_trace(world, tmp_path, options, message):
  with pytest.raises((ValueError, RuntimeError), match=message):
    run(world, tmp_path / "x", **options)
  assert not (tmp_path / "x").exists()


@pytest.mark.thorough
def test_merge_and_evaluation_are_told_apart_and_traced(world, tmp_path):
  _, paths, tasks = world
  job = settings.from_mapping({
    "checkpoints": [str(p) for p in paths], "tasks": [str(tasks[0])], "output_dir": str(tmp_path / "x"),
    "search": {"budget": 4, "method": "linear", "space": "simplex"}, "placement": {"mesh": "fsdp:2"},
  })  # fmt: skip
  said = []
  recycle.recycle(job, say=said.append, profile=True)
  assert any(line.startswith("a candidate takes ") and "its merge" in line for line in said)
  assert list((tmp_path / "x" / "profile").rglob("*.xplane.pb"))
