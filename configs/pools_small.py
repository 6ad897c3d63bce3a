"""The suite of pools on which ways of searching are compared: seven kinds, two sizes, six training seeds.

    python -m launch.benchmark --suite=proposers --config=configs/pools_small.py --output_dir=runs/pools \
      --workers=2 --seeds=tune

Tasks are reasoning-gym's (extra `data`) as in `configs/study_small.py`: three by exact match, two by choice
and one by loss. Bases have the recipes of that study. Kinds of pools:

    overlapping   half of the batch on two tasks of their own, the rest on all
    specialists   one task each
    stages        eight checkpoints along one run of constant rate
    variants      one mixture; rates, lengths, batches and weight decay differ
    dominant      one good checkpoint, and five that are narrow, short or spoilt by a high rate
    recipes       eight of supervised fine-tuning, and eight that prefer right answers to wrong ones (DPO)
    null          six continuations of one checkpoint that differ by noise alone

Members stop early, while models answer half to nine tenths of the items: in pools that know everything there
is nothing to gain. Cost of 200K: 7 CPU-minutes of training a seed, then .2 CPU-seconds an evaluation.
"""

from typing import Any

from ml_collections import config_dict

from merge_jax.errors import unknown
from merge_jax.study.data.puzzle_table import HELD_IN, HELD_OUT, INSTRUCT
from merge_jax.study.data.puzzles import llama

TASKS = {
  "swap": "exact_match", "down": "exact_match", "dec": "exact_match", "count": "choice_accuracy",
  "most": "choice_accuracy", "gcd": "loss",
}  # fmt: skip
NAMES = tuple(TASKS)
EVERY = dict.fromkeys(NAMES, 1.0)


def mixture(*main: str, share: float = 0.5) -> dict[str, float]:
  """A share of the batch on some tasks, the rest on all."""
  rest = (1 - share) / len(NAMES)
  return {name: share * (name in main) / len(main) + rest for name in NAMES}


