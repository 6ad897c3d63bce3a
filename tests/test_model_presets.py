"""Published shapes have as many parameters as their authors say."""

import math

import pytest

from merge_jax import models
from merge_jax.models import families, presets

# Numbers of parameters, from the published files.
PARAMETERS = {
  "command-r-plus-104b": 103_810_674_688,
  "command-r-35b": 34_980_831_232,
  "llama-3-8b": 8_030_261_248,
  "llama-3-70b": 70_553_706_496,
  "llama-3.1-405b": 405_853_388_800,
  "mistral-7b": 7_241_732_096,
  "mixtral-8x7b": 46_702_792_704,
  "qwen2.5-7b": 7_615_616_512,
  "qwen3-8b": 8_190_735_360,
  "qwen3-30b-a3b": 30_532_122_624,
  "gemma-2-9b": 9_241_705_984,
  "gemma-3-27b-text": 27_009_346_304,  # of 27,432,406,640 with the vision tower
  "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize(
  "name", [n for n, c in presets.CONFIGS.items() if c["model_type"] in families.FAMILIES]
)
def test_presets_have_the_published_number_of_parameters(name):
  model = models.build(models.preset(name), name)
  assert sum(math.prod(spec.shape) for spec in model.specs.values()) == PARAMETERS[name]
  assert model.stacks


def test_a_preset_is_a_copy():
  models.preset("llama-3.1-405b")["rope_scaling"]["factor"] = 1.0
  assert models.preset("llama-3.1-405b")["rope_scaling"]["factor"] == 8.0
