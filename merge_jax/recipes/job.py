"""Runs recipes: from a file to merged folders that appear whole or not at all."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np

import merge_jax
from merge_jax import checkpoints, preflight, storage, streaming
from merge_jax.checkpoints import Checkpoint, huggingface, sidecars
from merge_jax.checkpoints.folder_writer import FolderWriter
from merge_jax.errors import unknown
from merge_jax.recipes import build, card, manifest, measured, models, reading, vocabulary
from merge_jax.recipes.built import Built, Planned, planned_of
from merge_jax.recipes.schema import Recipe

SEMANTICS = ("auto", "mergekit", "paper")


def check(path: str | Path, semantics: str = "auto") -> list[Built]:
  """Builds all merges of a recipe file and reads no weights; errors as of `read` and `build`."""
  folder, found = Path(path).expanduser().parent, []
  made: dict[str, Checkpoint] = {}
  for recipe in reading.read(path):
    built = build_one(recipe, folder, made, semantics)
    found.append(built)
    if recipe.name is not None:
      made[recipe.name] = planned_of(built)
  return found


def build_one(recipe: Recipe, folder: Path, made: Mapping[str, Checkpoint], semantics: str = "auto") -> Built:
  """Opens the models of a recipe and builds its merge."""
  if semantics not in SEMANTICS:
    raise ValueError(unknown("semantics", semantics, SEMANTICS))
  if semantics == "mergekit" and recipe.origin == "own":
    raise ValueError("--semantics=mergekit is for recipes in mergekit's format; this one is in our own.")
  words = vocabulary.resolve(recipe, models.open_all(recipe, folder, made))
  files = measured.open_all(recipe, folder)
  kind: Any = None if semantics == "auto" else semantics
  return build.build(recipe, words, semantics=kind, measurements=files, schedule=_schedule(recipe))


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
  stop: Callable[[], bool] = lambda: False,
) -> Built:
  """Merges what a recipe file says into a folder, which appears whole or not at all.

  Args:
    path: YAML, in our format or mergekit's.
    output_dir: a Hugging Face folder to make: safetensors, config, tokenizer, model card, manifest.
    semantics: whose definitions; "auto": mergekit's for recipes in its format, else the papers'.
    seed: of random methods; None: the recipe's, or 0.
    memory_gib, threads, allow_nonfinite, stop: see `streaming.stream`.
    max_shard_gb: size of one file of the result, in 10^9 bytes.
    verify: read the result back and compare digests of all tensors.
    overwrite: replace a folder that an earlier merge made.
    progress: called with the number of tensors that are done, and of all.

  Returns:
    The merge of the last recipe.

  Raises:
    ValueError, OSError: what cannot be merged, read or written; see `check`.
  """
  target, folder = storage.destination(output_dir, "--output_dir"), Path(path).expanduser().parent
  recipes, planned = reading.read(path), check(path, semantics)
  sources = [c.path for built in planned for c in built.inputs.values() if not isinstance(c, Planned)]
  storage.refuse_inside(target, sources, "--output_dir")
  replaced = manifest.owned(target) if overwrite else None
  if replaced is None:
    storage.refuse_filled(target)
  preflight.require_disk(target, sum(built.nbytes for built in planned))
  total, before = sum(len(built.jobs) for built in planned), 0
  stages = target.with_name(f".{target.name}.stages")
  made: dict[str, Checkpoint] = {}
  for recipe, built in zip(recipes, planned, strict=True):
    if any(model.path in made for model in recipe.models()):
      built = build_one(recipe, folder, made, semantics)
    place = target if recipe is recipes[-1] else stages / str(recipe.name)
    record = manifest.make(built, recipe.seed if seed is None else seed)

    def said(done: int, start: int = before) -> None:
      progress(start + done, total)

    if place == target or not manifest.matches(place, record):
      owned = replaced if place == target else None
      if place != target and storage.is_filled(place):  # of another merge, or what is left of its removal
        storage.remove_tree(place)
      job = json.dumps([msgspec.to_builtins(record), max_shard_gb])
      with storage.new_folder(place, owned=owned, resume=job) as partial:
        _write(
          built, partial, target.name, record, max_shard_gb, verify,
          memory_gib=memory_gib, threads=threads, allow_nonfinite=allow_nonfinite, progress=said, stop=stop,
        )  # fmt: skip
    before += len(built.jobs)
    if place != target:
      made[str(recipe.name)] = checkpoints.open(place)
  for recipe in recipes[:-1]:
    storage.remove_tree(stages / str(recipe.name))
  if len(recipes) > 1:
    stages.rmdir()
  return built


def _write(
  built: Built,
  folder: Path,
  name: str,
  record: manifest.Manifest,
  max_shard_gb: float,
  verify: bool,
  **options: Any,
) -> None:
  """Fills a folder with the result of a merge, from where an interrupted one was."""
  limit = int(max_shard_gb * 1e9)
  writer = FolderWriter(folder, built.specs, built.like, max_shard_bytes=limit, resume=True)
  digests: dict[str, str] = {}
  with writer as out:
    sink: Any = _Digesting(out, digests) if verify else out
    streaming.stream(built.jobs, sink, key=jax.random.key(record.seed), **options)
  if built.config is not None:
    dtypes = [spec.dtype for spec in built.specs.values()]
    storage.write_json(folder / "config.json", built.config)
    sidecars.update_dtype(folder, dtypes)
  vocabulary.write(folder, built.vocabulary)
  text = card.text(built, name, record.seed, merge_jax.__version__)
  (folder / "README.md").write_text(text, encoding="utf-8")
  if verify:
    try:
      verify_folder(folder, built, digests)
    except ValueError:
      for name in storage.names(folder):  # a resumed merge must not take them for good
        (folder / name).unlink(missing_ok=True)
      raise
  manifest.write(folder, record)


class _Digesting:
  """A writer that keeps a digest of each tensor that it passes on."""

  def __init__(self, writer: checkpoints.Writer, digests: dict[str, str]):
    self._writer, self._digests = writer, digests

  def write_parts(self, name: str, parts: Iterable[np.ndarray]) -> None:
    self._writer.write_parts(name, self._digested(name, parts))

  def _digested(self, name: str, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    digest = hashlib.sha256()
    for part in parts:
      digest.update(_content(part))
      yield part
    self._digests[name] = digest.hexdigest()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._writer, name)


def _content(value: np.ndarray) -> memoryview:
  return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def verify_folder(folder: Path, built: Built, digests: Mapping[str, str]) -> None:
  """Reads a result back; ValueError if it is not what was written."""
  written = huggingface.open_folder(folder)
  for name, spec in built.specs.items():
    found = written.read(name)
    if (found.shape, found.dtype) != (spec.shape, np.dtype(spec.dtype)):
      raise ValueError(f"{folder}: tensor {name!r} reads back as {found.dtype}{list(found.shape)}.")
    if name in digests and hashlib.sha256(_content(found)).hexdigest() != digests[name]:
      raise ValueError(f"{folder}: tensor {name!r} reads back other than it was written; is the disk sound?")
