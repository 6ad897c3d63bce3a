"""Bases, the experts that come from them, and multitask models: given in folders, or trained."""

import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
from jax import Array
from jax.sharding import Mesh

from merge_jax import checkpoints, evals, models, sharding
from merge_jax.evals import tasks as task_files
from merge_jax.study.cells import Cell, Result
from merge_jax.study.data import Data
from merge_jax.study.settings import Family, Size, Training
from merge_jax.training import Recipe, continued, corpus, pool, read_recipe, states
from merge_jax.training.corpus import Corpus

PRETRAINED, INSTRUCT, EXPERT, MULTITASK = "pretrained", "instruct", "expert", "multitask"
STAGES = (PRETRAINED, INSTRUCT, EXPERT, MULTITASK)
SAVE_EVERY = 500
"""Steps from state to state of a training: what a kill can cost."""


class Member(NamedTuple):
  """A model of a lineage.

  Attributes:
    folder: where it is, or will be.
    identity: key of the cell that trains it, or the digest of its files.
    needs: keys of the cells that make it.
  """

  folder: Path
  identity: str
  needs: tuple[str, ...] = ()


class Lineage(NamedTuple):
  """A base with what was trained from it; see `settings.Family`."""

  size: str
  kind: str
  seed: int
  base: Member
  experts: dict[str, Member]
  multitask: Member | None

  @property
  def name(self) -> str:
    """For people."""
    return f"{self.size}/{self.kind}/{self.seed}"

  @property
  def members(self) -> dict[str, Member]:
    """All models, by role: "base", "expert:CATEGORY", "multitask"."""
    rest = {} if self.multitask is None else {MULTITASK: self.multitask}
    return {"base": self.base, **{f"{EXPERT}:{c}": one for c, one in self.experts.items()}, **rest}


def given(families: Sequence[Family], categories: Sequence[str]) -> list[Lineage]:
  """The lineages that lie in folders.

  Args:
    families: of the settings.
    categories: those that are held in.

  Raises:
    ValueError: a family that stands twice, an expert for another category or none for one of them.
    FileNotFoundError, ValueError: folders that are no checkpoints.
  """
  found: dict[tuple[str, str, int], Lineage] = {}
  for i, one in enumerate(families):
    at = f"config: families[{i}]"
    key = (one.size, one.kind, one.seed)
    if key in found:
      raise ValueError(f"{at}: size {one.size!r}, kind {one.kind!r} and seed {one.seed} stand twice.")
    if set(one.experts) != set(categories):
      raise ValueError(
        f"{at}: experts are given for {', '.join(sorted(one.experts)) or 'none'}; expected one for each "
        f"held-in category: {', '.join(sorted(categories))}."
      )
    experts = {category: opened(one.experts[category]) for category in categories}
    multitask = opened(one.multitask) if one.multitask else None
    found[key] = Lineage(*key, opened(one.base), experts, multitask)
  return list(found.values())


def opened(folder: str) -> Member:
  """A model that is there."""
  checkpoint = checkpoints.open(folder)
  return Member(checkpoint.path, checkpoint.digest())


