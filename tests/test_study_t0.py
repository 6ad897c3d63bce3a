"""Data of the study on T0 and BIG-bench, from made-up archives of their layout."""

import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import configs.study_t0
from merge_jax.evals import tasks
from merge_jax.study import settings
from merge_jax.study.data import leaks, t0, t0_bigbench, t0_corpora, t0_rows, t0_sources
from merge_jax.study.data.t0_bigbench import HELD_OUT
from merge_jax.study.data.t0_sources import HELD_IN, PASSAGES, SOURCES

CANARY = "do not train on this: 1f2e3d"
SMALL = {"puzzles": 0, "readings": 60, "vocabulary": 400, "heldout_examples": 30}


def sentence(draw: random.Random, words: int = 16) -> str:
  return " ".join("".join(draw.choices("bcdfglmnprstaeiou", k=6)) for _ in range(words)).capitalize() + "."


def row_text(name: str, row: int) -> str:
  """Of a source row; rows 158 to 161 share theirs, across the end of the training rows."""
  row = 158 if 158 <= row <= 161 else row
  return sentence(random.Random(f"{name}/{row}"), 30)


def templates(name: str, kind: str) -> dict[str, list[dict[str, str]]]:
  """Two templates of 200 rows, and one that was filtered."""
  first, second, wording = [], [], "Here is something to read, and after it comes what is asked of you all:"
  for row in range(200):
    text, options = row_text(name, row), "\n".join(f"- {letter}: word{row}{letter}" for letter in "ABCD")
    if kind == "choices":
      first.append({"prompt": f"{wording}\r\n\r\n{text}\n", "completion": ["Yes", "No"][row % 2]})
      second.append({"prompt": f"{text}\n{wording}\n{options}\n", "completion": f"word{row}C"})
    else:
      first.append(
        {"prompt": f"{wording}\n{text}\n", "completion": f"{row} {sentence(random.Random(row), 3)}"}
      )
      second.append({"prompt": f"{text}\n{wording}\n", "completion": f"answer {row}"})
  return {"first": first, "second": second, "filtered": first[:91]}


def write_t0(root: Path, change: dict[str, str]) -> None:
  folder = root / "data" / "some" / "data_per_template"
  folder.mkdir(parents=True)
  kinds = {name: source.kind for sources in SOURCES.values() for name, source in sources.items()}
  for name, kind in (kinds | dict.fromkeys((*PASSAGES, "imdb"), "text")).items():
    source = next((found[name] for found in SOURCES.values() if name in found), t0_sources.Source("text"))
    for number, (template, lines) in enumerate(templates(name, kind).items()):
      template = source.only[number % len(source.only)] if source.only and number < 2 else template
      ended = [line | {"completion": line["completion"] + "<|endoftext|>"} for line in lines]
      text = "\n".join(json.dumps(line) for line in ended) + "\n"
      (folder / f"{source.archive or name}_{template}.jsonl").write_text(change.get(name, text))
  (folder / "trec_what.jsonl").write_text("")
  (root / "data" / "seed_tasks.jsonl").write_text('{"id": 1}\n')


def write_bigbench(root: Path) -> None:
  draw = random.Random(0)
  for name in (name for names in HELD_OUT.values() for name in names):
    for head in ("goal_step_wikihow", "fact_checker", "cause_and_effect"):
      name = f"{head}/{name.removeprefix(f'{head}_')}" if name.startswith(f"{head}_") else name
    examples = [{"input": sentence(draw), "target_scores": {"right": 1, "wrong": 0}} for _ in range(40)]
    examples.append({"input": "Both are right.", "target_scores": {"a": 1, "b": 1}})
    examples.append({"input": "Free text.", "target": "a"})
    (root / name).mkdir(parents=True)
    spec = {"canary": CANARY, "examples": examples, "task_prefix": "Choose.", "preferred_score": "x"}
    (root / name / "task.json").write_text(json.dumps(spec))
  (root / "goal_step_wikihow" / "task.json").write_text(json.dumps({"canary": CANARY}))


def archive(folder: Path, target: Path) -> Path:
  with tarfile.open(target, "w:xz") as tar:
    for path in sorted(folder.iterdir()):
      tar.add(path, path.name)
  return target


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
  root = tmp_path_factory.mktemp("archives")
  write_t0(root / "t0", {})
  write_bigbench(root / "bb")
  archive(root / "t0", root / "t0.tar.xz")
  archive(root / "bb", root / "bb.tar.xz")
  return root


