"""The interactive part of a report: what it holds, and in a browser; it picks as `launch.select` does."""

import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from merge_jax.decoding import shares
from merge_jax.reports import explore, figures, page
from merge_jax.search import analysis, wishes
from merge_jax.search.fitness import Fitness
from merge_jax.search.journal import Record
from merge_jax.search.point import Point

SCRIPT = Path(page.__file__).with_name("explore.js")
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_node = pytest.mark.skipif(NODE is None, reason="needs node")
in_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
NASTY = ("</script><b>x", 'it\'s "$(q)"', "ünï & co")


def journal(tasks=("code", "math", "loss"), checkpoints=3, count=40, seed=0):
  """Records of a search: scores of few examples, so that many are equal; one failed, one mean is stale."""
  rng = np.random.default_rng(seed)
  records = []
  for i in range(count):
    single = i < checkpoints
    weights = np.eye(checkpoints)[i] if single else rng.normal(0.4, 0.3, checkpoints).round(6)
    scores = {task: float(rng.integers(1, 9)) / 10 for task in tasks}
    if i == 5:
      scores[tasks[0]] = None
    kind = "single" if single else "uniform" if i == checkpoints else "cma_es"
    losses = {task: float(rng.integers(1, 9)) / 7 for task in tasks}
    point = Point.of(weights, {"density": 0.5} if i == 7 else None)
    records.append(Record("search", i, 0, kind, "task_arithmetic", point, scores, losses, None, 0.1))
  at = records[20]
  stale = Record(
    "search", 20, 0, "search_mean", at.method, Point((9.0,) * checkpoints), at.scores, None, None, 0
  )
  return [*records[:20], stale, *records[20:]]


def lines(records):
  import msgspec

  return [msgspec.to_builtins(record) for record in records]


def files(records, tasks=("code", "math", "loss"), labels=None, **search):
  """`result.json` and `manifest.json`, as far as the page reads them."""
  steps = [r for r in wishes.selectable(records)]
  count = sum(record.kind == "single" for record in steps)
  signs = [-1.0 if "loss" in task else 1.0 for task in tasks]
  fitness = Fitness(tuple(tasks), tuple(signs), source="metric")
  scores = dict.fromkeys([*tasks, "average"], 0.5)
  named = {"best_single": 0, "uniform": count, "search_best": 12, "selected": 12}
  rows = [
    {"name": name, "method": steps[at].method, "weights": list(steps[at].point.weights), "numbers": {},
     "search": scores, "test": scores, "test_stderr": dict.fromkeys(scores, 0.01)}
    for name, at in named.items()
  ]  # fmt: skip
  gain = {"gain": 0.1, "stderr": 0.05, "detectable": 0.14}
  result = {
    "checkpoints": [*(labels or [f"m{i}" for i in range(count)])], "parts": [],
    "tasks": [
      {"name": task, "metric": "loss" if sign < 0 else "exact_match", "sign": sign,
       "format": ".4f" if sign < 0 else ".3f", "examples": {"test": 50}}
      for task, sign in zip(tasks, signs, strict=True)
    ],
    "units": {"test": 150}, "selected_from": "search_best", "choice": None, "not_corrected": None,
    "rows": rows, "differences": [{"row": row["name"], **gain} for row in rows[:-1]],
    "pareto": {"front": [1, 12], "hypervolume": 0.02, "hypervolume_singles": 0.01},
    "analysis": analysis.analyse(steps, fitness),
    "cost": {"evaluations": len(steps), "budget": 40, "seconds": 4.0, "search_flops": None},
    "notes": [],
  }  # fmt: skip
  search = {
    "method": "task_arithmetic", "proposer": "cma_es", "space": "free", "seed": 0, "fitness": "mean",
    "fitness_source": "metric", "task_weights": "", **search,
  }  # fmt: skip
  manifest = {"config": {"search": search}, "versions": {"merge_jax": "0"}, "devices": ["cpu"]}
  return json.loads(json.dumps(result)), manifest


def render(records, **options):
  result, manifest = files(records, **options)
  return page.render(result, manifest, explore.data(result, manifest, lines(records)), {"pareto": b"png"})


def held(text):
  """The data that a page holds."""
  return json.loads(re.search(r'<script type="application/json" id="points">(.*?)</script>', text, re.S)[1])


