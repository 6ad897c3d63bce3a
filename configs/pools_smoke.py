"""The suite of `configs/pools_small.py` in a minute: tiny models, few steps; it shows that all parts run.

python -m launch.benchmark --suite=proposers --config=configs/pools_smoke.py --output_dir=runs/pools_smoke
"""

from typing import Any

from ml_collections import config_dict

from merge_jax.study.data.puzzles import llama

TASKS = {"up": "exact_match", "least": "choice_accuracy", "hex": "loss"}


def get_config() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.data = config_dict.ConfigDict({
    "tasks": TASKS, "others": ("map",), "train": 200, "search": 12, "validation": 12, "test": 30,
    "share": 0.3,
  })  # fmt: skip
  every = dict.fromkeys((*TASKS, "map"), 1.0)
  # One schedule, and so one compiled program, for all members.
  alike = {"learning_rate": 3e-3, "warmup": 5, "schedule_steps": 80}
  c.recipes = config_dict.ConfigDict({
    "pretrained": alike | {"mixture": every, "steps": 80},
    "member": alike | {"steps": 20, "mixture": dict.fromkeys(TASKS, 1.0)},
  })  # fmt: skip
  c.sizes = config_dict.ConfigDict({"tiny": {"model": llama(16, 1, heads=2)}})
  c.seeds = config_dict.ConfigDict({"tune": (0,), "confirm": (1,)})
  mixed: dict[str, Any] = {f"mix{name}": {"recipe": {"mixture": {name: 1.0}}} for name in TASKS}
  staged: dict[str, Any] = {"run": {"every": 20, "recipe": {"steps": 40}}}
  staged["po"] = {"start": "run", "rate": 0.3, "recipe": {"steps": 20, "dpo_beta": 0.2}}
  c.kinds = config_dict.ConfigDict({"specialists": mixed, "recipes": staged})
  c.budgets = (9, 12)
  c.opening = 2
  c.search_seeds = (0,)
  c.contestants = config_dict.ConfigDict({
    "known points": {"proposer": "known"},
    "CMA-ES cold": {
      "proposer": "cma_es", "method": "linear", "space": "simplex", "start": "uniform", "known": False,
    },
    "GP on fitness": {"proposer": "gaussian_process"},
  })  # fmt: skip
  c.attainable = config_dict.ConfigDict({
    "spaces": ("simplex", "layer"), "steps": 4, "rate": 0.03, "checks": 2,
    "numbers": {"ties": {"density": (0.2, 1.0), "scaling": (0.5, 2.0)}}, "evaluations": 4,
  })  # fmt: skip
  return c
