"""What searching costs beside training: the paper's account, and one in real tokens."""

import statistics
from collections.abc import Sequence
from typing import Any

from merge_jax.study.recycling.found import Setting

Plain = dict[str, Any]


def cost(found: Sequence[Setting]) -> Plain:
  """What searching costs beside training.

  Returns:
    `parameters` N; `rows`: for each setting, number of `evaluations` and way in which it is `counted` the
    FLOPs of one `evaluation` and of the `training`, and the `share` of all evaluations in it:

      sequences  the paper's account (its appendix D): training is 6 N for each sequence that one checkpoint
                 was trained on, an evaluation 2 N for each example of the setting's tasks; merging is free
      tokens     the same with real tokens, and 2 N for each checkpoint that is merged
      pool       as tokens, beside the training of all checkpoints of the pool

    One checkpoint is the median one. What `training.json` does not tell has no rows.
  """
  alone = found[0].singles
  parameters, count = alone["parameters"], len(alone["checkpoints"])
  tokens = [one for one in alone["trained"] if one]
  sequences = [one for one in alone["sequences"] if one]
  rows = []
  for setting in found:
    samples = sum(alone["sizes"]["search"][task] for task in setting.tasks)
    read = sum(alone["tokens"][task] for task in setting.tasks) + count
    accounts = {
      "sequences": (samples, statistics.median(sequences) if sequences else 0),
      "tokens": (read, statistics.median(tokens) if tokens else 0),
      "pool": (read, sum(tokens) if len(tokens) == count else 0),
    }
    for budget in sorted({budget for search in setting.searches for budget in search["budgets"]}):
      for counted, (scored, trained) in accounts.items():
        if trained:
          one, training = 2 * parameters * scored, 6 * parameters * trained
          rows.append({
            "setting": setting.name, "evaluations": budget, "counted": counted, "evaluation": one,
            "training": training, "share": budget * one / training,
          })  # fmt: skip
  return {"parameters": parameters, "rows": rows}
