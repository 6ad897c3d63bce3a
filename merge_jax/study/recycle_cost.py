"""What searching costs beside training: the paper's account, and one in real tokens."""

import statistics
from collections.abc import Sequence
from typing import Any

from merge_jax.study.recycle_found import Setting

Plain = dict[str, Any]


def cost(found: Sequence[Setting]) -> Plain:
  """What searching costs beside training, by setting and budget.

  `by_sequences` is the paper's account (its appendix D): training is 6 N B S for one checkpoint's B S
  sequences, an evaluation 2 N for each example of the setting's tasks; a sequence counts as one, whatever its
  length, and merging as nothing. `by_tokens` has real tokens, and 2 N for each checkpoint that is merged.
  `of_pool` compares with the training of all checkpoints. None where `training.json` does not say.
  """
  alone = found[0].singles
  parameters, count = alone["parameters"], len(alone["checkpoints"])
  known = [tokens for tokens in alone["trained"] if tokens]
  everything = sum(known) if len(known) == count else 0
  one, seen = (statistics.median(values) if values else 0 for values in (
    known, [sequences for sequences in alone["sequences"] if sequences]
  ))  # fmt: skip
  rows = []
  for setting in found:
    samples = sum(alone["sizes"]["search"][task] for task in setting.tasks)
    tokens = sum(alone["tokens"][task] for task in setting.tasks)
    for budget in sorted({budget for search in setting.searches for budget in search["budgets"]}):
      flops = budget * 2 * parameters * (tokens + count)
      rows.append({
        "setting": setting.name, "evaluations": budget, "samples": samples, "tokens": tokens, "flops": flops,
        "by_sequences": budget * 2 * samples / (6 * seen) if seen else None,
        "by_tokens": flops / (6 * parameters * one) if one else None,
        "of_pool": flops / (6 * parameters * everything) if everything else None,
      })  # fmt: skip
  return {"parameters": parameters, "trained_tokens": one or None, "trained_sequences": seen or None,
          "settings": rows}  # fmt: skip
