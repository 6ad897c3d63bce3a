"""Writes `goldens.npz`: what mergekit makes of the recipes.

python -m tests.conformance.regenerate --mergekit=/path/to/venv/bin/mergekit-multi

mergekit runs as a program of its own, in an environment of its own (last run: mergekit 0.1.5, torch 2.13.0,
transformers 5.24.0); one process runs all recipes.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from tests.conformance import goldens, pools, recipes


def main() -> None:
  """Makes the pool, runs mergekit on every recipe and keeps samples of the results."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--mergekit", required=True)
  parser.add_argument("--only", default="", help="recipes whose name has this; writes nothing")
  arguments = parser.parse_args()
  chosen = {name: text for name, text in recipes.RECIPES.items() if arguments.only in name}
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    pools.write_all(root)
    named = [  # a name must not be a word of another recipe
      text.replace("name: first", f"name: {n}-0").replace("model: first", f"model: {n}-0")
      + f"\nname: run-{n}\n"
      for n, text in chosen.items()
    ]
    last = "merge_method: passthrough\nmodels: [{model: llama/base}]\n"
    (root / "all.yml").write_text("\n---\n".join([*named, last]))
    command = [
      arguments.mergekit,
      "all.yml",
      "-I",
      "made",
      "--out-path",
      "last",
      "--no-write-model-card",
      "--quiet",
    ]
    subprocess.run(command, cwd=root, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    results = {name: goldens.read(root / "made" / f"run-{name}") for name in chosen}
  if not arguments.only:
    goldens.write(results)
    print(f"wrote {goldens.PATH}: {len(results)} recipes, {goldens.PATH.stat().st_size} bytes")


if __name__ == "__main__":
  main()
