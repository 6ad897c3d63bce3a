"""Runs recipes: from a file to merged folders that appear whole or not at all.

Of several processes (`host`) each reads and plans the same, and merges its share of the tensors; statistics
of whole models are measured by every one. The lead makes the folder, what is in it once, and its name.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from merge_jax import checkpoints, host, preflight, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.errors import unknown
from merge_jax.recipes import build, manifest, measured, models, reading, spelling, vocabulary, writing
from merge_jax.recipes.built import Built, Planned, planned_of
from merge_jax.recipes.schema import Recipe

SEMANTICS = ("auto", "mergekit", "paper")


def check(path: str | Path, semantics: str = "auto") -> list[Built]:
  """Builds all merges of a recipe file and reads no weights; errors as of `read` and `build`."""
  return _planned(reading.read(path), Path(path).expanduser().parent, semantics)


def _planned(recipes: Sequence[Recipe], folder: Path, semantics: str) -> list[Built]:
  found, made = list[Built](), dict[str, Checkpoint]()
  for recipe in recipes:
    found.append(built := build_one(recipe, folder, made, semantics, found))
    if recipe.name is not None:
      made[recipe.name] = planned_of(built)
  return found


def build_one(
  recipe: Recipe,
  folder: Path,
  made: Mapping[str, Checkpoint],
  semantics: str = "auto",
  earlier: Sequence[Built] = (),
) -> Built:
  """Opens the models of a recipe and builds its merge.

  Args:
    recipe: what to merge.
    folder, made: see `models.open_all`.
    semantics: a name in `SEMANTICS`.
    earlier: merges of the same file, whose results are among `made`.
  """
  if semantics not in SEMANTICS:
    raise ValueError(unknown("semantics", semantics, SEMANTICS))
  if semantics == "mergekit" and recipe.origin == "own":
    raise ValueError("--semantics=mergekit is for recipes in mergekit's format; this one is in our own.")
  files = measured.open_all(recipe, folder)
  kind: Any = build.semantics_of(recipe) if semantics == "auto" else semantics
  opened, said = spelling.aligned(models.open_all(recipe, folder, made))
  words = vocabulary.resolve(recipe, opened, folder, mergekit=kind == "mergekit")
  words = words._replace(notes=(*said, *words.notes))
  built = build.build(recipe, words, semantics=kind, measurements=files, schedule=_schedule(recipe))
  read = {model.path for model in recipe.models()}
  return built._replace(stages=tuple(one for one in earlier if one.recipe.name in read))


def _schedule(recipe: Recipe) -> list[float] | None:
  """The weights that a schedule gives the models by their steps, in the models' order."""
  if recipe.schedule is None:
    return None
  from merge_jax.operators.contrib import trajectory

  name, options = recipe.schedule
  steps = np.array([one.step for one in recipe.modules[0].slices[0].inputs], np.float64)
  return [float(weight) for weight in trajectory.by_step(name, steps, **options)]


def run(
  path: str | Path,
  output_dir: str | Path,
  *,
  semantics: str = "auto",
  seed: int | None = None,
  memory_gib: float | None = None,
  threads: int | None = None,
  max_shard_gb: float = 5.0,
  verify: bool = False,
  allow_nonfinite: bool = False,
  overwrite: bool = False,
  progress: Callable[[int, int], None] = lambda done, total: None,
  stop: Callable[[], bool] = host.stopping,
) -> Built:
  """Merges what a recipe file says into a folder, which appears whole or not at all.

  Args:
    path: YAML, in our format or mergekit's.
    output_dir: a Hugging Face folder to make: safetensors, config, tokenizer, model card, manifest.
    semantics: whose definitions; "auto": mergekit's for recipes in its format, else the papers'.
    seed: of random methods; None: the recipe's, or 0.
    memory_gib, threads, allow_nonfinite, stop: see `streaming.stream`; of each process, with `stop` as
      `host.stopping` if there are several.
    max_shard_gb: size of one file of the result, in 10^9 bytes.
    verify: read the result back and compare digests of all tensors.
    overwrite: replace a folder that an earlier merge made.
    progress: called with the number of tensors that are done, and of all; the lead's share stands for all.

  Returns:
    The merge of the last recipe.

  Raises:
    ValueError, OSError: what cannot be merged, read or written; see `check`.
  """
  numbers = {
    "max_shard_gb": (max_shard_gb, 1e9),
    "memory_gib": (memory_gib, 1e9),
    "seed": (seed, (1 << 32) - 1),
  }
  for name, (value, most) in numbers.items():
    if value is not None and not 0 <= value <= most:
      raise ValueError(f"--{name} is {value}; expected a number from 0 to {most:,.0f}.")
  target, folder = _target(output_dir), Path(path).expanduser().parent
  recipes = reading.read(path)
  planned = _planned(recipes, folder, semantics)
  storage.refuse_inside(target, _places(planned), "--output_dir")
  stages, replaced = _stages(target), None
  if host.is_lead():
    replaced = _replaced(planned, target, overwrite)
    storage.require_space(target, sum(built.nbytes for built in planned) - _left(target, stages))
  preflight.require(
    list(preflight.ties([(str(checkpoint.path), checkpoint) for checkpoint in _inputs(planned)]))
  )
  total, before = sum(len(built.jobs) for built in planned), 0
  made: dict[str, Checkpoint] = {}
  for recipe, built in zip(recipes, planned, strict=True):
    if any(model.path in made for model in recipe.models()):
      built = build_one(recipe, folder, made, semantics, planned)
    place = target if recipe is recipes[-1] else stages / str(recipe.name)
    record = manifest.make(built, recipe.seed if seed is None else seed)

    def said(done: int, start: int = before) -> None:
      progress(start + done, total)

    owned = replaced if place == target else None
    with _folder(place, place != target, owned, record, max_shard_gb, verify) as partial:
      if partial is not None:
        writing.write(
          built, partial, target.name, record, max_shard_gb, verify,
          memory_gib=memory_gib, threads=threads, allow_nonfinite=allow_nonfinite, progress=said, stop=stop,
        )  # fmt: skip
    before += len(built.jobs)
    if place != target:
      made[str(recipe.name)] = checkpoints.open(place)
  if host.is_lead() and len(recipes) > 1:
    storage.remove_tree(stages)  # with what a kill left of stages that had other names
  return built