@pytest.fixture(scope="module")
def made(given: Path) -> tuple[t0.Data, Path]:
  data = t0.make(
    given / "out", SMALL | {"t0": str(given / "t0.tar.xz"), "bigbench": str(given / "bb.tar.xz")}
  )
  return data, next(iter(data.train.values())).parent.parent


def lines(path: Path) -> list[dict]:
  return [json.loads(line) for line in tasks.path_of(str(path)).read_text().splitlines()]


def test_every_task_has_files_that_load(made):
  data, _ = made
  names = {name for names in HELD_IN.values() for name in names}
  assert set(data.train) == names
  assert set(data.tasks) == names | {name for names in HELD_OUT.values() for name in names}
  for name, path in (data.train | data.pretrain | data.instruct).items():
    assert tasks.load(str(path)).name == name
  metrics = {name: tasks.load(str(path)).metric for name, path in data.tasks.items()}
  assert (metrics["ag_news"], metrics["winowhy"], metrics["samsum"]) == ("choice_accuracy",) * 2 + ("loss",)


def test_rows_are_on_one_side_and_passages_too(made):
  data, folder = made
  rows = [int(line["id"].split("/")[1]) for line in lines(data.tasks["samsum"])]
  assert rows == list(range(160, 200))  # one line a row
  trained = lines(data.train["samsum"])
  assert len(trained) == 2 * 158  # rows 158 and 159 share the passage of 160
  tested = {line["prompt"] for path in data.tasks.values() for line in lines(path)}
  for path in (*data.train.values(), *data.pretrain.values(), *data.instruct.values()):
    assert not tested & {line["prompt"] for line in lines(path)}
  about = json.loads((folder / "about.json").read_text())["tasks"]
  assert about["samsum"]["rows_left_out"] == 2
  assert [int(line["id"].split("/")[1]) for line in lines(data.tasks["ag_news"])] == [
    *range(62, 78), *range(176, 200)
  ]  # fmt: skip


def test_choices_are_labels_or_what_the_prompt_lists(made):
  data, _ = made
  for line in lines(data.tasks["cosmos_qa"]):
    _, row, template = line["id"].split("/")
    expected = [" No", " Yes"] if template == "first" else [f" word{row}{letter}" for letter in "ABCD"]
    assert line["choices"] == expected
    assert line["answer"] == ((int(row) + 1) % 2 if template == "first" else 2)
  assert {line["id"].split("/")[2] for line in lines(data.tasks["cosmos_qa"])} == {"first", "second"}


def test_heldout_tasks_are_unambiguous_and_shuffled(made):
  data, folder = made
  found = lines(data.tasks["fact_checker_politifact"])
  assert len(found) == 30 and {line["answer"] for line in found} == {0, 1}
  assert all(line["choices"][line["answer"]] == " right" for line in found)
  assert all(line["prompt"].startswith("Choose.\nQ: ") and line["prompt"].endswith("\nA:") for line in found)
  for path in folder.rglob("*"):
    assert path.is_dir() or CANARY not in path.read_text()


def test_a_folder_gives_what_the_archive_gives_and_is_kept(given, made, tmp_path):
  data, folder = made
  again = t0.make(tmp_path, SMALL | {"t0": str(given / "t0"), "bigbench": str(given / "bb")})
  other = next(iter(again.train.values())).parent.parent
  for path in folder.rglob("*.*"):
    assert path.read_bytes() == (other / path.relative_to(folder)).read_bytes()
  stamp = (folder / "about.json").stat().st_mtime_ns
  options = SMALL | {"t0": str(given / "t0.tar.xz"), "bigbench": str(given / "bb.tar.xz")}
  assert t0.make(given / "out", options) == data
  assert (folder / "about.json").stat().st_mtime_ns == stamp
  fewer = t0.make(given / "out", options | {"test": 0.1, "corpora": False})
  assert fewer.pretrain == fewer.instruct == {} and fewer.tasks["samsum"] != data.tasks["samsum"]
  assert len(lines(fewer.tasks["samsum"])) == 20


