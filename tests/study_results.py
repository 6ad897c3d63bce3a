"""Contents of `result.json` of studies that nobody ran: like real ones, and poor ones."""

import numpy as np

METHODS = ("average", "task_arithmetic", "ties", "dare_ties")
CATEGORIES = (
  "arithmetic", "strings", "sorting", "logic", "calendar", "graphs", "counting", "sequences",
)  # fmt: skip
OUTSIDE = ("cipher", "geometry", "games", "rewriting")
STAGES = ("pretrained", "instruct")
SETTINGS = (("strings", "logic"), ("sorting", "games"), ("strings", "logic", "sorting"))
SCHEDULES = ("uniform", "ema", "linear", "minus_sqrt")


def make(
  sizes=(("tiny", 212_000), ("small", 830_000), ("large", 3_100_000)), kinds=STAGES, methods=METHODS,
  counts=(2, 4, 6, 8), categories=CATEGORIES, claims=21, schedules=SCHEDULES, settings=SETTINGS, seed=0,
):  # fmt: skip
  """A whole result: methods converge with size, the better base merges better, noise on everything."""
  rng = np.random.default_rng(seed)
  held_in = {name: [f"{name}_{part}" for part in ("easy", "hard")] for name in categories}
  held_out = {name: [f"{name}_{part}" for part in ("one", "two")] for name in OUTSIDE}
  tasks = [task for group in (held_in, held_out) for members in group.values() for task in members]
  families = [(i, size, kind) for i, (size, _) in enumerate(sizes) for kind in kinds]
  return {
    "title": "What matters for merging, on puzzles",
    "notes": ["The instruct base has seen 12 other generators."],
    "sizes": [{"name": name, "parameters": n} for name, n in sizes],
    "kinds": [*kinds], "methods": [*methods], "counts": [*counts], "held_in": held_in, "held_out": held_out,
    "tasks": [
      {"name": task, "metric": "loss" if task == "logic_hard" else "accuracy",
       "sign": -1 if task == "logic_hard" else 1, "examples": {"validation": 40, "test": 60}}
      for task in tasks
    ],
    "curves": _curves(rng, families, methods, counts), "multitask": _multitask(rng, families, counts),
    "experts": [
      {"size": size, "kind": kind, "category": name, "base": 0.3, "expert": 0.3 + gain, "gain": gain,
       "stderr": 0.03}
      for i, size, kind in families
      for name in categories
      for gain in [float(rng.normal(0.06 + 0.15 * i, 0.05))]
    ],
    "gate": [
      {"size": size, "kind": kind, "enough": i > 0, "why": f"{8 if i else 3} of 8 experts gain"}
      for i, size, kind in families
    ],
    "dropped": ["games_two: the base scores 0"],
    "claims": _claims(rng, claims, [name for name, _ in sizes]),
    "hyperparameters": _hyperparameters(rng, families, methods, counts),
    "learning": _learning(rng, families, categories),
    "scores": _scores(rng, families, methods, counts, held_in, tasks),
    "along": _along(rng, schedules), "recycle": _recycle(rng, settings),
    "cost": {"seconds": 5012.4, "trainings": 92, "merges": 700, "evaluations": 16_000},
  }  # fmt: skip


SMALL = dict(
  sizes=(("small", 830_000), ("large", None)), methods=METHODS[:2], counts=(2, 8), categories=CATEGORIES[:3],
  claims=4, schedules=SCHEDULES[:2], settings=SETTINGS[-1:],
)  # fmt: skip


def _interval(rng, value, width):
  return {"value": value, "low": value - width * rng.uniform(0.8, 1.2), "high": value + width}


def _curves(rng, families, methods, counts):
  lines = []
  for i, size, kind in families:
    for m, method in enumerate(methods):
      for count in counts:
        good = kind == "instruct"
        inside = (0.92 if good else 0.75 + 0.05 * i) - (0.008 if good else 0.05) * count / (1 + i)
        outside = 1.03 + 0.02 * i + (0.01 if good else 0.03) * count * i / 4
        for held, middle in (("in", inside), ("out", outside)):
          for tuned in (True, False):
            value = middle + (0.02 * m - 0.05 * (not tuned)) / (1 + 2 * i) + rng.normal(0, 0.01)
            lines.append({
              "size": size, "kind": kind, "method": method, "count": count, "held": held, "tuned": tuned,
              **_interval(rng, value, 0.05 / (1 + i)), "n": 6 if count < 8 else 2, "raw": value * 0.6,
            })  # fmt: skip
  return lines


