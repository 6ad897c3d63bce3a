"""Questions with several choices: each choice in a row with its prompt, and all of them in one row."""

import functools
from typing import Any

import jax
import numpy as np
from absl import flags

from merge_jax import evals, models
from merge_jax.evals.branches import Rows, groups
from merge_jax.evals.objective import quickest

_QUESTIONS = flags.DEFINE_integer("choices_questions", 32, "choices: how many questions.", 1)
_COUNT = flags.DEFINE_integer("choices_count", 4, "choices: how many choices a question has.", 2)
_PROMPT = flags.DEFINE_integer("choices_prompt", 200, "choices: tokens of a prompt.", 1)
_TARGET = flags.DEFINE_integer("choices_target", 2, "choices: tokens of a choice, its end included.", 1)
_HIDDEN = flags.DEFINE_integer("choices_hidden", 256, "choices: width of the model, which has four layers.")
_DTYPE = flags.DEFINE_enum(
  "choices_dtype", "float32", ("float32", "bfloat16"), "choices: of the computation."
)


def suite(repeats: int) -> dict[str, Any]:
  """Seconds of one evaluation in both ways, and the largest difference of their losses in nats."""
  config = models.preset("llama-3-8b") | {
    "vocab_size": 4096, "hidden_size": _HIDDEN.value, "intermediate_size": 3 * _HIDDEN.value,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
  }  # fmt: skip
  model, rows = models.build(config), _rows()
  params = jax.jit(model.init)(jax.random.key(0))
  example = evals.Example("", ("x",) * _COUNT.value)
  tasks = [evals.Task("questions", "choice_accuracy", (example,) * _QUESTIONS.value)]
  seconds, tokens, losses = {}, {}, []
  for name, packed in (("apart", None), ("together", groups(rows, model.branches))):
    batches = evals.pack(rows, groups=packed, vocabulary=config["vocab_size"])
    scorer = evals.make_scorer(model.apply, tasks, batches, dtype=_DTYPE.value)
    program = jax.jit(scorer.function)
    losses.append(np.asarray(program(params, scorer.batches))[2])
    seconds[name] = quickest(functools.partial(program, params, scorer.batches), repeats)
    tokens[name] = batches.tokens
  return {
    "seconds": seconds, "tokens": tokens, "speed_up": seconds["apart"] / seconds["together"],
    "largest_difference": float(np.abs(losses[0] - losses[1]).max()),
  }  # fmt: skip


def _rows() -> Rows:
  generator, ids = np.random.default_rng(0), []
  for _ in range(_QUESTIONS.value):
    prompt = generator.integers(1, 4096, _PROMPT.value)
    ids += [np.append(prompt, generator.integers(1, 4096, _TARGET.value)) for _ in range(_COUNT.value)]
  counts = [_COUNT.value] * _QUESTIONS.value
  return Rows([one.astype(np.int32) for one in ids], [_PROMPT.value] * len(ids), counts)