def test_own_tokenizer_text_and_metrics(given, tmp_path):
  tokenizer, text = tmp_path / "tokenizer.json", tmp_path / "texts"
  tokenizer.write_text(t0.train_tokenizer(["one two", "three"], 300))
  text.mkdir()
  (text / "a.txt").write_text(" ".join(sentence(random.Random("own"), 40) for _ in range(40)))
  leaked = row_text("samsum", 170) + " " + sentence(random.Random("more"), 300)
  (text / "b.txt").write_text(leaked)
  options = {"tokenizer": str(tokenizer), "text": str(text), "metrics": {"choices": "loss"}}
  where = {"t0": str(given / "t0"), "bigbench": str(given / "bb")}
  data = t0.make(tmp_path / "out", SMALL | {"readings": 0} | options | where)
  assert data.tokenizer == tokenizer.read_text() and data.instruct == {}
  assert tasks.load(str(data.tasks["winowhy"])).metric == "loss"
  pieces = [line["prompt"] + line["target"] for line in lines(data.pretrain["text"])]
  assert any(sentence(random.Random("own"), 40)[:200] in piece for piece in pieces)
  assert not any(row_text("samsum", 170)[:60] in piece for piece in pieces)


def test_tokenizer_is_deterministic_and_ends():
  texts = [sentence(random.Random(i)) for i in range(200)]
  text = t0.train_tokenizer(texts, 500)
  assert text == t0.train_tokenizer(texts, 500)
  tokenizer = Tokenizer.from_str(text)
  assert tokenizer.get_vocab_size() == 500 and tokenizer.token_to_id("<|end|>") == 1
  assert tokenizer.decode(tokenizer.encode("Çà 12 №").ids) == "Çà 12 №"
  assert len(tokenizer.encode("1234").ids) == 4


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"t0": ""}, "options.t0: '' is no file"),
    ({"bigbench": "nowhere"}, "options.bigbench: 'nowhere' is no file"),
    ({"metrics": {"choices": "exact_match"}}, "unknown metric of 'choices' 'exact_match'"),
    ({"metrics": {"choice": "loss"}}, "did you mean 'choices'"),
    ({"puzzle": 3}, "did you mean 'puzzles'"),
    ({"test": 1.5}, "test is 1.5"),
    ({"max_characters": 100}, "no two choices, or are longer than options.max_characters, 100"),
    ({"test": 0.001}, "test is 0.001: no row of 'cosmos_qa' is left to train or to evaluate"),
    ({"test": 0.999}, "test is 0.999: no row of"),
    ({"tokenizer": __file__}, r"test_study_t0.py is not a tokenizer"),
  ],
)
def test_options_that_cannot_be(given, tmp_path, options, message):
  where = {"t0": str(given / "t0"), "bigbench": str(given / "bb")}
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    t0.make(tmp_path / "out", SMALL | where | options)
  assert not list(tmp_path.glob("out/*"))


def test_archives_that_cannot_be(given, tmp_path):
  bad = tmp_path / "bad.tar.xz"
  bad.write_bytes((given / "t0.tar.xz").read_bytes()[:5000])
  with pytest.raises(ValueError, match=r"bad.tar.xz: is no archive that can be read"):
    t0_sources.read_t0(bad, ("samsum",))
  write_t0(tmp_path / "t0", {"samsum": '{"prompt": 3}\n' * 200})
  with pytest.raises(ValueError, match=r"samsum_.*.jsonl:1: prompt is 3"):
    t0_sources.read_t0(tmp_path / "t0", ("samsum",))
  with pytest.raises(ValueError, match="data set 'imdx' has no file of 200 lines"):
    t0_sources.read_t0(tmp_path / "t0", ("imdx",))


def test_short_prompts_of_one_data_set_are_in_no_other_training_file(given, tmp_path):
  shared = "".join(json.dumps({"prompt": f"sum up {i}", "completion": f"s {i}"}) + "\n\n" for i in range(200))
  other = "".join(
    json.dumps({"prompt": f"sum up {i}", "completion": "t"}) + "\n" for i in range(300, 100, -1)
  )
  write_t0(tmp_path / "t0", {"samsum": shared, "gigaword": other})
  where = {"t0": str(tmp_path / "t0"), "bigbench": str(given / "bb")}
  data = t0.make(tmp_path / "out", SMALL | {"readings": 0, "corpora": False} | where)
  asked = {line["prompt"] for path in data.tasks.values() for line in lines(path)}
  assert "sum up 199" in asked
  assert not any(line["prompt"] in asked for path in data.train.values() for line in lines(path))
  assert len(lines(data.train["gigaword"])) == 3 * 120  # of three equal templates


