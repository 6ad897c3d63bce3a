"""Writes `logits.npz` with transformers; needs the extra `parity`.

python -m tests.golden.regenerate
"""

from pathlib import Path

import numpy as np

from merge_jax import models
from tests.golden import cases

PATH = Path(__file__).with_name("logits.npz")
KEPT = np.s_[:, -3:]  # logits of the last three positions


def reference(name: str) -> np.ndarray:
  """Logits of `transformers` for a case, all positions."""
  import torch
  import transformers

  config = cases.config_of(name)
  specs = {n: s.shape for n, s in models.build(config).specs.items()}
  torch_config = transformers.AutoConfig.for_model(**config)
  model = transformers.AutoModelForCausalLM.from_config(torch_config).eval().float()
  state = {n: torch.tensor(v) for n, v in cases.parameters(specs).items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  model.tie_weights()
  assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
  with torch.no_grad():
    return model(torch.tensor(cases.TOKENS)).logits.numpy()


if __name__ == "__main__":
  np.savez_compressed(PATH, **{name: reference(name)[KEPT] for name in cases.CASES})
  print(f"wrote {PATH}")