def test_a_page_holds_what_it_shows():
  records = journal()
  text = render(records, task_weights="code=2")
  data = held(text)
  assert [task["importance"] for task in data["tasks"]] == [2.0, 1.0, 1.0]
  assert [task["lower"] for task in data["tasks"]] == [False, False, True]
  points = data["points"]
  assert [point["number"] for point in points] == list(range(40))  # the stale mean gave way
  assert points[1]["label"] == "m1" and points[3]["label"] == "uniform" and points[5]["texts"][0] == "–"
  assert points[5]["parts"][0] is None and points[7]["numbers"] == ["density 0.5"]
  assert points[12]["rows"] == ["search best"] and data["selected"] == 12
  assert [i for i, point in enumerate(points) if point["front"]] == [1, 12]
  assert points[0]["texts"][2] == f"{points[0]['scores'][2]:.4f}" == f"{-points[0]['parts'][2]:.4f}"
  assert "covers 2.00 times the hypervolume" in text and "0.02 against 0.01" in text
  assert "could not be seen with these 150 test examples" in text


@pytest.mark.parametrize("parts", [[], ["layers.0", "others"], [f"layers.{i}" for i in range(20)]])
def test_weights_of_parts_have_a_row_each(parts):
  records = journal()
  result, manifest = files(records)
  (selected,) = (row for row in result["rows"] if row["name"] == "selected")
  table = np.arange(3 * max(len(parts), 1)).reshape(-1, 3) / 8
  selected["weights"] = table.tolist() if parts else table[0].tolist()
  result["parts"] = parts
  text = page.render(result, manifest, explore.data(result, manifest, lines(records)), {"weights": b"png"})
  shown = re.findall(r"<tr><td>([^<]*)</td>((?:<td>\d\.\d{3}</td>){3})</tr>", text)
  assert [name for name, _ in shown] == (parts or ["weight"])
  values = [[float(x) for x in re.findall(r"\d\.\d+", row)] for _, row in shown]
  np.testing.assert_allclose(values, table, atol=5e-4)
  assert f"3 of {table.size}." in text and ("means over parts" in text) == bool(parts)
  assert held(text)["weight"] == ("mean weight" if parts else "weight")
  drawn = figures.weights(result, []).axes[0].images[0].get_array()
  means = [np.mean(np.atleast_2d(one["weights"]), axis=0) for one in result["analysis"]["top_points"]]
  alone = table if len(table) <= figures.PARTS else table.mean(axis=0, keepdims=True)
  np.testing.assert_allclose(drawn, [*alone, *means])


def test_without_scripts_a_page_is_whole():
  text = render(journal())
  assert '<section id="explore" hidden' in text and "default-src 'none'" in text
  assert "<td>search best</td>" in text and "<th>m2</th>" in text  # rows and weights
  assert "enter the average with a minus. The\nselected merge" in text
  assert not re.search(r'(?:src|href)="(?!data:)', text) and "http://" not in text.replace(
    "http://www.w3.org", ""
  )


def test_names_stay_text():
  text = render(journal(NASTY), tasks=NASTY, labels=NASTY)
  assert "<b>x" not in text and text.count("</script>") == 2
  assert [task["name"] for task in held(text)["tasks"]] == [*NASTY]


def test_a_large_search_stays_small():
  tasks = tuple(f"task{i}" for i in range(5))
  records = journal(tasks, 16, 200)
  size = len(json.dumps(held(render(records, tasks=tasks)), separators=(",", ":")))
  assert size + len(SCRIPT.read_text()) < 120_000


def picked(data, importances):
  """Places that the script picks, and what it says to type."""
  program = """
    const fs = require("fs"), vm = require("vm");
    vm.runInThisContext(fs.readFileSync(process.argv[1], "utf8"));
    const {data, importances} = JSON.parse(fs.readFileSync(0, "utf8"));
    console.log(JSON.stringify(importances.map((one) => {
      const at = foremost(data.points.map((point) => worth(point.parts, one, data.worst)), data.equal);
      const number = at < 0 ? null : data.points[at].number;
      return [at, command("runs/it's", number, data.tasks, data.named ? one : null)];
    })));
  """
  given = json.dumps({"data": data, "importances": importances})
  done = subprocess.run(
    [NODE, "-e", program, str(SCRIPT)], input=given, text=True, check=True, capture_output=True
  )
  return json.loads(done.stdout)


