"""`report.html`: one page without any other file, read in a minute."""

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from merge_jax.reports import explore, text
from merge_jax.search.final import label

TEMPLATE = Path(__file__).with_name("page.html")


class Report(NamedTuple):
  """The page's HTML, and the figures as PNG by name."""

  page: str
  figures: dict[str, bytes]


def make(
  result: Mapping[str, Any], manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> Report:
  """Draws the figures and the page.

  Args:
    result, manifest: content of the files of these names.
    records: lines of the journal.

  A figure that cannot be drawn is left out and named on the page: it never costs a result.
  """
  import matplotlib

  matplotlib.use("agg")
  from merge_jax.reports import figures

  drawn, failed = images(figures.draw(result, records))
  points = explore.data(result, manifest, records)
  return Report(render(result, manifest, points, drawn, list(failed.values())), drawn)


def images(draws: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, bytes], dict[str, str]]:
  """The figures as PNG by name, and sentences about those that could not be drawn.

  A figure that says None has nothing to show: it is in neither.
  """
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing")  # of names: the page has them as they are
    return _drawn(draws)


def _drawn(draws: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, bytes], dict[str, str]]:
  from matplotlib import pyplot as plt

  drawn, failed = {}, {}
  for name, draw in draws.items():
    buffer = io.BytesIO()
    try:
      if (figure := draw()) is not None:
        if (layout := figure.get_layout_engine()) is not None:
          layout.execute(figure)
          figure.set_layout_engine(None)  # or it would be done again, and all artists drawn twice
        # No software tag: the same result gives the same bytes.
        crop = None if layout is not None else "tight"
        figure.savefig(buffer, format="png", bbox_inches=crop, metadata={"Software": None})
        drawn[name] = buffer.getvalue()
    except Exception as error:  # whatever a drawing library may raise
      failed[name] = f"The figure {name} could not be drawn: {error}"
    finally:
      plt.close("all")
  return drawn, failed


def template(path: Path) -> Any:
  """A page to fill; names and notes are text, never markup, and what is not given is an error."""
  import jinja2
  import markupsafe

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )  # fmt: skip
  # As `tojson` writes it, data cannot end the script that holds it.
  environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
  part = {"style": "page.css", "explore_style": "explore.css", "explore_script": "explore.js"}
  for name, file in part.items():
    environment.globals[name] = markupsafe.Markup((TEMPLATE.parent / file).read_text("utf-8"))
  return environment.get_template(path.name)


def sources(images: Mapping[str, bytes]) -> dict[str, str]:
  """Addresses of images that hold the images themselves."""
  return {name: "data:image/png;base64," + base64.b64encode(image).decode() for name, image in images.items()}


def render(
  result: Mapping[str, Any],
  manifest: Mapping[str, Any],
  points: Mapping[str, Any],
  images: Mapping[str, bytes],
  problems: Sequence[str] = (),
) -> str:
  """The page's HTML; `points` is from `explore.data`."""
  analysis, front = result["analysis"], result["pareto"]
  singles = front["hypervolume_singles"]
  (selected,) = (row for row in result["rows"] if row["name"] == "selected")
  lower = [f"{task['name']} ({task['metric']})" for task in result["tasks"] if task["sign"] < 0]
  pairs = len(result["tasks"]) * (len(result["tasks"]) - 1) // 2
  return template(TEMPLATE).render(
    headline=text.headline(result),
    manifest=manifest,
    result=result,
    rows=_rows(result),
    lower=", ".join(lower),
    kept=_kept(result),
    members=_members(result),
    notes=[*result["notes"], *problems],
    selected_from=label(result["selected_from"]),
    trust=text.trust(result),
    images=dict.fromkeys(("weights", "fitness", "pareto", "correlations")) | sources(images),
    many=pairs > 6,
    front=len(front["front"]),
    evaluations=result["cost"]["evaluations"],
    volume=f"{front['hypervolume'] / singles:.2f}" if singles else "–",
    volumes=f"{front['hypervolume']:.4g} against {singles:.4g}",
    weights=_weights(result, selected),
    points=points,
    threshold=analysis["nonzero_weights"]["threshold"],
    nonzero=", ".join(map(str, analysis["nonzero_weights"]["top"])),
    searched=len(result["checkpoints"]) * max(len(result["parts"]), 1),
    rho=None if analysis["weight_fitness_spearman"] is None else f"{analysis['weight_fitness_spearman']:.2f}",
    facts=_facts(result, manifest),
  )


