"""`merge-jax NAME …` and `python -m merge_jax NAME …` run the job `launch.NAME`."""

import importlib.util
import pkgutil
import runpy
import sys

from merge_jax.errors import unknown


def main() -> None:
  """Runs a job by name; without one, lists them."""
  package = next(p for p in ("merge_jax.launch", "launch") if importlib.util.find_spec(p))
  spec = importlib.util.find_spec(package)
  folders = [] if spec is None else list(spec.submodule_search_locations or [])
  names = sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))
  if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
    print("usage: merge-jax NAME [flags]; merge-jax NAME --help says more\njobs: " + ", ".join(names))
    sys.exit(0 if len(sys.argv) > 1 else 2)
  name = sys.argv[1]
  if name not in names:
    sys.exit(unknown("job", name, names, "merge-jax"))
  sys.argv[:2] = [f"merge-jax {name}"]
  runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
