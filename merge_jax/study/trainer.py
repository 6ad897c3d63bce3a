"""Trains the lineages of a study, each model in a cell of its own."""

import dataclasses
import functools
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
from jax import Array
from jax.sharding import Mesh
from tokenizers import Tokenizer

from merge_jax import checkpoints, evals, models, sharding, storage
from merge_jax.evals import tasks as task_files
from merge_jax.study.cells import Cell, Result
from merge_jax.study.data import Data
from merge_jax.study.lineages import (
  EXPERT,
  INSTRUCT,
  MULTITASK,
  PRETRAINED,
  Lineage,
  Member,
  opened,
  require_alike,
)
from merge_jax.study.settings import Size, Training
from merge_jax.study.tasks import asked_in
from merge_jax.training import Recipe, State, corpus, pool, read_recipe, result, train_into
from merge_jax.training.corpus import Corpus
from merge_jax.training.recipe import shares

STAGES = (PRETRAINED, INSTRUCT, EXPERT, MULTITASK)
SAVE_EVERY = 500
"""Steps from state to state of a training: what a kill can cost."""


class Trainer:
  """Cells of trainings, and the lineages that come from them.

  Args:
    settings: what is trained.
    data: on what.
    categories: tasks by held-in category.
    folder: for the models.
    mesh: over which they are trained.
    stop: asked between steps; a training then saves its state and ends with `errors.Stopped`.
    asked: what models are judged by, and in which task; see `Tasks.asked`.

  Attributes:
    cells: each after those that it needs.
    lineages: of models that are trained.
    parameters: of a model, by size.

  Raises:
    ValueError: recipes, model configs or bases that cannot be, training examples that models are judged by.
  """

  def __init__(
    self,
    settings: Training,
    data: Data,
    categories: Mapping[str, Sequence[str]],
    folder: Path,
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
    asked: Mapping[str, str] = {},
  ):
    self._settings, self._data, self._categories, self._asked = settings, data, categories, asked
    if not data.tokenizer:
      raise ValueError("config: data.options.tokenizer is missing; name the tokenizer.json of the models.")
    self._folder, self._mesh, self._stop = folder, mesh, stop
    for stage in (*settings.recipes, *(stage for size in settings.sizes.values() for stage in size.recipes)):
      if stage not in STAGES:
        raise ValueError(f"config: training has a recipe for {stage!r}; expected {', '.join(STAGES)}.")
    self._files = {
      PRETRAINED: data.pretrain, INSTRUCT: data.instruct, EXPERT: data.train, MULTITASK: data.train
    }  # fmt: skip
    self._configs = {name: self._config(name, size) for name, size in settings.sizes.items()}
    parsed = [
      models.parse(config, f"config: training.sizes.{n}.model") for n, config in self._configs.items()
    ]
    self._corpora: dict[tuple[str, bool], Corpus] = {}
    self._longest = min(config.max_positions for config in parsed)
    self._models = {name: models.build(config) for name, config in self._configs.items()}
    self.parameters = {
      name: sum(math.prod(spec.shape) for spec in model.specs.values())
      for name, model in self._models.items()
    }
    self.cells: list[Cell] = []
    self.lineages = [
      lineage for name, size in settings.sizes.items() for seed in size.seeds
      for lineage in self._lineages(name, size, seed)
    ]  # fmt: skip

  def data_of_tasks(self) -> Corpus:
    """Training examples of all held-in tasks."""
    return self._corpus(EXPERT)

  def further(
    self, name: str, lineage: Lineage, values: Mapping[str, Any], start: Member, where: str, every: int = 0
  ) -> list[Member]:
    """Adds the cell that trains one more model on the held-in tasks.

    Args:
      name: of the model.
      lineage: whose size and seed it has.
      values: settings of its recipe; without a mixture all tasks alike.
      start: the model that it is trained from.
      where: of the settings, for errors.
      every: the models at multiples of so many steps are kept, too; 0: none.

    Returns:
      The models in order, that of all steps at last.
    """
    values = {"mixture": dict.fromkeys(self._files[EXPERT], 1.0), **values}
    recipe = _seeded(values, f"{lineage.name}/{name}", where)
    last = self._add(f"{lineage.name}/further/{name}", EXPERT, recipe, lineage.size, start, every)
    before = range(every, recipe.steps, every) if every else ()
    return [last._replace(folder=last.folder / f"step-{step}", identity=f"{last.identity}/{step}")
            for step in before] + [last]  # fmt: skip

  def _lineages(self, name: str, size: Size, seed: int) -> list[Lineage]:
    """One for each kind of base; all begin at the same pretrained one, unless their bases are given."""
    result, first = [], None
    if not size.bases:
      first = self._stage(PRETRAINED, (name, PRETRAINED, seed), size, None)
    for kind in size.bases or self._settings.kinds:
      label = (name, kind, seed)
      if first is None:
        base = opened(size.bases[kind])
      else:
        base = first if kind == PRETRAINED else self._stage(INSTRUCT, label, size, first)
      experts = {one: self._stage(EXPERT, label, size, base, one) for one in self._categories}
      wanted = MULTITASK in {*self._settings.recipes, *size.recipes}
      multitask = self._stage(MULTITASK, label, size, base) if wanted else None
      result.append(Lineage(name, kind, seed, base, experts, multitask))
    return result

  def _stage(
    self, stage: str, label: tuple[str, str, int], size: Size, start: Member | None, category: str = ""
  ) -> Member:
    """Adds the cell that trains a model of a lineage; the model."""
    values = {**self._settings.recipes.get(stage, {}), **size.recipes.get(stage, {})}
    if stage in (EXPERT, MULTITASK):
      if "mixture" in values:
        raise ValueError(
          f"config: training.recipes.{stage}.mixture is set; it is trained on its categories' tasks alike."
        )
      some = [self._categories[category]] if category else self._categories.values()
      values["mixture"] = {task: 1.0 for names in some for task in names}
    values.setdefault("mixture", dict.fromkeys(self._files[stage], 1.0))
    text = f"{label[0]}/{stage}/{category}/{label[2]}"  # alike for all kinds of base
    name = "/".join(map(str, (*label, stage, *([category] if category else ()))))
    return self._add(name, stage, _seeded(values, text, f"config: training.recipes.{stage}"), label[0], start)

  def _add(
    self, name: str, stage: str, recipe: Recipe, size: str, start: Member | None, every: int = 0
  ) -> Member:
    data, digests = self._corpus(stage, recipe.dpo_beta > 0), self._digests[stage]
    for task in recipe.mixture:
      if task not in data.names:
        raise ValueError(f"config: {name}: the stage has no training examples of {task!r}.")
    shares(recipe.mixture, data.names, f"config: {name}: mixture")
    spec: dict[str, Any] = {
      "start": self._configs[size] if start is None else start.identity,
      "recipe": msgspec.to_builtins(recipe),
      "data": {task: digests[task] for task, share in recipe.mixture.items() if share > 0},
      "shapes": [list(shape) for shape in data.shapes],
      "tokenizer": _digest(self._data.tokenizer.encode()),
    }
    spec |= {"every": every} if every else {}
    run = functools.partial(self._train, stage, size, recipe, start, every)
    cell = Cell("train", name, spec, run, () if start is None else start.needs[-1:])
    target = self._folder / f"{re.sub(r'[^A-Za-z0-9._]+', '-', name)[:80]}-{cell.key[:8]}"
    self.cells.append(cell._replace(run=functools.partial(run, target), made=target / "training.json"))
    return Member(target, cell.key, (*(start.needs if start else ()), cell.key))

  def _config(self, name: str, size: Size) -> dict[str, Any]:
    where = f"config: training.sizes.{name}"
    if not size.bases:
      return {**size.model, "vocab_size": size.model.get("vocab_size", self._vocabulary)}
    found = []
    for kind, folder in size.bases.items():
      checkpoint = checkpoints.open(folder)
      if checkpoint.config is None:
        raise ValueError(f"{where}.bases.{kind}: {folder} has no config.json, so no model can be built.")
      tokens = evals.Tokens.from_folder(folder)
      if tokens.tokenizer.to_str() != Tokenizer.from_str(self._data.tokenizer).to_str():
        raise ValueError(f"{where}.bases.{kind}: {folder} has another tokenizer than the data of the study.")
      found.append(dict(checkpoint.config))
    require_alike(map(storage.path, size.bases.values()), f"{where}.bases")
    return found[0]

  @property
  def _vocabulary(self) -> int:
    return int(Tokenizer.from_str(self._data.tokenizer).get_vocab_size())

  @functools.cached_property
  def _tokens(self) -> evals.Tokens:
    for size in self._settings.sizes.values():
      for folder in size.bases.values():
        return evals.Tokens.from_folder(folder)
    ends = {config.get("eos_token_id") for config in self._configs.values()}
    if len(ends) > 1:
      raise ValueError("config: training.sizes have different eos_token_id; they share one tokenizer.")
    return evals.Tokens(Tokenizer.from_str(self._data.tokenizer), ends.pop())

  def _corpus(self, stage: str, paired: bool = False) -> Corpus:
    own = self._encoded(stage, paired)
    if not self._settings.one_shape:
      return own
    every = [own, *(self._encoded(one) for one in STAGES if self._files[one])]
    shapes = [shape for data in every for shape in data.shapes]
    return own._replace(shapes=(tuple(map(max, zip(*shapes, strict=True))),))

  def _encoded(self, stage: str, paired: bool = False) -> Corpus:
    stage = EXPERT if stage == MULTITASK else stage
    if (stage, paired) not in self._corpora:
      if not self._files[stage]:
        raise ValueError(f"config: the data have no training examples for the stage {stage!r}.")
      tasks = [self._loaded(name, path) for name, path in self._files[stage].items()]
      self._corpora[stage, paired] = corpus(
        tasks,
        self._tokens,
        max_length=self._longest,
        vocabulary=min(c["vocab_size"] for c in self._configs.values()),
        paired=paired,
      )
    return self._corpora[stage, paired]

  def _loaded(self, name: str, path: Path) -> evals.Task:
    """Training examples under their name in the settings, none of which models are judged by."""
    task = dataclasses.replace(task_files.load(str(path)), name=name)
    found = (next(filter(None, map(self._asked.get, asked_in(one))), None) for one in task.examples)
    leaked = [where for where in found if where is not None]
    if leaked:
      raise ValueError(
        f"{path}: {len(leaked)} training examples are asked in the task {leaked[0]!r}, too; a model cannot "
        "be judged by what it was trained on: remove them from one of the files."
      )
    return task

  @functools.cached_property
  def _digests(self) -> dict[str, dict[str, str]]:
    return {
      stage: {name: _digest(path.read_bytes()) for name, path in some.items()}
      for stage, some in self._files.items()
    }

  def _train(
    self, stage: str, size: str, recipe: Recipe, start: Member | None, every: int, target: Path
  ) -> Result:
    """Trains one model into a folder, unless a kill came between the folder and its cell."""
    about = target / "training.json"
    if not about.is_file():
      began, model = time.perf_counter(), self._models[size]

      def write(state: State, path: Path) -> None:
        said = pool.describe(recipe, state) | {"seconds": round(time.perf_counter() - began, 3)}
        params = result(state, recipe)
        if start is None:
          pool.save(path, params, self._configs[size], self._data.tokenizer, said)
        else:
          pool.save_like(path, params, checkpoints.open(start.folder), said)

      train_into(
        target, write, model.apply, self._start(model, recipe, start),
        self._corpus(stage, recipe.dpo_beta > 0), recipe,
        save_every=SAVE_EVERY, keep_every=every, mesh=self._mesh, stop=self._stop,
      )  # fmt: skip
    made = json.loads(about.read_bytes())
    return {key: made[key] for key in ("tokens", "steps", "final_loss", "curve", "seconds")}

  def _start(self, model: models.Model, recipe: Recipe, start: Member | None) -> dict[str, Array]:
    if start is not None:
      return placed(model, checkpoints.open(start.folder), self._mesh)
    shardings = sharding.shardings(model.specs, self._mesh)
    return jax.jit(model.init, out_shardings=shardings)(jax.random.key(recipe.seed))


def placed(model: models.Model, checkpoint: checkpoints.Checkpoint, mesh: Mesh) -> dict[str, Array]:
  """The parameters that a training goes on from: float32, over the mesh."""
  found = checkpoints.place(checkpoint, sharding.shardings(model.specs, mesh))
  return {name: found[name].astype(jnp.float32) for name in model.specs}


def _seeded(values: Mapping[str, Any], text: str, where: str) -> Recipe:
  """A recipe whose seed comes from a text.

  Raises:
    ValueError: a seed is set, or the recipe cannot be.
  """
  if "seed" in values:
    raise ValueError(f"{where}.seed is set; seeds come from the seed of the size and the model's name.")
  seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
  return read_recipe({**values, "seed": seed}, where)


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:20]
