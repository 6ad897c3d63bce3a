"""The page of a study: what was run, which claims hold, figures, and all that was tried."""

import functools
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merge_jax import storage
from merge_jax.reports import study_text
from merge_jax.reports.page import Report, images, sources, template
from merge_jax.reports.study_data import Result, Row, as_in_file, distinct, number, rows, said, verdict
from merge_jax.search.final import label

TEMPLATE = Path(__file__).with_name("study_page.html")
DOTS = 110 / 130  # of the screen for one of a figure


def make(result: Result) -> Report:
  """Draws the figures and the page.

  Args:
    result: content of a study's `result.json`; what is missing in it is not shown.

  A figure that cannot be drawn is left out and named on the page: it never costs a result.
  """
  import matplotlib

  matplotlib.use("agg")
  result, draws = as_in_file(result), figures()
  drawn, failed = images({name: functools.partial(draw, result) for name, draw in draws.items()})
  missing = [label(name) for name in draws if name not in drawn and name not in failed]
  problems = [*failed.values()]
  if missing:
    problems.append(f"Figures that this study has no data for: {', '.join(missing)}.")
  return Report(render(result, drawn, problems), drawn)


def figures() -> dict[str, Callable[[Result], Any]]:
  """Every figure by name; each says None where a result has nothing for it."""
  from merge_jax.reports import (
    study_along,
    study_budgets,
    study_details,
    study_families,
    study_figures,
    study_searches,
  )

  return {
    "claims": study_details.claims, "held_in": study_figures.held_in, "held_out": study_figures.held_out,
    "base_kinds": study_figures.kinds, "convergence": study_families.convergence,
    "multitask": study_families.multitask, "experts": study_families.experts, "tasks": study_details.tasks,
    "learning": study_details.learning, "along": study_along.along, "weights": study_searches.weights,
    "weight_of_fitness": study_searches.weight_of_fitness, "fronts": study_searches.fronts,
    "pool_size": study_budgets.sweep, "search": study_budgets.fitness, "ablations": study_budgets.ablations,
  }  # fmt: skip


def write(folder: Path, result: Result) -> None:
  """Writes `report.html` and `figures/` of a study into its folder; what else is there stays."""
  report = make(result)
  with storage.new_folder(folder / "figures", owned=[f"{name}.png" for name in figures()]) as partial:
    for name, image in report.figures.items():
      (partial / f"{name}.png").write_bytes(image)
  storage.write_text(folder / "report.html", report.page)


def render(result: Result, drawn: Mapping[str, bytes], problems: list[str]) -> str:
  """The page's HTML."""
  widths = {name: round(struct.unpack(">I", image[16:20])[0] * DOTS) for name, image in drawn.items()}
  return template(TEMPLATE).render(
    title=str(result.get("title") or "A study of merging"),
    paragraph=study_text.paragraph(result),
    notes=[str(note) for note in result.get("notes") or ()],
    problems=problems,
    dropped=[str(one) for one in result.get("dropped") or ()],
    gate=[
      f"{said(row, 'size')}, {said(row, 'kind')}: {row['why']}"
      for row in rows(result, "gate")
      if row.get("why")
    ],
    claims=[_claim(row) for row in rows(result, "claims")],
    images=sources(drawn),
    widths=widths,
    most=max((row.get("count") or 0 for row in rows(result, "curves")), default=0),
    tables=_tables(result),
    windows=_groups((result.get("along") or {}).get("best_of_windows")),
    records=_records(result),
    recycled=_recycled(result),
    methods=_tried(result),
    tasks=_tasks(result),
    facts=_facts(result),
  )


def _claim(row: Row) -> dict[str, Any]:
  word, color, sign = verdict(row)
  values = [
    f"{said(one, 'size', '')} {study_text.interval(one)}".strip()
    for one in row.get("values") or ()
    if isinstance(one, Mapping)
  ]
  texts = {name: said(row, name, "") for name in ("id", "text", "scope", "statistic", "why")}
  return texts | {"shown": values, "verdict": word, "color": color, "sign": sign}


def _tables(result: Result) -> list[tuple[str, list[list[str]]]]:
  """Scores with the most experts, with tuned and with untuned numbers."""
  tables = [
    (f"{name}, {how}", study_text.by_method(result, held, is_tuned, intervals=True))
    for held, name in (("in", "Held-in score ÷ expert's"), ("out", "Held-out score ÷ base's"))
    for is_tuned, how in ((True, "numbers chosen on validation examples"), (False, "untuned numbers"))
  ]
  return [(name, table) for name, table in tables if len(table) > 1]


