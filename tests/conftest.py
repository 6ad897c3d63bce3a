"""An emulated mesh of eight devices, strict promotion, absl flags readable."""

import os

os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest
from absl import flags


def pytest_configure(config: pytest.Config) -> None:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_numpy_dtype_promotion", "strict")
  jax.config.update("jax_numpy_rank_promotion", "raise")
  flags.FLAGS.mark_as_parsed()
