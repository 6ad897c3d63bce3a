"""Times what matters, side by side and in ratios; never part of the tests.

python -m launch.benchmark --suite=search
python -m launch.benchmark --suite=merge --peer_python=PEER/bin/python
python -m launch.benchmark --suite=operators
python -m launch.benchmark --suite=choices --choices_prompt=200 --choices_target=1

search: one candidate (combine and all tasks) against the evaluation alone, the search's own
  overhead, and the same loop written plainly in PyTorch (extra `parity`), on the quickstart's sizes.
merge: every method as a whole process on a Llama-shaped pool, in turns with mergekit, if an interpreter that
  has it is given; wall, CPU seconds and peak private memory, beside what copying the same bytes takes.
operators: methods in device memory on tensors of the shapes of Llama 3 8B, against copying.
plan: what `launch.plan` says against what happens, on one device.
proposers: ways of searching on a suite of pools, which are trained first (`configs/pools_small.py`).
choices: questions with several choices, each in a row with its prompt and all in one row.
mesh: compile times of shallow and deep models, candidates a minute side by side (JAX_NUM_CPU_DEVICES=8).
"""

import json
import os
import platform

import jax
from absl import flags

from merge_jax import storage

from . import (
  _choices_suite,
  _common,
  _merge_suite,
  _mesh_suite,
  _operators_suite,
  _plan_suite,
  _proposers_suite,
  _search_suite,
)

SUITES = {
  "search": _search_suite.suite, "merge": _merge_suite.suite, "operators": _operators_suite.suite,
  "plan": _plan_suite.suite, "mesh": _mesh_suite.suite, "choices": _choices_suite.suite,
  "proposers": _proposers_suite.suite,
}  # fmt: skip

_SUITE = flags.DEFINE_enum("suite", "search", list(SUITES), "What to time.")
_REPEATS = flags.DEFINE_integer("repeats", None, "Calls of each; the median counts. merge: 1, others: 15.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write, too.")


def main() -> None:
  """Runs a suite and prints its figures with machine and versions."""
  if _OUTPUT.value:
    output = storage.disk_destination(_OUTPUT.value, "--output")
    storage.refuse_unwritable(output)
  result = SUITES[_SUITE.value](_REPEATS.value or (1 if _SUITE.value == "merge" else 15))
  result["machine"] = {
    "device": jax.devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(), "jax": jax.__version__,
  }  # fmt: skip
  text = json.dumps(result, indent=2)
  print(text)
  if _OUTPUT.value:
    storage.write_text(output, text + "\n")


if __name__ == "__main__":
  _common.run(main)