def _multitask(rng, families, counts):
  return [
    {"size": size, "kind": kind, "count": count, "held": held, "n": 2,
     **_interval(rng, (0.96 if held == "in" else 1.12) + rng.normal(0, 0.005), 0.03)}
    for i, size, kind in families for count in counts for held in ("in", "out")
  ]  # fmt: skip


def _claims(rng, count, sizes):
  verdicts = ("holds", "does not hold", "cannot tell here")
  claims = []
  for number in range(1, count + 1):
    name = f"W{number}" if number < 9 else f"R{number - 8}"
    verdict = verdicts[number % 3]
    values = [{"size": size, **_interval(rng, rng.normal(0.1, 0.1), 0.05), "n": 24} for size in sizes]
    claims.append({
      "id": name, "text": f"Claim {name}: larger models with better bases are easier to merge with methods",
      "scope": "every size, count and method" if number % 2 else "",
      "statistic": "mean paired difference of normalised held-in scores, instruct minus pretrained",
      "values": values if number % 7 else [], "verdict": verdict,
      "why": "The interval is above 0 for 2 of 3 sizes: 0.12 [0.05, 0.19] for large.",
    })  # fmt: skip
  return claims


def _hyperparameters(rng, families, methods, counts):
  return [
    {"size": size, "kind": kind, "seed": 0, "method": method, "count": count, "subset": subset,
     "trial": trial,
     "numbers": {} if method == "average" else {"scaling": 0.2 * (trial + 1), "density": 0.2},
     "validation": float(rng.uniform(0.5, 0.9)), "chosen": trial == (subset if method != "average" else 0)}
    for _, size, kind in families for method in methods for count in counts for subset in range(3)
    for trial in range(1 if method == "average" else 4)
  ]  # fmt: skip


def _learning(rng, families, categories):
  lines = []
  for i, size, kind in families:
    for stage in (kind, *(f"expert:{name}" for name in categories), "multitask"):
      steps = np.arange(20, 420, 20)
      loss = 0.5 + 3 / (1 + i) * np.exp(-steps / 100) + rng.normal(0, 0.03, len(steps))
      lines.append({"size": size, "kind": kind, "seed": 0, "stage": stage, "steps": steps.tolist(),
                    "loss": loss.tolist()})  # fmt: skip
  return lines


def _scores(rng, families, methods, counts, held_in, tasks):
  def scored(level, better=()):
    values = {
      task: float(np.clip(level + 0.3 * (task in better) + rng.normal(0, 0.05), 0, 1)) for task in tasks
    }
    if "logic_hard" in values:
      values["logic_hard"] = 2.5 - 2 * values["logic_hard"]
    return values

  lines = []
  for i, size, kind in families:
    family = {"size": size, "kind": kind, "seed": 0}
    lines.append(family | {"model": "base", "scores": scored(0.2 + 0.1 * i)})
    lines.append(family | {"model": "multitask", "scores": scored(0.45 + 0.1 * i)})
    for name, members in held_in.items():
      lines.append(family | {"model": f"expert:{name}", "scores": scored(0.2 + 0.1 * i, members)})
    for method in methods:
      for count in counts:
        lines.append(family | {"model": f"merge:{method}:{count}:0", "scores": scored(0.35 + 0.1 * i)})
  return lines


def _along(rng, schedules):
  points = []
  for split, less in (("validation", 0.0), ("test", 0.01), ("heldout", 0.2)):
    for step in (200, 400, 600, 800):
      level = 0.4 + 0.3 * (1 - np.exp(-step / 300)) - less
      kinds = {"constant": 0.0, "decay:linear": 0.08, "decay:cosine": 0.075}
      kinds |= {f"merge:{s}:{w}": 0.02 * np.log2(w) for s in schedules for w in (3, 5, 9)}
      points += [
        {"step": step, "kind": kind, "split": split, "stderr": 0.01,
         "value": level + gain + rng.normal(0, 0.005)}
        for kind, gain in kinds.items()
      ]  # fmt: skip
  rows = [["uniform, 9, chosen on validation", 0.71, 0.69, 0.5], ["optimum on test", 0.7, 0.7, None]]
  return {"points": points, "best_of_windows": rows}


