"""What a recycle job is told, as plain frozen data. Types and ranges are checked where it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from merge_jax import decoding, storage
from merge_jax.errors import shown

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
NonNegative = Annotated[float, Meta(ge=0.0)]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]
AUTO = "auto"
"""Of a proposer or a granularity: what suits the rest."""
ITEMS = 20_000
"""Most examples of a split for "auto" to keep what each scored: 40 bytes each, .8 MB an evaluation."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
  """A group of settings."""


class Splits(Part, frozen=True):
  """How examples are divided; see `merge_jax.evals.split`.

  Attributes:
    fractions: of search, validation and test.
    seed: of the assignment.
    limits: at most this many examples a task in each split; 0 for all.
  """

  fractions: tuple[Share, Share, Share] = (0.4, 0.2, 0.4)
  seed: Count = 0
  limits: tuple[Count, Count, Count] = (0, 0, 0)


class Evals(Part, frozen=True):
  """How built-in tasks are scored.

  Attributes:
    append_eos: end targets with the end-of-text token.
    max_shapes: padded shapes, each compiled once.
    batch_tokens: padded tokens in one forward pass.
    dtype: of the computation.
    attention: "auto" takes cuDNN's fused kernel where it applies, "xla" never does.
  """

  append_eos: bool = True
  max_shapes: Annotated[int, Meta(ge=1, le=64)] = 4
  batch_tokens: Positive = 65_536
  dtype: Literal["float32", "bfloat16"] = "float32"
  attention: Literal["auto", "xla", "cudnn"] = "auto"


class Harness(Part, frozen=True):
  """How tasks of lm-eval (`lm_eval:NAME`) are asked.

  Attributes:
    shots: solved examples before each prompt; -1 for each task's own number.
    include: folder with further tasks, YAML files; "" for none.
  """

  shots: Annotated[int, Meta(ge=-1, le=1000)] = -1
  include: str = ""


class Scorer(Part, frozen=True):
  """An external scorer; see `merge_jax.evals.external`.

  Attributes:
    command: what is run; "" for built-in tasks.
    timeout: seconds that one call may take.
    retries: further calls after one that failed.
    nan: what a call that still fails counts as: "fail" ends the search, "worst" gives NaN scores.
  """

  command: str = ""
  timeout: Annotated[float, Meta(gt=0.0, le=1e9)] = 3600.0
  retries: Annotated[int, Meta(ge=0, le=1000)] = 1
  nan: Literal["fail", "worst"] = "fail"


class Search(Part, frozen=True):
  """How the best merge is searched.

  Attributes:
    method: the merge rule, a name in `METHODS`.
    proposer: a name in `PROPOSERS`, or "auto": the surrogate where it can learn from what models answer, a
      Gaussian process where there are scores alone, CMA-ES for rules that are not linear and for numbers.
    space: of the weights, a name in `SPACES`.
    budget: evaluations in all, the known points included.
    seconds: stop after this much evaluation time, though not before all single checkpoints are scored; 0 for
      no limit.
    batch: candidates of one program call; 1: as many as the mesh's axis `candidate` has.
    in_turn: all merges of a batch in one pass over the pool, scored one after the other; else side by side.
    seed: of the proposer.
    sigma, population: of the proposer; 0 for its defaults.
    start: "best" known point, or "uniform".
    objective: "fitness" goes up the fitness, "pareto" spends the budget along the front of all tasks.
    fitness: "mean", "normalized" or "worst".
    fitness_source: "metric", "loss", or "auto".
    task_weights: of the fitness, `task=weight,…`; tasks left out have 1.
    competitors: strongest wrong tokens at each target position that a surrogate learns from.
    steps: training steps of the checkpoints, if they are of one run: merges along it are known points, too.
    granularity: "model" has one weight for each checkpoint, "group" one for each in attention, feed-forward,
      embeddings and norms, "depth" one for each in every quarter of the layers, "layer" one for each in every
      layer; "auto": by depth where the surrogate searches, else one for the model.
    numbers: of the method, searched beside the weights: names with commas between, as `density,scaling`.
    caution: paired errors by which a finalist must be better on validation to replace the best known point.
  """

  method: str = "task_arithmetic"
  proposer: str = AUTO
  space: str = "free"
  budget: Positive = 200
  seconds: NonNegative = 0.0
  batch: Annotated[int, Meta(ge=1, le=4096)] = 1
  in_turn: bool = False
  seed: Count = 0
  sigma: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
  population: Annotated[int, Meta(ge=0, le=10_000)] = 0
  start: Literal["best", "uniform"] = "best"
  objective: Literal["fitness", "pareto"] = "fitness"
  fitness: Literal["mean", "normalized", "worst"] = "mean"
  fitness_source: Literal["metric", "loss", "auto"] = "metric"
  task_weights: str = ""
  competitors: Annotated[int, Meta(ge=1, le=1024)] = 16
  steps: tuple[float, ...] = ()
  granularity: Literal["auto", "model", "group", "depth", "layer"] = "auto"
  numbers: str = ""
  caution: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0


