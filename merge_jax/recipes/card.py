"""The model card of a merge: README.md with what the hub reads on top."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from merge_jax.recipes.built import Built
from merge_jax.storage import gib


def text(built: Built, name: str, seed: int, version: str) -> str:
  """The content of README.md: metadata, models, recipe, and how to make it again."""
  models = [str(model) for model in built.origins]
  names = dict.fromkeys(one.name.partition("+")[0] for one in built.origins.values())
  known = [name for name in names if "/" in name]  # the hub refuses a page that names another as a base
  related: Mapping[str, Any] = {"base_model": known, "base_model_relation": "merge"} if known else {}
  metadata = {**related, "library_name": "transformers", "tags": ["merge", "merge_jax"]}
  method = built.recipe.method
  kind = "mergekit's" if built.semantics == "mergekit" else "the authors'"
  lines = [
    "---",
    yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip(),
    "---",
    f"# {name}",
    "",
    f"A merge of {len(models)} models by `{method}` ({kind} definition), made with merge_jax {version}.",
    "",
    *[f"- `{model}`" for model in models],
    "",
    "## Recipe",
    "",
    "```yaml",
    built.recipe.text.strip("\n"),
    "```",
    "",
    "## Make it again",
    "",
    "```sh",
    f"python -m merge_jax merge --recipe=recipe.yml --output_dir={name} "
    f"--semantics={built.semantics} --seed={seed}",
    "```",
    "",
    "`merge_manifest.json` holds the digests of all inputs and outputs.",
  ]
  return "\n".join([*lines, *_notes(built.notes)]) + "\n"


def _notes(notes: Sequence[str]) -> list[str]:
  return ["", "## Notes", "", *[f"- {note}." for note in notes]] if notes else []


def plan(built: Built) -> str:
  """What a merge will do, as text: models, methods with their parameters, sizes."""
  lines = [f"semantics: {built.semantics}", "models:"]
  for model, checkpoint in built.inputs.items():
    base = "  (base)" if model == built.recipe.base else ""
    lines.append(f"  {model}: {len(checkpoint.specs)} tensors, {gib(checkpoint.nbytes)}{base}")
  lines.append("merge:")
  rows: dict[str, list[str]] = {}
  for job, choice in zip(built.jobs, built.choices, strict=True):
    rows.setdefault(_row(choice.method, choice.told, choice.weights, job.models), []).append(job.name)
  for row, names in rows.items():
    of = names[0] if len(names) == 1 else f"{len(names)} tensors, first {names[0]}"
    lines.append(f"  {row}\n    {of}")
  dtypes = sorted({str(job.spec.dtype) for job in built.jobs})
  lines.append(f"result: {len(built.jobs)} tensors, {gib(built.nbytes)}, {', '.join(dtypes)}")
  return "\n".join([*lines, *[f"note: {note}" for note in built.notes]])


def _row(
  method: str, arguments: Mapping[str, Any], weights: Sequence[float] | None, models: Sequence[str]
) -> str:
  shown = [f"{key}={_number(value)}" for key, value in arguments.items() if key not in ("density", "gamma")]
  kept = [f"{key}={_number(arguments[key])}" for key in ("density", "gamma") if key in arguments]
  of = ", ".join(models)
  by = "" if weights is None else f" weights={_number(list(weights))}"
  return f"{method}({', '.join(kept + shown)}) of [{of}]{by}"


def _number(value: Any) -> str:
  if isinstance(value, str | bool):
    return str(value)
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list):
    same = len(set(value)) == 1 and len(value) > 1
    return _number(value[0]) if same else "[" + ", ".join(map(_number, value)) + "]"
  return f"{value:.4g}"
