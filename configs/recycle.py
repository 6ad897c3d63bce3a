"""Recycle a pool: the weights of a merge of all checkpoints, searched on the user's tasks.

Source: If You Can't Use Them, Recycle Them (arXiv 2412.04144), with the changes that measurements
support: known points first, weights that need not sum to one, selection on examples of its own.
Cost: `search.budget` evaluations of all tasks; `--dry_run` prints an estimate.

    python -m launch.recycle --checkpoints=a,b,c,d --tasks=code.jsonl,math.jsonl --output_dir=runs/x
    python -m launch.recycle --config=configs/recycle.py --config.search.budget=50 …

`--config=configs/recycle.py:paper` searches as the paper does: CMA-ES on the simplex, a cold start, the best
score chosen; 50 evaluations, the known points among them.
"""

from ml_collections import config_dict


def get_config(mode: str = "") -> config_dict.ConfigDict:
  if mode not in ("", "paper"):
    raise ValueError(f"configs/recycle.py has no mode {mode!r}; it has 'paper'.")
  c = config_dict.ConfigDict()
  c.checkpoints = ()
  c.base = ""  # the common ancestor; "" takes the mean of the pool
  c.tasks = ()  # path, path:metric, lm_eval:NAME or lm_eval:NAME:metric
  c.heldout_tasks = ()
  c.output_dir = ""
  c.keep_items = "auto"  # yes, no: what every example scored in every evaluation, in items.jsonl
  c.allow_version_change = False
  c.allow_topology_change = False

  c.placement = config_dict.ConfigDict()
  c.placement.mesh = ""  # candidate:2,fsdp:-1; "": all devices as fsdp
  c.placement.rules = ()  # (pattern of names, tactic or axes of the mesh), before the default ones
  c.placement.pool_memory = "auto"  # device, host, disk
  c.placement.verify_load = False

  c.splits = config_dict.ConfigDict()
  c.splits.fractions = (0.4, 0.2, 0.4)  # search, validation, test
  c.splits.seed = 0
  c.splits.limits = (0, 0, 0)  # examples a task in each; 0 for all

  c.evals = config_dict.ConfigDict()
  c.evals.append_eos = True
  c.evals.max_shapes = 4
  c.evals.batch_tokens = 65_536
  c.evals.dtype = "float32"  # or bfloat16
  c.evals.attention = "auto"  # xla, cudnn

  c.harness = config_dict.ConfigDict()
  c.harness.shots = -1  # solved examples of tasks lm_eval:NAME; -1: each task's own
  c.harness.include = ""  # folder with further tasks for lm-eval

  c.scorer = config_dict.ConfigDict()
  c.scorer.command = ""  # python eval.py {model_dir} {scores_json} {split}
  c.scorer.timeout = 3600.0
  c.scorer.retries = 1
  c.scorer.nan = "fail"  # or worst

  c.search = config_dict.ConfigDict()
  c.search.method = "task_arithmetic"  # linear, ties, dare_ties, dare_linear, breadcrumbs, slerp, karcher
  c.search.granularity = "auto"  # by surrogate depth, else model; or group, layer: parts with own weights
  c.search.numbers = ""  # of the method, searched beside the weights: density,scaling
  c.search.proposer = "auto"  # surrogate, of scores alone gaussian_process, else cma_es; line_search, random
  c.search.space = "free"  # simplex, softmax; trajectory: window and schedule of a merge along a run
  c.search.budget = 200  # may grow: the same command goes on
  c.search.seconds = 0.0
  c.search.batch = 1  # candidates of one program call
  c.search.in_turn = False  # merged in one pass over the pool, scored one after the other
  c.search.seed = 0
  c.search.sigma = 0.0  # 0: the space's
  c.search.population = 0  # 0: 4 + 3 ln(numbers searched)
  c.search.start = "best"  # uniform
  c.search.objective = "fitness"  # pareto: along the front of all tasks, by surrogate
  c.search.fitness = "mean"  # normalized, worst
  c.search.fitness_source = "metric"  # loss, auto
  c.search.task_weights = ""  # of the fitness: code=2,math=1
  c.search.competitors = 16  # wrong tokens at each target position that a surrogate learns from
  c.search.caution = 1.0  # paired errors by which a finalist must beat the best known point; 0: any gain
  c.search.steps = ()  # of checkpoints of one run: merges along it are known points, too
  if mode == "paper":
    c.search.proposer, c.search.sigma, c.search.budget, c.search.caution = "cma_es", 0.3, 50, 0.0
    c.search.method, c.search.space, c.search.start = "linear", "simplex", "uniform"
  return c
