"""Task files of a study from reasoning-gym: parts are apart, and choices tell nothing but the answer."""

import collections
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import msgspec
import pytest
from ml_collections import config_dict

from configs import study_small, study_smoke
from merge_jax import evals
from merge_jax.evals import tasks as task_files
from merge_jax.study.data import puzzles
from merge_jax.study.data.puzzle_table import HELD_IN, HELD_OUT, INSTRUCT, TABLE
from merge_jax.study.settings import from_mapping

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("reasoning_gym"), reason="needs reasoning_gym")

OPTIONS = {
  "held_in": ["rev", "hex", "quad"], "held_out": ["most", "walk"], "instruct": ["map"],
  "train": 200, "evaluation": 40, "share": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return puzzles.make(tmp_path_factory.mktemp("puzzles"), OPTIONS)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", TABLE)
def test_every_puzzle_gives_short_items(name):
  options = puzzles.Options((), (name,), (), train=40, evaluation=8, share=0.2)
  items = puzzles.draw(name, options, seed=3)
  assert len(items.train) == 40 and len(items.evaluation) == 8
  rows = [*puzzles.texts(name, items.train), *puzzles.instructions(name, items.train)]
  assert all(len(row["prompt"] + row["target"]) < 40 and row["target"].isascii() for row in rows)
  assert items == puzzles.draw(name, options, seed=3) != puzzles.draw(name, options, seed=4)


def test_items_do_not_depend_on_the_process():
  """Python's hashes of texts, and with them the order of sets, differ from process to process."""
  code = (
    "from merge_jax.study.data import puzzles\n"
    "options = puzzles.Options((), (), (), train=40, evaluation=8, share=0.2)\n"
    "print([puzzles.draw(name, options, seed=3) for name in puzzles.TABLE])"
  )
  printed = [
    subprocess.run(
      [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
    ).stdout
    for seed in ("1", "2")
  ]
  assert printed[0] == printed[1]


def test_answers_are_the_librarys():
  told = {
    "rev": ("stone", "enots"), "hex": ("101030", "44c"), "quad": ("44c", "101030"), "rot": ("9141", "4911"),
    "flip": ("417776", "776417"), "sub": ("773-641", "132"), "ones": ("00100010100", "3"),
  }  # fmt: skip
  entries = {
    "rev": {"word": "stone"}, "hex": {"decimal_value": 0x44C}, "quad": {"decimal_value": 0x44C},
    "rot": {"matrix": [[9, 1], [4, 1]], "solution": [[4, 9], [1, 1]]},
    "flip": {
      "matrix": [[4, 1, 7], [7, 7, 6]], "solution": [[7, 7, 6], [4, 1, 7]],
      "operations": [{"transform": "hmirror"}],
    },
    "sub": {"expression": "773 - 641"}, "ones": {"number": 0b00100010100, "solution": 3},
  }  # fmt: skip
  assert {name: next(TABLE[name].items(entry)) for name, entry in entries.items()} == told


def test_nothing_that_is_evaluated_is_told_anywhere_else(made):
  told = {
    row["prompt"] + row["target"]
    for part in (made.train, made.pretrain, made.instruct)
    for path in part.values()
    for row in read(path)
  }
  forms = (*puzzles.TEXTS, puzzles.INSTRUCTION)
  for name in ("rev", "hex", "quad", "most", "walk"):
    items = puzzles.draw(name, msgspec.convert(OPTIONS, puzzles.Options), 0)
    assert len(read(made.tasks[name])) == len(items.evaluation) == 40
    for noun, (question, answer) in itertools.product([TABLE[name].noun], items.evaluation):
      assert not told & {form.format(noun=noun, x=question) + answer for form in forms}
    question, answer = items.train[0]
    assert any(form.format(noun=TABLE[name].noun, x=question) + answer in told for form in forms)
  parts = {name: puzzles.draw(name, msgspec.convert(OPTIONS, puzzles.Options), 0) for name in ("hex", "quad")}
  assert not {(y, x) for x, y in parts["quad"].train} & {*parts["hex"].evaluation}


def test_choices_differ_are_alike_and_stand_anywhere(made):
  places = collections.Counter()
  for name in ("most", "walk"):
    for row in read(made.tasks[name]):
      assert len(set(row["choices"])) == puzzles.CHOICES
      assert len({len(choice) for choice in row["choices"]}) == 1
      places[row["answer"]] += 1
  assert min(places[place] for place in range(puzzles.CHOICES)) > 5


def test_files_are_kept_and_other_options_write_others(made, tmp_path):
  first = made.tasks["rev"]
  before = first.stat().st_mtime_ns
  again = puzzles.make(first.parents[2], OPTIONS)
  assert again == made and first.stat().st_mtime_ns == before
  fewer = puzzles.make(tmp_path, OPTIONS | {"held_in": ["rev"]})
  other = puzzles.make(tmp_path, OPTIONS | {"held_in": ["rev"]}, seed=1)
  assert fewer.tasks["rev"].read_bytes() == first.read_bytes() != other.tasks["rev"].read_bytes()
  assert len(list(tmp_path.iterdir())) == 2


def test_files_are_tasks(made):
  for path in (*made.train.values(), *made.pretrain.values(), *made.instruct.values()):
    assert task_files.load(str(path)).metric == "exact_match" and len(read(path)) == 200
  assert {n: task_files.load(str(p)).metric for n, p in made.tasks.items()} == {
    "rev": "exact_match", "hex": "exact_match", "quad": "exact_match",
    "most": "choice_accuracy", "walk": "choice_accuracy",
  }  # fmt: skip
  assert evals.Tokens(evals.tokens.Tokenizer.from_str(made.tokenizer), 1).targets(["az"]) == [[67, 92, 1]]


@pytest.mark.parametrize(
  "options, told",
  [
    ({"held_in": ["revv"]}, "'revv'.*rev"),
    ({"held_in": ["rev", "rev"]}, "'rev' stands twice"),
    ({"shares": 0.1}, "shares"),
    ({"share": 0.001, "train": 20}, "'rev' gave 20 items to train and .* to evaluate.*Raise config"),
    ({"share": 0.9999999}, "'rev' gave 0 items to train and .* to evaluate.*Lower config"),
  ],
)
def test_options_that_cannot_be_used_leave_no_trace(tmp_path, options, told):
  with pytest.raises(ValueError, match=told):
    puzzles.make(tmp_path, OPTIONS | options)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [study_small, study_smoke])
def test_configs_are_settings_of_a_study(config):
  c = config.get_config()
  c.output_dir = "runs/x"
  study = from_mapping(json.loads(json.dumps(c.to_dict())))
  assert isinstance(c, config_dict.ConfigDict) and study.training is not None
  options = study.data.options
  tasks = {name for part in (study.held_in, study.held_out) for names in part.values() for name in names}
  assert tasks == {*options["held_in"], *options["held_out"]} and not tasks & {*options["instruct"]}
  assert study.training.recipes["instruct"]["mixture"].keys() == {*options["instruct"]}
  assert max(study.counts) <= len(study.held_in)


def test_the_small_study_is_of_the_size_of_the_papers():
  assert len(HELD_IN) >= 8 and all(len(names) == 2 for names in HELD_IN.values())
  assert len(HELD_OUT) >= 4 and len(INSTRUCT) >= 6
