"""Writes `logits.npz` with transformers; needs the extra `parity`.

python -m tests.golden.regenerate
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from merge_jax import models
from tests.golden import cases

PATH = Path(__file__).with_name("logits.npz")
KEPT = np.s_[:, -3:]  # logits of the last three positions


def reference(name: str) -> np.ndarray:
  """Logits of `transformers` for a case, all positions, from a folder with our names in it."""
  import torch
  import transformers
  from safetensors.numpy import save_file

  config = cases.config_of(name)
  specs = {n: s.shape for n, s in models.build(config).specs.items()}
  with tempfile.TemporaryDirectory() as folder:
    Path(folder, "config.json").write_text(json.dumps(config))
    save_file(cases.parameters(specs), Path(folder, "model.safetensors"), {"format": "pt"})
    model, seen = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, output_loading_info=True
    )
  wrong = {kind: keys for kind, keys in seen.items() if keys}
  if wrong:
    raise ValueError(f"{name}: transformers reads other tensors: {wrong}")
  with torch.no_grad():
    return model.eval()(torch.tensor(cases.TOKENS)).logits.numpy()


if __name__ == "__main__":
  np.savez_compressed(PATH, **{name: reference(name)[KEPT] for name in cases.CASES})
  print(f"wrote {PATH}")