def expected(records, names, told, **options):
  """What `launch.select` takes, given the value of its flag."""
  signs = tuple(-1.0 if "loss" in name else 1.0 for name in names)
  fitness = Fitness(tuple(names), signs, weights=tuple(sorted(shares(told).items())), **options)
  return wishes.wished(fitness, wishes.selectable(records), {}).index


@in_node
@pytest.mark.parametrize("aggregate", ["mean", "normalized", "worst"])
@pytest.mark.parametrize("source", ["metric", "loss"])
def test_the_script_picks_what_select_takes(aggregate, source):
  records = [r for r in journal() if r.kind != "search_mean"]
  result, manifest = files(records, fitness=aggregate, fitness_source=source)
  data = explore.data(result, manifest, lines(records))
  rng = np.random.default_rng(1)
  importances = [*rng.integers(0, 5, (150, 3)), *rng.random((150, 3)).round(3), [0, 0, 1e-7], [0.1, 0.2, 0.3]]
  importances = [list(map(float, one)) for one in importances if sum(one)]
  numbers = set()
  for importance, (at, told) in zip(importances, picked(data, importances), strict=True):
    words = shlex.split(told)
    assert words[:5] == ["python", "-m", "merge_jax", "select", "--run=runs/it's"]
    (flag, _, value) = words[5].partition("=")
    assert flag == "--task_weights" and shares(value) == dict(
      zip(("code", "math", "loss"), importance, strict=True)
    )
    wish = "" if aggregate == "worst" else value  # there the page shows no sliders and names a number
    number = expected(records, ("code", "math", "loss"), wish, aggregate=aggregate, source=source)
    assert data["points"][at]["number"] == number
    numbers.add(number)
  assert len(numbers) == 1 if aggregate == "worst" else len(numbers) > 3
  assert picked(data, [[0.0, 0.0, 0.0]])[0][0] == (-1 if aggregate != "worst" else min(numbers))


@in_node
def test_names_that_a_flag_cannot_hold_are_selected_by_number():
  records = journal(("a,b", "c"))
  result, manifest = files(records, tasks=("a,b", "c"))
  data = explore.data(result, manifest, lines(records))
  ((at, told),) = picked(data, [[1.0, 2.0]])
  assert not data["named"] and shlex.split(told)[5] == f"--candidate={data['points'][at]['number']}"


DRIVE = """<script>{
const find = (id) => document.getElementById(id), out = [];
const look = (what) => out.push({
  what, command: find("command").textContent, number: find("command").dataset.candidate,
  title: find("about").querySelector("h3")?.textContent, about: find("about").textContent,
});
const key = (name) => find("course").dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const point = (type, id) => {
  const mark = find(id).getBoundingClientRect();
  const [clientX, clientY] = [mark.left + mark.width / 2, mark.top + mark.height / 2];
  find("course").dispatchEvent(new PointerEvent(type, {clientX, clientY, bubbles: true}));
};
const act = (what, action) => { action(); look(what); };
look("start");
for (const [t, value] of STEPS) {
  const slider = find(`importance-${t}`);
  slider.value = value;
  act(`slider ${t} ${value}`, () => slider.dispatchEvent(new Event("input")));
}
act("reset", () => find("reset").click());
act("hover", () => point("pointermove", "course-7"));
act("click", () => point("click", "course-7"));
find("course").focus();
act("end", () => key("End"));
act("enter", () => key("Enter"));
act("escape", () => key("Escape"));
find("run").value = "my runs/x";
act("run", () => find("run").dispatchEvent(new Event("input")));
const textContent = JSON.stringify({
  out, wide: document.documentElement.scrollWidth <= innerWidth, shown: !find("explore").hidden,
  drawn: document.querySelectorAll("#course [role=option]").length,
  markup: document.querySelector("section b") !== null,
});
document.body.append(Object.assign(document.createElement("pre"), {id: "out", textContent}));
}</script>"""