class Placement(Part, frozen=True):
  """Where a job's tensors lie; scores do not depend on it, but for the last digits.

  Attributes:
    mesh: sizes by axis, see `merge_jax.sharding`; "" takes all devices as `fsdp`.
    rules: pairs of a pattern of tensor names and a tactic (`sharding.TACTICS`), or the mesh's axes for the
      tensor's first axes, None for one that is not cut; they come before the default ones.
    pool_memory: where the pool is held: "device", "host" (pinned), "disk" (read for every candidate), or
      "auto", the first of them that has room.
    verify_load: compare what was placed with the files.
  """

  mesh: str = ""
  rules: tuple[tuple[str, str | tuple[str | None, ...]], ...] = ()
  pool_memory: Literal["auto", "device", "host", "disk"] = "auto"
  verify_load: bool = False


class Settings(Part, frozen=True):
  """A recycle job.

  Attributes:
    checkpoints: folders of the pool, in order.
    tasks: task files, `path` or `path:metric`, or tasks of lm-eval, `lm_eval:NAME` or `lm_eval:NAME:metric`;
      with a scorer command, names of its scores.
    output_dir: where everything is written.
    base: folder of the common ancestor, or "": the mean of the pool, where the method needs one.
    heldout_tasks: scored for the finalists, never part of the fitness.
    keep_items: whether `items.jsonl` keeps what every example scored in every evaluation: "yes", "no", or
      "auto", where no split has more than `ITEMS` examples.
    placement: of tensors on devices.
    allow_version_change: resume although versions of libraries or kinds of devices changed.
    allow_topology_change: resume although the number of devices or processes, or the mesh, changed.
  """

  checkpoints: tuple[str, ...]
  tasks: tuple[str, ...]
  output_dir: str
  base: str = ""
  heldout_tasks: tuple[str, ...] = ()
  splits: Splits = Splits()
  evals: Evals = Evals()
  harness: Harness = Harness()
  scorer: Scorer = Scorer()
  search: Search = Search()
  keep_items: Literal["auto", "yes", "no"] = "auto"
  placement: Placement = Placement()
  allow_version_change: bool = False
  allow_topology_change: bool = False

  @property
  def folder(self) -> Path:
    """The output folder, a leading `~` expanded, or one on an object store."""
    return storage.path(self.output_dir)


def from_mapping(values: Mapping[str, Any]) -> Settings:
  """Settings from nested plain data, as a config file gives them.

  Raises:
    ValueError: an unknown key, with the nearest valid one, a value that is not of its type or range, or a
      path that is not UTF-8, which no manifest can hold.
  """
  made = decoding.convert(dict(values), Settings, "config")
  given = (made.output_dir, made.base, *made.checkpoints, *made.tasks, *made.heldout_tasks)
  for text in (*given, str(Path.cwd())):
    try:
      text.encode()
    except UnicodeEncodeError:
      raise ValueError(f"{shown(text, 500)}: the path is not UTF-8; rename the folder or file.") from None
  return made


def from_earlier(values: Mapping[str, Any]) -> Settings:
  """The settings of a run that another version may have started, without those that are no more."""
  return from_mapping({name: value for name, value in values.items() if name in Settings.__struct_fields__})


def to_mapping(settings: Settings) -> dict[str, Any]:
  """Settings as JSON gives them back."""
  return msgspec.json.decode(msgspec.json.encode(settings))
