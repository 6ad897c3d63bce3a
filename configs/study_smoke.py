from ml_collections import config_dict

T = "/tmp/toy/tasks"


def model(h):
  return {
    "architectures": ("LlamaForCausalLM",),
    "model_type": "llama",
    "hidden_size": h,
    "intermediate_size": 2 * h,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
  }


def get_config():
  c = config_dict.ConfigDict()
  c.output_dir = "/tmp/toy/run"
  c.held_in = {
    "rev": (f"{T}/reverse.jsonl", f"{T}/words.jsonl"),
    "ins": (f"{T}/insert.jsonl",),
    "num": (f"{T}/sort.jsonl",),
  }
  c.held_out = {"out": (f"{T}/hex.jsonl:loss",)}
  c.counts = (2, 3)
  c.methods = {
    "average": {"operator": "uniform"},
    "task_arithmetic": {"operator": "task_arithmetic", "grid": ({"scaling": 1.0}, {"scaling": 0.5})},
    "ties": {
      "operator": "ties",
      "grid": ({"density": 0.2, "scaling": 1.0}, {"density": 0.5, "scaling": 1.0}),
    },
    "dare_ties": {
      "operator": "dare_ties",
      "grid": ({"density": 0.5, "scaling": 1.0}, {"density": 0.2, "scaling": 1.0}),
    },
  }
  tr = {n: f"{T}/train/{n}.jsonl" for n in ("reverse", "words", "insert", "sort")}
  c.data = {
    "source": "files",
    "options": {
      "tokenizer": f"{T}/tokenizer.json",
      "train": tr,
      "pretrain": {n: f"{T}/train/{n}.jsonl" for n in ("rotate", "hex", "reverse")},
      "instruct": {"filter": f"{T}/train/filter.jsonl"},
    },
  }
  c.training = {
    "sizes": {"s": {"model": model(16), "seeds": (0,)}, "m": {"model": model(32), "seeds": (0, 1)}},
    "recipes": {
      "pretrained": {"steps": 100, "learning_rate": 3e-3},
      "instruct": {"steps": 40, "learning_rate": 1e-3},
      "expert": {"steps": 40, "learning_rate": 1e-3},
      "multitask": {"steps": 60, "learning_rate": 1e-3},
    },
  }
  c.subsets = 2
  c.limits = (40, 60)
  return c
