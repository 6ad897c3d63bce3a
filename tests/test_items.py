"""What every example scored, beside the journal: the same file after any kill, and never the run's loss."""

import types

import msgspec
import numpy as np
import pytest

from merge_jax import evals, search, storage
from merge_jax.evals.objective import Evaluation
from merge_jax.recycle import choice
from merge_jax.search import items
from merge_jax.search.items import Items
from merge_jax.search.journal import Journal
from tests import stores

COUNT = 3
FITNESS = search.Fitness(("a", "b"), (1.0, -1.0), source="metric")
SPLITS = {"search": 12, "validation": 8, "test": 8}


class Objective:
  """Two tasks whose examples depend on the point alone."""

  batch = 2

  def evaluate(self, candidates, split):
    found = [examples(candidate.point, SPLITS[split]) for candidate in candidates]
    return [Evaluation(one.scores(), one.scores(loss=True), one) for one in found]


def examples(point, size):
  lean = np.random.default_rng(size).normal(size=(COUNT, size))
  values = np.asarray(point.array) @ lean
  loss = np.log1p(np.exp(-values))
  half = size // 2
  metric = np.where(np.arange(size) < half, values > 0, loss).astype(float)
  return evals.Examples(
    ("a", "b"), (1.0, -1.0), (half, size - half), np.stack([metric, np.ones(size), loss, np.ones(size)])
  )


def run(folder, stop=10**9, budget=13):
  """A search with finalists, as the job does it; `stop` ends it with that many records in the journal."""
  path = storage.path(folder)
  journal = Journal(path / "journal.jsonl")
  ids = {"search": {"a": [f"a{i}" for i in range(6)]}}
  kept = Items(path / "items.jsonl", journal.records, ids)
  options = search.Options("linear", search.space("simplex", COUNT), FITNESS, COUNT)

  class Ended(Exception):
    pass

  def progress(record):
    if len(journal.records) >= stop:
      raise Ended

  try:
    found = search.search(
      search.proposer("cma_es", options), Objective(), journal, FITNESS, search.Budget(budget), items=kept,
      progress=progress,
    )  # fmt: skip
    for split in ("validation", "test"):
      candidates = [record.candidate for record in found.records[:3]]
      search.measure(candidates, split, Objective(), journal, items=kept, progress=progress)
  except Ended:
    return journal, kept
  return journal, kept


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "whole").mkdir()
  (tmp_path / "run").mkdir()
  return tmp_path


def content(folder):
  return (folder / "items.jsonl").read_bytes()


def test_lines_say_what_each_example_scored(folder):
  journal, kept = run(folder / "whole")
  lines = storage.read_lines(kept.path)
  assert [(x["split"], x["index"]) for x in lines] == [(r.split, r.index) for r in journal.records]
  for line, record in zip(lines, journal.records, strict=True):
    signs = {"a": 1.0, "b": -1.0}
    read = evals.Examples.from_plain(line["tasks"], signs)
    assert read.scores() == record.scores and read.scores(loss=True) == record.losses
    assert line.get("ids") == ({"a": [f"a{i}" for i in range(6)]} if record.split == "search" else None)
    if record.split == "search":
      assert record.examples is None
    else:
      assert all(record.examples[t]["sums"] == line["tasks"][t]["sums"] for t in signs)
      assert ("losses" in record.examples["a"]) == (record.split == "validation")
  found = dict(items.read(kept.path, "validation"))
  assert list(found) == [0, 1, 2]