def browse(text, folder, steps, width=1200):
  """What a page says in Chromium, step by step."""
  folder.mkdir(exist_ok=True)
  (folder / "report.html").write_text(
    text.replace("</body>", DRIVE.replace("STEPS", json.dumps(steps)) + "</body>")
  )
  words = [
    BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
    f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom",
    (folder / "report.html").as_uri(),
  ]  # fmt: skip
  done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
  return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)[1]))


@in_browser
@pytest.mark.parametrize("names", [("code", "math", "loss"), NASTY])
def test_in_a_browser(names, tmp_path):
  records = journal(names)
  steps = [[0, 3], [1, 0], [2, 0.5], [0, 0], [2, 0]]
  text, width = render(records, tasks=names, labels=names), 500 if names == NASTY else 1200
  found = browse(text, tmp_path / "it's", steps, width)
  assert found["shown"] and found["wide"] and found["drawn"] == 39 and not found["markup"]
  looks = {look["what"]: look for look in found["out"]}
  importance, named = [1.0, 1.0, 1.0], []
  for t, value in [[0, 1.0], *steps]:
    importance[t] = value
    look = looks["start" if not named else f"slider {t} {value}"]
    named.append(look)
    if not any(importance):
      assert look["command"] == "Give at least one task some importance." and look["number"] == ""
      continue
    run, wish = shlex.split(look["command"])[4:]
    assert run == f"--run={tmp_path / 'it'}'s"
    told = wish.removeprefix("--task_weights=")
    assert shares(told) == dict(zip(names, importance, strict=True))
    assert int(look["number"]) == expected(records, names, told, source="metric")
    assert look["title"].startswith(f"★ #{look['number']} · ")
  assert (
    looks["hover"]["title"] == "#7 · cma es · task arithmetic" and "density 0.5" in looks["hover"]["about"]
  )
  assert f"{records[7].point.weights[0]:.3f}" in looks["hover"]["about"]
  assert all(name in looks["hover"]["about"] for name in names)
  assert looks["click"]["command"].endswith("--candidate=7") and "kept: #7" in looks["click"]["title"]
  assert looks["end"]["title"].startswith("#39 · ") and looks["enter"]["command"].endswith("--candidate=39")
  assert looks["escape"]["command"] == looks["reset"]["command"] == looks["start"]["command"]
  assert shlex.split(looks["run"]["command"])[4] == "--run=my runs/x"


@in_browser
def test_one_task_has_no_sliders(tmp_path):
  records = journal(("code",))
  found = browse(render(records, tasks=("code",)), tmp_path, [])
  start = found["out"][0]
  assert start["command"].endswith(f"--candidate={start['number']}") and found["drawn"] == 39


@in_node
def test_an_axis_of_a_task_that_most_know_shows_all():
  program = """
    const fs = require("fs"), vm = require("vm");
    vm.runInThisContext(fs.readFileSync(process.argv[1], "utf8"));
    console.log(JSON.stringify([extent([0.9, ...Array(10).fill(1)], 1), extent(Array(11).fill(1), 1)]));
  """
  done = subprocess.run([NODE, "-e", program, str(SCRIPT)], text=True, check=True, capture_output=True)
  one, same = json.loads(done.stdout)
  assert one == pytest.approx([0.894, 1.006])
  assert same[1] - same[0] > 1e-4


def test_a_figure_of_a_task_that_most_know_shows_all():
  """Of eleven models ten score 1; nothing is magnified, and the other is not left out."""
  axis = Figure().subplots()
  points = np.stack([np.linspace(0.2, 0.3, 11), np.r_[0.9, np.ones(10)]], axis=1)
  assert figures._zoom(axis, points, [1.0, 1.0]) == 0
  assert axis.get_ylim() == pytest.approx((0.894, 1.006))
  assert figures._zoom(axis, np.ones((11, 2)), [1.0, -1.0]) == 0
  assert np.ptp(axis.get_xlim()) > 1e-4


def test_two_checkpoints_have_no_correlations_to_draw():
  result = {
    "tasks": [{"name": "a"}, {"name": "b"}],
    "analysis": {"task_spearman": [[1.0, None], [None, 1.0]]},
  }
  assert figures.correlations(result, []) is None
  result["analysis"]["task_spearman"] = [[1.0, -0.5], [-0.5, 1.0]]
  assert figures.correlations(result, []) is not None
