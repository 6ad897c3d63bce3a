"""Task files, their names and their splits."""

import json
import os
import random

import pytest

from merge_jax import evals
from merge_jax.decoding import by_task
from merge_jax.evals import splits, tasks
from tests import pools


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("", r":2: the line is empty"),
    ("{", r":2: not valid JSON"),
    ("[1]", r":2: the content is \[1\]; expected an object"),
    ('{"prompt": "a"}', r":2: expected either 'target'"),
    ('{"prompt": "a", "target": ""}', r":2: target is ''; expected a string of length >= 1"),
    ('{"prompt": "a", "target": ["b"]}', r":2: target is \['b'\]; expected a string"),
    ('{"prompt": "a", "target": "b", "choices": ["b", "c"]}', r":2: expected either 'target'"),
    ('{"prompt": "a", "target": "b", "answer": 0}', r":2: expected either 'target'"),
    ('{"prompt": 1, "target": "b"}', r":2: prompt is 1; expected a string"),
    ('{"promt": "a", "target": "b"}', r":2: unknown field 'promt'; did you mean 'prompt'"),
    (
      '{"prompt": "a", "choices": ["b"], "answer": 0}',
      r":2: choices is \['b'\]; expected a list of length >= 2",
    ),
    ('{"prompt": "a", "choices": ["b", ""], "answer": 0}', r":2: choices\[1\] is ''"),
    (
      '{"prompt": "a", "choices": ["b", "c"], "answer": 2}',
      r":2: answer is 2; expected one of the 2 choices",
    ),
    ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', r":2: answer is True; expected"),
    ('{"prompt": "a", "choices": ["b", "c"]}', r":2: answer is None; expected one of the 2 choices"),
    (
      '{"prompt": "a", "choices": ["b", "c"], "answer": 1}',
      r":2: the line has choices, those before it have",
    ),
    ('{"prompt": "\\ud800", "target": "b"}', r":2: not valid JSON .*surrogate"),
    ('{"prompt": "a\\u0000b", "target": "b"', r":2: not valid JSON"),
    ('{"prompt": "a\0", "target": "b"}', r":2: not valid JSON"),
    ('{"prompt": "a", "target": "b", "id": ' + "[" * 9999, r":2: not valid JSON \(nested too deeply"),
  ],
)
def test_bad_lines_are_named(tmp_path, line, message):
  path = tmp_path / "t.jsonl"
  path.write_text('{"prompt": "x", "target": "y"}\n' + line + "\n")
  with pytest.raises(ValueError, match=message):
    evals.load(str(path))


def test_metrics_are_chosen_by_name(tmp_path):
  copy, choose = pools.make_tasks(tmp_path)
  assert evals.load(str(copy)).metric == "exact_match"
  assert evals.load(str(choose)).metric == "choice_accuracy"
  assert evals.load(f"{copy}:loss").metric == "loss"
  for spec, message in (
    (f"{copy}:los", "did you mean 'loss'"), (f"{copy}:choice_accuracy", "needs choices"),
    (f"{choose}:exact_match", "needs targets"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      evals.load(spec)
  with pytest.raises(FileNotFoundError, match="does not exist"):
    evals.load(str(tmp_path / "none.jsonl"))
  (tmp_path / "empty.jsonl").write_text("")
  with pytest.raises(ValueError, match="no examples"):
    evals.load(str(tmp_path / "empty.jsonl"))
  with pytest.raises(ValueError, match="two are called 'copy'"):
    tasks.load_all([str(copy), f"{copy}:loss"])


def test_splits_are_disjoint_whatever_the_task_or_order():
  examples = tuple(evals.Example(f"q{i}", (str(i),)) for i in range(400))
  a = evals.Task("a", "exact_match", examples)
  b = evals.Task("b", "exact_match", (*examples[::-1][:200], examples[0], examples[0]))
  made = evals.split([a, b], (0.5, 0.2, 0.3))
  where = {}
  for name in evals.SPLITS:
    for task in made.tasks[name]:
      for example in task.examples:
        assert where.setdefault(example.prompt, name) == name
  assert len(where) == 400 and made.duplicates == 1 and made.shared == 201
  sizes = [len(made.tasks[name][0].examples) for name in evals.SPLITS]
  assert sum(sizes) == 400 and 160 < sizes[0] < 240
  limited = evals.split([a], (0.5, 0.2, 0.3), limits=(10, 5, None))
  assert [len(limited.tasks[n][0].examples) for n in evals.SPLITS] == [10, 5, sizes[2]]
  assert set(limited.tasks["search"][0].examples) <= set(made.tasks["search"][0].examples)
  with pytest.raises(ValueError, match="none of its 1"):
    evals.split([evals.Task("c", "exact_match", examples[:1])])
  one = tuple(example._replace(group="book") for example in examples)
  with pytest.raises(ValueError, match="its 400 examples share one prompt, id or group"):
    evals.split([evals.Task("c", "exact_match", one)])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"fractions": (0.5, 0.5, 0.5)}, "fractions are"), ({"fractions": (0.5, 0.5)}, "expected three"),
    ({"fractions": (float("nan"), 0.5, 0.5)}, "fractions are"),
    ({"fractions": (-0.1, 0.5, 0.5)}, "fractions are"),
    ({"limits": (1, 2)}, "limits are .* expected three"), ({"limits": (1, -2, None)}, "each 0 or more"),
  ],
)  # fmt: skip
def test_splits_that_cannot_be(options, message):
  task = evals.Task("a", "exact_match", tuple(evals.Example(f"q{i}", ("x",)) for i in range(50)))
  with pytest.raises(ValueError, match=message):
    evals.split([task], **options)


