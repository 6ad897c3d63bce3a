"""What a study is told, as plain frozen data. Types and ranges are checked where it is read."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from merge_jax import decoding
from merge_jax.errors import shown
from merge_jax.recycle.settings import Count, Evals, Positive

Kind = Literal["pretrained", "instruct"]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
  """A group of settings."""


class Method(Part, frozen=True):
  """A merge method and what is tried on validation examples.

  Attributes:
    operator: a function of `merge_jax`, such as "ties".
    arguments: its variants, the same in every trial.
    grid: numbers of each trial; the first are the untuned ones.
  """

  operator: str
  arguments: dict[str, Any] = {}
  grid: Annotated[tuple[dict[str, float], ...], Meta(min_length=1)] = ({},)


class Family(Part, frozen=True):
  """A base with experts that were trained from it, in folders.

  Attributes:
    size: name of the model's size; sizes are compared in order of their parameters.
    kind: of the base, such as "pretrained" or "instruct".
    seed: of the training.
    base, multitask: folders; "" where there is no multitask model.
    experts: folders by held-in category.
  """

  size: str
  kind: str
  base: str
  experts: dict[str, str]
  multitask: str = ""
  seed: Count = 0


class Size(Part, frozen=True):
  """A model to train.

  Attributes:
    model: content of `config.json`; the vocabulary is the tokenizer's. Not looked at where bases are given.
    bases: folders of bases that are there already, by kind, in place of the stages "pretrained" and
      "instruct"; model and tokenizer are theirs.
    seeds: of the trainings.
    recipes: settings of stages that differ for this size, by stage.
  """

  model: dict[str, Any] = {}
  bases: dict[Kind, str] = {}
  seeds: Annotated[tuple[Count, ...], Meta(min_length=1)] = (0,)
  recipes: dict[str, dict[str, Any]] = {}


class Training(Part, frozen=True):
  """What is trained before it is merged.

  Attributes:
    sizes: by name.
    recipes: settings of `merge_jax.training.Recipe` by stage: "pretrained" from random parameters;
      "instruct" from there; "expert" from either, one a held-in category; "multitask" likewise, on all
      of them. Mixtures of the first two are over the data's corpora, those of the others over the tasks.
    kinds: of bases whose experts are trained.
    one_shape: all stages read rows as long as the longest of any: fewer programs to compile, more padding.
  """

  sizes: Annotated[dict[str, Size], Meta(min_length=1)]
  recipes: dict[str, dict[str, Any]]
  kinds: tuple[Kind, ...] = ("pretrained", "instruct")
  one_shape: bool = False


class Checkpoint(Part, frozen=True):
  """A checkpoint of a pool that is recycled: one that is there, or one to train on the held-in tasks.

  Attributes:
    stage: "sft", or "po" for what was trained from such a one.
    folder: where it is, if it is.
    start: another checkpoint of the pool that it is trained from; "": the base.
    recipe: settings of `merge_jax.training.Recipe`.
  """

  stage: Literal["sft", "po"] = "sft"
  folder: str = ""
  start: str = ""
  recipe: dict[str, Any] = {}


class Recycled(Part, frozen=True):
  """The analyses of the paper "Recycle" on a pool of checkpoints.

  Attributes:
    size, kind, seed: of the lineage whose base they have.
    pool: checkpoints by name.
    options: see `study.recycling.Recycling`.
  """

  size: str
  pool: Annotated[dict[str, Checkpoint], Meta(min_length=2)]
  options: dict[str, Any]
  kind: str = "pretrained"
  seed: Count = 0


class Run(Part, frozen=True):
  """A run from a base on all held-in tasks, and merges along it.

  Attributes:
    size, kind, seed: of the lineage whose base it starts from.
    options: see `study.trajectory.run.Along`.
  """

  size: str
  options: dict[str, Any]
  kind: str = "pretrained"
  seed: Count = 0


class Data(Part, frozen=True):
  """Where examples come from.

  Attributes:
    source: "files", "puzzles" (reasoning-gym) or "t0" (see `configs/study_t0.py`).
    options: of the source.
  """

  source: Literal["files", "puzzles", "t0"] = "files"
  options: dict[str, Any] = {}


class Study(Part, frozen=True):
  """A study: families of models, tasks, and the grid of merges.

  Attributes:
    output_dir: where everything is written.
    held_in, held_out: tasks by category: names of the data's, or `path[:metric]` of files.
    methods: by the name that they are shown under.
    counts: numbers of experts in a merge.
    subsets: different sets of experts for each number, where there are so many.
    families: of models that are there already.
    training: of those that are not.
    data: where examples come from.
    fractions: of validation and test examples among a file's.
    limits: at most this many validation and test examples a task; 0 for all.
    batch: models that are scored in one program call.
    bootstrap: resamplings behind each interval.
    evals: how tasks are scored, as in a recycle job.
    workers: processes that do cells side by side, with a thread each; for small models on CPUs.
    along, recycle: further parts of a study; None leaves them out.
  """

  output_dir: str
  held_in: Annotated[dict[str, tuple[str, ...]], Meta(min_length=1)]
  methods: Annotated[dict[str, Method], Meta(min_length=1)]
  held_out: dict[str, tuple[str, ...]] = {}
  counts: tuple[Positive, ...] = (2, 4, 6, 8)
  subsets: Positive = 3
  families: tuple[Family, ...] = ()
  training: Training | None = None
  data: Data = Data()
  fractions: tuple[float, float] = (0.4, 0.6)
  limits: tuple[Count, Count] = (0, 0)
  batch: Annotated[int, Meta(ge=1, le=4096)] = 1
  bootstrap: Annotated[int, Meta(ge=100, le=100_000)] = 1000
  evals: Evals = Evals()
  workers: Annotated[int, Meta(ge=1, le=256)] = 1
  along: Run | None = None
  recycle: Recycled | None = None

  def folders(self) -> list[str]:
    """Of the checkpoints that are there already."""
    families = [name for one in self.families for name in (one.base, one.multitask, *one.experts.values())]
    bases = [
      name for size in (self.training.sizes if self.training else {}).values() for name in size.bases.values()
    ]
    pool = [one.folder for one in self.recycle.pool.values()] if self.recycle else []
    return [name for name in (*families, *bases, *pool) if name]


def from_mapping(values: Mapping[str, Any]) -> Study:
  """Settings from nested plain data, as a config file gives them.

  Raises:
    ValueError: an unknown key, with the nearest valid one, a value that is not of its type or range, or what
      cannot be a name.
  """
  study = decoding.convert(dict(values), Study, "config")
  trained = study.training.sizes if study.training is not None else {}
  for what, names in (
    ("size", [*trained, *(one.size for one in study.families)]),
    ("kind of base", [one.kind for one in study.families]),
    ("category", [*study.held_in, *study.held_out]),
    ("method", study.methods),
    ("checkpoint", study.recycle.pool if study.recycle is not None else {}),
  ):
    for name in names:
      if not name.strip() or not name.isprintable() or "/" in name:
        raise ValueError(
          f"config: {shown(name)} cannot be the name of a {what}; expected printable text without /."
        )
  return study
