"""The study on the paper's own data: T0's categories held in, BIG-bench's tasks held out.

The data are the user's: two archives, or folders of the same layout (`merge_jax/study/data/t0.py` says what
is made of them). Their licences are mixed: for experiments, not to be passed on.

    python -m launch.study --config=configs/study_t0.py --output_dir=runs/study_t0 \
      --config.data.options.t0=t0_train_50k.tar.xz --config.data.options.bigbench=bigbench_selection.tar.xz

Models of 6M, 28M and 102M parameters are trained from nothing, in bfloat16: for a GPU. They read about 1.1M
different tokens of text, over and over; `--config.data.options.text=FOLDER` adds files of one's own, and
should. Few of them will do better than guessing at choices, which the study then says: rows of 160 examples
teach a small model a format rather than a skill.

A real base, of which only experts are trained, is SmolLM2-135M-Instruct:

    python -m launch.smollm2 --output_dir=runs/smollm2 --dtype=float32
    python -m launch.study --config=configs/study_t0.py:smollm2 --output_dir=runs/study_smollm2 …

Steps and rates are starting points; they have not been tuned on a GPU.
"""

from ml_collections import config_dict

from merge_jax.study.data.t0_bigbench import HELD_OUT
from merge_jax.study.data.t0_sources import HELD_IN

EXPERT_STEPS = 300


def llama(hidden: int, layers: int) -> dict[str, object]:
  return {
    "architectures": ("LlamaForCausalLM",), "model_type": "llama", "hidden_size": hidden,
    "intermediate_size": 64 * round(hidden * 8 / 3 / 64), "num_hidden_layers": layers,
    "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1,
  }  # fmt: skip


def get_config(mode: str = "") -> config_dict.ConfigDict:
  if mode not in ("", "smollm2"):
    raise ValueError(f"configs/study_t0.py has no mode {mode!r}; it has 'smollm2'.")
  c = config_dict.ConfigDict()
  c.output_dir = ""
  c.held_in = config_dict.ConfigDict(HELD_IN)
  c.held_out = config_dict.ConfigDict(HELD_OUT)
  c.counts = (2, 4, 6, 8)
  c.subsets = 3
  c.fractions = (0.4, 0.6)
  c.limits = (100, 200)
  c.batch = 1
  c.bootstrap = 1000

  c.data = config_dict.ConfigDict({"source": "t0"})
  c.data.options = config_dict.ConfigDict({
    "t0": "", "bigbench": "",
    "text": "",  # to pretrain on, beside what is there
    "max_characters": 2000, "test": 0.2, "heldout_examples": 400,
    "tokenizer": "", "vocabulary": 4096, "corpora": True, "puzzles": 300, "readings": 6000,
    "metrics": {"choices": "choice_accuracy", "answer": "loss", "text": "loss"},
  })  # fmt: skip

  # As many trials for each method that has numbers; the first are the untuned ones.
  dare = [{"density": density, "scaling": scaling} for density in (0.5, 0.3, 0.1) for scaling in (1.0, 0.5)]
  ties = [{"density": density, "scaling": scaling} for density in (0.2, 0.5) for scaling in (1.0, 0.5, 1.5)]
  c.methods = config_dict.ConfigDict({
    "average": {"operator": "uniform"},
    "task_arithmetic": {
      "operator": "task_arithmetic", "grid": tuple({"scaling": x} for x in (0.3, 0.1, 0.2, 0.5, 0.7, 1.0)),
    },
    "ties": {"operator": "ties", "grid": tuple(ties)},
    "dare_ties": {"operator": "dare_ties", "grid": tuple(dare)},
  })  # fmt: skip

  c.training = config_dict.ConfigDict()
  short = {"warmup": 20, "batch_size": 32, "weight_decay": 0.01, "dtype": "bfloat16"}
  if mode == "smollm2":
    c.data.options.tokenizer, c.data.options.corpora = "runs/smollm2/tokenizer.json", False
    c.data.options.metrics.answer = "exact_match"
    c.training.kinds = ("instruct",)
    c.training.sizes = config_dict.ConfigDict({"135m": {"bases": {"instruct": "runs/smollm2"}}})
    rate = 5e-5
    c.training.recipes = config_dict.ConfigDict({})
  else:
    c.training.kinds = ("pretrained", "instruct")
    c.training.sizes = config_dict.ConfigDict({
      "6m": {"model": llama(256, 6), "seeds": (0, 1)},
      "28m": {"model": llama(512, 8), "seeds": (0, 1)},
      "102m": {"model": llama(768, 14), "recipes": {"pretrained": {"learning_rate": 6e-4}}},
    })  # fmt: skip
    rate = 2e-4
    long = short | {"warmup": 100, "batch_size": 64, "weight_decay": 0.1}
    c.training.recipes = config_dict.ConfigDict({
      "pretrained": long | {"mixture": {"text": 1.0}, "steps": 1500, "learning_rate": 1e-3},
      "instruct": long | {"mixture": {"instructions": 1.0}, "steps": 1000, "learning_rate": 4e-4},
    })  # fmt: skip
  c.training.recipes.expert = config_dict.ConfigDict(short | {"steps": EXPERT_STEPS, "learning_rate": rate})
  multitask = short | {"steps": EXPERT_STEPS * len(HELD_IN), "learning_rate": rate}
  c.training.recipes.multitask = config_dict.ConfigDict(multitask)
  return c