def kinds() -> dict[str, dict[str, dict[str, Any]]]:
  """Members of each kind of pool."""
  pairs = [(NAMES[i % 6], NAMES[(i + 1 + i // 6) % 6]) for i in range(8)]
  overlapping = {f"mix{i}": {"recipe": {"mixture": mixture(*pair)}} for i, pair in enumerate(pairs)}
  specialists = {name: {"recipe": {"mixture": {name: 1.0}, "steps": 40}} for name in NAMES}
  run: dict[str, dict[str, Any]] = {
    "run": {"every": 20, "recipe": {"mixture": EVERY, "steps": 160, "decay": "none"}}
  }
  changes: tuple[tuple[float, dict[str, Any]], ...] = (
    (1.0, {}), (0.5, {}), (2.0, {}), (1.0, {"steps": 40}), (0.7, {"steps": 120}),
    (1.0, {"weight_decay": 0.1}), (1.5, {"batch_size": 16}), (3.0, {"decay": "linear"}),
  )  # fmt: skip
  variants = {
    f"variant{i}": {"rate": rate, "recipe": {"mixture": EVERY} | change}
    for i, (rate, change) in enumerate(changes)
  }
  dominant: dict[str, dict[str, Any]] = {
    "main": {"recipe": {"mixture": EVERY, "steps": 120}},
    "narrow": {"recipe": {"mixture": {"swap": 1.0}, "steps": 60}},
    "two": {"rate": 1.5, "recipe": {"mixture": {"most": 1.0, "gcd": 1.0}, "steps": 60}},
    "short": {"recipe": {"mixture": EVERY, "steps": 20}},
    "slow": {"rate": 0.1, "recipe": {"mixture": EVERY, "steps": 60}},
    "spoilt": {"rate": 10.0, "recipe": {"mixture": EVERY, "steps": 60, "decay": "none"}},
  }
  recipes: dict[str, dict[str, Any]] = {
    f"sft{i}": {"recipe": {"mixture": mixture(NAMES[i % 6], NAMES[(i + 2) % 6]), "steps": 80}}
    for i in range(8)
  }
  for i in range(8):
    preferred = mixture(NAMES[(i + 3) % 6], share=0.7)
    recipe = {"mixture": preferred, "steps": 40, "dpo_beta": 0.2}
    recipes[f"po{i}"] = {"start": f"sft{i}", "rate": 0.15, "recipe": recipe}
  null: dict[str, dict[str, Any]] = {"common": {"hidden": True, "recipe": {"mixture": EVERY}}}
  for i in range(6):
    null[f"noise{i}"] = {"start": "common", "rate": 0.1, "recipe": {"mixture": EVERY, "steps": 20}}
  return {
    "overlapping": overlapping, "specialists": specialists, "stages": run, "variants": variants,
    "dominant": dominant, "recipes": recipes, "null": null,
  }  # fmt: skip


def get_config(contestants: str = "") -> config_dict.ConfigDict:
  """Twelve contestants, or those named behind the file, as in `configs/pools_small.py:surrogate,random`.

  By name alone there are "surrogate by group" and "surrogate by layer".
  """
  c = config_dict.ConfigDict()
  every = (*sum((*HELD_IN.values(), *HELD_OUT.values()), ()), *INSTRUCT)
  others = tuple(name for name in every if name not in TASKS)
  c.data = config_dict.ConfigDict({
    "tasks": TASKS, "others": others, "train": 3000, "search": 150, "validation": 150, "test": 1000,
    "share": 0.3,
  })  # fmt: skip
  c.recipes = config_dict.ConfigDict({
    "pretrained": {"mixture": dict.fromkeys(every, 1.0), "steps": 4000, "learning_rate": 3e-3, "warmup": 100},
    "member": {"steps": 80, "learning_rate": 4e-4, "warmup": 10},
  })  # fmt: skip
  c.sizes = config_dict.ConfigDict({
    "200K": {
      "model": llama(64, 4),
      "recipes": {"pretrained": {"steps": 6000}, "member": {"learning_rate": 5e-4}},
    },
    "800K": {"model": llama(128, 4)},
  })  # fmt: skip
  c.seeds = config_dict.ConfigDict({"tune": (0, 1, 2), "confirm": (10, 11, 12)})
  c.kinds = config_dict.ConfigDict(kinds())
  c.budgets = (25, 50, 150)
  c.opening = 10
  c.search_seeds = (0,)
  cold = {"proposer": "cma_es", "method": "linear", "space": "simplex", "start": "uniform", "known": False}
  every_way: dict[str, dict[str, Any]] = {
    "known points": {"proposer": "known"},
    "CMA-ES cold": cold,
    "CMA-ES warm": {"proposer": "cma_es"},
    "line search": {"proposer": "line_search"},
    "line search loss": {"proposer": "line_search", "fitness": "loss"},
    "response surface": {"proposer": "response_surface"},
    "GP on fitness": {"proposer": "gaussian_process"},
    "SoCE": {"proposer": "soce", "method": "linear", "space": "simplex", "known": False},
    "random": {"proposer": "random", "method": "linear", "space": "simplex"},
    "surrogate": {"proposer": "surrogate"},
    "surrogate few": {"proposer": "surrogate", "known": False},
    "surrogate careful": {"proposer": "surrogate", "options": {"caution": 1.0, "least": 1.0}},
  }
  names = contestants.split(",") if contestants else list(every_way)
  every_way |= {
    f"surrogate by {part}": {"proposer": "surrogate", "granularity": part}
    for part in ("group", "depth", "layer")
  }
  for name in names:
    if name not in every_way:
      raise ValueError(unknown("contestant", name, every_way, "configs/pools_small.py"))
  c.contestants = config_dict.ConfigDict({name: every_way[name] for name in names})
  c.attainable = config_dict.ConfigDict({
    "spaces": ("simplex", "free", "group", "layer"), "steps": 60, "rate": 0.05,
    "checks": 6,
    "numbers": {
      "ties": {"density": (0.05, 1.0), "scaling": (0.2, 3.0)},
      "dare_ties": {"density": (0.1, 1.0), "scaling": (0.2, 3.0)},
      "task_arithmetic": {"scaling": (0.2, 3.0)},
    },
    "evaluations": 60,
  })  # fmt: skip
  return c
