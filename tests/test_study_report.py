"""The report of a study, from results that nobody measured."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from merge_jax import reports
from merge_jax.reports import panels, study_data, study_page, study_searches, study_text
from tests import study_results
from tests.further import further


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
  monkeypatch.setitem(panels.SHARP, "figure.dpi", 40)


@pytest.fixture(scope="module")
def result():
  return json.loads(json.dumps(study_results.make(**study_results.SMALL), allow_nan=False))


def words(page):
  """What a reader sees."""
  return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))


class Balanced(HTMLParser):
  """Fails where an element is closed that is not the innermost one."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attributes):
    if tag not in ("meta", "img", "br"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, self.getpos()


def test_a_whole_study(result):
  report = reports.make_study(result)
  assert set(report.figures) == set(study_page.figures())
  assert all(image.startswith(b"\x89PNG") for image in report.figures.values())
  text = words(report.page)
  assert "Of 4 claims, 1 holds, 2 do not hold, 1 cannot be told here." in text
  assert "Left out of verdicts, since their experts gain too little over their base: small" in text
  assert (
    "Experts of 3 held-in categories (6 tasks) were merged by 2 methods (average, task arithmetic), 2 or 8"
    in text
  )
  assert "in 2 sizes (830k parameters)" in text and "1 h 24 min" in text
  assert "could not be drawn" not in text and "no data" not in text
  parser = Balanced()
  parser.feed(report.page)
  assert parser.open == []
  assert report.page.count("<img") == len(report.figures)
  assert not re.search(r"<script|https?:|src=\"(?!data:)", report.page)  # one file, no JavaScript
  for sign, word in (("✓", "holds"), ("✗", "does not hold"), ("?", "cannot tell here")):
    assert f"{sign} {word}</td>" in report.page


def test_the_same_result_gives_the_same_bytes(result, monkeypatch):
  every, drawn = study_page.figures(), ("held_in", "tasks", "experts")
  monkeypatch.setattr(study_page, "figures", lambda: {name: every[name] for name in drawn})
  assert reports.make_study(result) == reports.make_study(result)


def test_a_study_of_one_thing():
  report = reports.make_study(study_results.one())
  assert {"claims", "held_in", "held_out", "experts", "tasks"} <= set(report.figures)
  text = words(report.page)
  assert "Figures that this study has no data for: base kinds, multitask, learning, along" in text
  assert "could not be drawn" not in text


def test_axes_of_fronts_say_where_less_is_better():
  tasks = [{"name": "copy", "sign": 1}, {"name": "prose", "sign": -1}]
  setting = {"name": "both", "tasks": ["copy", "prose"], "front": [[0.5, 1.2], [0.6, 1.4]]}
  (axis,) = study_searches.fronts({"tasks": tasks, "recycle": {"settings": [setting]}}).axes
  assert (axis.get_xlabel(), axis.get_ylabel()) == ("copy (search examples)", "prose (lower is better)")


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [0, further(1)])
def test_a_study_with_holes(seed, monkeypatch):
  lost, nan = (study_results.holes(value, seed) for value in (None, float("nan")))
  report = reports.make_study(lost)
  text = words(report.page)
  assert "could not be drawn" not in text and not re.search(r"\bnan\b|None", text)
  monkeypatch.setattr(study_page, "figures", dict)
  assert reports.make_study(nan) == reports.make_study(lost)
  assert "nan" not in reports.study_console(nan)


def test_a_study_of_nothing(result):
  report = reports.make_study({})
  assert report.figures == {} and "No claim was tested." in words(report.page)
  nothing = dict.fromkeys(study_results.make(**study_results.SMALL)) | {
    "recycle": {},
    "along": {"points": None},
  }
  assert reports.make_study(nothing).figures == {}
  assert reports.study_console(nothing) == "No claim was tested."


def test_a_figure_that_fails_costs_no_report(result, monkeypatch):
  def fails(result):
    raise RuntimeError("no ink")

  monkeypatch.setattr(study_page, "figures", lambda: {"claims": fails})
  report = reports.make_study(result)
  assert report.figures == {} and "The figure claims could not be drawn: no ink" in report.page


