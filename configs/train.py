"""Trains a checkpoint on a mixture of task files, from scratch or from another checkpoint.

    python -m launch.train --tasks=code.jsonl,math.jsonl --init=base --output_dir=expert \
      --config.mixture=code=0.8,math=0.2 --config.steps=500

`--config.dtype=bfloat16`, `--config.accumulate=4` (parts of a batch, one after the other) and
`--config.remat=true` (activations are computed again) are for models that would not fit otherwise.
`--config.lora_rank=8` trains low-rank products beside the matrices; what is written is merged, or with
`--save_adapter` a PEFT adapter.

`--config.dpo_beta=0.1` prefers the right choice of each line to its wrong ones (DPO, arXiv 2305.18290; the
start is the reference) instead of learning it; task files then need choices. Rates are a tenth or so.

Without `--init` a small decoder of `config.model` with a character tokenizer is made. Cost: about
10 ms a step of 32 short examples for the default model on two CPU cores.

A training that was stopped (SIGTERM, exit status 75) continues with the same command; so does a killed
one, from the last state of `config.save_every`. States take three times the float32 parameters, in the
hidden folder `.NAME.training` beside the output, which is removed when the output is written.

With `--config.keep_every=500` the output also holds the checkpoints `step-500`, `step-1000`, … of the run:

    python -m launch.recycle --checkpoints=run/step-500,run/step-1000,run \
      --config.search.steps=500,1000,1500 --tasks=code.jsonl --output_dir=merged

`--config.decay=none` keeps the rate constant after the warm-up, `--config.decay=linear` (`cosine`,
`minus_sqrt`) with `--config.decay_steps=200` lets it fall in the last 200 steps alone.
"""

from ml_collections import config_dict


def get_config(mode: str = "") -> config_dict.ConfigDict:
  if mode not in ("", "small"):
    raise ValueError(f"configs/train.py has no mode {mode!r}; it has 'small'.")
  c = config_dict.ConfigDict()
  c.steps = 50 if mode == "small" else 1000
  c.learning_rate = 1e-3
  c.warmup = 20
  c.schedule_steps = 0  # 0: steps
  c.decay = "cosine"  # linear, minus_sqrt, none
  c.decay_steps = 0  # at the end; 0: all after the warm-up
  c.until_loss = 0.0  # stop once the loss is below
  c.save_every = 0  # steps from state to state; 0: only when stopped
  c.keep_every = 0  # steps from checkpoint to checkpoint along the run; 0: none
  c.batch_size = 32
  c.accumulate = 1  # parts of a batch
  c.dtype = "float32"  # or bfloat16, of the computation
  c.remat = False  # compute activations again instead of keeping them
  c.weight_decay = 0.0
  c.b2 = 0.98
  c.clip = 1.0
  c.lora_rank = 0  # 0: all parameters
  c.lora_alpha = 0.0  # 0: the rank
  c.dpo_beta = 0.0  # 0: right answers are learned; else β of preferences
  c.seed = 0
  c.mixture = ""  # task=share,…; "": all alike
  c.model = config_dict.ConfigDict({
    "architectures": ("LlamaForCausalLM",), "model_type": "llama", "vocab_size": 97,
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "eos_token_id": 1, "pad_token_id": 0,
  })  # fmt: skip
  return c