class Trainer:
  """Trains what a study needs, each model in a cell of its own.

  Args:
    settings: what is trained.
    data: on what.
    categories: tasks by held-in category.
    folder: for the models.
    mesh: over which they are trained.
    stop: asked between steps; a training then saves its state and ends with `errors.Stopped`.

  Raises:
    ValueError: recipes or model configs that cannot be.
  """

  def __init__(
    self,
    settings: Training,
    data: Data,
    categories: Mapping[str, Sequence[str]],
    folder: Path,
    mesh: Mesh,
    stop: Callable[[], bool] = lambda: False,
  ):
    self._settings, self._data, self._categories = settings, data, categories
    self._folder, self._mesh, self._stop = folder, mesh, stop
    for stage in (*settings.recipes, *(stage for size in settings.sizes.values() for stage in size.recipes)):
      if stage not in STAGES:
        raise ValueError(f"config: training has a recipe for {stage!r}; expected {', '.join(STAGES)}.")
    files = {PRETRAINED: data.pretrain, INSTRUCT: data.instruct, EXPERT: data.train, MULTITASK: data.train}
    self._files = files
    self._digests = {
      name: hashlib.sha256(path.read_bytes()).hexdigest()[:20]
      for some in files.values() for name, path in some.items()
    }  # fmt: skip
    self._configs = {
      name: {**size.model, "vocab_size": size.model.get("vocab_size", self._vocabulary)}
      for name, size in settings.sizes.items()
    }
    parsed = {
      name: models.parse(c, f"config: training.sizes.{name}.model") for name, c in self._configs.items()
    }
    self.parameters = {name: _parameters(config) for name, config in self._configs.items()}
    self._longest = min(config.max_positions for config in parsed.values())
    self.cells: list[Cell] = []
    self.lineages = [
      lineage for name, size in settings.sizes.items() for seed in size.seeds
      for lineage in self._of_seed(name, size, seed)
    ]  # fmt: skip

  def _of_seed(self, name: str, size: Size, seed: int) -> list[Lineage]:
    config = self._configs[name]
    base, result = self._cell(PRETRAINED, (name, PRETRAINED, seed), size, config, None), []
    for kind in self._settings.kinds:
      label = (name, kind, seed)
      start = base if kind == PRETRAINED else self._cell(INSTRUCT, label, size, config, base)
      experts = {c: self._cell(EXPERT, label, size, config, start, c) for c in self._categories}
      multitask = self._cell(MULTITASK, label, size, config, start) if self._has(MULTITASK, size) else None
      result.append(Lineage(*label, start, experts, multitask))
    return result

  def _has(self, stage: str, size: Size) -> bool:
    return stage in self._settings.recipes or stage in size.recipes

  def _cell(
    self, stage: str, label: tuple[str, str, int], size: Size, config: dict[str, Any],
    start: Member | None, category: str = "",
  ) -> Member:  # fmt: skip
    """Adds the cell that trains a model of a lineage; the model."""
    values = {**self._settings.recipes.get(stage, {}), **size.recipes.get(stage, {})}
    if stage in (EXPERT, MULTITASK):
      names = (
        self._categories[category] if category else [t for some in self._categories.values() for t in some]
      )
      values["mixture"] = dict.fromkeys(names, 1.0)
    values.setdefault("mixture", dict.fromkeys(self._files[stage], 1.0))
    text = f"{label[0]}/{stage}/{category}/{label[2]}"  # alike for both kinds of base
    name = "/".join(map(str, (*label, stage, *([category] if category else ()))))
    return self._add(
      name, stage, self._recipe(values, text, f"config: training.recipes.{stage}"), config, start
    )

  def data_of_tasks(self) -> Corpus:
    """Training examples of all held-in tasks."""
    return self._corpus(EXPERT)

  def further(
    self, name: str, lineage: Lineage, values: Mapping[str, Any], start: Member, where: str
  ) -> Member:
    """Adds the cell that trains one more model on the held-in tasks.

    Args:
      name: of the model.
      lineage: whose size and seed it has.
      values: settings of its recipe; without a mixture all tasks alike.
      start: the model that it is trained from.
      where: of the settings, for errors.
    """
    values = {"mixture": dict.fromkeys(self._files[EXPERT], 1.0), **values}
    recipe = self._recipe(values, f"{lineage.name}/{name}", where)
    config = self._configs[lineage.size]
    return self._add(f"{lineage.name}/further/{name}", EXPERT, recipe, config, start)

  def _add(
    self, name: str, stage: str, recipe: Recipe, config: dict[str, Any], start: Member | None
  ) -> Member:
    data = self._corpus(stage)
    for task in recipe.mixture:
      if task not in data.names:
        raise ValueError(f"config: {name}: there are no training examples of {task!r} in this stage.")
    spec = {
      "start": config if start is None else start.identity,
      "recipe": msgspec.to_builtins(recipe),
      "data": {task: self._digests[task] for task, share in recipe.mixture.items() if share > 0},
      "shapes": [list(shape) for shape in data.shapes],
      "tokenizer": hashlib.sha256(self._data.tokenizer.encode()).hexdigest()[:20],
    }
    needs = () if start is None else start.needs[-1:]
    run = functools.partial(self._train, stage, config, recipe, start)
    cell = Cell("train", name, spec, run, needs)
    target = self._folder / f"{name.replace('/', '-')}-{cell.key[:8]}"
    self.cells.append(cell._replace(run=functools.partial(run, target)))
    return Member(target, cell.key, (*(start.needs if start else ()), cell.key))

  def _recipe(self, values: Mapping[str, Any], text: str, where: str) -> Recipe:
    """A recipe whose seed comes from a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
    return read_recipe({**values, "seed": seed}, where)

  @functools.cached_property
  def _tokens(self) -> evals.Tokens:
    from tokenizers import Tokenizer

    eos = {size.model.get("eos_token_id") for size in self._settings.sizes.values()}
    return evals.Tokens(Tokenizer.from_str(self._data.tokenizer), eos.pop())

  @property
  def _vocabulary(self) -> int:
    return int(self._tokens.tokenizer.get_vocab_size())

  def _corpus(self, stage: str) -> Corpus:
    return self._corpora[EXPERT if stage == MULTITASK else stage]

  @functools.cached_property
  def _corpora(self) -> dict[str, Corpus]:
    used = [s for s in (PRETRAINED, INSTRUCT, EXPERT) if s != INSTRUCT or INSTRUCT in self._settings.kinds]
    for stage in used:
      if not self._files[stage]:
        raise ValueError(f"config: the data have no training examples for the stage {stage}.")
    read = {stage: [task_files.load(str(path)) for path in self._files[stage].values()] for stage in used}
    return {s: corpus(tasks, self._tokens, max_length=self._longest) for s, tasks in read.items()}

  def _train(
    self, stage: str, config: dict[str, Any], recipe: Recipe, start: Member | None, target: Path
  ) -> Result:
    """Trains one model into a folder, unless a kill came between the folder and its cell."""
    about = target / "training.json"
    if not about.is_file():
      began, model = time.perf_counter(), models.build(config)
      with states(target) as folder:
        trained = continued(
          model.apply, self._start(model, recipe, start), self._corpus(stage), recipe, folder,
          save_every=SAVE_EVERY, mesh=self._mesh, stop=self._stop,
        )  # fmt: skip
        seconds = round(time.perf_counter() - began, 3)
        pool.save(
          target, trained.params, config, self._data.tokenizer,
          pool.describe(recipe, trained) | {"curve": curve(trained.losses), "seconds": seconds},
        )  # fmt: skip
    made = msgspec.json.decode(about.read_bytes(), type=dict[str, Any])
    return {key: made[key] for key in ("tokens", "steps", "final_loss", "curve", "seconds")}

  def _start(self, model: models.Model, recipe: Recipe, start: Member | None) -> dict[str, Array]:
    shardings = sharding.shardings(model.specs, self._mesh)
    if start is None:
      return jax.jit(model.init, out_shardings=shardings)(jax.random.key(recipe.seed))
    placed = checkpoints.place(checkpoints.open(start.folder), shardings)
    return {name: value.astype(jnp.float32) for name, value in placed.items()}


def _parameters(config: Mapping[str, Any]) -> int:
  return sum(math.prod(spec.shape) for spec in models.build(config).specs.values())


def curve(losses: Sequence[float], points: int = 100) -> list[list[float]]:
  """Steps and the mean loss since the point before, at most so many.

  >>> curve([4.0, 2.0, 1.0, 1.0], 2)
  [[2, 3.0], [4, 1.0]]
  """
  width = -(-len(losses) // points)
  parts = [losses[i : i + width] for i in range(0, len(losses), width)]
  return [[min((i + 1) * width, len(losses)), sum(part) / len(part)] for i, part in enumerate(parts)]
