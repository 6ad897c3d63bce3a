"""Object stores: checkpoints by ranges, folders with a commit, journals of objects, kills at any request."""

import contextlib
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from merge_jax import checkpoints, recycle, storage
from merge_jax.checkpoints import safetensors_file
from merge_jax.evals.function_suite import FunctionSuite
from merge_jax.recipes import manifest, reading
from merge_jax.recycle import settings, suites
from merge_jax.recycle.pool import InputsChanged
from merge_jax.storage import commits, leases
from tests import merging, pools, stores
from tests.further import beyond
from tests.processes import JOBS

KILLS = int(os.environ.get("MERGE_JAX_KILLS", "12"))


@pytest.fixture
def store(monkeypatch):
  return stores.install(monkeypatch)


def write(folder, tensors, **options):
  with checkpoints.writer(folder, tensors, **options) as out:
    for name, value in tensors.items():
      out.write(name, value)


def bytes_read(store):
  return sum(end - start for _, start, end in store.read)


@pytest.fixture
def tensors():
  generator = np.random.default_rng(0)
  shapes = {"a": (), "b": (64, 48), "c": (8, 4, 6), "d": (0, 3), "e": (50,)}
  return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_opening_reads_headers_alone(store, tensors, tmp_path):
  write(tmp_path / "m", tensors, max_shard_bytes=6000)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  local, there = checkpoints.open(tmp_path / "m"), checkpoints.open("gs://bucket/m")
  assert dict(there.specs) == dict(local.specs) and there.name == "m"
  headers = 0
  for file in (tmp_path / "m").glob("*.safetensors"):
    headers += 8 + int.from_bytes(file.read_bytes()[:8], "little")
  index = (tmp_path / "m" / "model.safetensors.index.json").stat().st_size
  assert bytes_read(store) == headers + index
  store.read.clear()
  for name, value in tensors.items():
    np.testing.assert_array_equal(there.read(name), value)
  assert bytes_read(store) == local.nbytes
  assert there.digest() == local.digest()


@pytest.mark.parametrize("gap", [0, 40, 1 << 18])
@pytest.mark.parametrize(
  ("name", "index"),
  [
    ("b", np.s_[8:24]), ("b", np.s_[:, 3:9]), ("b", np.s_[5:6, 40:]), ("b", np.s_[::2, :]),
    ("b", np.s_[:, ::-1]), ("c", np.s_[2:5, 1:3, 2:4]), ("c", np.s_[:, 1:2]), ("c", np.s_[3:3]),
    ("e", np.s_[7:11]), ("a", ()),
  ],
)  # fmt: skip
def test_slices_are_ranges_of_bytes(store, tensors, tmp_path, monkeypatch, name, index, gap):
  monkeypatch.setattr(safetensors_file, "GAP", gap)
  write(tmp_path / "m", tensors)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  there = checkpoints.open("gs://bucket/m")
  store.read.clear()
  index = index if isinstance(index, tuple) else (index,)
  got = there.read(name, index)
  np.testing.assert_array_equal(got, tensors[name][index])
  assert got.shape == tensors[name][index].shape
  contiguous = all(part in (slice(None), slice(None, None)) for part in index[1:])
  strided = any(part.step not in (None, 1) for part in index)
  if (gap == 0 or contiguous) and not strided:
    assert bytes_read(store) == got.nbytes
  if contiguous:
    assert len(store.read) == bool(got.size)


