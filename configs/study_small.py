"""The study on puzzles that models of 0.2M, 0.8M and 3M parameters learn on two CPU cores.

    python -m launch.study --config=configs/study_small.py --output_dir=runs/study

Data are reasoning-gym's (extra `data`), see `merge_jax/study/puzzles.py`: eight held-in categories of two
puzzles, four held-out ones. A base reads text on every puzzle, an instruction-tuned one then instructions
for puzzles that are in no category; experts learn the format `name question=answer` with their category.
"""

from ml_collections import config_dict

from merge_jax.study.data.puzzle_table import HELD_IN, HELD_OUT, INSTRUCT


def llama(hidden: int, layers: int, heads: int = 4) -> dict[str, object]:
  return {
    "architectures": ("LlamaForCausalLM",), "model_type": "llama", "vocab_size": 97,
    "hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "num_hidden_layers": layers,
    "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "eos_token_id": 1,
    "pad_token_id": 0, "initializer_range": hidden**-0.5,
  }  # fmt: skip


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
  c.limits = (0, 0)
  c.batch = 1
  c.bootstrap = 1000
  c.training = config_dict.ConfigDict()
  c.training.kinds = ("pretrained", "instruct")
  c.training.sizes = config_dict.ConfigDict({
    "200K": {"model": llama(64, 4), "seeds": (0, 1)},
    "800K": {"model": llama(128, 4), "seeds": (0, 1)},
    "3M": {"model": llama(256, 4), "seeds": (0,)},
  })  # fmt: skip
  every = dict.fromkeys((*held_in, *held_out, *INSTRUCT), 1.0)
  c.training.recipes = config_dict.ConfigDict({
    "pretrained": {"mixture": every, "steps": 4000, "learning_rate": 3e-3, "warmup": 100},
    "instruct": {"mixture": dict.fromkeys(INSTRUCT, 1.0), "steps": 300, "learning_rate": 5e-4},
    "expert": {"steps": 200, "learning_rate": 7e-4},
    "multitask": {"steps": 1600, "learning_rate": 7e-4},
  })  # fmt: skip
  # As many trials for each method that has numbers; the first are the untuned ones.
  c.methods = config_dict.ConfigDict({
    "average": {"operator": "linear", "weight": 0.0},
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
  return c
