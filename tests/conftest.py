"""An emulated mesh of eight devices, strict promotion, absl flags readable, programs compiled once."""

import importlib.metadata
import os
import pathlib
import resource
import signal

os.environ.setdefault("MPLBACKEND", "agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start jobs in the background
  signal.signal(signal.SIGINT, signal.default_int_handler)
if importlib.metadata.version("jaxlib").startswith("0.10."):  # others may not know the flag, and abort
  # Programs run once or twice: the older emitters of fused kernels compile in half of the time, and in one
  # piece in a sixth less.
  os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
  )
import jax
import pytest
from absl import flags

MAPS = 20_000
"""Mapped regions of a process that is near its limit (65,530 on Linux); a compiled program takes some."""
RESIDENT = 3 << 30
"""Bytes of a process of several; programs of a whole run are 8 GB."""


@pytest.fixture(scope="module", autouse=True)
def few_programs():
  """Forgets compiled programs before the kernel gives a process no more memory, which ends it."""
  yield
  process = pathlib.Path("/proc/self")
  if not process.exists():
    return
  resident = int((process / "statm").read_text().split()[1]) * resource.getpagesize()
  if resident > RESIDENT or (process / "maps").read_bytes().count(b"\n") > MAPS:
    jax.clear_caches()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Tests of a file run in one process, but for those that name another group."""
  for item in items:
    if item.get_closest_marker("xdist_group") is None:
      item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_configure(config: pytest.Config) -> None:
  # Here, not in pyproject.toml: the wheel is tested without it.
  thorough = "further cases of a law, and long ways through whole jobs; `./launch/test --all` runs them"
  config.addinivalue_line("markers", f"thorough: {thorough}")
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_numpy_dtype_promotion", "strict")
  jax.config.update("jax_numpy_rank_promotion", "raise")
  # Tests and the jobs that they start compile the same programs; JAX's writes race between workers.
  worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
  compiled = config.rootpath / ".pytest_cache" / f"jax-{worker}"
  for name, value in (
    ("jax_compilation_cache_dir", str(compiled)),
    ("jax_disable_most_optimizations", True),  # programs run once or twice: half of the time was compilation
    ("jax_persistent_cache_min_compile_time_secs", 0),
    ("jax_persistent_cache_min_entry_size_bytes", -1),
  ):
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
  flags.FLAGS.mark_as_parsed()