def test_any_kill_ends_in_the_same_file(folder):
  """The journal as it is at any moment, and of the lines beside it those up to a batch more, one cut."""
  journal, _ = run(folder / "whole")
  whole, lines = content(folder / "whole"), content(folder / "whole").splitlines(keepends=True)
  written = (folder / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
  for number in range(0, len(written) + 1, 3):  # in all places of a batch of two
    for more, part in ((0, 0), (1, 0), (1, 7), (2, 7)):
      kept = b"".join(lines[: number + more])
      lost = part if len(lines) > number else 0  # what the journal has, these lines had before
      (folder / "run" / "journal.jsonl").write_bytes(b"".join(written[:number]))
      (folder / "run" / "items.jsonl").write_bytes(kept[: len(kept) - lost])
      again, _ = run(folder / "run")
      assert content(folder / "run") == whole, (number, more, part)
      plain = [[msgspec.structs.replace(r, seconds=0.0) for r in j.records] for j in (journal, again)]
      assert plain[0] == plain[1]


@pytest.mark.parametrize("damage", ["missing", "byte", "middle", "no object", "binary"])
def test_a_lost_or_damaged_file_loses_nothing_else(folder, damage):
  journal, kept = run(folder / "whole")
  run(folder / "run", stop=8)
  path, lines = folder / "run" / "items.jsonl", content(folder / "run").splitlines(keepends=True)
  match damage:
    case "missing":
      path.unlink()
    case "byte":
      path.write_bytes(b"".join([*lines[:3], lines[3].replace(b"sums", b"suns"), *lines[4:]]))
    case "middle":
      path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    case "no object":
      path.write_bytes(b"".join([*lines[:3], b"[]\n", *lines[4:]]))
    case "binary":
      path.write_bytes(b"".join(lines[:3]) + b"\xff\0\n")
  again, mended = run(folder / "run")
  assert [r.scores for r in again.records] == [r.scores for r in journal.records]
  there = dict(items.read(mended.path, "search"))
  assert sorted(there) == [*([] if damage == "missing" else [0, 1, 2]), *range(8, 13)]
  suite = types.SimpleNamespace(
    names=("a", "b"),
    signs=(1.0, -1.0),
    losses=True,
    groups=lambda split: None,
    sizes=lambda split: {},
    expect=lambda split, counts: None,
  )
  problem = types.SimpleNamespace(suite=suite, pool=[None] * COUNT, method="linear", fitness=FITNESS)
  scores, why = choice.corrected_search(problem, again.of("search"), mended)
  lost = 8 if damage == "missing" else 5
  assert scores == {} and why == f"items.jsonl lacks {lost} of 13 evaluations of the search"
  scores, why = choice.corrected_search(problem, journal.of("search"), kept)
  assert why is None and {"best_single", "search_best", "greedy"} <= scores.keys()
  assert set(scores["search_best"]) == {"a", "b", "average"}
  best = max(record.fitness for record in journal.of("search"))
  assert scores["search_best"]["average"] < best
  nothing = choice.corrected_search(problem, journal.of("search"), None)
  assert nothing == ({}, "what every example scored was not kept")


def test_scores_alone_leave_no_lines(folder):
  class Alone(Objective):
    def evaluate(self, candidates, split):
      return [one._replace(examples=None) for one in super().evaluate(candidates, split)]

  journal = Journal()
  kept = Items(folder / "items.jsonl", [])
  candidate = search.Candidate("single", "linear", search.Point((1.0, 0.0, 0.0)))
  search.measure([candidate], "test", Alone(), journal, items=kept)
  assert len(journal.records) == 1 and not kept.path.exists()


def test_a_kill_at_any_request_to_a_store_ends_in_the_same_objects(monkeypatch):
  store = stores.install(monkeypatch)
  run("gs://b/whole", budget=7)
  total = len(store.requests)
  whole = {name: content for name, content in stores.content("gs://b/whole").items() if "items" in name}
  assert sorted(whole)[:2] == ["items/00000000.jsonl", "items/00000002.jsonl"]
  for die in range(1, total + 1, 5):
    for name in [name for name in store.objects if name.startswith("b/run/")]:
      del store.objects[name]
    store.requests.clear()
    store.die_at = die
    with pytest.raises(stores.Killed):
      run("gs://b/run", budget=7)
    store.die_at = 0
    run("gs://b/run", budget=7)
    there = {name: content for name, content in stores.content("gs://b/run").items() if "items" in name}
    assert there == whole, die
  (storage.path("gs://b/run/items/00000002.jsonl")).write_bytes(b"cut sho")
  _, mended = run("gs://b/run", budget=7)
  assert sorted(dict(items.read(mended.path, "search"))) == [0, 1]
