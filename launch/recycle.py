"""From a pool of checkpoints and task files to the best merge, with the evidence.

python -m launch.recycle --checkpoints=a,b,c,d --tasks=code.jsonl,math.jsonl --output_dir=runs/x
"""

from absl import flags
from ml_collections import config_flags

from merge_jax import recycle
from merge_jax.recycle import mixing, settings

from . import _common, _config

_CONFIG = _config.define_config("recycle")
_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Folders of the pool, separated by commas.")
_BASE = flags.DEFINE_string("base", "", "Folder of the common ancestor; none: the pool's mean.")
_TASKS = flags.DEFINE_list("tasks", [], "Task files, path or path:metric; names with a scorer.")
_HELDOUT = flags.DEFINE_list("heldout_tasks", [], "Task files that never enter the fitness.")
_OUTPUT = flags.DEFINE_string("output_dir", "", "Folder to write into, and to resume from.")
_SCORER = flags.DEFINE_string(
  "scorer_command", "",
  "External scorer with {model_dir} {scores_json}, and {split} if it can: it writes {task: score}, a number "
  "or a list of what each example scored.",
)  # fmt: skip
_BUDGET = flags.DEFINE_integer("budget", 0, "Evaluations in all; 0: the config's.")
_OBJECTIVE = flags.DEFINE_enum(
  "objective", None, ["fitness", "pareto"], "What the budget is spent on: the best merge, or the trade-offs."
)
_MIXTURE = flags.DEFINE_bool(
  "mixture",
  False,
  "Checkpoints are experts of data domains: merges all over the simplex, for launch.mixture.",
)
_DRY = flags.DEFINE_bool("dry_run", False, "Print what would be done, with sizes and an estimate.")
_MEMORY = flags.DEFINE_enum(
  "pool_memory", None, ["auto", "device", "host", "disk"], "Where the pool is held; default: the config's."
)
_VERIFY = flags.DEFINE_bool("verify_load", False, "Compare what lies on the devices with the files.")
_TOPOLOGY = flags.DEFINE_bool(
  "allow_topology_change", False, "Resume with another mesh or number of processes; it is recorded."
)
_common.define_mesh()
_common.define_deterministic()
_common.define_distributed()
_PROFILE = flags.DEFINE_bool("profile", False, "Also write a trace of a few evaluations into profile/.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove an earlier run in the folder first.")


def main() -> None:
  """Parses flags, runs the job, prints where the result lies."""
  values = _config.config_values(_CONFIG)
  flagged = {"checkpoints": tuple(_CHECKPOINTS.value), "base": _BASE.value, "tasks": tuple(_TASKS.value),
           "heldout_tasks": tuple(_HELDOUT.value), "output_dir": _OUTPUT.value}  # fmt: skip
  values |= {name: value for name, value in flagged.items() if value}
  if _SCORER.value:
    values["scorer"] = dict(values.get("scorer", {})) | {"command": _SCORER.value}
  if _BUDGET.value:
    values["search"] = dict(values.get("search", {})) | {"budget": _BUDGET.value}
  if _OBJECTIVE.value:
    values["search"] = dict(values.get("search", {})) | {"objective": _OBJECTIVE.value}
  if _MIXTURE.value:
    given = config_flags.get_override_values(flags.FLAGS["config"])
    values["search"] = mixing.spread(dict(values.get("search", {})), given)
  placement = {"mesh": flags.FLAGS.mesh, "pool_memory": _MEMORY.value, "verify_load": _VERIFY.value}
  chosen = {name: value for name, value in placement.items() if value}
  values["placement"] = dict(values.get("placement", {})) | chosen
  values |= {"allow_topology_change": True} if _TOPOLOGY.value else {}
  job = settings.from_mapping(values)
  if _DRY.value:
    print(recycle.plan(job, overwrite=_OVERWRITE.value))
    return
  _common.recycle_and_show(job, _OVERWRITE.value, _PROFILE.value)


if __name__ == "__main__":
  _common.run(main)
