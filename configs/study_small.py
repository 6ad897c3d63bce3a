"""The study on puzzles that models of 0.2M, 0.8M and 3M parameters learn on two CPU cores.

    python -m launch.study --config=configs/study_small.py --output_dir=runs/study

Data are reasoning-gym's (extra `data`), see `merge_jax/study/data/puzzles.py`: eight held-in categories of
two puzzles, four held-out ones. A base reads text on every puzzle, an instruction-tuned one then instructions
for puzzles that are in no category; experts learn the format of instructions with their category.
"""

from typing import Any

from ml_collections import config_dict

from merge_jax.study.data.puzzle_table import HELD_IN, HELD_OUT, INSTRUCT
from merge_jax.study.data.puzzles import llama


def get_config() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.output_dir = ""
  held_in, held_out = (sum(part.values(), ()) for part in (HELD_IN, HELD_OUT))
  c.held_in, c.held_out = config_dict.ConfigDict(HELD_IN), config_dict.ConfigDict(HELD_OUT)
  c.data = config_dict.ConfigDict({"source": "puzzles"})
  c.data.options = config_dict.ConfigDict({
    "held_in": held_in, "held_out": held_out, "instruct": INSTRUCT, "train": 5000, "evaluation": 200,
  })  # fmt: skip
  c.counts = (2, 4, 6, 8)
  c.subsets = 3
  c.fractions = (0.35, 0.65)
  c.limits = (50, 100)
  c.batch = 1
  c.workers = 2
  c.bootstrap = 1000
  c.training = config_dict.ConfigDict()
  c.training.kinds = ("pretrained", "instruct")
  # Rates fall with width; steps are what each size needs to learn the puzzles.
  c.training.sizes = config_dict.ConfigDict({
    "200K": {"model": llama(64, 4), "seeds": (0, 1), "recipes": {
      "pretrained": {"learning_rate": 3e-3, "steps": 6000}, "instruct": {"learning_rate": 1e-3},
      "expert": {"learning_rate": 1e-3, "steps": 250}, "multitask": {"learning_rate": 1e-3, "steps": 2000},
    }},
    "800K": {"model": llama(128, 4), "seeds": (0, 1)},
    "3M": {"model": llama(256, 4), "seeds": (0,), "recipes": {
      "pretrained": {"learning_rate": 1e-3, "steps": 1800}, "instruct": {"learning_rate": 3e-4, "steps": 150},
      "expert": {"learning_rate": 3e-4, "steps": 150}, "multitask": {"learning_rate": 3e-4, "steps": 1200},
    }},
  })  # fmt: skip
  every = dict.fromkeys((*held_in, *held_out, *INSTRUCT), 1.0)
  c.training.recipes = config_dict.ConfigDict({
    "pretrained": {"mixture": every, "steps": 3000, "learning_rate": 2e-3, "warmup": 100},
    "instruct": {"mixture": dict.fromkeys(INSTRUCT, 1.0), "steps": 300, "learning_rate": 5e-4},
    "expert": {"steps": 150, "learning_rate": 5e-4},
    "multitask": {"steps": 1200, "learning_rate": 5e-4},
  })  # fmt: skip
  # As many trials for each method that has numbers; the first are the untuned ones.
  c.methods = config_dict.ConfigDict({
    "average": {"operator": "uniform"},
    "task_arithmetic": {
      "operator": "task_arithmetic", "grid": tuple({"scaling": x} for x in (1.0, 0.3, 0.2, 0.5, 0.7, 0.15)),
    },
    "ties": {
      "operator": "ties",
      "grid": tuple({"density": d, "scaling": s} for d in (0.2, 0.5) for s in (1.0, 0.5, 1.5)),
    },
    "dare_ties": {
      "operator": "dare_ties",
      "grid": tuple({"density": d, "scaling": s} for d in (0.5, 0.2) for s in (1.0, 0.5, 1.5)),
    },
  })  # fmt: skip
  # Merges along a run against decays that branch off it.
  c.along = config_dict.ConfigDict({
    "size": "200K", "options": {
      "recipe": {"learning_rate": 1e-3}, "every": 100, "points": (800, 1600), "decay_steps": 400,
      "windows": (2, 4, 8), "schedules": ("uniform", "ema", "linear", "minus_sqrt", "cosine"),
    },
  })  # fmt: skip
  # A pool like the paper's: eight of a first stage on mixtures of their own, one of them narrow, and eight of
  # a second stage, each from one of the first.
  names = list(held_in)
  first = {f"sft{i}": mixture(names, i) for i in range(7)} | {"sft7": {"up": 1.0}}
  pool: dict[str, Any] = {
    name: {"recipe": {"steps": 300, "learning_rate": 1e-3, "mixture": shares}}
    for name, shares in first.items()
  }
  for i in range(8):
    shares = mixture(names, 3 * i + 1)
    recipe = {"steps": 150, "learning_rate": 5e-4, "mixture": shares}
    pool[f"po{i}"] = {"stage": "po", "start": f"sft{i % 7}", "recipe": recipe}
  c.recycle = config_dict.ConfigDict({
    "size": "200K", "kind": "instruct", "pool": pool, "options": {
      "settings": {
        "rev-hex": ("rev", "hex"), "down-enc": ("down", "enc"), "rev-hex-count": ("rev", "hex", "count"),
      },
      "counts": (2, 4, 8, 16), "budgets": (50, 100), "seeds": (0, 1), "ablated": ("rev-hex-count",),
    },
  })  # fmt: skip
  return c


def mixture(names: list[str], i: int) -> dict[str, float]:
  """Half of the batch on four tasks from the i-th on, the rest on all."""
  main = {names[(i + j) % len(names)] for j in range(0, 8, 2)}
  return {name: 0.5 * (name in main) / len(main) + 0.5 / len(names) for name in names}