def test_any_text_has_a_split():
  assert 0 <= splits.position("\ud800", 0) < 1


TEXT = "a\u2028b\x85c\u2029\x0c\x1c"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("tail", ["", "end"])
def test_only_a_line_feed_ends_a_line(tmp_path, end, mark, tail):
  line = json.dumps({"prompt": TEXT, "target": "y"}, ensure_ascii=False)
  text = (line + end) * 3 + (line if tail else "")
  (tmp_path / "t.jsonl").write_bytes(mark + text.encode())
  examples = evals.load(str(tmp_path / "t.jsonl")).examples
  assert examples == tuple(evals.Example(TEXT, ("y",), line=i + 1) for i in range(4 if tail else 3))


DAMAGE = [
  b"", b'"', b"{", b"}", b"[", b",", b":", b"\\", b"\n", b"\r", b"\0", b"\xff", b"\xe2\x80\xa8",
  b"\xef\xbb\xbf", b"\\ud800", b"1e999", b"9" * 400, b"null", b"NaN", b"[" * 3000,
  b'{"a":' * 3000, b"x", b" ",
]  # fmt: skip
LINES = [
  '{"prompt": "a\u2028b", "target": "y", "id": 3}',
  '{"prompt": "x", "target": "y\\u00e9"}',
  '{"prompt": "x", "choices": ["a", "b"], "answer": 1}',
  '{"prompt": "x", "choices": ["a", "b"], "answer": "a"}',
]


def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path):
  path, generator, read = tmp_path / "t.jsonl", random.Random(0), 0
  for _ in range(400):
    kind = generator.choice([LINES[:2], LINES[2:]])
    data = "".join(generator.choice(kind) + "\n" for _ in range(3)).encode()
    for _ in range(generator.randint(1, 2)):
      at = generator.randrange(len(data) + 1)
      data = data[:at] + generator.choice(DAMAGE) + data[at + generator.choice([0, 0, 1, 8]) :]
    path.write_bytes(data)
    try:
      examples = evals.load(str(path)).examples
    except ValueError as error:
      assert type(error) is ValueError and str(error).startswith(str(path))
      assert str(error).isprintable() and len(str(error)) < 400 + len(str(path))
    else:
      assert all(text.encode() for e in examples for text in e.targets)
      read += 1
  assert 0 < read < 400


def test_a_task_file_is_a_regular_file(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / "pipe.jsonl")
  (path,) = pools.make_tasks(tmp_path)[:1]
  for spec, kind, message in (
    ("", FileNotFoundError, "Task file '' does not exist"),
    ("lm_eval:x", FileNotFoundError, "'lm_eval:x' does not exist; tasks of lm-eval are for launch.evaluate"),
    ("none.jsonl:loss", FileNotFoundError, "Task file 'none.jsonl' does not exist"),
    (f"{path}:", ValueError, "unknown metric ''"),
    (str(tmp_path), ValueError, "is not a regular file"),
    (str(tmp_path / "pipe.jsonl"), ValueError, "is not a regular file"),
    (f"{tmp_path}/pipe.jsonl:loss", ValueError, "is not a regular file"),
  ):  # fmt: skip
    with pytest.raises(kind, match=message):
      evals.load(spec)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert evals.load("~/copy.jsonl:loss").name == "copy"
  (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "\xff", "target": "y"}\n')
  with pytest.raises(ValueError, match=r"bad.jsonl:1: not valid JSON"):
    evals.load("~/bad.jsonl")


@pytest.mark.parametrize("name", ["average", "a\nb", " "])
def test_names_that_a_task_cannot_have(tmp_path, name):
  path = pools.make_tasks(tmp_path)[0].rename(tmp_path / f"{name}.jsonl")
  with pytest.raises(ValueError, match="a task cannot be called"):
    evals.load(str(path))


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("hex=0", "at least one number must be above 0"), ("a=nan", "0 or more"), ("a=inf", "0 or more"),
    ("a=-1", "0 or more"), ("a=1,a=2", "'a' stands twice"), ("=1", "expected task=number"),
    ("a=1e308,b=1e308", "at most"), ("a=1,", "expected task=number"),
    ("a", "expected task=number"), ("a=b", "expected task=number"),
  ],
)  # fmt: skip
def test_shares_that_are_none(text, message):
  with pytest.raises(ValueError, match=message):
    tasks.shares(text)
  assert tasks.shares("") == {}
  assert tasks.shares("a=0, b = 2") == {"a": 0.0, "b": 2.0}
  assert by_task("hex=0") == {"hex": 0.0}  # of weights: tasks that are left out have 1


def test_equal_choices_are_one(tmp_path):
  path = tmp_path / "t.jsonl"
  line = {"prompt": "a", "choices": ["b", "c", "c"], "answer": 2}
  path.write_text(json.dumps(line) + "\n")
  (example,) = evals.load(str(path)).examples
  assert (example.targets, example.answer) == (("b", "c"), 1)
  path.write_text(json.dumps(line | {"choices": ["c", "c", "c"]}) + "\n")
  with pytest.raises(ValueError, match="all choices are 'c'; expected at least two that differ"):
    evals.load(str(path))