def test_names_are_names(result, monkeypatch):
  """A dollar starts no formula, a bracket no tag, and a letter that no font has stops nothing."""
  every, drawn = study_page.figures(), ("held_in", "convergence", "multitask", "tasks", "claims")
  odd = json.loads(
    json.dumps(result).replace('"task_arithmetic"', '"a$b<i>"').replace('"large"', '"$x$y_\U0001f642"')
  )
  monkeypatch.setattr(study_page, "figures", lambda: {n: f for n, f in every.items() if n in drawn})
  report = reports.make_study(odd | {"title": "<b>"})
  assert "could not be drawn" not in report.page
  assert "<h1>&lt;b&gt;</h1>" in report.page and "a$b&lt;i&gt;" in report.page and "<i>" not in report.page


def test_the_console(result):
  text = reports.study_console(result)
  assert re.search(r"^W1 +✗ does not hold +-?[\d.]+ / -?[\d.]+ +Claim W1", text, re.M)
  tables = text.split("\n\n")
  assert tables[2].splitlines()[:2] == [
    "Held-in score ÷ expert's, 8 experts:",
    "                   average  task arithmetic  multitask",
  ]
  (row,) = study_data.tuned(result, size="large", kind="instruct", count=8, held="in", method="average")
  assert f"large, instruct      {row['value']:.3f}" in tables[2]


def test_untuned_numbers_are_told_apart(result):
  tuned, untuned = (study_text.by_method(result, "in", is_tuned) for is_tuned in (True, False))
  assert tuned[0] == ["", "average", "task arithmetic", "multitask"]
  assert untuned[0] == tuned[0][:-1]
  assert float(tuned[1][1]) > float(untuned[1][1])


def test_curves_and_their_differences():
  rows = [
    {"count": 2, "value": 0.9, "low": 0.86, "high": 0.93, "n": 6},
    {"count": 4, "value": None, "low": 0.1, "high": 0.2, "n": 6},
    {"count": 8, "value": 0.5, "low": None, "high": 0.6},
  ]
  curve = study_data.curve(rows, [2, 4, 6, 8])
  np.testing.assert_array_equal(curve.known, [True, False, False, True])
  np.testing.assert_array_equal(curve.low, [0.86, 0.1, np.nan, 0.5])
  other = study_data.curve([{"count": 2, "value": 0.8, "low": 0.77, "high": 0.84, "n": 4}], [2, 4, 6, 8])
  gain = study_data.difference(curve, other)
  np.testing.assert_allclose([gain.value[0], gain.n[0]], [0.1, 4])
  np.testing.assert_allclose(
    [gain.low[0], gain.high[0]], [0.1 - np.hypot(0.04, 0.04), 0.1 + np.hypot(0.03, 0.03)]
  )


def test_a_wide_interval_does_not_squeeze_the_values():
  values = [
    {"count": n, "value": 1 + n / 10, "low": 1 + n / 10 - 0.01, "high": 1 + n / 10 + 0.01} for n in (1, 2, 3)
  ]
  wide = study_data.curve([*values, {"count": 4, "value": 1.1, "low": -30.0, "high": 30.0}], [1, 2, 3, 4])
  low, high = panels.limits([wide], [1.0])
  assert 0.6 < low < 1.0 and 1.3 < high < 1.7


def test_the_folder(result, tmp_path):
  """`launch.report` makes the page again; what a user put beside the figures stays."""
  kept = {name: result[name] for name in ("title", "claims", "held_in", "sizes")}
  (tmp_path / "result.json").write_text(json.dumps(kept))
  reports.write_study(tmp_path, kept)
  page = (tmp_path / "report.html").read_text()
  assert [file.name for file in (tmp_path / "figures").iterdir()] == ["claims.png"]
  (tmp_path / "report.html").unlink()
  (tmp_path / "figures" / "mine.png").write_bytes(b"mine")
  command = [sys.executable, "-m", "merge_jax", "report", f"--run={tmp_path}"]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    cwd=Path(__file__).parent.parent,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr
  assert "Of 4 claims" in done.stdout and f"report: {tmp_path}/report.html" in done.stdout
  assert words((tmp_path / "report.html").read_text()) == words(page)
  assert [file.read_bytes() for file in tmp_path.rglob("mine.png")] == [b"mine"]