def _weights(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
  """Weights of a merge, in a row for each part that has its own."""
  table = np.atleast_2d(row["weights"])
  parts = result["parts"] if len(table) > 1 else ["weight"]
  return [(part, [f"{weight:.3f}" for weight in some]) for part, some in zip(parts, table, strict=True)]


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  signs = {task["name"]: task["sign"] for task in result["tasks"]}
  formats = {task["name"]: task["format"] for task in result["tasks"]}
  best = {}
  for task, sign in signs.items():
    values = [sign * row["test"][task] for row in result["rows"] if row["test"][task] is not None]
    best[task] = max(values, default=None)
  gains = {line["row"]: line for line in result["differences"]}
  rows = []
  for row in result["rows"]:
    errors, gain = row["test_stderr"], gains.get(row["name"])
    cells = [
      {"text": text.number(row["test"][task], formats[task]),
       "best": row["test"][task] is not None and sign * row["test"][task] == best[task]}
      for task, sign in signs.items()
    ]  # fmt: skip
    average = text.number(row["test"]["average"])
    shown = "" if gain is None else text.gain(gain["gain"], gain["stderr"])
    rows.append({
      "name": row["name"], "label": label(row["name"]), "cells": cells, "gain": shown,
      "average": average + (f" ± {text.number(errors['average'])}" if errors else ""),
    })  # fmt: skip
  return rows


def _kept(result: Mapping[str, Any]) -> list[dict[str, str]]:
  """A cell for each task; none where errors are not known."""
  found = {line["task"]: line for line in result.get("retention", ()) if line["kept"] is not None}
  cells = []
  for task in result["tasks"]:
    line = found.get(task["name"])
    shown = "–" if line is None else f"{line['kept']:.1%}"
    error = "" if line is None or line["stderr"] is None else f"± {line['stderr']:.1%}"
    cells.append({"text": shown, "error": error, "single": "" if line is None else line["single"]})
  return cells if found else []


def _members(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A row for each checkpoint: what is foreseen of each task, and what was measured beside it."""
  found = result.get("members")
  if found is None:
    return []
  formats = {task["name"]: task["format"] for task in result["tasks"]}
  return [
    {"name": name, "cells": [_effect(value, found["measured"].get(name, {}).get(task), formats[task])
                             for task, value in foreseen.items()]}
    for name, foreseen in found["foreseen"].items()
  ]  # fmt: skip


def _effect(foreseen: float | None, measured: Mapping[str, Any] | None, form: str) -> dict[str, Any]:
  told = {"foreseen": "–" if foreseen is None else f"{foreseen:+{form}}", "measured": "", "harms": False}
  if measured is not None and measured["gain"] is not None:
    error = measured["stderr"]
    told["measured"] = f"{measured['gain']:+{form}}" + ("" if error is None else f" ± {error:{form}}")
    told["harms"] = error is not None and measured["gain"] < -2 * error
  return told


def _facts(result: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
  cost, search = result["cost"], manifest["config"]["search"]
  left = result.get("left")
  if left is not None:
    front = search.get("objective") == "pareto"
    left = "no step that gains along the front" if front else f"no more than {left:+.4f} of fitness"
  facts = [("checkpoints", ", ".join(result["checkpoints"]))]
  for task in result["tasks"]:
    sizes = task["examples"]
    shown = "; examples: " + ", ".join(f"{n} {k}" for k, n in sizes.items()) if sizes else ""
    facts.append((f"task {task['name']}", f"{task['metric']}{shown}"))
  how = "{method} by {proposer} in space {space}, fitness {fitness} of {fitness_source}, seed {seed}"
  facts.append(("search", how.format(**search | {"proposer": result.get("proposer", search["proposer"])})))
  if result["parts"]:
    facts.append(("weights", f"one for each checkpoint in each of {', '.join(result['parts'])}"))
  facts.append(
    (
      "evaluations",
      f"{cost['evaluations']} of a budget of {cost['budget']}, {cost['seconds']:.1f} s"
      + ("" if left is None else f"; ended since {left} was foreseen"),
    )
  )
  if cost["search_flops"]:
    shown = f"{cost['search_flops']:.2e}"
    if cost["share_of_training"]:
      shown += (
        f", {cost['share_of_training']:.1%} of the {cost['training_flops']:.2e} that training the pool took"
      )
    facts.append(("search FLOPs", shown))
  heldout = [row for row in result["rows"] if row.get("heldout")]
  for row in heldout:
    shown = ", ".join(f"{task} {text.number(value)}" for task, value in row["heldout"].items())
    facts.append((f"held out: {label(row['name'])}", shown))
  versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
  facts.append(("versions", versions))
  facts.append(("devices", ", ".join(sorted(set(manifest["devices"])))))
  return facts
