"""Will these checkpoints merge, and do they fit? A table, and an exit status.

python -m launch.check --checkpoints=a,b,c --base=base
python -m launch.check --recipe=ties.yml
"""

from collections.abc import Iterator

from absl import flags

from merge_jax import preflight, sharding
from merge_jax.preflight.memory import verdict

from . import _common

_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Folders, separated by commas.")
_BASE = flags.DEFINE_string("base", "", "Folder of their common ancestor.")
_RECIPE = flags.DEFINE_string("recipe", "", "In place of checkpoints: a recipe, as of launch.merge.")

_common.define_mesh()


def main() -> int:
  """0 if nothing is wrong, 1 if they will not merge."""
  if _RECIPE.value:
    return _recipe()
  pool, base = preflight.open_pool(_CHECKPOINTS.value, _BASE.value)
  models = [*pool, base or pool[0]]

  def memory() -> Iterator[preflight.Finding]:
    """Of a search of the pool on the mesh."""
    made = sharding.shardings(pool[0].specs, sharding.make_mesh(flags.FLAGS.mesh))
    return verdict(preflight.Needs([one.specs for one in models], pool[0].specs, 1, made))

  findings = list(preflight.check(pool, base, memory=memory))
  print(preflight.table(findings))
  return 1 if any(finding.level == "error" for finding in findings) else 0


def _recipe() -> int:
  """All that `launch.merge` checks before it reads weights; what is wrong is raised."""
  from merge_jax import recipes
  from merge_jax.recipes import card

  if _CHECKPOINTS.value or _BASE.value:
    raise ValueError("--recipe names its models itself: leave --checkpoints and --base out.")
  _common.refuse_given(["mesh"], "is of a search, and no recipe has one")
  for built in recipes.check(_RECIPE.value):
    print(card.plan(built))
  return 0


if __name__ == "__main__":
  _common.run(main, resumes=False)