def refuse_output(built: Sequence[Built], output_dir: str | Path, *, overwrite: bool = False) -> None:
  """Raises ValueError or OSError for a folder that `run` would not write the result of `check` to."""
  target = _target(output_dir)
  storage.refuse_inside(target, _places(built), "--output_dir")
  _replaced(built, target, overwrite)


def _inputs(planned: Sequence[Built]) -> list[Checkpoint]:
  """The models that are there already."""
  return [one for built in planned for one in built.inputs.values() if not isinstance(one, Planned)]


def _places(planned: Sequence[Built]) -> Iterator[Path]:
  """Folders and files that are read, but for the recipe."""
  for checkpoint in _inputs(planned):
    yield from checkpoint.places
  for built in planned:
    yield from (file.path for file in built.measurements.values())
    if built.vocabulary.source is not None:
      yield built.vocabulary.source


def _target(output_dir: str | Path) -> Path:
  target = storage.destination(output_dir, "--output_dir")
  if not target.name.strip("."):
    raise ValueError(f"--output_dir is {str(output_dir)!r}; name the folder to make, as in out or ../out.")
  return target


def _replaced(planned: Sequence[Built], target: Path, overwrite: bool) -> list[str] | None:
  """The files of an earlier merge that this one replaces; nothing that it removes is read."""
  replaced = manifest.owned(target) if overwrite else None
  if replaced is None:
    storage.refuse_taken(target)
  removed = ([] if replaced is None else [target]) + ([_stages(target)] if len(planned) > 1 else [])
  for place in removed:
    files = (file for checkpoint in _inputs(planned) for file in checkpoint.files())
    storage.refuse_around(place, (*_places(planned), *files), "--output_dir")
  return replaced


def _stages(target: Path) -> Path:
  """The hidden folder of the results that later recipes of a file read; it goes away with them."""
  return target.with_name(f".{target.name}.stages")


def _left(target: Path, stages: Path) -> int:
  """Bytes on the disk of what an interrupted merge left: this one goes on with it, or removes it."""
  if isinstance(target, storage.Remote):
    return 0
  folders = (stages, *storage.interrupted(target))
  return sum(512 * file.lstat().st_blocks for folder in folders for file in folder.rglob("*"))


@contextlib.contextmanager
def _folder(
  place: Path,
  stage: bool,
  owned: Collection[str] | None,
  record: manifest.Manifest,
  max_shard_gb: float,
  verify: bool,
) -> Iterator[Path | None]:
  """The hidden folder to fill, which the lead makes; then it is `place`. None: a stage that is there."""
  job = {**msgspec.to_builtins(record), "--max_shard_gb": max_shard_gb}
  host.refuse_another({"--output_dir": str(place.resolve()), "--verify": verify, **job})
  if not host.is_lead():
    path = host.broadcast()
    host.barrier("the plan")
    yield None if path is None else storage.path(path)
  elif stage and manifest.matches(place, record):
    host.broadcast(None)
    host.barrier("the plan")
    yield None
  else:
    if stage and storage.is_filled(place):  # of another merge, or what is left of its removal
      storage.remove_tree(place)
    with storage.new_folder(place, owned=owned, resume=json.dumps(job)) as partial:
      host.broadcast(str(partial))
      host.barrier("the plan")
      yield partial
  host.barrier("the folder's name")