def _groups(value: Any, name: str = "") -> list[tuple[str, list[list[str]]]]:
  """Rows of texts in groups, from a list of rows or from several by name."""
  if isinstance(value, Mapping):
    return [group for key, part in value.items() for group in _groups(part, f"{name} {key}".strip())]
  if not isinstance(value, list) or not value:
    return []
  lines = [[*row.values()] if isinstance(row, Mapping) else row for row in value]
  lines = [row if isinstance(row, list) else [row] for row in lines]
  return [(name, [[_cell(cell) for cell in row] for row in lines])]


def _records(result: Result) -> list[tuple[str, list[list[str]]]]:
  """Rows that are shown as they are, under their fields' names."""
  named = [
    ("Gains of the merge chosen on validation examples over real decays", rows(result, "along", "gains"))
  ]
  for one in rows(result, "recycle", "settings"):
    named.append((f"Gains of the search for {said(one, 'name')} over what needs none", rows(one, "gains")))
  named.append(("Cost of the searches, in FLOPs", rows(result, "recycle", "cost", "rows")))
  tables = []
  for name, some in named:
    fields = distinct(field for row in some for field in row)
    lines = [[_cell(row.get(field)) for field in fields] for row in some]
    tables += [(name, [[label(str(field)) for field in fields], *lines])] if lines else []
  return tables


def _cell(value: Any) -> str:
  if isinstance(value, float) or value is None:
    size = abs(number(value))
    return study_text.digits(number(value), ".3f" if size < 1000 and (size >= 0.001 or not size) else ".3g")
  return str(value)


def _recycled(result: Result) -> list[tuple[str, str, list[str]]]:
  """Mean scores of every setting's rows on the search's examples, on test examples, on other tasks."""
  lines = []
  for one in rows(result, "recycle", "settings"):
    for row in rows(one, "rows"):
      parts = [row.get(split) for split in ("search", "test", "heldout")]
      means = [number(part.get("average")) if isinstance(part, Mapping) else number(None) for part in parts]
      lines.append((said(one, "name"), label(said(row, "name")), [study_text.digits(m) for m in means]))
  return lines


def _tried(result: Result) -> list[dict[str, Any]]:
  """Every number that was tried, by method: how often each was chosen, then all of them."""
  every = rows(result, "hyperparameters")
  methods = []
  for method in distinct(row.get("method") for row in every):
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in every:
      if row.get("method") == method:
        where = tuple(row.get(name) for name in ("size", "kind", "seed", "count", "subset"))
        cells.setdefault(where, []).append(row)
    chosen = Counter(
      study_text.numbers_text(row.get("numbers")) for trials in cells.values() for row in trials
      if row.get("chosen")
    )  # fmt: skip
    lines = [
      ([_cell(part) for part in where], [_trial(row) for row in trials]) for where, trials in cells.items()
    ]
    methods.append(
      {"name": label(str(method)), "chosen": chosen.most_common(), "of": len(cells), "rows": lines}
    )
  return methods


def _trial(row: Row) -> tuple[str, str, bool]:
  score = study_text.digits(number(row.get("validation")))
  return study_text.numbers_text(row.get("numbers")), score, bool(row.get("chosen"))


def _tasks(result: Result) -> list[list[str]]:
  """A line for every task: category, role, metric, examples."""
  known = {row.get("name"): row for row in rows(result, "tasks")}
  place: dict[str, tuple[str, str]] = {}
  for part, role in (("held_in", "held in"), ("held_out", "held out")):
    for category, members in (result.get(part) or {}).items():
      place |= {task: (str(category), role) for task in members or ()}
  lines = []
  for name in distinct([*place, *known]):
    row = known.get(name, {})
    metric = said(row, "metric") + (" (lower is better)" if number(row.get("sign")) < 0 else "")
    sizes = row.get("examples") or {}
    lines.append([*place.get(name, ("–", "–")), str(name), metric,
                  ", ".join(f"{_cell(count)} {split}" for split, count in sizes.items()) or "–"])  # fmt: skip
  return lines


def _facts(result: Result) -> list[tuple[str, str]]:
  """What the study, and its searches, cost."""
  facts = []
  for part, words in (("", result.get("cost")), ("search: ", (result.get("recycle") or {}).get("cost"))):
    for name, value in (words or {}).items():
      if isinstance(value, list | dict):
        continue
      if name.startswith("seconds") and number(value) == number(value):
        text = study_text.duration(value)
      elif isinstance(value, float):
        text = study_text.digits(value, ".4g")
      else:
        text = f"{value:,}" if isinstance(value, int) else _cell(value)
      facts.append((part + label(name), text))
  return facts
