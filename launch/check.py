"""Will these checkpoints merge, and do they fit? A table, and an exit status.

python -m launch.check --checkpoints=a,b,c --base=base
"""

from absl import flags

from merge_jax import preflight

from . import _common

_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Folders, separated by commas.")
_BASE = flags.DEFINE_string("base", "", "Folder of their common ancestor.")


def main() -> int:
  """0 if nothing is wrong, 1 if they will not merge."""
  pool, base = preflight.open_pool(_CHECKPOINTS.value, _BASE.value)
  findings = list(preflight.check(pool, base))
  print(preflight.table(findings))
  return 1 if any(finding.level == "error" for finding in findings) else 0


if __name__ == "__main__":
  _common.run(main)
