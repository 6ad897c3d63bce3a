"""The quickstart: trains a small real pool on reasoning-gym tasks, then recycles it.

A decoder of 0.4M parameters learns six puzzles until it is half good at all of them; eight
checkpoints continue from there, each on its own mixture, at its own learning rate. Cost: under four
minutes on two CPU cores.

    ./launch/quickstart
    ./launch/quickstart --config.seed=3 --output_dir=runs/other

The pool was frozen by looking at validation scores of three training seeds; see BUILD_NOTES.md.
"""

from ml_collections import config_dict

from merge_jax.training.puzzles import PUZZLES

TASKS = ("reverse", "insert", "rotate", "sort", "words", "hex")


def mixture(share: float, *main: str) -> dict[str, float]:
  """`share` of the batch on the main tasks, the rest on all."""
  return {t: share * (t in main) / len(main) + (1 - share) / len(TASKS) for t in TASKS}


def get_config() -> config_dict.ConfigDict:
  assert set(TASKS) <= set(PUZZLES)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.tasks = TASKS
  c.train_examples = 6000  # a task
  c.task_examples = 1500
  c.model = config_dict.ConfigDict({
    "architectures": ("LlamaForCausalLM",), "model_type": "llama", "vocab_size": 97,
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "eos_token_id": 1, "pad_token_id": 0,
  })  # fmt: skip
  # Tasks that are slow to learn get more. Stopping at a loss makes seeds alike; the second stage
  # anneals: from a base that has not settled any average gains, and there is little left to search.
  harder = {"reverse": 1.0, "insert": 0.7, "rotate": 1.5, "sort": 0.5, "words": 2.0, "hex": 1.5}
  c.base = config_dict.ConfigDict({
    "learn": {"mixture": harder, "steps": 6000, "learning_rate": 3e-3, "until_loss": 0.35},
    "settle": {"mixture": harder, "steps": 600, "learning_rate": 1.5e-3},
  })  # fmt: skip
  pairs = zip(TASKS, (*TASKS[1:], TASKS[0]), strict=True)
  experts = {
    f"{a}_{b}": {"mixture": mixture(0.9, a, b), "steps": 700, "learning_rate": 1e-3} for a, b in pairs
  }
  experts["slow"] = {"mixture": mixture(0.9, *TASKS[:3]), "steps": 700, "learning_rate": 5e-4}
  # As in the paper's pool, one is trained on one thing alone and bad at everything else.
  experts["narrow"] = {"mixture": {"sort": 1.0}, "steps": 700, "learning_rate": 2e-3}
  c.experts = config_dict.ConfigDict(experts)

  c.recycle = config_dict.ConfigDict()
  c.recycle.splits = config_dict.ConfigDict({"fractions": (0.3, 0.2, 0.5)})
  c.recycle.evals = config_dict.ConfigDict({"dtype": "float32", "attention": "auto"})
  c.recycle.search = config_dict.ConfigDict({
    "budget": 150, "batch": 1, "proposer": "auto", "granularity": "auto", "objective": "fitness",
  })  # fmt: skip
  return c