def test_long_ranges_are_read_in_parts(store, tensors, tmp_path, monkeypatch):
  monkeypatch.setattr(storage.remote, "PART", 1000)
  write(tmp_path / "m", tensors)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  there = checkpoints.open("gs://bucket/m/model.safetensors")
  store.read.clear()
  np.testing.assert_array_equal(there.read("b"), tensors["b"])
  assert len(store.read) == -(-tensors["b"].nbytes // 1000)


@pytest.mark.parametrize("axes", [("x",), (None, "x"), ("y", "x"), ()])
def test_a_sharded_load_reads_each_byte_once(store, tensors, tmp_path, axes):
  mesh = jax.make_mesh((4, 2), ("x", "y"))
  value = {"b": tensors["b"]}
  write(tmp_path / "m", value)
  stores.upload(tmp_path / "m", "gs://bucket/m")
  there = checkpoints.open("gs://bucket/m")
  store.read.clear()
  loaded = there.load({"b": NamedSharding(mesh, PartitionSpec(*axes))})
  np.testing.assert_array_equal(loaded["b"], tensors["b"])
  assert bytes_read(store) == tensors["b"].nbytes and len(store.read) == 1


@pytest.mark.parametrize("cut", [0, 4, 50, -1])
def test_damaged_files_are_one_sentence(store, tensors, tmp_path, cut):
  write(tmp_path / "m", tensors)
  content = (tmp_path / "m" / "model.safetensors").read_bytes()
  file = storage.path("gs://bucket/m/model.safetensors")
  file.write_bytes(content[:cut])
  with pytest.raises(ValueError, match=r"gs://bucket/m/model.safetensors: damaged, truncated") as caught:
    checkpoints.open("gs://bucket/m")
  assert "\n" not in str(caught.value)
  file.write_bytes(content)
  there = checkpoints.open("gs://bucket/m")
  file.write_bytes(content[:-40])
  with pytest.raises(ValueError, match="changed after it was opened"):
    for name in there.specs:
      there.read(name)


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("ftp://host/m", "unknown scheme 'ftp'"), ("gs://", "names no bucket"), ("s3:///m", "names no bucket"),
    ("gs://bucket/none", "no such folder or file"), ("gss://b/m", "did you mean 'gs'"),
    ("gs://b/../m", "without '..'"), ("gs:/b/m", "has one slash"),
  ],
)  # fmt: skip
def test_what_is_not_there_is_one_sentence(store, path, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    checkpoints.open(path)


def test_what_is_written_to_disks_alone_does_not_land_in_a_local_folder_called_gs(store):
  with pytest.raises(ValueError, match="--output_dir: gs://bucket/x is on an object store; write to a disk"):
    storage.disk_destination("gs://bucket/x", "--output_dir")
  with pytest.raises(ValueError, match=r"gs://bucket/x.yml: recipes are read from disks"):
    reading.read("gs://bucket/x.yml")


def test_a_missing_package_is_named(monkeypatch):
  def missing(scheme):
    raise ImportError(scheme)

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  with pytest.raises(ValueError, match=r"needs the package s3fs; pip install 'merge-jax\[remote\]'"):
    storage.path("s3://bucket/m")


def test_failing_stores_are_one_sentence(store, monkeypatch):
  def refuse(*_, **__):
    raise RuntimeError("401\nwho are you?")

  monkeypatch.setattr(store, "info", refuse)
  with pytest.raises(
    OSError, match=r"gs://bucket/m: cannot be asked for on its store \(RuntimeError: 401 who"
  ):
    checkpoints.open("gs://bucket/m")


# Folders, journals and locks.


@pytest.fixture
def soon(monkeypatch):
  """A lease whose holder is killed is free at once."""
  monkeypatch.setattr(leases, "LIFE", -1.0)


def fill(path, names, **options):
  with storage.new_folder(storage.path(path), **options) as folder:
    for name in names:
      (folder / name).write_text(name)


def refused(path):
  with pytest.raises(FileNotFoundError, match="is not whole"):
    storage.refuse_unfinished(storage.path(path))


def test_a_folder_counts_when_it_is_committed(store):
  fill("gs://b/x", ["a", "sub/c"])
  storage.refuse_unfinished(storage.path("gs://b/x"))
  assert stores.content("gs://b/x") == {"a": b"a", "sub/c": b"sub/c"}
  with pytest.raises(FileExistsError, match="not empty"):
    fill("gs://b/x", ["d"])
  storage.path("gs://b/x/mine").write_text("mine")
  fill("gs://b/x", ["d"], owned=["a", "sub/c"])  # what is replaced goes, what is somebody's stays
  assert stores.content("gs://b/x") == {"d": b"d", "mine": b"mine"}
  assert storage.names(storage.path("gs://b/x")) == ["d", commits.COMMITTED]
  del store.objects["b/x/d"]
  with pytest.raises(FileNotFoundError, match="d is gone"):
    storage.refuse_unfinished(storage.path("gs://b/x"))


def test_folders_of_others_are_refused_or_kept(store):
  storage.path("gs://b/x/notes").write_text("mine")
  with pytest.raises(FileExistsError, match="not empty"):
    fill("gs://b/x", ["a"])
  assert stores.content("gs://b/x") == {"notes": b"mine"} and len(store.objects) == 1
  storage.refuse_unfinished(storage.path("gs://b/x"))  # nobody says that it is unfinished


@pytest.mark.parametrize("owned", [None, ("old",)])
def test_a_folder_is_whole_after_a_kill_at_any_request(store, soon, owned):
  """Each time the old or nothing counts until the new one does, and the next writer makes it the same."""
  for at in range(1, 100):
    store.objects.clear()
    if owned:
      fill("gs://b/x", ["old"])
      storage.path("gs://b/x/mine").write_text("mine")
    store.requests.clear()
    store.die_at = at
    killed = False
    try:
      fill("gs://b/x", ["a", "b"], owned=owned)
    except stores.Killed:
      killed = True
    store.die_at = 0
    names = set(stores.content("gs://b/x"))
    counts = commits.COMMITTED in {name.rpartition("/")[2] for name in store.objects}
    if counts:
      assert {"a", "b"} <= names or "old" in names
      storage.refuse_unfinished(storage.path("gs://b/x"))
    elif names - {"mine"}:
      refused("gs://b/x")
    if not killed:
      break
    if "a" not in names or not counts:
      fill("gs://b/x", ["a", "b"], owned=owned)
    assert set(stores.content("gs://b/x")) - {"mine"} == {"a", "b"}
    assert ("mine" in stores.content("gs://b/x")) == bool(owned)
  assert 8 < at < 30


def test_an_interrupted_folder_goes_on_for_the_same_job_alone(store):
  def begin(job, name):
    with storage.new_folder(storage.path("gs://b/x"), resume=job) as folder:
      (folder / name).write_text(name)
      raise KeyboardInterrupt

  for job, name, left in (("1", "a", {"a"}), ("1", "b", {"a", "b"}), ("2", "c", {"c"})):
    with pytest.raises(KeyboardInterrupt):
      begin(job, name)
    assert set(stores.content("gs://b/x")) == left
    refused("gs://b/x")
  with pytest.raises(FileNotFoundError, match="is not whole"):
    checkpoints.open("gs://b/x")


@pytest.mark.parametrize("mine", [False, True])
def test_an_overwrite_that_is_killed_keeps_nothing_of_what_it_replaces(store, soon, mine):
  """Files of the same names and sizes would be taken for its own by the same job, which goes on with them."""

  def write(text):
    with storage.new_folder(storage.path("gs://b/x"), owned=["a", "b"], resume=text) as folder:
      for name in ("a", "b"):
        if not (folder / name).exists():
          (folder / name).write_text(text)

  for at in range(1, 100):
    store.objects.clear()
    if mine:
      storage.path("gs://b/x/mine").write_text("mine")
    write("old")
    store.requests.clear()
    store.die_at = at
    killed = False
    try:
      write("new")
    except stores.Killed:
      killed = True
    store.die_at = 0
    write("new")
    own = {"mine": b"mine"} if mine else {}
    assert stores.content("gs://b/x") == {"a": b"new", "b": b"new"} | own, at
    if not killed:
      break
  assert 8 < at < 40


def mended(records):
  return [one["n"] for one in records]


def test_mended_lines_on_a_store_leave_whole_objects_and_no_others(store):
  path = storage.path("gs://b/run/items.jsonl")

  def begin():
    store.objects.clear()
    lines = storage.Lines(path, mend=True)
    for numbers in ((0, 1, 2), (3, 4, 5), (6,)):
      lines.append(*({"n": n} for n in numbers))

  def part(start):
    return storage.path(f"gs://b/run/items/{start:08d}.jsonl")

  def change(content):
    changed = content.replace(b'"n": 5', b'"n": 7').replace(b'"n":5', b'"n":7')
    assert changed != content
    return changed

  for damage, kept in (
    (lambda: part(3).unlink(), 3),  # a gap
    (lambda: part(3).write_bytes(change(part(3).read_bytes())), 3),  # its last line is not whole
    (lambda: part(6).write_bytes(part(6).read_bytes()[:-1]), 6),
    (lambda: part(0).unlink(), 0),
    (lambda: None, 7),
  ):
    begin()
    damage()
    lines = storage.Lines(path, mend=True)
    assert mended(lines.records) == list(range(kept))
    lines.append({"n": kept}, {"n": kept + 1})
    assert mended(storage.Lines(path, mend=True).records) == list(range(kept + 2))
  begin()
  storage.Lines(path, mend=True).cut(4)
  assert mended(storage.Lines(path, mend=True).records) == [0, 1, 2]


def test_lines_are_objects_in_order(store, tmp_path):
  path, local = storage.path("gs://b/run/journal.jsonl"), tmp_path / "journal.jsonl"
  for file in (path, local):
    assert not storage.has_lines(file)
    lines = storage.Lines(file)
    lines.append({"n": 0})
    lines.append({"n": 1}, {"n": 2})
    storage.Lines(file).append({"n": 3})
  there = stores.content("gs://b/run")
  assert sorted(there) == [f"journal/{n:08d}.jsonl" for n in (0, 1, 3)]
  assert b"".join(there[name] for name in sorted(there)) == local.read_bytes()
  assert storage.read_lines(path) == [{"n": n} for n in range(4)]
  with pytest.raises(storage.Locked, match="written by another job"):
    lines = storage.Lines(path)
    storage.Lines(path).append({"n": 4})
    lines.append({"n": 5})
  storage.path("gs://b/run/journal/00000001.jsonl").unlink()
  with pytest.raises(ValueError, match=r"journal\.jsonl:2: does not fit its checksum"):
    storage.Lines(path)
  storage.remove_lines(path)
  assert not storage.has_lines(path) and not store.objects


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_an_object_of_lines_that_lost_its_end_is_refused_before_more_are_added(store, cut):
  path, last = storage.path("gs://b/run/journal.jsonl"), storage.path("gs://b/run/journal/00000001.jsonl")
  lines = storage.Lines(path)
  lines.append({"n": 0})
  lines.append({"n": 1}, {"n": 2})
  last.write_bytes(last.read_bytes()[:cut])
  with pytest.raises(ValueError, match=r"00000001\.jsonl: its end is missing"):
    storage.Lines(path)


def test_who_lost_a_folder_to_another_job_removes_nothing_of_it(store):
  folder = storage.path("gs://b/x")
  with pytest.raises(OSError, match="network"), storage.new_folder(folder):
    (folder / leases.NAME).write_bytes(leases._json(leases.Holder("elsewhere", 1, "x", time.time())))
    (folder / "theirs").write_text("theirs")
    raise OSError("network")
  assert stores.content("gs://b/x") == {"theirs": b"theirs"}


def test_a_lease_that_came_through_twice_is_held(store, monkeypatch):
  write = store.pipe_file

  def twice(self, path, value, mode="overwrite", **_):
    write(self, path, value)
    if mode == "create":
      raise FileExistsError(path)

  monkeypatch.setattr(store, "pipe_file", twice)
  with storage.locked(storage.path("gs://b/x")):
    pass
  assert not store.objects


def test_a_lease_keeps_a_second_job_out_and_ends(store, monkeypatch):
  folder = storage.path("gs://b/run")
  with storage.locked(folder):
    with pytest.raises(storage.Locked, match=r"in use by process \d+ of .* sign of life"):
      storage.refuse_locked(folder)
    with pytest.raises(storage.Locked, match="in use by process"), storage.locked(folder):
      pass
  assert not store.objects
  (folder / leases.NAME).write_bytes(leases._json(leases.Holder("elsewhere", 1, "x", time.time())))
  with pytest.raises(storage.Locked, match="1 of elsewhere"):
    storage.refuse_locked(folder)
  late = time.time() + leases.LIFE + 1
  monkeypatch.setattr(leases.time, "time", lambda: late)
  with storage.locked(folder):  # of a job that was killed
    pass
  (folder / leases.NAME).write_bytes(leases._json(leases.Holder(leases._machine(), 2**22 + 1, "x", late)))
  with storage.locked(folder):  # its process ended on this machine
    pass


def test_a_lease_is_renewed_and_its_loss_is_noticed(store, monkeypatch):
  monkeypatch.setattr(leases, "BEAT", 0.01)
  folder = storage.path("gs://b/x")
  with pytest.raises(storage.Locked, match="taken over"), storage.new_folder(folder, resume="1"):
    before = leases._holder(folder / leases.NAME)
    while leases._holder(folder / leases.NAME) == before:
      time.sleep(0.01)
    (folder / leases.NAME).write_bytes(leases._json(leases.Holder("elsewhere", 1, "x", time.time())))
  assert commits.COMMITTED not in folder.tree()


# The recycle job.


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A pool and tasks on a disk."""
  folder = tmp_path_factory.mktemp("world")
  pools.make_pool(folder / "pool", 2)
  pools.make_tasks(folder / "tasks", 20)
  return folder


def job(root, output, **options):
  values = {
    "checkpoints": [f"{root}/pool/m0", f"{root}/pool/m1"],
    "base": f"{root}/pool/base",
    "tasks": [f"{root}/tasks/copy.jsonl:loss", f"{root}/tasks/choose.jsonl"],
    "output_dir": str(output),
    "search": {"budget": 6, "fitness_source": "auto", "batch": 2},
    "evals": {"max_shapes": 1},
  }
  return settings.from_mapping(values | options)


def without_times(value):
  if isinstance(value, dict):
    return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "final_seconds")}
  return [without_times(v) for v in value] if isinstance(value, list) else value


def outcome(folder):
  """What a run leaves that does not tell of times and places."""
  path = storage.path(folder)
  records = without_times(storage.read_lines(path / "journal.jsonl"))
  result = without_times(json.loads((path / "result.json").read_text()))
  merged = {n: v.tobytes() for n, v in checkpoints.open(path / "merged").load().items()}
  return records, result, merged


def recycled(root, output, **options):
  return recycle.recycle(job(root, output), say=lambda line: None, **options)


@pytest.fixture
def there(world, store):
  stores.upload(world, "gs://b")
  return store


@pytest.fixture
def quick(monkeypatch):
  """Scores and reports that take no time."""

  def score(params, split):
    value = float(np.asarray(params["model.norm.weight"]).sum()) + len(split)
    return {"copy": value, "choose": -(value**2)}

  report = types.SimpleNamespace(figures={"front": b"png", "weights": b"png"}, page="<html>")
  monkeypatch.setattr(suites, "build", lambda *_: FunctionSuite({"copy": 1.0, "choose": 1.0}, score))
  monkeypatch.setattr("merge_jax.reports.make", lambda *_: report)


def names(folder):
  return sorted({name.partition("/")[0] for name in stores.content(folder)})


def test_a_recycle_job_on_a_store_is_that_on_a_disk(world, there, tmp_path):
  recycled(world, tmp_path / "run")
  recycled("gs://b", "gs://b/run")
  assert outcome("gs://b/run") == outcome(tmp_path / "run")
  files = ["figures", "items", "journal", "manifest.json", "merged", "report.html", "result.json"]
  assert names("gs://b/run") == [".merge_jax.json", *files]
  for folder in ("merged", "figures"):
    assert set(stores.content(f"gs://b/run/{folder}")) == {
      p.name for p in (tmp_path / "run" / folder).iterdir()
    }
  before, said = dict(there.objects), []
  recycle.recycle(job("gs://b", "gs://b/run"), say=said.append)  # it is recognised
  assert "finished before" in said[-1] and there.objects == before


@pytest.fixture
def local(world, quick, tmp_path):
  recycled(world, tmp_path / "run")
  return outcome(tmp_path / "run")


def clear(there, prefix):
  for name in [name for name in there.objects if name.startswith(prefix)]:
    del there.objects[name]


@pytest.mark.parametrize("part", beyond((1, KILLS // 2, KILLS - 2), range(KILLS)))
def test_a_killed_job_on_a_store_goes_on(world, there, quick, local, soon, part):
  """At any request but those that read before the first write; what the journal holds is not scored again."""
  there.requests.clear()
  recycled(world, "gs://b/run")
  total = len(there.requests)
  whole = names("gs://b/run")
  clear(there, "b/run/")
  there.requests.clear()
  there.die_at = 1 + (total - 1) * part // (KILLS - 1)
  with pytest.raises(stores.Killed):
    recycled(world, "gs://b/run")
  there.die_at = 0
  known = storage.read_lines(storage.path("gs://b/run/journal.jsonl"))
  recycled(world, "gs://b/run")
  assert storage.read_lines(storage.path("gs://b/run/journal.jsonl"))[: len(known)] == known
  assert outcome("gs://b/run") == local and names("gs://b/run") == whole


def test_a_run_on_a_store_is_begun_anew(world, there, quick, local):
  recycled(world, "gs://b/run")
  storage.path("gs://b/run/merged/mine").write_text("mine")
  recycled(world, "gs://b/run", overwrite=True)
  assert outcome("gs://b/run") == local
  assert stores.content("gs://b/run/merged")["mine"] == b"mine"
  clear(there, "b/run/journal/")
  with pytest.raises(recycle.Refused, match=r"journal.jsonl of the run is missing"):
    recycled(world, "gs://b/run")


def test_a_trace_of_a_run_goes_to_its_store(world, there, quick, monkeypatch):
  monkeypatch.setattr(
    jax.profiler, "trace", lambda folder: contextlib.nullcontext(Path(folder, "trace").write_text("x"))
  )
  recycled(world, "gs://b/run", profile=True)
  assert stores.content("gs://b/run/profile") == {"trace": b"x"}


def test_a_prefix_of_others_is_refused(world, there, quick):
  storage.path("gs://b/run/notes.txt").write_text("mine")
  before = dict(there.objects)
  with pytest.raises(recycle.Refused, match=r"gs://b/run is not empty \(holds 'notes.txt'\)"):
    recycled(world, "gs://b/run")
  with pytest.raises(ValueError, match="lies in the input gs://b/pool/m0"):
    recycled("gs://b", "gs://b/pool/m0/run")
  assert there.objects == before


def test_an_input_on_a_store_that_changes_is_noticed(there, quick):
  def change(record):
    file = storage.path("gs://b/pool/m0/config.json")
    file.write_bytes(file.read_bytes())

  with pytest.raises(InputsChanged, match=r"gs://b/pool/m0/config\.json changed while the job ran"):
    recycled("gs://b", "gs://b/run", progress=change)


# Merges by recipes.

DARE = (  # what is drawn goes by the models' labels
  "method: dare_ties\nbase: {0}base\nmodels: {{a: {{path: '{0}a'}}, b: {{path: '{0}b'}}}}\n"
  "parameters: {{density: 0.5}}\n"
)
TWO = (
  "name: mean\nmethod: linear\nmodels: [{0}a, {0}b]\n---\n"
  "method: slerp\nmodels: [mean, {0}a]\nparameters: {{t: 0.5}}\n"
)


@pytest.fixture
def models(store, tmp_path, monkeypatch):
  """Three models in the working directory and on the store."""
  monkeypatch.chdir(tmp_path)
  merging.make(tmp_path)
  for name in ("base", "a", "b"):
    (tmp_path / name / "additional_chat_templates").mkdir()
    (tmp_path / name / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    stores.upload(tmp_path / name, f"gs://b/{name}")
  return store


def merged(text, root, output, **options):
  merging.run(text.format(root), output, threads=1, max_shard_gb=merging.SHARD, **options)


def tensors_of(files):
  return {name: data for name, data in files.items() if name not in ("README.md", "merge_manifest.json")}


@pytest.mark.parametrize("text", [DARE, TWO])
def test_a_merge_from_and_to_a_store_is_that_of_disks(models, text):
  merged(text, "", "out")
  merged(text, "gs://b/", "gs://b/out", verify=True)
  expected = tensors_of(merging.content(Path("out")))
  assert tensors_of(stores.content("gs://b/out")) == expected and len(expected) > 5
  assert not [name for name in models.objects if "stages" in name or name.endswith(".lock")]
  merged(text, "gs://b/", "again")
  assert tensors_of(merging.content(Path("again"))) == expected
  with pytest.raises(FileExistsError, match="gs://b/out exists and is not empty"):
    merged(text, "", "gs://b/out")
  merged(text, "", "gs://b/out", overwrite=True)
  assert tensors_of(stores.content("gs://b/out")) == expected
  assert stores.content("gs://b/out")["merge_manifest.json"] == Path("out/merge_manifest.json").read_bytes()


@pytest.mark.parametrize("text", [DARE, TWO])
def test_a_killed_merge_to_a_store_goes_on_with_its_shards(models, soon, text):
  merged(text, "", "gs://b/out")
  expected, total = stores.content("gs://b/out"), len(models.requests)
  for part in range(KILLS):
    clear(models, "b/out/")
    models.requests.clear()
    models.die_at = 1 + (total - 1) * part // (KILLS - 1)
    with contextlib.suppress(stores.Killed):
      merged(text, "", "gs://b/out")
    models.die_at = 0
    shards = {n: v for n, v in models.objects.items() if n.startswith("b/out/") and n.endswith("safetensors")}
    if f"b/out/{commits.COMMITTED}" not in models.objects:
      merged(text, "", "gs://b/out")
      assert {name: models.objects[name] for name in shards} == shards  # not written again
      assert not [name for name in models.objects if "stages" in name or "started" in name]
    assert stores.content("gs://b/out") == expected


def test_a_killed_merge_over_another_one_has_none_of_its_numbers(models, soon):
  """Of the same shapes: the first shard of the old one is as long as that of the new one."""
  one, other = (f"method: linear\nmodels: [{{0}}{name}]\n" for name in ("a", "b"))
  merged(other, "", "gs://b/expected")
  expected = tensors_of(stores.content("gs://b/expected"))
  for which in range(4):
    for text in (one, other):  # first to see when the old one stops counting
      clear(models, "b/out/")
      merged(one, "", "gs://b/out")
      models.requests.clear()
      if text is one:
        merged(other, "", "gs://b/out", overwrite=True)
        last = next(i for i, r in enumerate(models.requests) if "committed" in str(r) and "remove" in str(r))
    models.die_at = last + 2 + which
    with contextlib.suppress(stores.Killed):
      merged(other, "", "gs://b/out", overwrite=True)
    models.die_at = 0
    if tensors_of(stores.content("gs://b/out")) != expected:
      merged(other, "", "gs://b/out", overwrite=True)
    assert tensors_of(stores.content("gs://b/out")) == expected, which


def test_a_failed_merge_leaves_its_shards_to_the_same_one_alone(models):
  def stop(done, total):
    if done == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    merged(DARE, "", "gs://b/out", progress=stop)
  assert stores.content("gs://b/out")
  merged(DARE, "", "gs://b/other", seed=1)
  merged(DARE, "", "gs://b/out", seed=1)
  assert tensors_of(stores.content("gs://b/out")) == tensors_of(stores.content("gs://b/other"))


def test_no_place_of_others_is_written(models):
  storage.path("gs://b/out/mine").write_text("mine")
  before = dict(models.objects)
  for overwrite in (False, True):
    with pytest.raises(FileExistsError, match="gs://b/out"):
      merged(DARE, "", "gs://b/out", overwrite=overwrite)
  with pytest.raises(ValueError, match="is the input gs://b/a"):
    merged(DARE, "gs://b/", "gs://b/a", overwrite=True)
  with pytest.raises(ValueError, match="names a bucket alone"):
    merged(DARE, "gs://b/", "gs://c")
  assert models.objects == before


def test_mixed_places_have_one_digest(models):
  files = [storage.path("gs://b/a/config.json"), Path("b/config.json")]
  assert manifest.digest(files) == manifest.digest(reversed(files)) != manifest.digest(files[:1])


def test_orbax_is_not_written_to_a_store_and_says_so_early(world, there, quick, tmp_path):
  for name in ("m0", "m1"):
    source = checkpoints.open(world / "pool" / name)
    checkpoints.write(tmp_path / "pool" / name, source.load(), like=source, format="orbax")
  paths = [str(tmp_path / "pool" / name) for name in ("m0", "m1")]
  with pytest.raises(ValueError, match="Orbax checkpoints are not written to object stores"):
    recycle.build(job(world, "gs://b/run", checkpoints=paths, base=""))
  stores.upload(tmp_path / "pool" / "m0", "gs://b/orbax")
  with pytest.raises(ValueError, match=r"gs://b/orbax: Orbax cannot read it \(.*gcsfs"):
    checkpoints.open("gs://b/orbax")  # it goes its own way to a store


COMMAND = """
import sys, pytest, jax
jax.config.update("jax_platforms", "cpu")
from pathlib import Path
from tests import stores
stores.install(pytest.MonkeyPatch())
stores.upload(Path(sys.argv.pop(1)), "gs://b")
from {jobs} import _common, {name}
try:
  _common.run({name}.main)
finally:
  print(sorted(stores.content("gs://b/out")))
"""


@pytest.mark.parametrize(
  ("name", "arguments", "made"),
  [
    ("check", ["--checkpoints=gs://b/pool/m0,gs://b/pool/m1"], ""),
    ("convert", ["--input=gs://b/pool/m0", "--output=gs://b/out", "--format=safetensors"], "config.json"),
  ],
)  # fmt: skip
def test_commands_take_such_paths(world, name, arguments, made):
  words = [sys.executable, "-c", COMMAND.format(name=name, jobs=JOBS), str(world), *arguments]
  done = subprocess.run(words, text=True, capture_output=True, timeout=300, cwd=Path(__file__).parent.parent)
  assert done.returncode == 0 and made in done.stdout.splitlines()[-1], done.stderr