def _recycle(rng, groups):
  pool = [f"sft{i}" for i in range(8)] + [f"po{i}" for i in range(8)]
  settings, weights = [], []
  for tasks in groups:
    name, rows = "+".join(tasks), []
    for k, row in enumerate(("best_single", "uniform", "merge_best", "greedy", "search")):
      splits = {}
      for split in ("search", "test", "heldout"):
        scores = {
          task: 0.5 + 0.02 * k + float(rng.normal(0, 0.01))
          for task in (tasks if split != "heldout" else ("x",))
        }
        splits[split] = scores | {"average": float(np.mean([*scores.values()]))}
      rows.append({"name": row} | splits)
    front = [[0.55 + 0.02 * i, 0.67 - 0.02 * i, 0.56 + 0.01 * (i % 3)][: len(tasks)] for i in range(6)]
    searches = [
      {
        "seed": s,
        "fitness": (0.5 + 0.08 * (1 - np.exp(-np.arange(50) / 15)) + rng.normal(0, 0.02, 50)).tolist(),
      }
      for s in range(3)
    ]
    gains = [{"search": "search", "over": "uniform", "value": 0.02, "low": 0.01, "high": 0.03}]
    parts = {"rows": rows, "searches": searches, "front": front, "gains": gains}
    settings.append({"name": name, "tasks": [*tasks]} | parts)
    weights += [
      {"setting": name, "name": f"best {i + 1}", "values": rng.dirichlet(np.ones(16)).tolist()}
      for i in range(5)
    ]
  names = [one["name"] for one in settings]
  factors = {
    "proposer": ("cma_es", "random"),
    "sigma": (0.1, 0.3, 1.0),
    "space": ("simplex", "softmax", "free"),
  }
  return {
    "settings": settings, "weights": weights, "checkpoints": pool,
    "single_fitness": [{"setting": name, "values": rng.uniform(0.3, 0.6, 16).tolist()} for name in names],
    "sweep": [
      {"setting": name, "n": n, "seed": seed, "best": 0.55 + 0.01 * np.log2(n) + rng.normal(0, 0.005),
       "centroid": 0.5 + 0.005 * np.log2(n), "stderr": 0.01}
      for name in names for n in (2, 4, 8, 16) for seed in range(3)
    ],
    "ablations": [
      {"setting": name, "factor": factor, "level": level, "evaluations": budget,
       **_interval(rng, 0.56 + budget / 5000 + rng.normal(0, 0.01), 0.02)}
      for name in names for factor, levels in factors.items() for level in levels for budget in (50, 150)
    ],
    "cost": {"parameters": 620_000, "rows": [
      {"setting": name, "evaluations": 150, "counted": "tokens", "evaluation": 70_000_000_000,
       "training": 1.057e14, "share": 0.0994} for name in names
    ]},
  }  # fmt: skip


def one():
  """One size, base, method and count; no other part."""
  result = make([("only", 1000)], ["own"], ["ties"], [3], CATEGORIES[:3], claims=2)
  kept = ("title", "sizes", "curves", "experts", "gate", "claims", "scores", "held_in", "tasks")
  return {name: result[name] for name in kept} | {"along": None, "recycle": None, "kinds": None}


def holes(value=None, seed=1):
  """A whole result in which numbers, rows and fields are lost."""
  rng = np.random.default_rng(seed)

  def lose(part, depth=0):
    if isinstance(part, dict):
      return {name: lose(one, depth + 1) for name, one in part.items() if depth < 2 or rng.random() > 0.05}
    if isinstance(part, list):
      return [lose(one, depth + 1) for one in part if rng.random() > 0.05] if depth else part
    return value if depth > 1 and isinstance(part, float | int) and rng.random() < 0.2 else part

  return lose(make(seed=seed, **SMALL))