def test_what_is_there_twice_is_named(given, tmp_path):
  write_bigbench(tmp_path / "bb")
  content = (tmp_path / "bb" / "winowhy" / "task.json").read_text()
  for name in ("._task.json", "old_task.json"):  # as archives of macOS have them, and people
    (tmp_path / "bb" / "winowhy" / name).write_text("no JSON")
  spec = json.loads(content)
  spec["examples"] += [{"input": "?", "target_scores": {"a": 1, "a ": 0, "b": 0}}]
  (tmp_path / "bb" / "winowhy" / "task.json").write_text(json.dumps(spec))
  found = t0_bigbench.read(tmp_path / "bb", lambda key, values: None)
  assert len(found["winowhy"]) == 40
  (tmp_path / "bb" / "zz" / "winowhy").mkdir(parents=True)
  (tmp_path / "bb" / "zz" / "winowhy" / "task.json").write_text(content)
  with pytest.raises(ValueError, match=r"'winowhy' twice, as winowhy/task.json and zz/winowhy/task.json"):
    t0_bigbench.read(tmp_path / "bb", lambda key, values: None)
  write_t0(tmp_path / "t0", {})
  again = tmp_path / "t0" / "more" / "data_per_template"
  again.mkdir(parents=True)
  first = next((tmp_path / "t0").rglob("samsum_first.jsonl"))
  (again / first.name).write_text(first.read_text())
  with pytest.raises(ValueError, match=r"'samsum_first' twice"):
    t0_sources.read_t0(tmp_path / "t0", ("samsum",))


def test_entries_do_not_depend_on_the_process():
  pytest.importorskip("reasoning_gym")
  code = (
    "from merge_jax.study.data import t0_corpora; import zlib; "
    "print(zlib.crc32(repr(list(t0_corpora.puzzles(8, 0))).encode()))"
  )
  words = [sys.executable, "-c", code]
  found = {
    subprocess.run(words, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
    for seed in "12"
  }
  assert len(found) == 1


def test_wordings_are_no_passages():
  draw = random.Random(3)
  wording, texts = sentence(draw, 20), [sentence(draw, 14) for _ in range(6)]
  found = leaks.of_rows([f"{wording} {text}" for text in texts])
  assert found == [leaks.runs(text) for text in texts]
  assert leaks.of_rows([wording + " a", wording + " b", texts[0]])[:2] == [set(), set()]


def test_guessing():
  tested = [{"choices": ["a", "b"], "answer": i % 2, "id": f"x/{i}/t"} for i in range(3)]
  trained = [{"choices": ["a", "b"], "answer": 1, "id": "x/9/t"}]
  assert t0_rows.guessing(tested, trained) == {"chance": 0.5, "majority": 1 / 3}
  assert t0_rows.guessing(tested, ())["majority"] == 2 / 3


def test_readings_answer_themselves():
  texts = [" ".join(sentence(random.Random(f"{i}/{j}"), 8) for j in range(12)) for i in range(20)]
  found = list(t0_corpora.readings(texts, 200, seed=1))
  assert (
    found == list(t0_corpora.readings(texts, 200, seed=1)) != list(t0_corpora.readings(texts, 200, seed=2))
  )
  assert len(found) == 200
  for line in found:
    answer = line["target"][1:]
    assert answer in ("Yes", "No", *"123456") or answer in line["prompt"]


def test_puzzles_are_worded():
  pytest.importorskip("reasoning_gym")
  found = list(t0_corpora.puzzles(2, seed=0))
  assert len(found) == 2 * len(t0_corpora.PUZZLES) and all(line["target"][0] == " " for line in found)
  assert len({line["prompt"] for line in found}) > 1.8 * len(t0_corpora.PUZZLES)


@pytest.mark.parametrize("mode", ["", "smollm2"])
def test_config(mode):
  config = configs.study_t0.get_config(mode)
  study = settings.from_mapping(config.to_dict() | {"output_dir": "x"})
  trials = {len(method.grid) for name, method in study.methods.items() if name != "average"}
  assert len(trials) == 1 and study.training is not None
  given = dict.fromkeys(("t0", "bigbench"), "x")
  t0.Options(**study.data.options | given)
  for size in study.training.sizes.values():
    assert bool(size.model) != bool(size.bases) and set(size.bases) <= set(study.training.kinds)
  with pytest.raises(ValueError, match="no mode"):
    configs.study_t0.get_config("large")
  bases = {"sizes": {"a": {"bases": {"tuned": "x"}}}, "recipes": {}}
  with pytest.raises(ValueError, match="bases"):
    settings.from_mapping(config.to_dict() | {"output_dir": "x", "training": bases})
