"""The small study in two minutes: two models that learn next to nothing; it shows that all parts run.

python -m launch.study --config=configs/study_smoke.py --output_dir=runs/study_smoke
"""

from typing import Any

from ml_collections import config_dict

from merge_jax.study.data.puzzles import llama

HELD_IN = {"reversal": ("rev", "swap"), "sorting": ("up", "down"), "conversion": ("hex", "quad")}
HELD_OUT = {"paths": ("walk",), "pooling": ("pool",)}
INSTRUCT = ("map",)


def get_config() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.output_dir = ""
  held_in, held_out = (sum(part.values(), ()) for part in (HELD_IN, HELD_OUT))
  c.held_in, c.held_out = config_dict.ConfigDict(HELD_IN), config_dict.ConfigDict(HELD_OUT)
  c.data = config_dict.ConfigDict({"source": "puzzles"})
  c.data.options = config_dict.ConfigDict({
    "held_in": held_in, "held_out": held_out, "instruct": INSTRUCT, "train": 400, "evaluation": 60,
  })  # fmt: skip
  c.counts = (2, 3)
  c.subsets = 2
  c.fractions = (0.35, 0.65)
  c.limits = (0, 0)
  c.batch = 1
  c.evals = config_dict.ConfigDict({"max_shapes": 1})  # fewer programs to compile
  c.bootstrap = 100
  c.workers = 1
  c.training = config_dict.ConfigDict()
  c.training.kinds = ("pretrained", "instruct")
  c.training.one_shape = True
  c.training.sizes = config_dict.ConfigDict({
    "tiny": {"model": llama(16, 1, heads=2), "seeds": (0,)},
    "small": {"model": llama(32, 1, heads=2), "seeds": (0,)},
  })  # fmt: skip
  every = dict.fromkeys((*held_in, *held_out, *INSTRUCT), 1.0)
  # One schedule, and so one compiled program, for all stages of a size.
  alike = {"learning_rate": 2e-3, "warmup": 5, "schedule_steps": 60}
  c.training.recipes = config_dict.ConfigDict({
    "pretrained": alike | {"mixture": every, "steps": 60},
    "instruct": alike | {"mixture": dict.fromkeys(INSTRUCT, 1.0), "steps": 20},
    "expert": alike | {"steps": 20},
    "multitask": alike | {"steps": 60},
  })  # fmt: skip
  # As many trials for each method that has numbers; the first are the untuned ones.
  c.methods = config_dict.ConfigDict({
    "average": {"operator": "uniform"},
    "task_arithmetic": {
      "operator": "task_arithmetic", "grid": ({"scaling": 1.0}, {"scaling": 0.5}),
    },
    "ties": {
      "operator": "ties",
      "grid": ({"density": 0.2, "scaling": 1.0}, {"density": 0.5, "scaling": 1.0}),
    },
    "dare_ties": {
      "operator": "dare_ties",
      "grid": ({"density": 0.5, "scaling": 1.0}, {"density": 0.2, "scaling": 1.0}),
    },
  })  # fmt: skip
  c.along = config_dict.ConfigDict({
    "size": "tiny", "options": {
      "recipe": {"learning_rate": 2e-3, "warmup": 5}, "every": 20, "points": (40,), "decay_steps": 20,
      "decays": ("linear",), "windows": (2,), "schedules": ("uniform",),
    },
  })  # fmt: skip
  pool: dict[str, Any] = {
    f"sft{i}": {"recipe": alike | {"steps": 20, "mixture": {"rev": 1.0, task: 1.0}}}
    for i, task in enumerate(("up", "hex"))
  }
  pool["po0"] = {"stage": "po", "start": "sft0", "recipe": alike | {"steps": 20}}
  c.recycle = config_dict.ConfigDict({
    "size": "tiny", "pool": pool, "options": {
      "settings": {"up and hex": ("up", "hex")}, "counts": (2, 3), "budgets": (6,), "seeds": (0, 1),
      "ablations": (),
    },
  })  # fmt: skip
  return c
