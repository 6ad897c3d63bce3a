"""A study of your own models: bases with experts that are trained already, and task files.

Copy this file and name your folders (Hugging Face or Orbax) and files (JSON lines, see README). Each family
is a base and one expert for each held-in category; sizes, kinds of base and training seeds are told apart by
the names you give them, and claims that need what is not there say so. Nothing is trained; models are read.

    python -m launch.study --config=my_study.py --output_dir=runs/my_study

Cost of each family: about methods × trials × counts × subsets evaluations on validation examples, and at most
two on test examples for each merge. A killed study goes on with the same command; another method, family or
number of experts adds what is missing.
"""

from ml_collections import config_dict


def grid(*numbers: tuple[float, float]) -> tuple[dict[str, float], ...]:
  return tuple({"density": density, "scaling": scaling} for density, scaling in numbers)


# The first numbers of a method are its untuned ones; every method has at most six trials.
METHODS = {
  "average": {"operator": "uniform"},
  "task_arithmetic": {
    "operator": "task_arithmetic", "grid": tuple({"scaling": s} for s in (0.4, 0.2, 0.3, 0.6, 0.8, 1.0)),
  },
  "ties": {
    "operator": "ties", "grid": grid((0.2, 1.0), (0.2, 0.6), (0.2, 1.5), (0.5, 1.0), (0.5, 0.6), (0.1, 1.0)),
  },
  "dare_ties": {
    "operator": "dare_ties",
    "grid": grid((0.5, 1.0), (0.5, 0.6), (0.3, 1.0), (0.3, 0.6), (0.8, 1.0), (0.8, 0.6)),
  },
}  # fmt: skip


def get_config() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.output_dir = "runs/my_study"
  categories = ("code", "math", "chat")
  c.held_in = {name: (f"tasks/{name}.jsonl",) for name in categories}
  c.held_out = {"facts": ("tasks/facts.jsonl",)}
  c.families = (
    {
      "size": "1B", "kind": "instruct", "base": "models/base",
      "experts": {name: f"models/{name}" for name in categories}, "multitask": "models/multitask",
    },
  )  # fmt: skip
  c.methods = METHODS
  c.counts = (2, 3)
  c.subsets = 3
  c.fractions = (0.3, 0.7)  # of validation and test examples in each file
  c.limits = (200, 1000)  # at most; 0: all
  return c
