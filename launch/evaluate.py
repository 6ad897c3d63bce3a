"""Scores checkpoints on task files, or on tasks of lm-eval: `{checkpoint: {task: score}}`.

python -m launch.evaluate --checkpoints=a,b --tasks=code.jsonl,math.jsonl:loss --output=scores.json
python -m launch.evaluate --checkpoints=a,b --tasks=lm_eval:arc_easy,lm_eval:gsm8k --output=scores.json
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh

from merge_jax import checkpoints, decoding, evals, host, preflight, sharding, storage
from merge_jax.checkpoints import Checkpoint
from merge_jax.evals import harness
from merge_jax.evals import tasks as task_files
from merge_jax.evals.objective import JittedObjective
from merge_jax.evals.tasks import Task
from merge_jax.evals.tokens import FILES
from merge_jax.recycle import placing, suites
from merge_jax.recycle.settings import Evals, Harness, Placement
from merge_jax.search.point import Candidate, Point
from merge_jax.search.scores import nullables

from . import _common

_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Folders, separated by commas.")
_TASKS = flags.DEFINE_list("tasks", [], "Task files, path or path:metric; or lm_eval:NAME.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", required=True)
_EOS = flags.DEFINE_bool("append_eos", Evals().append_eos, "End targets with the end-of-text token.")
_DTYPE = flags.DEFINE_enum("dtype", Evals().dtype, ("float32", "bfloat16"), "Of the computation.")
_TOKENS = flags.DEFINE_integer("batch_tokens", Evals().batch_tokens, "Padded tokens in one forward pass.", 1)
_SHAPES = flags.DEFINE_integer("max_shapes", Evals().max_shapes, "Padded shapes, each compiled once.", 1)
_VERIFY = flags.DEFINE_bool("verify_load", False, "Compare what lies on the devices with the files.")
_SHOTS = flags.DEFINE_integer("lm_eval_shots", Harness().shots, "Solved examples; -1: each task's own.", -1)
_INCLUDE = flags.DEFINE_string("lm_eval_include", "", "Folder with further tasks for lm-eval.")
_LIMIT = flags.DEFINE_integer("lm_eval_limit", 0, "Most documents of each of its tasks; 0 for all.", 0)
_CHAT = flags.DEFINE_bool("lm_eval_chat", False, "Its prompts are messages, by the model's chat template.")
_LOGS = flags.DEFINE_string("lm_eval_logs", "", "Folder for its own results and samples of every document.")
_common.define_mesh()
_common.define_deterministic()
_common.define_distributed()

_DECIDING = (
  "append_eos", "dtype", "batch_tokens", "max_shapes", "mesh", "verify_load", "lm_eval_shots",
  "lm_eval_limit", "lm_eval_chat",
)  # fmt: skip
"""Flags that all processes need alike; files and folders may be elsewhere in each."""
ALONE = Candidate("single", "alone", Point((1.0,)))


def main() -> None:
  """Scores one checkpoint after the other, by the code and the defaults of `launch.recycle`."""
  if not _CHECKPOINTS.value or not _TASKS.value:
    raise ValueError("Give --checkpoints=a,b and --tasks=a.jsonl,b.jsonl:loss.")
  places = [storage.path(path).resolve() for path in _CHECKPOINTS.value]
  if twice := next((place for place in places if places.count(place) > 1), None):
    raise ValueError(f"--checkpoints: got {_CHECKPOINTS.value[places.index(twice)]} twice; name each once.")
  output = storage.destination(_OUTPUT.value, "--output")
  pool = [checkpoints.open(path) for path in _CHECKPOINTS.value]
  preflight.require(list(preflight.ties([(str(one.path), one) for one in pool])))
  theirs = [spec for spec in _TASKS.value if harness.is_named(spec)]
  own = [spec for spec in _TASKS.value if spec not in theirs]
  if not theirs:
    only = (name for name in flags.FLAGS if name.startswith("lm_eval_"))
    _common.refuse_given(only, "is for tasks lm_eval:NAME, and there is none")
  files = [task_files.path_of(spec) for spec in own]
  storage.refuse_inside(output, [one for c in pool for one in (*c.places, *c.files())] + files)
  storage.refuse_unwritable(output)
  tasks = task_files.load_all(own)
  given = {"append_eos": _EOS, "dtype": _DTYPE, "batch_tokens": _TOKENS, "max_shapes": _SHAPES}
  options = decoding.convert({name: flag.value for name, flag in given.items()}, Evals, "flags")
  _common.refuse_another(
    _common.told(_DECIDING) | {"lm_eval tasks": theirs}, dict(zip(own, files, strict=True)), pool
  )
  # Equal side files and shapes share tokens and a compiled program.
  groups: dict[Any, list[int]] = {}
  for i, checkpoint in enumerate(pool):
    groups.setdefault(_kind(checkpoint), []).append(i)
  mesh = _mesh()
  lm_eval = _LmEval(theirs, options) if theirs else None
  judges = [_judge([pool[i] for i in group], tasks, options, mesh, lm_eval) for group in groups.values()]
  scores: dict[str, dict[str, float | None]] = {}
  for judge, i in ((judge, i) for judge, group in zip(judges, groups.values(), strict=True) for i in group):
    path = _CHECKPOINTS.value[i]
    params = checkpoints.place(pool[i], judge.layout.shardings, judge.model.stacks, verify=_VERIFY.value)
    found: dict[str, float] = {}
    if judge.objective is not None:
      (evaluation,) = judge.objective.on({ALONE.method: params}).evaluate([ALONE], "all")
      found |= evaluation.scores
    if lm_eval:
      found |= lm_eval(judge.harness, params, path)
    scores[path] = nullables(found)
    shown = (f"{task} {value:.4f}" for task, value in found.items())
    print(f"{path}: " + ", ".join(shown), flush=True)
    if host.is_lead():  # each time: an error of a later one loses nothing
      storage.write_json(output, {path: scores[path] for path in _CHECKPOINTS.value if path in scores})
  print(f"scores: {output}")
  if lm_eval and not lm_eval.logged:
    raise OSError(f"{_LOGS.value}: lm-eval could not write all of its logs there; the scores are whole.")


def _mesh() -> Mesh:
  """The mesh of `--mesh`, of which all devices should have something to do."""
  mesh = sharding.make_mesh(flags.FLAGS.mesh)
  if mesh.shape["candidate"] > 1:
    raise ValueError(
      f"--mesh={flags.FLAGS.mesh}: one checkpoint is scored at a time, so that candidate has to be 1; name "
      "data, fsdp or tensor."
    )
  if idle := len(jax.devices()) - mesh.size:
    print(f"note: --mesh={flags.FLAGS.mesh} leaves {idle} of {len(jax.devices())} devices idle")
  return mesh


class _Judge(NamedTuple):
  """What scores checkpoints of one kind: on task files (objective), and by lm-eval (harness)."""

  model: suites.Model
  layout: sharding.Layout
  objective: JittedObjective | None
  harness: Any


def _judge(
  members: Sequence[Checkpoint], tasks: Sequence[Task], options: Evals, mesh: Mesh, lm_eval: "_LmEval | None"
) -> _Judge:
  """Raises ValueError for checkpoints that cannot be scored, before anything is."""
  model = suites.model_of(members, options)
  layout = placing.layout(members[0].specs, mesh, Placement(), model.stacks, model.axes)
  objective = None
  if tasks:
    suite = suites.task_suite({"all": list(tasks)}, members, options, mesh=mesh)
    alone = {ALONE.method: evals.Merge(_itself, None)}
    objective = JittedObjective(alone, suite.scorers(), 1, layout)
  return _Judge(model, layout, objective, lm_eval.of(members[0], model, layout) if lm_eval else None)


class _LmEval:
  """Tasks that lm-eval itself evaluates; they are loaded here, before any model is.

  Args:
    specs: `lm_eval:NAME`.
    options: of scoring.
  """

  def __init__(self, specs: Sequence[str], options: Evals):
    self._logs = None
    if _LOGS.value:
      self._logs = folder = storage.disk_destination(_LOGS.value, "--lm_eval_logs")
      storage.refuse_unwritable(folder / "results.json" if folder.is_dir() else folder)
    from merge_jax.evals.harness import library

    found = [library.named(spec) for spec in specs]
    if chosen := next((name.metric for name in found if name.metric), ""):
      raise ValueError(f"--tasks: lm-eval gives all metrics of a task here; leave out :{chosen}.")
    self._names, self._options, self.logged = [name.task for name in found], options, True
    self._manager, _ = library.load(self._names, include=_INCLUDE.value, shots=_SHOTS.value)

  def of(self, checkpoint: Checkpoint, model: suites.Model, layout: sharding.Layout) -> Any:
    """The judge of checkpoints of one kind."""
    return suites.harness_model(checkpoint, model, self._options, layout)

  def __call__(self, judge: Any, params: Any, path: str) -> dict[str, float]:
    """Its scores of one of them."""
    from merge_jax.evals.harness import run

    scores, logged = run.evaluate(
      judge.on(params), self._names, self._manager, shots=_SHOTS.value, limit=_LIMIT.value,
      chat=_CHAT.value, called=path, logs=self._logs if host.is_lead() else None,
    )  # fmt: skip
    self.logged &= logged
    return scores


def _itself(params: Any, weights: Any, numbers: Any) -> Any:
  del weights, numbers
  return params


def _kind(checkpoint: Checkpoint) -> tuple[Any, ...]:
  """What two checkpoints must share to be scored by one program."""
  files = [checkpoint.path / name for name in FILES]
  contents = [storage.read_bytes(file) if file.exists() else None for file in files]
  return (*contents, tuple((name, spec.shape, str(spec.dtype)) for name, spec in checkpoint.specs.items()))


if __name__ == "__main__":
  _common.run(main, resumes=False)
