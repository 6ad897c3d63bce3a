"""Merges models by a recipe, mergekit's YAML or our own, into a folder that loads as any other.

python -m launch.merge --recipe=ties.yml --output_dir=merged
python -m launch.merge --recipe=ties.yml --dry_run
python -m launch.check --recipe=ties.yml

Several processes, of one machine or of many that share a file system, divide the work:
python -m launch.merge --recipe=ties.yml --output_dir=merged --distributed --coordinator=node0:8476 \
  --num_processes=2 --process_id=0  # and 1; on SLURM, Open MPI, GKE and TPUs --distributed is enough
"""

import contextlib
import ctypes
import os
import warnings
from pathlib import Path

import jax
from absl import flags

from merge_jax import host, recipes, storage
from merge_jax.recipes import card

from . import _common

_RECIPE = flags.DEFINE_string("recipe", None, "YAML file: mergekit's format, or ours.", required=True)
_OUTPUT = flags.DEFINE_string("output_dir", "", "Folder to make; it appears whole or not at all.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything, print the plan, write nothing.")
_SEMANTICS = flags.DEFINE_enum(
  "semantics", "auto", ["auto", "mergekit", "paper"],
  "Whose definitions hold: auto takes mergekit's for recipes in its format, else the papers'.",
)  # fmt: skip
_SEED = flags.DEFINE_integer("seed", None, "Of random methods; by default the recipe's, or 0.", lower_bound=0)
_MEMORY = flags.DEFINE_float(
  "memory_gib", None, "Of tensors in work at once; by default half of what is free.", lower_bound=0.0
)
_THREADS = flags.DEFINE_integer("threads", None, "Threads that read, compute and write.", lower_bound=1)
_SHARD = flags.DEFINE_float("max_shard_gb", 5.0, "Size of one file, in 10^9 bytes.", lower_bound=0.0)
_VERIFY = flags.DEFINE_bool("verify", False, "Read the result back and compare digests.")
_NONFINITE = flags.DEFINE_bool("allow_nonfinite", False, "Go on where weights are NaN or infinite.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a folder that an earlier merge made.")
_DEVICE = flags.DEFINE_enum(
  "device", None, ["cpu", "cuda", "rocm", "tpu"],
  "What computes: most methods read and write more than they compute, so by default $JAX_PLATFORMS or cpu; "
  "an accelerator is for those that decompose matrices.",
)  # fmt: skip
_CACHE = flags.DEFINE_string(
  "compilation_cache", None,
  "Folder of compiled programs, kept for the next merge; empty: keep none. By default "
  "$JAX_COMPILATION_CACHE_DIR, or merge_jax/xla in the user's cache ($XDG_CACHE_HOME, ~/.cache).",
)  # fmt: skip
_common.define_distributed()

MERGEKIT = {
  "allow-crimes": "models merge where names and shapes of their tensors agree, whatever their architectures",
  "unsafe-truncate-embeddings": "where vocabularies differ, say tokenizer_source: in the recipe",
  "trust-remote-code": "no code of a model is ever run",
  "transformers-cache": "$HF_HOME says where models of the hub lie",
  "lazy-unpickle": "weights are read from safetensors, never from pickles",
  "random-seed": "use --seed",
  "out-shard-size": "use --max_shard_gb, in 10^9 bytes",
  "low-cpu-memory": "use --memory_gib",
  **dict.fromkeys(("num-threads", "write-threads"), "use --threads"),
  **dict.fromkeys(
    ("cuda", "read-to-gpu", "multi-gpu", "gpu-rich"), "use --device=cuda, where a method is slow without"
  ),
  **dict.fromkeys(
    ("lora-merge-cache", "lora-merge-dtype"), "adapters are added as tensors are read, in float32"
  ),
  **dict.fromkeys(("copy-tokenizer", "write-model-card", "safe-serialization"), "a merge always does that"),
}
"""What is here in place of mergekit's flags."""


def main() -> None:
  """Checks, then merges, then says what lies where."""
  if not _RECIPE.value:
    raise ValueError("--recipe is empty; name a YAML file.")
  if _DRY_RUN.value:
    planned = recipes.check(_RECIPE.value, _SEMANTICS.value)
    if _OUTPUT.value:
      recipes.refuse_output(planned, _OUTPUT.value, overwrite=_OVERWRITE.value)
    for built in planned:
      name = f"recipe {built.recipe.name}\n" if built.recipe.name is not None else ""
      print(f"{name}{card.plan(built)}")
    return
  if not _OUTPUT.value:
    raise ValueError("--output_dir is missing: name the folder to make, or give --dry_run.")
  host.keep_devices_apart()
  _choose_device()
  _keep_memory()
  _keep_programs(_CACHE.value)
  bar: _common.Progress | None = None

  def progress(done: int, total: int) -> None:
    nonlocal bar
    bar = bar or _common.Progress(total, "tensors")
    bar(done)

  try:
    with _common.telling_what_stays(_OUTPUT.value):
      built = recipes.run(
        _RECIPE.value, _OUTPUT.value, semantics=_SEMANTICS.value, seed=_SEED.value, memory_gib=_MEMORY.value,
        threads=_THREADS.value, max_shard_gb=_SHARD.value, verify=_VERIFY.value,
        allow_nonfinite=_NONFINITE.value, overwrite=_OVERWRITE.value, progress=progress,
        stop=_common.StopFlag(),
      )  # fmt: skip
  finally:
    if bar is not None:
      bar.close()
  for note in built.notes:
    print(f"note: {note}")
  print(f"{len(built.jobs)} tensors, {storage.gib(built.nbytes)}: {_OUTPUT.value}")


def _choose_device() -> None:
  """On CPUs a worker computes its blocks itself.

  JAX hands each to threads of its own, which wait in a loop for more: a tenth of a merge of task vectors.
  """
  old = os.environ.get("JAX_PLATFORM_NAME")  # chooses of all that JAX finds
  device = _DEVICE.value or os.environ.get("JAX_PLATFORMS") or old or "cpu"
  if device != old:
    jax.config.update("jax_platforms", device)
  if device.split(",")[0] != "cpu":
    return
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  os.environ.setdefault("NPROC", "1")  # threads of JAX's CPU client, read when it is made


def _keep_memory() -> None:
  """What a block has freed serves the next one.

  glibc gives pieces of a megabyte back to the system, which clears their pages each time anew: a quarter of
  a breadcrumbs merge.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(-1, 1 << 28)  # M_TRIM_THRESHOLD
    mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD, the largest there may be


def _keep_programs(folder: str | None) -> None:
  """Turns JAX's persistent cache on, where it can be written; without it a merge is slower, not wrong."""
  own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "merge_jax" / "xla"
  chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(own)) if folder is None else folder
  usable = None
  with contextlib.suppress(OSError, RuntimeError):  # a file in the way, a read-only disk, no home
    path = Path(chosen).expanduser()
    if chosen:
      path.mkdir(parents=True, exist_ok=True)
      usable = str(path) if os.access(path, os.W_OK) else None
  jax.config.update("jax_compilation_cache_dir", usable)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


if __name__ == "__main__":
  _common.run(main, MERGEKIT)
